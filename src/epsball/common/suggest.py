"""One rule for names out of a table: an unknown one is refused with the nearest known."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from epsball.common.errors import BadInput


def one_of(argument: str, name: str, known: Iterable[str]) -> str:
    """`name`, if it is among `known`.

    >>> one_of("attack", "pdg", ["fgsm", "pgd"])
    Traceback (most recent call last):
    epsball.common.errors.BadInput: `attack` must be one of fgsm, pgd, got 'pdg'; did you mean 'pgd'?
    """
    known = list(known)
    if name in known:
        return name
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise BadInput(f"`{argument}` must be one of {', '.join(known)}, got {name!r}{hint}")
