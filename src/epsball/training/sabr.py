"""Certified training on small boxes: interval bounds of a part of the ball that an attack has chosen.

Müller et al., "Certified Training: Small Boxes are All You Need" (ICLR 2023, arXiv:2210.04871), section 3.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_between
from epsball.common.config import Rule
from epsball.common.shapes import Batch
from epsball.training.cross_entropy import Count, NonNegative, accuracy, logits_of
from epsball.training.inner_attack import AttackingTraining, ascend, attackable, summed_cross_entropy
from epsball.training.training_objective import Labels, Logged, TrainingStep
from epsball.training.worst_logits import worst_logits


class SABR(AttackingTraining):
    """J(worst logits in a ball of `share` * eps around x_adv), x_adv by an attack in the ball of (1 - share) * eps.

    The small ball lies in the whole one, so that this is between the loss of an attack (share 0) and IBP's (share 1):
    it regularises less than IBP, and its networks are certified by tighter bounds. The attack makes `steps` steps of
    `step_size` times its radius from a uniform point; the authors' steps shrink from 0.5. The radius grows over half of
    the training (`ramp`).

    Logs "loss", "accuracy" (at x) and "box_accuracy", the share of rows whose bounds in the small ball are right.
    """

    accelerates = False
    ramp = 0.5
    cost = "steps and a forward, and the bounds, about 2"
    source = "Müller et al. 2023, section 3"

    share: Annotated[float, Rule(check_between, 0, 1)] = 0.4
    steps: Count = 8
    step_size: NonNegative = 0.25

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        ball = self.need(ball)
        attacked, small = ball.with_eps((1 - self.share) * ball.eps), ball.with_eps(self.share * ball.eps)
        with attackable(model, self.attack_mode):
            start, attack_loss = attacked.sample(x, step.noise), summed_cross_entropy(y)
            x_adv = ascend(model, start, x, attacked, attack_loss, steps=self.steps, step_size=self.step_size)
        with torch.no_grad():  # updates running statistics
            clean = logits_of(model, x)
        worst = worst_logits(model, x_adv, y, small.bind(x_adv), step)
        loss = self.loss(worst, y)
        loss.backward()
        return {"loss": loss.detach(), "accuracy": accuracy(clean, y), "box_accuracy": accuracy(worst, y)}
