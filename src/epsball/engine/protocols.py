"""Named protocols: lists of attacks, each run on what the ones before it left standing.

`standard` is the list and the budgets of AutoAttack's standard version (Croce and Hein, ICML 2020; in L1 Croce and
Hein, ICML 2021), so that a figure may be reported under that meaning. `fast` is made to give the same verdict sooner;
how it was found, and on which networks, is in docs/protocols.md. `min-norm` is for `evaluate(min_norm=True)`. The
tables are literal and need no torch.
"""

from __future__ import annotations

import re

from epsball.attacks.registry import ALIASES, ATTACKS
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput

CASCADES: dict[str, dict[str, tuple[str, ...]]] = {
    "standard": {
        "linf": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "l2": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "l1": ("l1-apgd:restarts=5", "l1-apgd:loss=dlr,n_targets=5", "fab-t", "square"),
    },
    "fast": {
        "linf": (
            "apgd-ce:early_stop=2",
            "apgd-t:early_stop=2",
            "square:warm_start=true,p=0.1,early_stop=2",
            "square:early_stop=1",
        ),
        "l2": (
            "apgd-ce:early_stop=2",
            "apgd-t:early_stop=2",
            "fab-t:early_stop=2",
            "square:warm_start=true,p=0.1,early_stop=2",
            "square:early_stop=2",
        ),
        "l1": (
            "apgd-ce:early_stop=2",
            "fab-t:early_stop=2",
            "l1-apgd:restarts=5",
            "l1-apgd:loss=dlr,n_targets=5",
            "square:warm_start=true,p=0.1,early_stop=2",
            "square:early_stop=2",
        ),
    },
    "min-norm": {
        "linf": ("fmn:steps=200", "apgd-ce:early_stop=2"),
        "l2": ("fmn:steps=200", "cw", "apgd-ce:early_stop=2"),
        "l1": ("fmn:steps=200", "apgd-ce:early_stop=2"),
        "l0": ("fmn:steps=200", "sigma-zero", "pgd"),
    },
}


def expand(text: str, norm: str) -> tuple[str, ...]:
    """The attacks that a name stands for in balls of a norm: a protocol's, those in worst-of(...), or itself.

    >>> expand("standard", "linf")
    ('apgd-ce', 'apgd-t', 'fab-t', 'square')
    >>> expand("worst-of(fgsm, pgd:steps=100,restarts=2)", "l2")
    ('fgsm', 'pgd:steps=100,restarts=2')
    """
    name = re.split("[:(]", text.strip().lower(), maxsplit=1)[0].strip()
    if name.startswith("worst-of"):
        inside = re.fullmatch(r"worst-of\s*\((.*)\)", text.strip(), re.IGNORECASE | re.DOTALL)
        if inside is None:
            raise BadInput(
                f"`attacks` must name a list as worst-of(A, B, ...), got {text!r}; as in worst-of(pgd, square)"
            )
        return tuple(part for one in _parted(inside[1]) for part in expand(one, norm))
    if check_one_of("attacks", name, (*ATTACKS, *ALIASES, *CASCADES, "worst-of(...)")) not in CASCADES:
        return (text,)
    if name != text.strip().lower():
        raise BadInput(
            f"`attacks`: a protocol takes no options, got {text!r}; name its attacks yourself, as in "
            "worst-of(apgd-ce:steps=50, square)"
        )
    if norm not in CASCADES[name]:
        raise BadInput(
            f"`ball` must be {' or '.join(CASCADES[name])} for {name}, got {norm}: not all of its attacks are defined "
            "there; name attacks yourself, as in worst-of(apgd, pgd:restarts=5)"
        )
    return CASCADES[name][norm]


def _parted(text: str) -> list[str]:
    """A list at its commas, but for those of a list in it; a part KEY=VALUE belongs to the attack before it."""
    split, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            split.append("")
        else:
            split[-1] += sign
    parts: list[str] = []
    for part in filter(None, map(str.strip, split)):
        if "=" in part and ":" not in part and parts:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts
