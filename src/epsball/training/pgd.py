"""Adversarial training with projected gradient steps.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), equation 2.1.
"""

from __future__ import annotations

from torch import nn

from epsball.balls.ball import Ball
from epsball.common.shapes import Batch
from epsball.training.cross_entropy import Count, NonNegative
from epsball.training.inner_attack import AdversarialTraining, ascend, summed_cross_entropy
from epsball.training.training_objective import Labels, TrainingStep


class PGDTraining(AdversarialTraining):
    """J after `steps` steps of `step_size` * eps from a uniform point of the ball.

    The defaults are the authors' for CIFAR-10: 7 steps of 2/255 in a ball of 8/255. `steps` + 1 forward and backward
    passes a step, all but the last pair for the input alone. The attack is in eval mode, so that it is one on the model
    as it is used; the authors' code attacks in train mode, which `attack_mode` gives.

    Logs "loss" and "adversarial_accuracy".
    """

    cost = "steps + 1"
    source = "Madry et al. 2018, equation 2.1"

    steps: Count = 7
    step_size: NonNegative = 0.25

    def attack(self, model: nn.Module, x: Batch, y: Labels, ball: Ball, step: TrainingStep) -> Batch:
        start = ball.sample(x, step.noise)
        return ascend(model, start, x, ball, summed_cross_entropy(y), steps=self.steps, step_size=self.step_size)
