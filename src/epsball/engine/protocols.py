"""Named protocols: lists of attacks, each run on the examples that are still robust.

`standard` is the list and the budgets of AutoAttack's standard version (Croce and Hein, ICML 2020; in L1 Croce and
Hein, ICML 2021), so that a figure may be reported under that meaning. `fast` gives the same results in less time; how
it was found, and on which networks, is in docs/protocols.md. `min-norm` is for `evaluate(min_norm=True)`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from epsball.attacks.registry import ALIASES, ATTACKS
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput

if TYPE_CHECKING:  # the tables need no torch
    from epsball.balls.ball import Ball, Trait

CASCADES: dict[str, dict[Trait, tuple[str, ...]]] = {
    "standard": {
        "intervals": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "euclidean": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "sparse": ("l1-apgd:restarts=5", "l1-apgd:loss=dlr,n_targets=5", "fab-t", "square"),
    },
    "fast": {
        "intervals": (
            "apgd-ce:early_stop=2",
            "apgd-t:early_stop=2",
            "square:warm_start=true,p=0.1,early_stop=2",
            "square:early_stop=1",
        ),
        "euclidean": (
            "apgd-ce:early_stop=2",
            "apgd-t:early_stop=2",
            "fab-t:early_stop=2",
            "square:warm_start=true,p=0.1,early_stop=2",
            "square:early_stop=2",
        ),
        "sparse": (
            "apgd-ce:early_stop=2",
            "fab-t:early_stop=2",
            "l1-apgd:restarts=5",
            "l1-apgd:loss=dlr,n_targets=5",
            "square:warm_start=true,p=0.1,early_stop=2",
            "square:early_stop=2",
        ),
    },
    "min-norm": {
        "count": ("fmn:steps=200", "sigma-zero", "pgd"),
        "euclidean": ("fmn:steps=200", "cw", "apgd-ce:early_stop=2"),
        "dual norm": ("fmn:steps=200", "apgd-ce:early_stop=2"),
    },
}
"""By protocol, the attacks in balls with a trait; the first trait that a ball has decides."""


def by_norm(name: str) -> dict[str, tuple[str, ...]]:
    """A protocol's attacks in each norm that it is defined in.

    >>> by_norm("min-norm")["l2"]
    ('fmn:steps=200', 'cw', 'apgd-ce:early_stop=2')
    """
    from epsball.balls.registry import BALLS

    return {norm: attacks for norm, ball in BALLS.items() if (attacks := ball.choose(CASCADES[name]))}


def expand(text: str, ball: Ball | type[Ball]) -> tuple[str, ...]:
    """The attacks that a name stands for in such balls: a protocol's, those in worst-of(...), or itself.

    >>> from epsball.balls.registry import BALLS
    >>> expand("standard", BALLS["linf"])
    ('apgd-ce', 'apgd-t', 'fab-t', 'square')
    >>> expand("worst-of(fgsm, pgd:steps=100,restarts=2)", BALLS["l2"])
    ('fgsm', 'pgd:steps=100,restarts=2')
    """
    name = re.split("[:(]", text.strip().lower(), maxsplit=1)[0].strip()
    if name.startswith("worst-of"):
        inside = re.fullmatch(r"worst-of\s*\((.*)\)", text.strip(), re.IGNORECASE | re.DOTALL)
        if inside is None:
            raise BadInput(
                f"`attacks` must name a list as worst-of(A, B, ...), got {text!r}; as in worst-of(pgd, square)"
            )
        return tuple(part for one in _parted(inside[1]) for part in expand(one, ball))
    if check_one_of("attacks", name, (*ATTACKS, *ALIASES, *CASCADES, "worst-of(...)")) not in CASCADES:
        return (text,)
    if name != text.strip().lower():
        raise BadInput(
            f"`attacks`: a protocol takes no options, got {text!r}; name its attacks yourself, as in "
            "worst-of(apgd-ce:steps=50, square)"
        )
    attacks = ball.choose(CASCADES[name])
    if attacks is None:
        raise BadInput(
            f"`ball` must be {' or '.join(by_norm(name))} for {name}, got {ball.name}: not all of its attacks are "
            "defined there; name attacks yourself, as in worst-of(apgd, pgd:restarts=5)"
        )
    return attacks


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
