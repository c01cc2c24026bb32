"""The number of coordinates that change, in a finite box: the eps coordinates that gain most change."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.projections import mask_of_largest
from epsball.balls.shared import first_at_least, gains_one_by_one, largest_abs
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.shapes import Batch, PerExample, column, finite, flat, shown


class L0(Ball):
    """At most floor(eps) coordinates change, anywhere in the box, which must be finite. Coordinates, not pixels."""

    name = "l0"
    symbol = "L0"
    rule = "≤ ε values changed"
    unit = "coordinates"
    traits = frozenset({"count"})

    def _check_parts(self) -> None:
        super()._check_parts()
        if not (finite(self.lo) and finite(self.hi)):
            raise BadInput(
                f"`lo` and `hi` must be finite in L0, got [{shown(self.lo)}, {shown(self.hi)}]: a coordinate may go "
                "anywhere in the box; write for example L0(eps=10, lo=0, hi=1)"
            )

    def norm(self, delta: Batch) -> PerExample:
        return (flat(delta) != 0).sum(1).to(torch.promote_types(delta.dtype, torch.float32))

    def _count(self, x: Batch) -> Float[Tensor, "n 1"]:
        return column(self.radius_like(flat(x)[:, 0]), 2).floor().expand(len(x), 1)

    def _project(self, z: Batch, x: Batch) -> Batch:
        inside = self.apply_mask(self.clip(z), x)
        moved, left = (z.double() - x.double()).square(), (z.double() - inside.double()).square()
        saved = flat(moved - left)
        return torch.where(mask_of_largest(saved, self._count(x)).reshape(x.shape), inside, x)

    def _argmax(self, grad: Batch, x: Batch) -> Batch:
        size, room = self._size_and_room(grad, x)
        return self._move_by(x, grad, torch.where(mask_of_largest(size * room, self._count(x)), room, 0))

    def _dual(self, grads: Batch) -> PerExample:
        lo, hi = (torch.as_tensor(side).to(grads) for side in (self.lo, self.hi))
        width = hi - lo
        return largest_abs(flat(grads * (width.amax(0) if width.ndim else width)))

    def _max_gains(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        count = self._count(flat(x))
        most = int(count.clamp_max(flat(x).shape[1]).max()) if len(x) else 0
        place = torch.arange(most, device=x.device)

        def gain(size: Tensor, room: Tensor) -> PerExample:
            return torch.where(place < count, (size * room).topk(most, 1).values, 0).sum(1)

        return gains_one_by_one(self, grads, x, gain)

    def exact_gain(self, size: np.ndarray, room: np.ndarray, eps: Any) -> tuple[Any, Any]:
        return sum(sorted(size * room, reverse=True)[: math.floor(min(eps, len(size)))]), 0

    def _min_radius(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        place, reached = first_at_least((size * room).sort(1, descending=True).values.cumsum(1), gain, strict)
        return (place[:, 0] + 1).to(size), reached

    def _shortest_step(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        worth, order = (size * room).sort(dim=1, descending=True, stable=True)
        share = ((gain - worth.cumsum(1) + worth) / worth).nan_to_num_(nan=0.0).clamp_(0, 1)
        return torch.empty_like(room).scatter_(1, order, share).mul_(room)

    def _within(self, delta: Batch, slack: PerExample, x: Batch) -> Bool[Tensor, " n"]:
        return self.norm(delta) <= self.radius_like(slack).floor()  # a count needs no slack

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        return replace(self, eps=1)._argmax(grad, z) - z

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        count = (torch.as_tensor(self.eps, dtype=torch.float64, device=z.device) * size).clamp_min(1)  # or no step
        return self._project(replace(self, eps=count)._argmax(grad, z), x)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        lo, hi = self._box_like(x)
        chosen = mask_of_largest(flat(noise.uniform(x.shape[1:], draw=1)) + 1, self._count(x)).reshape(x.shape)
        return torch.where(chosen, lo + (hi - lo) * noise.uniform(x.shape[1:], dtype=x.dtype), x)
