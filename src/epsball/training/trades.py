"""TRADES: clean accuracy traded against the divergence between the predictions at x and at the worst point around it.

Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy" (ICML 2019), equation 5 and
algorithm 1.
"""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.common.shapes import Batch
from epsball.training.cross_entropy import Count, Logits, NonNegative, accuracy, logits_of
from epsball.training.inner_attack import AttackingTraining, ascend, attackable
from epsball.training.training_objective import Labels, Logged, TrainingStep

NORMAL_DRAW = 3
"""The draw of the noise that the start is made with; a ball's sample uses those below."""


class TRADES(AttackingTraining):
    """J(x) + beta KL(p(x) || p(x_adv)), x_adv found by increasing that divergence.

    The attack starts at x plus normal noise of standard deviation `start` (in the units of x; at x itself the
    divergence has no gradient) and makes `steps` steps of `step_size` * eps; the defaults are the authors' for
    CIFAR-10, steps of .007 in a ball of .031, beta = 6. It is in eval mode, as in their code. `steps` + 2 forward and
    backward passes a step, and one more forward pass. The clean and the adversarial batch both update the running
    statistics, each normalised by its own. Derivatives go through p(x) and p(x_adv).

    Logs "loss", "clean_loss", "divergence", "accuracy" and "adversarial_accuracy".
    """

    cost = "steps + 2, and a forward"
    source = "Zhang et al. 2019, equation 5"

    beta: NonNegative = 6.0
    steps: Count = 10
    step_size: NonNegative = 0.226
    start: NonNegative = 0.001

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        ball = self.need(ball)
        start = ball.project(x + self.start * step.noise.normal(x.shape[1:], draw=NORMAL_DRAW, dtype=x.dtype), x)
        with attackable(model, self.attack_mode):
            with torch.no_grad():
                reference = logits_of(model, x)
            loss = partial(_summed_divergence, reference)
            x_adv = ascend(model, start, x, ball, loss, steps=self.steps, step_size=self.step_size)
        clean, adversarial = logits_of(model, x), logits_of(model, x_adv)
        clean_loss, divergence = self.loss(clean, y), divergences(clean, adversarial).mean()
        loss = clean_loss + self.beta * divergence
        loss.backward()
        return {
            "loss": loss.detach(),
            "clean_loss": clean_loss.detach(),
            "divergence": divergence.detach(),
            "accuracy": accuracy(clean, y),
            "adversarial_accuracy": accuracy(adversarial, y),
        }


def divergences(p: Logits, q: Logits) -> Float[Tensor, " n"]:
    """KL(softmax p || softmax q) of each row of logits."""
    return F.kl_div(q.log_softmax(1), p.log_softmax(1), log_target=True, reduction="none").sum(1)


def _summed_divergence(p: Logits, q: Logits) -> Float[Tensor, ""]:
    return divergences(p, q).sum()
