"""Where an attack that sees labels only starts: points that are likely to be of another class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.common.shapes import column, finite, flat
from epsball.problem.task import AWAY, Task

TRIED = 8
"""The references that are tried for an example, the nearest ones of the class that is wanted."""


@dataclass(frozen=True, eq=False)
class References:
    """Points whose class is known: `x` (k, *shape) in the box of the data, `y` (k,) their labels.

    Raises `BadInput` where there are none, or not one label for each.
    """

    x: Float[Tensor, "k *shape"]
    y: Int64[Tensor, " k"]

    def __post_init__(self) -> None:
        if not len(self.x) or self.y.shape != self.x.shape[:1] or self.y.is_floating_point():
            raise BadInput(
                f"`references` must be points (k, *shape) with labels (k,), k >= 1, got {tuple(self.x.shape)} and "
                f"{tuple(self.y.shape)} {self.y.dtype}; as in References(train.x[:1000], train.y[:1000])"
            )


def in_order(task: Task, references: References | None) -> Int64[Tensor, "n k"]:
    """For each row the places of the nearest references, by the ball's norm, whose class is wanted; -1: no more."""
    if references is None:
        return task.y.new_empty(len(task.y), 0)
    if references.x.shape[1:] != task.x.shape[1:]:
        raise BadInput(
            f"`references` must have examples of shape {tuple(task.x.shape[1:])}, got {tuple(references.x.shape[1:])}"
        )
    x, y = references.x.to(task.x), references.y.to(task.y)
    wanted = torch.where(task.target[:, None] == AWAY, y != task.y[:, None], y == task.target[:, None])
    far = torch.stack([task.ball.rows(row[None]).distance(x, task.x[row, None]) for row in _each(task)])
    far = torch.where(wanted, far, torch.inf)
    order = far.argsort(dim=1, stable=True)[:, :TRIED]
    return torch.where(far.gather(1, order).isfinite(), order, -1)


def _each(task: Task) -> Tensor:
    return torch.arange(len(task.y), device=task.x.device)


def candidates(
    task: Task,
    count: Int64[Tensor, " n"],
    near: Float[Tensor, "n *shape"] | None,
    references: References | None,
    order: Int64[Tensor, "n k"],
) -> Float[Tensor, "n *shape"]:
    """The `count`-th point to start from: `near` where it is another one than x, the references in order, noise."""
    x = task.x
    known = torch.zeros_like(count) if near is None else flat(near != x).any(1).long()
    place = count - known
    rest = place - (order >= 0).sum(1)
    z = _noise(task, rest.clamp_min(0))
    if references is not None and order.shape[1] and bool(((place >= 0) & (rest < 0)).any()):
        at = order.gather(1, place.clamp(0, order.shape[1] - 1)[:, None]).squeeze(1).clamp_min(0)
        there = task.ball.clip(references.x.to(x)[at.to(references.x.device)].to(x.device))
        z = torch.where(column((place >= 0) & (rest < 0), x.ndim), there, z)
    if near is not None:
        z = torch.where(column(place < 0, x.ndim), near, z)
    return z if task.ball.mask is None else torch.where(task.ball.mask, z, x)


def _noise(task: Task, turn: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    """Anywhere in the box, by turns uniform, random ends, one level for all coordinates, random ends of one kind most.

    Uniform noise alone looks to a network like one class, and does not reach the corners in which a linear model of few
    coordinates has its other one. Without a box, Gaussian noise that grows.
    """
    x, ball, noise = task.x, task.ball, task.noise
    if not (finite(ball.lo) and finite(ball.hi)):
        scale = column(2.0 ** (turn.clamp_max(40) / 2) * (1 + flat(x).abs().amax(1)), x.ndim)
        return ball.clip((x + noise.normal(x.shape[1:], step=turn) * scale).to(x.dtype))
    lo, hi = (torch.as_tensor(side).to(x) for side in (ball.lo, ball.hi))
    each = noise.uniform(x.shape[1:], step=turn, dtype=x.dtype)
    level = column(noise.uniform((1,), step=turn, draw=1, dtype=x.dtype), x.ndim)
    kind = column(turn % 4, x.ndim)
    ends = (each < torch.where(kind == 1, 0.5, level)).to(x)
    return lo + (hi - lo) * torch.where(kind == 0, each, torch.where(kind == 2, level, ends))
