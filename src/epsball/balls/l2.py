"""The Euclidean norm: projection and maximiser are min(mu * size, room), with mu found exactly."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.projections import clipped_sum_root, scale_to_l2
from epsball.balls.shared import (
    gains_one_by_one,
    gains_without_box,
    largest_abs,
    project_towards_center,
    scale_to_radius,
    segment_at_least,
    step_with_infinite_radius,
    sum_before,
    sum_from,
)
from epsball.common.noise import Noise
from epsball.common.shapes import Batch, PerExample, column, flat


class L2(Ball):
    """The Euclidean ball."""

    name = "l2"
    symbol = "L2"
    rule = "Euclidean length ≤ ε"
    traits = frozenset({"dual norm", "euclidean"})

    def norm(self, delta: Batch) -> PerExample:
        return torch.linalg.vector_norm(flat(delta), dim=1)

    def _project(self, z: Batch, x: Batch) -> Batch:
        return project_towards_center(
            self, z, x, lambda size, room, radius: torch.minimum(scale_to_l2(size, room, radius), size)
        )

    def _argmax(self, grad: Batch, x: Batch) -> Batch:
        self.require_box()
        size, room = self._size_and_room(grad, x)
        return self._move_by(x, grad, scale_to_l2(size, room, self._safe_radius(size)))

    def _dual(self, grads: Batch) -> PerExample:
        return torch.linalg.vector_norm(flat(grads), dim=1)

    def _max_gains(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        self.require_box()
        if self._is_same_for_all:
            return gains_without_box(self, grads, x)
        return gains_one_by_one(
            self, grads, x, lambda size, room: (size * scale_to_l2(size, room, self._safe_radius(size))).sum(1)
        )

    def exact_gain(self, size: np.ndarray, room: np.ndarray, eps: Any) -> tuple[Any, Any]:
        size, room = size[size > 0], np.minimum(room, eps)[size > 0]
        gain, left, free = 0, eps * eps, (size * size).sum()
        if (room * room).sum() <= left:
            return (size * room).sum(), 0
        # The coordinates whose room ends first are saturated, as long as the multiplier sqrt(left / free) exceeds them.
        for length, slope in sorted(zip(room, size, strict=True), key=lambda pair: Fraction(pair[0]) / pair[1]):
            if left * slope * slope <= length * length * free:
                break
            gain, left, free = gain + slope * length, left - length * length, free - slope * slope
        return gain, left * free

    def _min_radius(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        # The best point is min(mu * size, room); its gain is piecewise linear in mu, and its norm is the radius.
        scale = size.amax(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)  # squares may underflow
        size, gain = size / scale, gain / scale
        full, order = torch.where(size > 0, room / size, 0).sort(1)
        sizes = size.gather(1, order)
        mu, reached = segment_at_least(
            sum_before(sizes * room.gather(1, order)), sum_from(sizes.square()), full, gain, strict
        )
        return torch.linalg.vector_norm(torch.minimum(mu[:, None] * size, room), dim=1), reached

    def _shortest_step(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        tiny = torch.finfo(size.dtype).tiny
        scale = size.amax(1, keepdim=True).clamp_min_(tiny)  # squares may underflow
        size /= scale
        full = size.clamp_min(tiny)
        share = clipped_sum_root(size.square(), torch.div(room, full, out=full), gain / scale)
        return torch.minimum(size.mul_(share), room, out=size)

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        tiny = torch.finfo(grad.dtype).tiny
        rows = flat(grad)
        rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(tiny)
        return (rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(tiny)).reshape(grad.shape)

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        # The whole gradient, so that the projection leaves blocked coordinates at the end of the box; its length is
        # that of the free part, so that blocked coordinates do not use up the step.
        if self.has_infinite_radius:
            return step_with_infinite_radius(self, grad, z, x, size)
        grad = grad / column(largest_abs(flat(grad)).clamp_min(torch.finfo(grad.dtype).tiny), z.ndim)
        length = column(self.norm(self.free_gradient(grad, z)), z.ndim)
        return self._project(z + grad * torch.where(length > 0, self._step_length(z, size) / length, 0), x)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        self.require_box()
        d = math.prod(x.shape[1:])
        direction = flat(noise.normal(x.shape[1:]).to(x.dtype))
        length = noise.uniform((1,), draw=1).to(x.dtype) ** (1 / d)
        unit = direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True) * length
        return scale_to_radius(self, x, noise, unit)
