"""Iterated gradient ascent in a ball, from wherever a subclass starts it: what BIM and PGD share.

The optional momentum accumulates gradients divided by their mean absolute value: Dong et al., "Boosting Adversarial
Attacks with Momentum" (CVPR 2018), equation 6.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import LossAttack, State
from epsball.common.checks import check_at_least, check_whole
from epsball.common.shapes import column, flat
from epsball.problem.objective import Point
from epsball.problem.task import Task


@dataclass(frozen=True, eq=False)
class MomentumState(State):
    """With the accumulated gradient (n, *shape), or (n, 0) without momentum."""

    velocity: Float[Tensor, "n ..."]


@dataclass(frozen=True, kw_only=True)
class Iterated(LossAttack[MomentumState]):
    """`steps` steps of length `step_size` (in units of eps), each projected back into ball and box.

    The default step is that of Madry et al. (2018) on CIFAR-10, 2/255 in a ball of 8/255.
    """

    steps: int = 40
    step_size: float = 0.25
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("steps", self.steps, 1)
        check_at_least("step_size", self.step_size, 0)
        check_at_least("momentum", self.momentum, 0)

    @property
    def max_steps(self) -> int:
        return self.steps

    @abstractmethod
    def start(self, task: Task) -> Float[Tensor, "n *shape"]:
        """Where the rows begin."""

    def init(self, task: Task) -> MomentumState:
        still = torch.zeros_like(task.x) if self.momentum else task.x.new_zeros(len(task.x), 0)
        return MomentumState.at(self.start(task), velocity=still)

    def step(self, state: MomentumState, point: Point, task: Task) -> MomentumState:
        grad, velocity = point.grad, state.velocity
        if self.momentum:
            mean = column(flat(grad).abs().mean(1), grad.ndim)
            grad = velocity = self.momentum * velocity + grad / mean.clamp_min(torch.finfo(grad.dtype).tiny)
        z = task.ball.step(grad, state.z, task.x, self.step_size)
        return MomentumState(z=z, best=z, t=state.t, done=state.done, velocity=velocity)
