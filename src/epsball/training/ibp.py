"""Certified training: the cross-entropy of the worst logits that interval bounds allow, in a ball that grows.

Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably Robust Models" (ICCV 2019,
arXiv:1810.12715), equation 12. With `crown`: Zhang et al., "Towards Stable and Efficient Training of Verifiably Robust
Neural Networks" (ICLR 2020, arXiv:1906.06316), equation 8.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_between
from epsball.common.config import Rule
from epsball.common.errors import BadInput
from epsball.common.shapes import Batch
from epsball.problem.model_errors import IN_PLACE
from epsball.training.cross_entropy import CrossEntropyTraining, accuracy, logits_of
from epsball.training.training_objective import Labels, Logged, TrainingStep
from epsball.training.worst_logits import worst_logits

SHARE = Rule(check_between, 0, 1)


class IBP(CrossEntropyTraining):
    """kappa J(x) + (1 - kappa) J(worst logits in the ball), by interval bounds; no attack.

    The worst logits are 0 for the label, and an upper bound of z_j - z_y for each other class j, so that their loss is
    at least that of any point of the ball. While the radius grows (`ramp` of the training, by default half of it, from
    0 on), kappa falls from 1 to its value. Without a ramp intervals are so wide at first that training stalls.

    Parameters
    ----------
    kappa
        The share of the clean loss at the full radius, in [0, 1]; smaller certifies more and predicts less.
    crown
        The share of CROWN-IBP's bounds, in [0, 1], at radius 0; it falls to 0 with the growing radius, as beta does in
        the paper, and steadies the ramp. Its bounds are those of intervals in all layers but the last, from which one
        linear bound goes back to the input.

    The bounds are those of the network in eval mode: batch normalisation by running statistics, which the clean pass
    updates, and no dropout. Logs "loss", "clean_loss", "accuracy" and "certified_accuracy", of the bounds trained on.
    """

    accelerates = False
    ramp = 0.5
    cost = "1, and the bounds, about 2; while crown > 0 about 3 more for each class; no attack"
    source = "Gowal et al. 2018, equation 12; crown: Zhang et al. 2020"

    kappa: Annotated[float, SHARE] = 0.5
    crown: Annotated[float, SHARE] = 0.0

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        ball = self.need(ball)
        kappa, crown = 1 - (1 - self.kappa) * step.radius, self.crown * (1 - step.radius)
        version = x._version
        with torch.set_grad_enabled(kappa > 0):  # a pass that only updates running statistics
            clean = logits_of(model, x)
        if x._version != version:
            raise BadInput(IN_PLACE)
        worst = worst_logits(model, x, y, ball, step, crown=crown)
        clean_loss = self.loss(clean, y)
        loss = kappa * clean_loss + (1 - kappa) * self.loss(worst, y)
        loss.backward()
        return {
            "loss": loss.detach(),
            "clean_loss": clean_loss.detach(),
            "accuracy": accuracy(clean, y),
            "certified_accuracy": accuracy(worst, y),
        }
