"""The fast gradient sign method: one exact step on the loss's linear approximation at x.

Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples" (ICLR 2015), section 4: in the max
norm x + eps * sign(grad J), clipped to the box; in any norm the ball's maximiser of the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import LossAttack, State
from epsball.balls.ball import Ball
from epsball.problem.objective import Point
from epsball.problem.task import Task


@dataclass(frozen=True, kw_only=True)
class FGSM(LossAttack[State]):
    """One pass, one step to the edge of the ball; exact for a linear model, in every norm.

    Every row takes the step, also one that is misclassified already.

    >>> import torch
    >>> from epsball.balls.linf import Linf
    >>> w = torch.tensor([3.0, 2.0, -1.0, 1.0, 4.0])
    >>> x = torch.tensor([[-2.0, 2.0, 1.0, -3.0, 1.0]])
    >>> FGSM()(lambda x: x @ w, x, torch.tensor([0]), Linf(eps=0.5))
    tensor([[-1.5000,  2.5000,  0.5000, -2.5000,  1.5000]])
    """

    until = "done"

    @property
    def max_steps(self) -> int:
        return 1

    def init(self, task: Task) -> State:
        return State.at(task.x)

    def step(self, state: State, point: Point, task: Task) -> State:
        z = self.from_gradient(point.grad, task.x, task.ball)
        return replace(state, z=z, best=z)

    @staticmethod
    def from_gradient(grad: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"], ball: Ball) -> Tensor:
        """The step for a caller who has the loss's input gradient already, from a training pass for example."""
        return ball.argmax(grad, x)
