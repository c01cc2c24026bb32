"""Checks of arguments that recur, each an error with the name, the rule, the value and the remedy."""

from __future__ import annotations

import math

from epsball.common.errors import BadInput


def whole(name: str, value: int, least: int) -> None:
    """Raise `BadInput` unless `value` is an integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadInput(f"`{name}` must be a whole number, got {value!r}; write {name}={least} or more")
    if value < least:
        raise BadInput(f"`{name}` must be >= {least}, got {value}")


def at_least(name: str, value: float, least: float) -> None:
    """Raise `BadInput` unless `value` is a finite number >= `least`."""
    if not least <= value < math.inf:
        raise BadInput(f"`{name}` must be >= {least} and finite, got {value}")
