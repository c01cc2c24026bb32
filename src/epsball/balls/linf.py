"""The max norm: no coordinate moves by more than eps. Ball, box and mask together are one interval per coordinate."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.projections import clipped_sum_root
from epsball.balls.shared import gains_without_box, largest_abs, segment_at_least, sum_before, sum_from
from epsball.common.noise import Noise
from epsball.common.shapes import Batch, PerExample, column, fits, flat


class Linf(Ball):
    """The max-norm ball: no coordinate moves by more than eps. `eps` may also be (1, *shape), one per feature."""

    name = "linf"
    symbol = "L∞"
    rule = "each change ≤ ε"
    traits = frozenset({"dual norm", "intervals"})

    def norm(self, delta: Batch) -> PerExample:
        return largest_abs(flat(delta))

    def _fits_eps(self, eps: Tensor, x: Tensor) -> bool:
        return super()._fits_eps(eps, x) or (eps.ndim == x.ndim > 1 and eps.shape[0] == 1 and fits(eps, x))

    def intervals(self, x: Batch) -> tuple[Batch, Batch]:
        """The least and the greatest value of each coordinate in ball, box and mask."""
        memo: dict[str, Any] = self.__dict__.get("_memo", {})
        if memo.get("x") is not x:
            eps, (lo, hi) = self.radius_like(x).to(x), self._box_like(x)
            low, high = torch.maximum(x - eps, lo), torch.minimum(x + eps, hi)
            ends = self.apply_mask(low, x), self.apply_mask(high, x)
            if not memo:
                return ends
            memo |= {"x": x, "ends": ends}
        return memo["ends"]

    def held(self, x: Batch) -> Self:
        ball = replace(self.bind(x))
        object.__setattr__(ball, "_memo", {"x": None})  # no part of the ball: copies do not have it
        return ball

    def _project(self, z: Batch, x: Batch) -> Batch:
        return z.clamp(*self.intervals(x))

    def _argmax(self, grad: Batch, x: Batch) -> Batch:
        return self.apply_mask(self.clip_(self._signed(grad, 1).add_(x)), x)

    def _dual(self, grads: Batch) -> PerExample:
        return flat(grads).abs().sum(1)

    def _max_gains(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        self.require_box()
        if self._is_same_for_all and isinstance(self.eps, Tensor) and self.eps.ndim > 1:
            return self.dual(grads * self.eps.to(grads)).expand(len(x), -1)
        if self._is_same_for_all:
            return gains_without_box(self, grads, x)
        # Each coordinate has an interval of its own, whatever the direction: two matrix products are all the pairs.
        eps, rows = self.eps if not isinstance(self.eps, Tensor) else self.radius_like(x).to(x), flat(grads)
        up, down = (self.hi - x).clamp_min_(0).clamp_max_(eps), (x - self.lo).clamp_min_(0).clamp_max_(eps)
        if self.mask is not None:
            up, down = torch.where(self.mask, up, 0), torch.where(self.mask, down, 0)
        return torch.addmm(flat(up) @ rows.clamp_min(0).T, flat(down), (-rows).clamp_min(0).T)

    def exact_gain(self, size: np.ndarray, room: np.ndarray, eps: Any) -> tuple[Any, Any]:
        return (size * np.minimum(room, eps)).sum(), 0

    def _min_radius(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        room, order = room.sort(1)
        size = size.gather(1, order)
        return segment_at_least(sum_before(size * room), sum_from(size), room, gain, strict)

    def _shortest_step(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        return torch.minimum(room, clipped_sum_root(size, room, gain), out=room)

    def feature_units(self, like: Batch) -> Tensor | None:
        if not isinstance(self.eps, Tensor) or self.eps.ndim < 2 or (not self._bound and len(self.eps) > 1):
            return None
        eps, tiny = self.eps.to(like), torch.finfo(like.dtype).tiny
        if not self.has_infinite_radius:
            return eps.clamp_min(tiny)
        self.require_box()
        lo, hi = self._box_like(like)
        return torch.where(eps.isinf(), hi - lo, eps).clamp_min(tiny)

    def _signed(self, grad: Batch, size: float | PerExample) -> Batch:
        """size * eps * sign(grad), a new tensor."""
        sign = grad.sign()
        if isinstance(self.eps, Tensor):
            sign *= self._step_length(grad, size)
        elif isinstance(size, Tensor):
            sign *= column(size * self.eps, grad.ndim)
        else:
            sign *= self.eps * size
        if self.has_infinite_radius:
            self.require_box()
            sign.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)  # inf * sign(0)
        return sign

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        return grad.sign()

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        low, high = self.intervals(x)
        if isinstance(self.eps, Tensor) or isinstance(size, Tensor) or self.has_infinite_radius:
            return self._signed(grad, size).add_(z).clamp_(low, high)
        sign = grad.sign()  # the only new memory of a step, whose cost is mostly that of fetching memory
        return torch.add(z, sign, alpha=size * self.eps, out=sign).clamp_(low, high)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        unit = noise.uniform(x.shape[1:], dtype=x.dtype)
        eps = self.radius_like(x).to(x)
        if not self.has_infinite_radius:
            return unit.sub_(0.5).mul_(2 * eps).add_(x)
        self.require_box()
        low, high = self.intervals(x)
        return torch.where(eps.isinf(), low + (high - low) * unit, x + 2 * eps.nan_to_num(posinf=0) * (unit - 0.5))

    def _within(self, delta: Batch, slack: PerExample, x: Batch) -> Bool[Tensor, " n"]:
        return flat(delta.abs() <= self.radius_like(x) + column(slack, x.ndim)).all(1)
