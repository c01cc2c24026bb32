"""The L1 norm: the projection is soft thresholding with room, the maximiser a fractional knapsack."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.projections import covering_knapsack, fractional_knapsack, shrink_to_l1
from epsball.balls.shared import (
    first_at_least,
    gains_without_box,
    largest_abs,
    project_towards_center,
    scale_to_radius,
    step_with_infinite_radius,
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
        self.require_box()
        size, room = self._size_and_room(grad, x)
        return self._move_by(x, grad, fractional_knapsack(size, room, self._safe_radius(size)))

    def _dual(self, grads: Batch) -> PerExample:
        return largest_abs(flat(grads))

    def _max_gains(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        self.require_box()
        if self._is_same_for_all:
            return gains_without_box(self, grads, x)
        found = x.new_empty(len(x), len(grads))
        budget = self._safe_radius(flat(x))
        for k, grad in enumerate(grads):  # as `fractional_knapsack`, but all rows share the order
            size, order = flat(grad[None]).abs()[0].sort(descending=True, stable=True)
            _, room = self._size_and_room(grad.expand(x.shape), x)
            room = torch.minimum(torch.where(size > 0, room[:, order], 0), budget)
            left = (budget - (room.cumsum(1) - room)).clamp_min(0)
            found[:, k] = torch.minimum(left, room) @ size
        return found

    def exact_gain(self, size: np.ndarray, room: np.ndarray, eps: Any) -> tuple[Any, Any]:
        room = np.minimum(room, eps)
        gain, left = 0, min(eps, room.sum())
        for slope, length in sorted(zip(size, room, strict=True), reverse=True):
            spent = min(length, left)
            gain, left = gain + slope * spent, left - spent
        return gain, 0

    def _min_radius(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        size, order = size.sort(1, descending=True)
        room = room.gather(1, order)
        before, spent = sum_before(size * room), sum_before(room)
        place, reached = first_at_least(before + size * room, gain, strict)
        return (spent + (gain - before) / size).gather(1, place)[:, 0], reached

    def _shortest_step(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        return covering_knapsack(size, room, gain)

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        rows = flat(grad)
        place = rows.abs().argmax(1, keepdim=True)
        return torch.zeros_like(rows).scatter(1, place, rows.gather(1, place).sign()).reshape(grad.shape)

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        if self.has_infinite_radius:
            return step_with_infinite_radius(self, grad, z, x, size)
        # The length is measured by the whole gradient: the largest free coordinate jumps when rounding frees one.
        dual = column(largest_abs(flat(grad)).clamp_min(torch.finfo(grad.dtype).tiny), z.ndim)
        return self._project(z + grad / dual * self._step_length(z, size), x)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        self.require_box()
        d = math.prod(x.shape[1:])
        size = noise.exponential((d + 1,)).to(x.dtype)
        sign = noise.sign((d,), draw=1).to(x.dtype)
        return scale_to_radius(self, x, noise, sign * (size / size.sum(1, keepdim=True))[:, :d])
