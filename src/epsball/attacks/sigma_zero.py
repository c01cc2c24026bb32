"""Sigma-zero: fewest changed coordinates, by gradient steps on a smooth count and a threshold that adapts to each row.

Cina, Villani, Pintor, Schoenherr, Biggio and Pelillo, "Sigma-zero: gradient-based optimization of l0-norm adversarial
examples" (ICLR 2025, arXiv:2402.01879), algorithm 1. The count of changed coordinates is replaced by the sum of
delta^2 / (delta^2 + sigma); its mean and the margin that is still lacking have one gradient, which is normalised in the
max norm and followed by Adam with a falling step; then what is smaller than a threshold is set back to the example.
The threshold falls while the row does not fool and rises while it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.attacks.attack import LossAttack
from epsball.attacks.nearest import MinimumNorm, Nearest, unseen
from epsball.attacks.penalty import POLISH, adam, at_border, open_part, rounding, starting
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.shapes import column, flat
from epsball.problem.losses import Loss, dlr, margin
from epsball.problem.objective import Point
from epsball.problem.task import Task

LAST = 0.1
"""The last step, as a share of the first; between them it falls as a half cosine."""


@dataclass(frozen=True, eq=False)
class Counting(Nearest):
    """With delta in units of the box (0 where z = x), Adam's moments, and the threshold of each row, in those units."""

    delta: Float[Tensor, "n *shape"]
    first: Float[Tensor, "n *shape"]
    second: Float[Tensor, "n *shape"]
    threshold: Float[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class SigmaZero(LossAttack[Counting], MinimumNorm[Counting]):
    """Sigma-zero, in L0: `steps` passes; the values are the paper's. Lengths are in units of the box's width.

    What the paper does not have: the last six passes start from the best point and go where the border, linearised, is
    crossed with the fewest coordinates, which on a linear model is the answer.

    `lr` is Adam's first step, `sigma` > 0 the square of the length at which a change counts for a half, `threshold`
    from 0 to 1 the first threshold, `rate` by how much it moves in a step at the first step size.

    >>> from epsball.balls.l0 import L0
    >>> x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    >>> z = SigmaZero()(lambda x: x @ torch.tensor([1.0, 4.0, -1.0, 2.0]) - 4.5, x, y, L0(eps=math.inf, lo=0, hi=1))
    >>> (z != x).sum().item()  # 1.5 are lacking: one coordinate, the second one, makes good for 2
    1
    """

    takes = ("count",)

    loss: Loss = margin
    steps: int = 1000
    lr: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    rate: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"`{name}` must be > 0 and finite, got {getattr(self, name)}; lengths are box widths")
        for name in ("threshold", "rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"`{name}` must be from 0 to 1, got {getattr(self, name)}; it is a share of the box")
        if self.loss not in (margin, dlr):
            raise BadInput(
                f"`loss` must be margin or dlr for SigmaZero, got {getattr(self.loss, '__name__', self.loss)!r}: one "
                "that is zero on the border between the classes"
            )

    def init(self, task: Task) -> Counting:
        z, far = starting(task, max(self.n_targets, 1)), unseen(task)
        delta = ((z - task.x) / _width(task.ball, z)).to(far.dtype)
        none = torch.zeros_like(delta)
        at = Counting.at(z, delta=delta, first=none, second=none, distance=far, threshold=far)
        return replace(at, best=task.x, threshold=torch.full_like(far, self.threshold))

    def step(self, state: Counting, point: Point, task: Task) -> Counting:
        x, delta, ndim, width = task.x, state.delta, task.x.ndim, _width(task.ball, task.x)
        best, distance = self.seen(state, point, task)
        grad, lacking = open_part(point.grad * width, task.ball).to(delta.dtype), ~point.fooled
        # As the published code has it: the smooth count's share of the coordinates, and the margin where it is lacking.
        square, sigma = delta.square(), self.sigma
        slope = delta.mul(2 * sigma / flat(x).shape[1]).div_((square + sigma).square_())
        slope = slope.sub_(grad.mul_(column(lacking, ndim)))
        slope = slope.div_(column(flat(slope).abs().amax(1).clamp_min_(1e-12), ndim))
        moved, first, second = adam(delta, state.first, state.second, slope, state.t, self.falling(state.t))
        z = task.ball.clip(x + (moved * width).to(x.dtype))
        moved = ((z - x) / width).to(delta.dtype)
        later = self.falling(state.t + 1).to(delta.dtype) * self.rate / self.lr
        threshold = (state.threshold + torch.where(lacking, -later, later)).clamp_(0, 1)
        kept = moved.abs() >= column(threshold, ndim)
        t = state.t + 1
        polishing = (t >= self.steps - POLISH) & distance.isfinite()
        stuck = (state.t == 0) & (flat(slope).abs().amax(1) == 0)
        z = torch.where(kept, z, x)
        if bool(polishing.any()):
            z = self._polished(z, best, point, task, t, polishing.nonzero().squeeze(1))
        return Counting(
            z=z,
            best=best,
            t=t,
            done=state.done | (t >= self.steps) | (distance == 0) | stuck,
            distance=distance,
            delta=torch.where(kept, moved, 0),
            first=first,
            second=second,
            threshold=threshold,
        )

    def _polished(
        self,
        z: Float[Tensor, "n *shape"],
        best: Float[Tensor, "n *shape"],
        point: Point,
        task: Task,
        t: Int64[Tensor, " n"],
        rows: Int64[Tensor, " k"],
    ) -> Float[Tensor, "n *shape"]:
        """z with `rows` on the linearised border, with the fewest changes: the best point so far is looked at first."""
        ahead = at_border(
            (point.loss - rounding(point))[rows].to(torch.promote_types(z.dtype, torch.float32)),
            open_part(point.grad, task.ball)[rows].to(torch.promote_types(z.dtype, torch.float32)),
            point.z[rows],
            point.fooled[rows],
            task.rows(rows),
        )
        first = column(t[rows] == max(self.steps - POLISH, 1), z.ndim)
        return z.index_copy(0, rows, torch.where(first, best[rows], ahead.to(z.dtype)))

    def falling(self, t: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The step after t of `steps`."""
        share = torch.cos(t * (math.pi / self.steps)).add_(1).mul_(0.5)
        return share.mul_(1 - LAST).add_(LAST).mul_(self.lr)


def _width(ball: Ball, like: Tensor) -> Tensor:
    """The box's width, () or (1 or n, *shape); one where it has none, so that it divides."""
    width = torch.as_tensor(ball.hi - ball.lo).to(like)
    return torch.where(width > 0, width, 1)
