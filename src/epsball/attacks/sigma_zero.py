"""Sigma-zero: fewest changed coordinates, by gradient steps on a smooth count and a threshold that adapts to each row.

Cina, Villani, Pintor, Schoenherr, Biggio and Pelillo, "Sigma-zero: gradient-based optimization of l0-norm adversarial
examples" (ICLR 2025, arXiv:2402.01879), algorithm 1. The number of changed coordinates is replaced by the sum of
delta^2 / (delta^2 + sigma); its mean and the margin that is still lacking have one gradient, which is normalised in the
max norm and followed by Adam with a falling step size; then what is smaller than a threshold is set back to the
example. The threshold falls while the row is not adversarial and rises while it is.

What the paper does not have: the last six steps start from the best point and go to the linearised boundary with the
fewest coordinates, which on a linear model is the optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.attacks.attack import LossAttack
from epsball.attacks.boundary import beyond_boundary, check_boundary_loss, logit_rounding, on_mask
from epsball.attacks.minimum_norm import MinimumNorm, MinimumNormState, start_points
from epsball.attacks.optimisers import Adam
from epsball.attacks.penalty import POLISH
from epsball.balls.ball import Ball
from epsball.common.checks import check_between, check_positive
from epsball.common.shapes import column, flat
from epsball.problem.losses import Loss, margin
from epsball.problem.objective import Point
from epsball.problem.task import Task

LAST = 0.1
"""The last step size, as a share of the first; between them it falls as a half cosine."""


@dataclass(frozen=True, eq=False)
class SigmaZeroState(MinimumNormState):
    """With delta in units of the box (0 where z = x), Adam, and the threshold of each row, in those units."""

    delta: Float[Tensor, "n *shape"]
    adam: Adam
    threshold: Float[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class SigmaZero(LossAttack[SigmaZeroState], MinimumNorm[SigmaZeroState]):
    """Sigma-zero, in L0: `steps` steps; the values are the paper's. Lengths are in units of the box's width.

    `lr` is Adam's first step size, `sigma` > 0 the square of the length at which a change counts for a half,
    `threshold` from 0 to 1 the first threshold, `rate` by how much it moves in a step at the first step size.

    >>> from epsball.balls.l0 import L0
    >>> x, y = torch.full((1, 4), 0.5), torch.tensor([0])
    >>> z = SigmaZero()(lambda x: x @ torch.tensor([1.0, 4.0, -1.0, 2.0]) - 4.5, x, y, L0(eps=math.inf, lo=0, hi=1))
    >>> (z != x).sum().item()  # the logit lacks 1.5: the second coordinate alone can add 2
    1
    """

    takes = ("count",)

    loss: Loss = margin  # pyright: ignore[reportIncompatibleMethodOverride] - a field is a property, too
    steps: int = 1000
    lr: float = 1.0
    sigma: float = 1e-3
    threshold: float = 0.3
    rate: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lr", "sigma"):
            check_positive(name, getattr(self, name), "lengths are in box widths")
        for name in ("threshold", "rate"):
            check_between(name, getattr(self, name), 0, 1, "it is a share of the box")
        check_boundary_loss(self)

    def init(self, task: Task) -> SigmaZeroState:
        z = start_points(task, self.n_targets, 0.1)
        delta = ((z - task.x) / _width(task.ball, z)).to(torch.promote_types(z.dtype, torch.float32))
        threshold = torch.full_like(task.y, self.threshold, dtype=delta.dtype)
        return SigmaZeroState.start(z, task, delta=delta, adam=Adam.start(delta), threshold=threshold)

    def step(self, state: SigmaZeroState, point: Point, task: Task) -> SigmaZeroState:
        x, width = task.x, _width(task.ball, task.x)
        state = self.keep_nearest(state, point, task)
        # As the published code has it: the smooth count's share of the coordinates, and the margin where it is lacking.
        descent = state.delta.mul(2 * self.sigma / flat(x).shape[1]).div_((state.delta.square() + self.sigma).square_())
        grad = on_mask(point.grad * width, task.ball).to(state.delta)
        descent = descent.sub_(grad.mul_(column(~point.fooled, x.ndim)))
        largest = flat(descent).abs().amax(1)
        descent = descent.div_(column(largest.clamp_min(1e-12), x.ndim))
        stuck = (state.t == 0) & (largest == 0)
        delta, adam = state.adam.step(state.delta, descent, self._step_size(state.t))
        z = task.ball.clip(x + (delta * width).to(x.dtype))
        delta = ((z - x) / width).to(delta.dtype)
        change = self._step_size(state.t + 1).to(delta.dtype) * self.rate / self.lr
        threshold = (state.threshold + torch.where(point.fooled, change, -change)).clamp_(0, 1)
        changed = delta.abs() >= column(threshold, x.ndim)
        state = replace(
            state,
            z=torch.where(changed, z, x),
            t=state.t + 1,
            delta=torch.where(changed, delta, 0),
            adam=adam,
            threshold=threshold,
        )
        state = replace(state, done=state.done | (state.t >= self.steps) | (state.distance == 0) | stuck)
        polishing = ((state.t >= self.steps - POLISH) & state.distance.isfinite()).nonzero().squeeze(1)
        return self._polish(state, point, task, polishing) if len(polishing) else state

    def _polish(self, state: SigmaZeroState, point: Point, task: Task, rows: Int64[Tensor, " k"]) -> SigmaZeroState:
        """The state with `rows` beyond the linearised boundary, with the fewest changes; first at the best point."""
        wide = state.delta.dtype
        there = beyond_boundary(
            (point.loss - logit_rounding(point))[rows].to(wide),
            on_mask(point.grad, task.ball)[rows].to(wide),
            point.z[rows],
            point.fooled[rows],
            task.rows(rows),
        )
        first = column(state.t[rows] == max(self.steps - POLISH, 1), there.ndim)
        there = torch.where(first, state.best[rows], there.to(state.z.dtype))
        return replace(state, z=state.z.index_copy(0, rows, there))

    def _step_size(self, t: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The step size after t of `steps` steps."""
        share = torch.cos(t * (math.pi / self.steps)).add_(1).mul_(0.5)
        return share.mul_(1 - LAST).add_(LAST).mul_(self.lr)


def _width(ball: Ball, like: Tensor) -> Tensor:
    """The box's width, () or (1 or n, *shape); one where it has none, so that it divides."""
    width = torch.as_tensor(ball.hi - ball.lo).to(like)
    return torch.where(width > 0, width, 1)
