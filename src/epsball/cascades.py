"""Named protocols: lists of attacks, each run on what the ones before it left standing.

`standard` is the list and the budgets of AutoAttack's standard version (Croce and Hein, ICML 2020; in L1 Croce and
Hein, ICML 2021), so that a figure may be reported under that meaning. `fast` is made to give the same verdict sooner;
how it was found, and on which networks, is in docs/protocols.md. The tables are literal and need no torch.
"""

from __future__ import annotations

from epsball.errors import BadInput

CASCADES: dict[str, dict[str, tuple[str, ...]]] = {
    "standard": {
        "linf": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "l2": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "l1": ("l1-apgd:starts=5", "l1-apgd:loss=dlr,aims=5", "fab-t", "square"),
    },
    "fast": {
        "linf": ("apgd-ce:hope=2", "apgd-t:hope=2", "square:onward=true,p=0.1,hope=2"),
        "l2": ("apgd-ce:hope=2", "apgd-t:hope=2", "square:onward=true,p=0.1,hope=2"),
        "l1": ("apgd-ce:hope=2", "l1-apgd", "l1-apgd:loss=dlr,aims=5", "square:onward=true,p=0.1,hope=2"),
    },
}


def expand(text: str, norm: str) -> tuple[str, ...]:
    """The attacks that a name stands for in balls of a norm: a protocol's, those in worst-of(...), or itself.

    >>> expand("standard", "linf")
    ('apgd-ce', 'apgd-t', 'fab-t', 'square')
    >>> expand("worst-of(fgsm, pgd:steps=100,starts=2)", "l2")
    ('fgsm', 'pgd:steps=100,starts=2')
    """
    name = text.strip().lower()
    if name.startswith("worst-of"):
        if not (name.startswith("worst-of(") and name.endswith(")")):
            raise BadInput(
                f"`attacks` must name a list as worst-of(A, B, ...), got {text!r}; as in worst-of(pgd, square)"
            )
        inside = text.strip()[len("worst-of(") : -1]
        return tuple(part for one in _parted(inside) for part in expand(one, norm))
    if name not in CASCADES:
        return (text,)
    if norm not in CASCADES[name]:
        raise BadInput(
            f"`ball` must be {' or '.join(CASCADES[name])} for {name}, got {norm}: not all of its attacks are defined "
            "there; name attacks yourself, as in worst-of(apgd, pgd:starts=5)"
        )
    return CASCADES[name][norm]


def _parted(text: str) -> list[str]:
    """A list at its commas; a part that is KEY=VALUE goes on with the options of the attack before it."""
    parts: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if "=" in part and ":" not in part and parts:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts
