"""A ball in the box and the units of the data."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.registry import ball_of
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.data.lazy_examples import LazyExamples

BEYOND = 2
"""A finite radius of so many diameters of the data's box is one in the units that the values had before division."""


def ball_for(ball: Ball | str, data: Examples | LazyExamples) -> Ball:
    """What a caller hands over as `ball`, in the box of the data on each side where it has none of its own.

    Raises `BadInput` where the values were divided when they were read (8-bit images by 255) and the ball is in their
    old units.

    >>> from epsball.data.arrays import from_arrays
    >>> ball_for("linf:8/255", from_arrays([[0.5]], [0], lo=0, hi=1))
    Linf(eps=0.03137254901960784, lo=0.0, hi=1.0, mask=None)
    """
    ball = ball_of(ball)
    own = {side: getattr(ball, side) for side in ("lo", "hi")}
    box = {
        side: end
        for side, end in (("lo", data.lo), ("hi", data.hi))
        if not isinstance(own[side], Tensor) and math.isinf(own[side]) and math.isfinite(end)
    }
    ball = replace(ball, **box, _bound=False) if box else ball
    check_scale(ball, data)
    return ball


def check_scale(ball: Ball, data: Examples | LazyExamples) -> None:
    """Raise `BadInput` where the values of `data` were divided by its `scale`, and the ball's eps or box were not."""
    if data.scale == 1 or not len(data):
        return
    scale = f"{data.scale:g}"
    hi = torch.as_tensor(ball.hi, dtype=torch.float64)
    # the middle between the box after and before division
    if bool((hi[hi.isfinite()] > data.hi * data.scale / 2).any()):
        raise BadInput(
            f"`ball` must be in the units of x, in [{data.lo:g}, {data.hi:g}] divided by {scale}, "
            f"got hi={float(hi.max()):g}; write eps / {scale}, lo={data.lo:g} and hi={data.hi:g}, or, for a "
            f"model that takes 0 to {scale}, hand over x * {scale} as floating point"
        )
    if "count" in ball.traits or not math.isfinite(data.hi - data.lo):
        return
    eps = torch.as_tensor(ball.eps, dtype=torch.float64)
    diameter = ball.norm(torch.full((1, *data.shape), data.hi - data.lo, dtype=torch.float64)).item()
    if bool((eps[eps.isfinite()] >= BEYOND * diameter).any()):
        largest = float(eps[eps.isfinite()].max())
        raise BadInput(
            f"`eps` must be in the units of x, in [{data.lo:g}, {data.hi:g}] since its values were divided by {scale}, "
            f"got {largest:g}, twice the diameter of that box or more; write {largest:g}/{scale}, or inf "
            "for no bound"
        )
