"""CW: the least Euclidean distance at which the margin is `kappa`, by a penalty whose constant is searched for.

Carlini and Wagner, "Towards evaluating the robustness of neural networks" (S&P 2017, arXiv:1608.04644), section VI:
minimise |z - x|^2 + c * max(kappa - margin, 0), loss f_6 of section V, with Adam, and search for the least c that
succeeds. The algorithm is that of `penalty.py`. Departures from the paper, each because it comes nearer at equal cost
(docs/attacks.md):

- The box is kept by clipping z, not by a tanh, which holds a pixel that is at an end of the box there for good.
- The step size falls over a round, and is shorter in the last third of the rounds.
- The units of step size and c are those of the linearised problem, not of the data.
- The last steps go to the linearised boundary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import LossAttack
from epsball.attacks.boundary import check_boundary_loss
from epsball.attacks.penalty import PenaltyAttack, PenaltyState
from epsball.common.checks import check_at_least
from epsball.common.shapes import column
from epsball.problem.losses import Loss, margin
from epsball.problem.objective import Point
from epsball.problem.task import Task


@dataclass(frozen=True, kw_only=True)
class CW(LossAttack[PenaltyState], PenaltyAttack):
    """Carlini and Wagner's attack in L2: `binary_steps` rounds of at most `steps` steps.

    `kappa` >= 0 is the confidence, the margin that an adversarial example must have to count; with one, the attack does
    not seek the nearest adversarial example (`minimises` is False). `c` is the first constant, in units in which 1
    would be the exact answer for a linear model, `lr` the first step size, as a share of the distance to the linearised
    boundary. With `early` a row that no longer improves skips ahead on its schedule, and a job ends when further rounds
    bring nothing.

    >>> from epsball.balls.l2 import L2
    >>> x, y = torch.tensor([[0.0, 1.0]]), torch.tensor([0])  # both at an end of the box
    >>> model = lambda x: x @ torch.tensor([4.0, -3.0]) - 0.5  # the boundary is 3.5 / 5 away
    >>> z = CW(steps=100)(model, x, y, L2(eps=torch.inf, lo=0, hi=1))
    >>> bool(model(z) > 0), round(torch.linalg.vector_norm(z - x).item(), 2)
    (True, 0.7)
    """

    loss: Loss = margin  # pyright: ignore[reportIncompatibleMethodOverride] - a field is a property, too
    kappa: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("kappa", self.kappa, 0)
        check_boundary_loss(self)

    @property
    def minimises(self) -> bool:
        return self.kappa == 0

    def shortfall(self, point: Point, task: Task) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
        success = point.fooled & (point.loss >= self.kappa)
        # A margin of zero may be a tie that the label wins: there is still something to climb to.
        least = torch.finfo(point.loss.dtype).tiny
        return success, torch.where(success, 0, (self.kappa - point.loss).clamp_min(least))

    def boundary(self, point: Point, task: Task) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        return point.loss - self.kappa, torch.ones_like(point.loss)

    def keep_best(self, state: PenaltyState, point: Point, task: Task, objective: Float[Tensor, " n"]) -> PenaltyState:
        after = self.keep_nearest(state, point, task)
        if self.kappa == 0 or after is state:
            return after
        confident = point.loss >= self.kappa
        best = torch.where(column(confident, after.best.ndim), after.best, state.best)
        return replace(after, best=best, distance=torch.where(confident, after.distance, state.distance))
