"""FGSM training without catastrophic overfitting: gradients are trained to point the same way all over the ball.

Andriushchenko and Flammarion, "Understanding and Improving Fast Adversarial Training" (NeurIPS 2020), equation 4.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.common.shapes import Batch, PerExample, flat
from epsball.models.frozen import restored_buffers
from epsball.training.cross_entropy import NonNegative, input_gradient, learnable, logits_of
from epsball.training.inner_attack import AttackingTraining, Mode, attack_gradient, attackable, summed_cross_entropy
from epsball.training.training_objective import Labels, Logged, TrainingStep


class GradAlign(AttackingTraining):
    """J(x_adv) + weight (1 - cos(grad J(x), grad J(z))), x_adv FGSM's point from x and z uniform in the ball.

    `weight` is the paper's lambda, .2 on CIFAR-10 at 8/255, more for wider balls. As in the authors' code grad J(x) is
    a constant of the cosine, and derivatives go through grad J(z): double backward. Two forward and backward passes a
    step, and a third pair that is differentiated again and costs about two. grad J(x) is taken in `attack_mode`,
    "train" as in the authors' code, grad J(z) in train mode; running statistics are updated by the pass on x_adv alone
    (theirs by all three). A row one of whose gradients is zero counts as aligned; the authors leave it out of the mean.

    Logs "loss", "misalignment" (1 - cos) and "adversarial_accuracy".
    """

    accelerates = False
    cost = "2, and 1 that is differentiated again (about 2 more)"
    source = "Andriushchenko and Flammarion 2020, equation 4"

    attack_mode: Mode = "train"
    weight: NonNegative = 0.2

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        ball, attack_loss = self.need(ball), summed_cross_entropy(y)
        with attackable(model, self.attack_mode):
            grad_x = attack_gradient(model, x, attack_loss)
        loss, accuracy = self.backpropagate(model, ball.argmax(grad_x, x), y)
        z = ball.sample(x, step.noise).requires_grad_()
        with restored_buffers(model.modules()):
            grad_z = input_gradient(attack_loss(logits_of(model, z)), z, create_graph=True)
            penalty = misalignment(grad_x, grad_z).mean()
            if penalty.requires_grad:  # the gradients of a linear model may not depend on anything
                (self.weight * penalty).backward(inputs=learnable(model))
        penalty = penalty.detach()
        return {"loss": loss + self.weight * penalty, "misalignment": penalty, "adversarial_accuracy": accuracy}


def misalignment(one: Batch, other: Batch) -> PerExample:
    """1 - cos of each row's angle; 0 where one of them is zero. Rows may be as small as the dtype holds."""
    units = []
    for grad in (one, other):
        rows = flat(grad)
        largest = rows.detach().abs().amax(1, keepdim=True)  # squares may underflow
        units.append(F.normalize(rows / torch.where(largest > 0, largest, 1), dim=1))
    cosines = (units[0] * units[1]).sum(1)
    nonzero = flat(one).ne(0).any(1) & flat(other).ne(0).any(1)
    return torch.where(nonzero, 1 - cosines, 0)
