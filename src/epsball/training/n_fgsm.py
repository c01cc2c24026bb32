"""N-FGSM: a single step from stronger noise, and no clipping to the ball.

de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training" (NeurIPS 2022), algorithm 1.
"""

from __future__ import annotations

from torch import nn

from epsball.balls.ball import Ball
from epsball.common.shapes import Batch
from epsball.training.cross_entropy import NonNegative
from epsball.training.inner_attack import AdversarialTraining, Mode, ascend, summed_cross_entropy
from epsball.training.training_objective import Labels, TrainingStep


class NFGSM(AdversarialTraining):
    """J at x + noise + step: noise uniform in the ball of `noise` * eps, a step of `step_size` * eps from there.

    In the max norm x + u + step_size eps sign(grad J(x + u)), u uniform in +- noise eps; points leave the ball, but not
    the box. Two forward and two backward passes a step, one pair for the input and one for the parameters. The attack
    is in train mode, as in the authors' code; there its pass updates the running statistics too, here only the pass
    that is trained on does.

    Logs "loss" and "adversarial_accuracy".
    """

    cost = "2"
    source = "de Jorge et al. 2022, algorithm 1"

    attack_mode: Mode = "train"
    noise: NonNegative = 2.0
    step_size: NonNegative = 1.0

    def attack(self, model: nn.Module, x: Batch, y: Labels, ball: Ball, step: TrainingStep) -> Batch:
        start = ball.with_eps(self.noise * ball.eps).bind(x).sample(x, step.noise)
        reach = self.noise + self.step_size
        wide_ball = ball.with_eps(reach * ball.eps).bind(x)  # no step ends outside it
        step_size = self.step_size / reach if reach else 0.0
        return ascend(model, start, x, wide_ball, summed_cross_entropy(y), steps=1, step_size=step_size)
