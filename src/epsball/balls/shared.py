"""What several norms share: gains of shared directions, breakpoints of piecewise linear gains, projection, sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.noise import Noise
from epsball.common.shapes import Batch, PerExample, column, flat


def largest_abs(rows: Float[Tensor, "n d"]) -> PerExample:
    """The largest absolute value of each row."""
    return rows.abs().amax(1)


def gains_without_box(ball: Ball, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
    """The gains where the region is the same around every point: radius times dual norm."""
    dual = ball.dual(grads)
    return (ball.radius_like(flat(x)).to(x) * dual).expand(len(x), len(dual))


def gains_one_by_one(
    ball: Ball, grads: Batch, x: Batch, gain: Callable[[Tensor, Tensor], PerExample]
) -> Float[Tensor, "n k"]:
    """The gains, one direction after the other: each `gain`(size, room)."""
    return torch.stack([gain(*ball._size_and_room(grad.expand(x.shape), x)) for grad in grads], 1)


def sum_before(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The sum of what comes earlier in the row."""
    return torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1].cumsum(1)], 1)


def sum_from(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The sum of this entry and what comes later in the row."""
    return rows.flip(1).cumsum(1).flip(1)


def first_at_least(value: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor) -> tuple[Tensor, Tensor]:
    """The first place (n, 1) where rising values reach the gain (`strict`: exceed it), and whether one does (n,)."""
    enough = torch.where(strict, value > gain, value >= gain)
    return enough.byte().argmax(1, keepdim=True), enough.any(1)


def segment_at_least(
    filled: Float[Tensor, "n d"],
    slope: Float[Tensor, "n d"],
    ends: Float[Tensor, "n d"],
    gain: Float[Tensor, "n 1"],
    strict: Tensor,
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Where a piecewise linear function reaches the gain, and whether it does.

    Up to each of the rising `ends` the function is `filled` + `slope` * t.
    """
    place, reached = first_at_least(filled + slope * ends, gain, strict)
    return ((gain - filled) / slope).gather(1, place)[:, 0], reached


def project_towards_center(
    ball: Ball, z: Batch, x: Batch, shorten: Callable[[Tensor, Tensor, Tensor], Float[Tensor, "n d"]]
) -> Batch:
    """z, clipped, where that is in the ball; elsewhere x moved towards z by `shorten`(|z - x|, room, radius)."""
    clipped = ball.apply_mask(ball.clip(z), x)
    distance = ball.norm(clipped.double() - x.double())
    inside = distance <= ball.radius_like(distance)
    if bool(inside.all()):
        return clipped
    size, room = ball._size_and_room(z - x, x)
    nearest = ball._move_by(x, z - x, shorten(size, room, ball._safe_radius(size)))
    return torch.where(column(inside, x.ndim), clipped, nearest)


def step_with_infinite_radius(ball: Ball, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
    """A step of a ball with infinite radii: those rows go to the maximiser over the box, the others step as usual."""
    maximiser = ball._argmax(grad, x)
    if not isinstance(ball.eps, Tensor):
        return maximiser
    stepped = replace(ball, eps=ball.eps.nan_to_num(posinf=0))._step(grad, z, x, size)
    return torch.where(column(ball.eps.isinf(), x.ndim), maximiser, stepped)


def scale_to_radius(ball: Ball, x: Batch, noise: Noise, unit: Float[Tensor, "n d"]) -> Batch:
    """x moved by eps times a draw from the unit ball; where eps is infinite, a uniform draw from the box."""
    radius = ball.radius_like(x).to(x)
    unit = unit.reshape(x.shape)
    if not ball.has_infinite_radius:
        return x + radius * unit
    lo, hi = ball._box_like(x)
    in_box = lo + (hi - lo) * noise.uniform(x.shape[1:], draw=2, dtype=x.dtype)
    return torch.where(radius.isinf(), in_box, x + radius.nan_to_num(posinf=0) * unit)
