"""What several norms share: gains of shared directions, and the breakpoints of piecewise linear gains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.noise import Noise
from epsball.common.shapes import Batch, PerExample, column, flat


def gains_everywhere(ball: Ball, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
    """The gains where the same set is around every point: radius times dual norm."""
    dual = ball.dual(grads)
    return (ball._radius(flat(x)).to(x) * dual).expand(len(x), len(dual))


def gains_each(
    ball: Ball, grads: Batch, x: Batch, gain: Callable[[Tensor, Tensor], PerExample]
) -> Float[Tensor, "n k"]:
    """The gains, one direction after the other: each `gain`(size, room)."""
    found = x.new_empty(len(x), len(grads))
    for k, grad in enumerate(grads):
        size, room = ball._orthant(grad.expand(x.shape), x)
        found[:, k] = gain(size, room)
    return found


def sum_before(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The sum of what comes earlier in the row."""
    return torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1].cumsum(1)], 1)


def sum_from_here(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The sum of this one and what comes later in the row."""
    return rows.flip(1).cumsum(1).flip(1)


def first_reached(value: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor) -> tuple[Tensor, Tensor]:
    """The first place (n, 1) where the rising values have the gain, and whether there is one (n,)."""
    enough = torch.where(strict, value > gain, value >= gain)
    return enough.byte().argmax(1, keepdim=True), enough.any(1)


def segment_reached(
    filled: Float[Tensor, "n d"],
    slope: Float[Tensor, "n d"],
    ends: Float[Tensor, "n d"],
    gain: Float[Tensor, "n 1"],
    strict: Tensor,
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Where `filled` + `slope` * t, one line up to each of the rising `ends`, has the gain; and whether it does."""
    place, reached = first_reached(filled + slope * ends, gain, strict)
    return ((gain - filled) / slope).gather(1, place)[:, 0], reached


def greatest(rows: Float[Tensor, "n d"]) -> PerExample:
    return rows.abs().amax(1)


def project_towards_center(
    ball: Ball, z: Batch, x: Batch, shorten: Callable[[Tensor, Tensor, Tensor], Float[Tensor, "n d"]]
) -> Batch:
    """z where ball and box hold it; elsewhere x moved towards z by `shorten`(|z - x|, room, radius)."""
    clipped = ball._masked(ball._clip(z), x)
    distance = ball.norm(clipped.double() - x.double())
    fits = distance <= ball._radius(distance)
    if bool(fits.all()):
        return clipped
    size, room = ball._orthant(z - x, x)
    near = ball._moved(x, z - x, shorten(size, room, ball._reach(size)))
    return torch.where(column(fits, x.ndim), clipped, near)


def step_to_the_end(ball: Ball, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
    """A step of a ball with infinite radii: those rows go to the maximiser over the box, the others as ever."""
    far = ball._argmax(grad, x)
    if not isinstance(ball.eps, Tensor):
        return far
    near = replace(ball, eps=ball.eps.nan_to_num(posinf=0))._step(grad, z, x, size)
    return torch.where(column(ball.eps.isinf(), x.ndim), far, near)


def scattered(ball: Ball, x: Batch, noise: Noise, unit: Float[Tensor, "n d"]) -> Batch:
    """x moved by eps times a draw from the unit ball; where eps is infinite, a uniform draw of the box."""
    radius = ball._radius(x).to(x)
    unit = unit.reshape(x.shape)
    if not ball._endless():
        return x + radius * unit
    lo, hi = ball._sides(x)
    anywhere = lo + (hi - lo) * noise.uniform(x.shape[1:], draw=2, dtype=x.dtype)
    return torch.where(radius.isinf(), anywhere, x + radius.nan_to_num(posinf=0) * unit)
