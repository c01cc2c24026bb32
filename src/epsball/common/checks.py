"""Checks of arguments that recur. Each raises `BadInput` with the argument's name, the rule, the value and a remedy.

`remedy` is the end of the message, after a semicolon: what to write instead, or what the argument means.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from epsball.common.errors import BadInput


def check_whole(name: str, value: Any, least: int, remedy: str = "") -> None:
    """Raise unless `value` is an integer >= `least`.

    >>> check_whole("steps", 2.5, 1)
    Traceback (most recent call last):
    epsball.common.errors.BadInput: `steps` must be a whole number >= 1, got 2.5; as in steps=1
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BadInput(
            f"`{name}` must be a whole number >= {least}, got {value!r}; {remedy or f'as in {name}={least}'}"
        )


def check_whole_or(name: str, value: Any, least: int, word: str) -> None:
    """Raise unless `value` is `word`, or an integer >= `least`.

    >>> check_whole_or("rows", "all", 1, "auto")
    Traceback (most recent call last):
    epsball.common.errors.BadInput: `rows` must be a whole number >= 1 or 'auto', got 'all'; as in rows='auto'
    """
    if value != word and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise BadInput(f"`{name}` must be a whole number >= {least} or {word!r}, got {value!r}; as in {name}={word!r}")


def check_at_least(name: str, value: float, least: float, remedy: str = "") -> None:
    """Raise unless `value` is a finite number >= `least`."""
    _check(least <= value < math.inf, name, f">= {least:g} and finite", value, remedy)


def check_positive(name: str, value: float, remedy: str = "") -> None:
    """Raise unless `value` is a finite number > 0."""
    _check(0 < value < math.inf, name, "> 0 and finite", value, remedy)


def check_between(name: str, value: float, low: float, high: float, remedy: str = "", *, ends: str = "[]") -> None:
    """Raise unless `value` is from `low` to `high`; a round bracket in `ends` leaves that end out.

    >>> check_between("p", 0, 0, 1, "it is a share", ends="(]")
    Traceback (most recent call last):
    epsball.common.errors.BadInput: `p` must be in (0, 1], got 0; it is a share
    """
    inside = low <= value <= high and (ends[0] == "[" or value > low) and (ends[1] == "]" or value < high)
    _check(inside, name, f"in {ends[0]}{low:g}, {high:g}{ends[1]}", value, remedy)


def check_type(name: str, value: Any, kind: type | tuple[type, ...], remedy: str = "") -> None:
    """Raise unless `value` is an instance of `kind`, or of one of them.

    >>> check_type("attack", "pgd", dict, "as in {}")
    Traceback (most recent call last):
    epsball.common.errors.BadInput: `attack` must be of type dict, got str; as in {}
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    rule = f"of type {' or '.join(one.__name__ for one in kinds)}"
    _check(isinstance(value, kinds), name, rule, type(value).__name__, remedy)


def check_callable(name: str, value: Callable[..., Any], remedy: str = "") -> None:
    """Raise unless `value` can be called."""
    _check(callable(value), name, "callable", type(value).__name__, remedy)


def check_distinct(name: str, values: Iterable[Any], remedy: str = "") -> None:
    """Raise if a value occurs twice."""
    values = list(values)
    _check(len(set(values)) == len(values), name, "distinct", values, remedy)


def check_one_of(argument: str, name: str, known: Iterable[str]) -> str:
    """`name`, if it is among `known`; else an error that says which known name is the most like it.

    >>> check_one_of("attack", "pdg", ["fgsm", "pgd"])
    Traceback (most recent call last):
    epsball.common.errors.BadInput: `attack` must be one of fgsm, pgd, got 'pdg'; did you mean 'pgd'?
    """
    known = list(known)
    alike = get_close_matches(str(name), known, n=1, cutoff=0.5)
    _check(
        name in known,
        argument,
        f"one of {', '.join(known)}",
        repr(name),
        f"did you mean {alike[0]!r}?" if alike else "",
    )
    return name


def _check(fine: bool, name: str, rule: str, value: object, remedy: str) -> None:
    if not fine:
        raise BadInput(f"`{name}` must be {rule}, got {value}{f'; {remedy}' if remedy else ''}")
