"""The balls by name, and the short form NORM:RADIUS of the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib import import_module

from epsball.balls.ball import Ball
from epsball.balls.radius import parse_radius
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.lazy import names_in

_CLASSES: list[type[Ball]] = [getattr(import_module(file), name) for name, file in names_in("epsball.balls").items()]
BALLS: dict[str, type[Ball]] = {cls.name: cls for cls in _CLASSES}
"""The balls by the names of their norms: the lines of `balls/__init__.pyi`, and what a user adds."""


def distances(names: Iterable[str] | None = None) -> dict[str, Ball]:
    """A ball of each norm to measure distances with, all that are registered or those that are named.

    >>> import torch
    >>> distances(["l1"])["l1"].norm(torch.tensor([[3.0, -4.0]]))
    tensor([7.])
    """
    known = BALLS if names is None else [check_one_of("norm", name, BALLS) for name in names]
    return {name: BALLS[name](eps=0, lo=0, hi=0) for name in known}


def ball_of(ball: object) -> Ball:
    """What a caller hands over as `ball`: a ball, or its short form NORM:RADIUS, which has no box.

    >>> ball_of("l2:0.5")
    L2(eps=0.5, lo=-inf, hi=inf, mask=None)
    """
    if isinstance(ball, Ball):
        return ball
    if isinstance(ball, str):
        return parse(ball)
    if isinstance(ball, type) and issubclass(ball, Ball):
        raise BadInput(f"`ball` must have a radius, got the class {ball.__name__}; write {ball.__name__}(eps=0.1)")
    like_y = hasattr(ball, "__len__")
    raise BadInput(
        f"`ball` must be a ball such as Linf(eps=0.1), or text such as 'linf:8/255', got {type(ball).__name__}"
        + ("; where that is y, x and y are one argument: evaluate(model, (x, y), ball)" if like_y else "")
    )


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
