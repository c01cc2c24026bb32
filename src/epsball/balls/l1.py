"""The L1 norm: the projection is soft thresholding with room, the maximiser a fractional knapsack."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.projections import cover, knapsack, shrink_to_l1
from epsball.balls.shared import (
    first_reached,
    gains_everywhere,
    greatest,
    project_towards_center,
    scattered,
    step_to_the_end,
    sum_before,
)
from epsball.common.noise import Noise
from epsball.common.shapes import Batch, PerExample, column, flat


class L1(Ball):
    """The L1 ball: its maximiser spends eps where the gradient is largest and the box has room."""

    name = "l1"
    symbol = "L1"
    rule = "sum of changes ≤ ε"
    traits = frozenset({"dual norm", "sparse"})

    def norm(self, delta: Batch) -> PerExample:
        return flat(delta).abs().sum(1)

    def _project(self, z: Batch, x: Batch) -> Batch:
        return project_towards_center(self, z, x, shrink_to_l1)

    def _argmax(self, grad: Batch, x: Batch) -> Batch:
        self._need_box()
        size, room = self._orthant(grad, x)
        return self._moved(x, grad, knapsack(size, room, self._reach(size)))

    def _dual(self, grads: Batch) -> PerExample:
        return greatest(flat(grads))

    def _max_gains(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        self._need_box()
        if self._is_free():
            return gains_everywhere(self, grads, x)
        found = x.new_empty(len(x), len(grads))
        budget = self._reach(flat(x))
        for k, grad in enumerate(grads):  # as `knapsack`, but all rows share the order
            size, order = flat(grad[None]).abs()[0].sort(descending=True, stable=True)
            _, room = self._orthant(grad.expand(x.shape), x)
            room = torch.minimum(torch.where(size > 0, room[:, order], 0), budget)
            left = (budget - (room.cumsum(1) - room)).clamp_min(0)
            found[:, k] = torch.minimum(left, room) @ size
        return found

    def _cheapest(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        size, order = size.sort(1, descending=True)
        room = room.gather(1, order)
        before, spent = sum_before(size * room), sum_before(room)
        place, reached = first_reached(before + size * room, gain, strict)
        return (spent + (gain - before) / size).gather(1, place)[:, 0], reached

    def _least(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        return cover(size, room, gain)

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        rows = flat(grad)
        place = rows.abs().argmax(1, keepdim=True)
        return torch.zeros_like(rows).scatter(1, place, rows.gather(1, place).sign()).reshape(grad.shape)

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        if self._endless():
            return step_to_the_end(self, grad, z, x, size)
        # Measured by the whole gradient: its greatest open coordinate jumps when rounding opens one.
        dual = column(greatest(flat(grad)).clamp_min(torch.finfo(grad.dtype).tiny), z.ndim)
        return self._project(z + grad / dual * self._length(z, size), x)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        self._need_box()
        d = math.prod(x.shape[1:])
        size = noise.exponential((d + 1,)).to(x.dtype)
        sign = noise.sign((d,), draw=1).to(x.dtype)
        return scattered(self, x, noise, sign * (size / size.sum(1, keepdim=True))[:, :d])
