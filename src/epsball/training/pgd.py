"""Adversarial training with projected gradient steps.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), equation 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_at_least, check_whole
from epsball.training.climb import ascend, summed_cross_entropy
from epsball.training.on_adversarial import OnAdversarial
from epsball.training.step import Step


@dataclass(frozen=True, kw_only=True)
class PGDTraining(OnAdversarial):
    """J where `steps` steps of `step_size` * eps lead from a uniform point of the ball.

    The defaults are the authors' for CIFAR-10: 7 steps of 2/255 in a ball of 8/255. `steps` + 1 passes a step, all but
    the last for the input alone. The attack is in eval mode, so that the point is one of the model as it is used; the
    authors' code attacks in train mode, which `attack_mode` gives.

    Logs "loss" and "adversarial_accuracy".
    """

    steps: int = 7
    step_size: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("steps", self.steps, 1)
        check_at_least("step_size", self.step_size, 0)

    def attack(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball, step: Step
    ) -> Float[Tensor, "n *shape"]:
        start = ball.sample(x, step.noise)
        return ascend(model, start, x, ball, summed_cross_entropy(y), steps=self.steps, step_size=self.step_size)
