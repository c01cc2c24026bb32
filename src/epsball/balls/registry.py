"""The balls by name, and the short form NORM:RADIUS of the command line."""

from __future__ import annotations

import math

from epsball.balls.ball import Ball
from epsball.balls.l0 import L0
from epsball.balls.l1 import L1
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf
from epsball.common.errors import BadInput

BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}


def parse(text: str, *, lo: float = -math.inf, hi: float = math.inf) -> Ball:
    """A ball from its short form NORM:RADIUS, as on the command line; the radius may be a fraction.

    >>> parse("linf:8/255", lo=0, hi=1)
    Linf(eps=0.03137254901960784, lo=0, hi=1, mask=None)
    """
    name, colon, radius = text.strip().lower().partition(":")
    if name not in BALLS or not colon:
        raise BadInput(
            f"`ball` must be one of {', '.join(BALLS)}, a colon and a radius, got {text!r}; as in linf:8/255"
        )
    return BALLS[name](eps=parse_radius(radius), lo=lo, hi=hi)


def parse_radius(text: str) -> float:
    """A radius written as a number or a fraction.

    >>> parse_radius("8/255")
    0.03137254901960784
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError) as error:
        raise BadInput(f"`eps` must be a number or a fraction such as 8/255, got {text!r}") from error
