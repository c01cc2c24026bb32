"""The number of coordinates that change, in a finite box: the best eps coordinates are kept."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.projections import largest
from epsball.balls.shared import first_reached, gains_each, greatest
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
        return column(self._radius(flat(x)[:, 0]), 2).floor().expand(len(x), 1)

    def _project(self, z: Batch, x: Batch) -> Batch:
        inside = self._masked(self._clip(z), x)
        far, near = (z.double() - x.double()).square(), (z.double() - inside.double()).square()
        saved = flat(far - near)
        return torch.where(largest(saved, self._count(x)).reshape(x.shape), inside, x)

    def _argmax(self, grad: Batch, x: Batch) -> Batch:
        size, room = self._orthant(grad, x)
        return self._moved(x, grad, torch.where(largest(size * room, self._count(x)), room, 0))

    def _dual(self, grads: Batch) -> PerExample:
        lo, hi = (torch.as_tensor(side).to(grads) for side in (self.lo, self.hi))
        width = hi - lo
        return greatest(flat(grads * (width.amax(0) if width.ndim else width)))

    def _max_gains(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        count = self._count(flat(x))
        most = int(count.clamp_max(flat(x).shape[1]).max()) if len(x) else 0
        place = torch.arange(most, device=x.device)

        def gain(size: Tensor, room: Tensor) -> PerExample:
            return torch.where(place < count, (size * room).topk(most, 1).values, 0).sum(1)

        return gains_each(self, grads, x, gain)

    def _cheapest(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        place, reached = first_reached((size * room).sort(1, descending=True).values.cumsum(1), gain, strict)
        return (place[:, 0] + 1).to(size), reached

    def _least(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        worth, order = (size * room).sort(dim=1, descending=True, stable=True)
        share = ((gain - worth.cumsum(1) + worth) / worth).nan_to_num_(nan=0.0).clamp_(0, 1)
        return torch.empty_like(room).scatter_(1, order, share).mul_(room)

    def _within(self, delta: Batch, slack: PerExample, x: Batch) -> Bool[Tensor, " n"]:
        return self.norm(delta) <= self._radius(slack).floor()  # a count needs no slack

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        return replace(self, eps=1)._argmax(grad, z) - z

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        count = (torch.as_tensor(self.eps, dtype=torch.float64, device=z.device) * size).clamp_min(1)  # or no step
        return self._project(replace(self, eps=count)._argmax(grad, z), x)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        lo, hi = self._sides(x)
        chosen = largest(flat(noise.uniform(x.shape[1:], draw=1)) + 1, self._count(x)).reshape(x.shape)
        return torch.where(chosen, lo + (hi - lo) * noise.uniform(x.shape[1:], dtype=x.dtype), x)
