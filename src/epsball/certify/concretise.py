"""The least value of linear forms over the region of an example: the ball answers, with box and mask, exactly.

A row a.z + c is least over ball and box at a point that the ball knows (`Ball.argmax` of -a), so the bound is tighter
than the dual norm alone wherever the box cuts the ball. The point is found without derivatives: by the envelope theorem
the derivative of the least value in `a` is the point itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.certify.functionals import Functional
from epsball.certify.operators import Bounds
from epsball.common.errors import BadInput
from epsball.common.shapes import column

CHUNK = 1 << 22
"""Numbers of rows that a ball is asked about at once."""


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions around examples `x` (n, *shape), in its dtype; `ball` is bound to it.

    Where the ball is an interval per number, it is wider by `extra` (n,) on both sides, within box and mask.
    """

    ball: Ball
    x: Float[Tensor, "n *shape"]
    extra: Float[Tensor, " n"] | None = None

    def __post_init__(self) -> None:
        if "dual norm" not in self.ball.traits:
            raise BadInput(
                f"`ball` must be an L-inf, L2 or L1 ball for a certificate, got {self.ball}: linear forms have no "
                "bound in it here; attack it instead, with epsball.evaluate"
            )

    @cached_property
    def box(self) -> Bounds:
        """The least and the greatest value of each input, (n, *shape) each; in L2 and L1 a box around the region."""
        if self.is_box:
            low, high = self.ball.intervals(self.x)
            if self.extra is None:
                return low, high
            extra = column(self.extra, self.x.ndim)
            sides = (self.ball.clip(low - extra), self.ball.clip(high + extra))
            return self.ball.apply_mask(sides[0], self.x), self.ball.apply_mask(sides[1], self.x)
        radius = self.ball.radius_like(self.x).to(self.x)
        low, high = self.ball.clip(self.x - radius), self.ball.clip(self.x + radius)
        return self.ball.apply_mask(low, self.x), self.ball.apply_mask(high, self.x)

    @property
    def is_box(self) -> bool:
        """Whether the region is that box, so that intervals of a linear form are exact."""
        return "intervals" in self.ball.traits

    def rows(self, index: Tensor) -> Regions:
        """The regions of some examples."""
        return Regions(self.ball.rows(index), self.x[index], None if self.extra is None else self.extra[index])

    def least(self, rows: Functional) -> Float[Tensor, " p"]:
        """The least value of each row over the region of its example."""
        if self.is_box:
            low, high = self.box
            centre, radius = (low + high) / 2, (high - low) / 2
            return rows.dot(rows.gather(centre)) - rows.with_values(rows.values.abs()).dot(rows.gather(radius))
        rows = rows.dense()
        size = max(1, CHUNK // max(1, rows.cells))
        parts = [rows.rows(part) for part in torch.arange(len(rows), device=rows.values.device).split(size)]
        return torch.cat([part.dot(self.minimiser(part)) for part in parts]) if parts else rows.values.new_zeros(0)

    @torch.no_grad()
    def minimiser(self, rows: Functional) -> Float[Tensor, "p *shape"]:
        """The point of each row's region at which it is least; `rows` are dense."""
        if self.is_box:
            low, high = self.box
            return torch.where(rows.values > 0, rows.gather(low), rows.gather(high))
        return self.ball.rows(rows.example).argmax(-rows.values, self.x[rows.example])

    def widened(self, share: float) -> Regions:
        """The same regions, wider by `share` of the largest number in each example, and by 1e-30 at least."""
        extra = share * self.x.abs().flatten(1).amax(1).clamp_min(1e-30)
        if self.is_box:
            return Regions(self.ball, self.x, extra)
        radius = self.ball.radius_like(self.x).reshape(-1).to(self.x) + extra
        return Regions(self.ball.with_eps(radius).bind(self.x), self.x)
