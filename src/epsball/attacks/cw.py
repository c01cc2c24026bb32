"""CW: the least Euclidean distance at which the margin is `kappa`, by a penalty whose constant is searched for.

Carlini and Wagner, "Towards evaluating the robustness of neural networks" (S&P 2017), section V: minimise |z - x|^2 +
c * max(kappa - margin, 0) with Adam, and search for c. What is done otherwise, each because it comes nearer at equal
passes (docs/attacks.md): the box is kept by clipping z, not by a tanh, which holds a pixel that is at an end of the box
there for good; the step falls over a round; the units of step and c are those of the linearised problem (`rounds.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import LossAttack
from epsball.attacks.rounds import Penalty, Weighing
from epsball.common.checks import check_at_least
from epsball.common.errors import BadInput
from epsball.common.shapes import column
from epsball.problem.losses import Loss, dlr, margin
from epsball.problem.objective import Point
from epsball.problem.task import Task


@dataclass(frozen=True, kw_only=True)
class CW(LossAttack[Weighing], Penalty):
    """Carlini and Wagner's attack in L2: `binary_steps` rounds, `steps` passes each at most.

    `kappa` >= 0 is the confidence, the margin that a point must have to count; with one, the attack does not seek the
    nearest fooling point (`minimises` is False). `c` is the first constant, in units in which 1 would be the exact
    answer for a linear model, `lr` the first step, as a share of the distance to the linearised border; `early` lets a
    row skip ahead that no longer improves, and ends one that further rounds bring nothing.

    >>> from epsball.balls.l2 import L2
    >>> x, y = torch.tensor([[0.0, 1.0]]), torch.tensor([0])  # both at an end of the box
    >>> model = lambda x: x @ torch.tensor([4.0, -3.0]) - 0.5  # the border is 3.5 / 5 away
    >>> z = CW(steps=100)(model, x, y, L2(eps=torch.inf, lo=0, hi=1))
    >>> bool(model(z) > 0), round(torch.linalg.vector_norm(z - x).item(), 2)
    (True, 0.7)
    """

    loss: Loss = margin
    kappa: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("kappa", self.kappa, 0)
        if self.loss not in (margin, dlr):
            raise BadInput(
                f"`loss` must be margin or dlr for CW, got {getattr(self.loss, '__name__', self.loss)!r}: one that is "
                "zero on the border between the classes"
            )

    @property
    def minimises(self) -> bool:
        return self.kappa == 0

    def seen(self, state: Weighing, point: Point, task: Task) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, " n"]]:
        best, distance = super().seen(state, point, task)
        if self.kappa == 0 or best is state.best:
            return best, distance
        sure = point.loss >= self.kappa
        return torch.where(column(sure, best.ndim), best, state.best), torch.where(sure, distance, state.distance)

    def wanted(self, point: Point, task: Task) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
        good = point.fooled & (point.loss >= self.kappa)
        # A margin of zero may be a tie that the label wins: there is still something to climb to.
        least = torch.finfo(point.loss.dtype).tiny
        return good, torch.where(good, 0, (self.kappa - point.loss).clamp_min(least))

    def border(self, point: Point, task: Task) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        return point.loss - self.kappa, torch.ones_like(point.loss)
