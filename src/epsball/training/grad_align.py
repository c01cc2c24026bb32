"""FGSM training kept from overfitting catastrophically: gradients that point the same way all over the ball.

Andriushchenko and Flammarion, "Understanding and Improving Fast Adversarial Training" (NeurIPS 2020), equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.common.checks import check_at_least, check_one_of
from epsball.common.shapes import flat
from epsball.training.climb import MODES, Mode, climbing, gradient, summed_cross_entropy
from epsball.training.cross_entropy import CrossEntropyTraining, accuracy, input_gradient, logits_of
from epsball.training.statistics import kept
from epsball.training.step import Step


@dataclass(frozen=True, kw_only=True)
class GradAlign(CrossEntropyTraining):
    """J(x_adv) + weight (1 - cos(grad J(x), grad J(z))), x_adv FGSM's point from x and z uniform in the ball.

    `weight` is the paper's lambda, .2 on CIFAR-10 at 8/255, more for wider balls. As in the authors' code grad J(x) is
    a constant of the cosine, and derivatives go through grad J(z): double backward. Two passes a step, and a third that
    is differentiated again and costs about two. grad J(x) is taken in `attack_mode`, "train" as in the authors' code,
    grad J(z) in train mode; running statistics are updated by the pass on x_adv alone (theirs by all three). A row one
    of whose gradients is zero counts as aligned; the authors leave it out of the mean.

    Logs "loss", "misalignment" (1 - cos) and "adversarial_accuracy".
    """

    accelerates = False

    attack_mode: Mode = "train"
    weight: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("attack_mode", self.attack_mode, MODES)
        check_at_least("weight", self.weight, 0)

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball | None, step: Step
    ) -> dict[str, Tensor | float]:
        ball, height = self.need(ball), summed_cross_entropy(y)
        with climbing(model, self.attack_mode):
            at_x = gradient(model, x, height)
        logits = logits_of(model, ball.argmax(at_x, x))
        loss = self.loss(logits, y)
        loss.backward()
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        z = ball.sample(x, step.noise).requires_grad_()
        with kept(model):
            at_z = input_gradient(height(logits_of(model, z)), z, create_graph=True)
            apart = misalignment(at_x, at_z).mean()
            if apart.requires_grad:  # a linear score's gradients may not depend on anything
                (self.weight * apart).backward(inputs=learning)
        loss, apart = loss.detach(), apart.detach()
        return {
            "loss": loss + self.weight * apart,
            "misalignment": apart,
            "adversarial_accuracy": accuracy(logits, y),
        }


def misalignment(one: Float[Tensor, "n *shape"], other: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """1 - cos of each row's angle; 0 where one of them is zero. Rows may be as small as the dtype holds."""
    units = []
    for grad in (one, other):
        rows = flat(grad)
        largest = rows.detach().abs().amax(1, keepdim=True)  # squares may underflow
        units.append(F.normalize(rows / torch.where(largest > 0, largest, 1), dim=1))
    aligned = (units[0] * units[1]).sum(1)
    slopes = flat(one).ne(0).any(1) & flat(other).ne(0).any(1)
    return torch.where(slopes, 1 - aligned, 0)
