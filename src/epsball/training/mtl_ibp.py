"""Certified training as two tasks at once: the loss of interval bounds and that of an attack.

De Palma et al., "Expressive Losses for Verified Robustness via Convex Combinations" (ICLR 2024, arXiv:2305.13991),
equation 9: the convex combination of an upper and a lower bound of the worst loss in the ball.
"""

from __future__ import annotations

from typing import Annotated

from torch import nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_between
from epsball.common.config import Rule
from epsball.common.shapes import Batch
from epsball.training.cross_entropy import Count, NonNegative, accuracy, logits_of
from epsball.training.inner_attack import AttackingTraining, ascend, attackable, summed_cross_entropy
from epsball.training.training_objective import Labels, Logged, TrainingStep
from epsball.training.worst_logits import worst_logits


class MTLIBP(AttackingTraining):
    """alpha J(worst logits in the ball) + (1 - alpha) J(x_adv): IBP's loss and an attack's, each in the growing ball.

    `alpha` in [0, 1] is 0.5 as the authors have it on CIFAR-10 at 8/255; in smaller balls they take less (0.01 on MNIST
    at 0.1, 0.004 on CIFAR-10 at 2/255), and networks are then certified by tighter bounds than those trained on. The
    attack makes `steps` steps of `step_size` * eps from a uniform point of the ball; one long step leads to its
    boundary. The radius grows over half of the training (`ramp`), as for IBP, whose bounds these are.

    Logs "loss", "bound_loss", "adversarial_loss", "certified_accuracy" (of the bounds) and "adversarial_accuracy".
    """

    accelerates = False
    ramp = 0.5
    cost = "steps + 1, and the bounds, about 2"
    source = "De Palma et al. 2024, equation 9"

    alpha: Annotated[float, Rule(check_between, 0, 1)] = 0.5
    steps: Count = 1
    step_size: NonNegative = 10.0

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        ball = self.need(ball)
        with attackable(model, self.attack_mode):
            start, loss = ball.sample(x, step.noise), summed_cross_entropy(y)
            x_adv = ascend(model, start, x, ball, loss, steps=self.steps, step_size=self.step_size)
        adversarial = logits_of(model, x_adv)
        worst = worst_logits(model, x, y, ball, step)
        bound_loss, adversarial_loss = self.loss(worst, y), self.loss(adversarial, y)
        loss = self.alpha * bound_loss + (1 - self.alpha) * adversarial_loss
        loss.backward()
        return {
            "loss": loss.detach(),
            "bound_loss": bound_loss.detach(),
            "adversarial_loss": adversarial_loss.detach(),
            "certified_accuracy": accuracy(worst, y),
            "adversarial_accuracy": accuracy(adversarial, y),
        }
