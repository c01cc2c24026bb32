"""How the networks of `models.broken_defences` are trained: most as usual; three need a training of their own.

`fgsm-masked` is trained against single steps, and its input has waves in which it sees them: it overfits to them at
once, as in Tramer et al. (ICLR 2018), section 3, and Wong et al. (ICLR 2020), section 5. `detector` learns attacked
examples as a class of their own: Grosse et al. (arXiv:1702.06280). `pgd` is a sound one: Madry et al. (ICLR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from torch import nn

from epsball.balls.ball import Ball
from epsball.balls.linf import Linf
from epsball.common.shapes import Batch
from epsball.data.examples import Examples
from epsball.models.broken_defences import BrokenDefence
from epsball.training.cross_entropy import Count, CrossEntropyTraining, accuracy, logits_of
from epsball.training.fgsm_mix import FGSMMix
from epsball.training.inner_attack import ascend, attackable, summed_cross_entropy
from epsball.training.pgd import PGDTraining
from epsball.training.plain import Plain
from epsball.training.training_objective import Labels, Logged, TrainingObjective, TrainingStep

EPS = 0.1
"""The radius that networks are trained against, in the units of a box [0, 1]."""


class DetectorTraining(CrossEntropyTraining):
    """Cross-entropy of the label at x, and of the last class at adversarial examples of `steps` steps.

    The attack starts from noise of the ball's size, which is trained on with the label: else the last class would be
    that of whatever is not clean. Logs "loss" and "accuracy".
    """

    steps: Count = 3

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        ball = self.need(ball)
        noisy = ball.sample(x, step.noise)
        with attackable(model, "eval"):
            attack_loss = summed_cross_entropy(y)
            x_adv = ascend(model, noisy, x, ball, attack_loss, steps=self.steps, step_size=1 / self.steps)
        logits = logits_of(model, torch.cat([x, noisy, x_adv]))
        attacked = torch.full_like(y, logits.shape[1] - 1)
        loss = self.loss(logits, torch.cat([y, y, attacked]))
        loss.backward()
        return {"loss": loss.detach(), "accuracy": accuracy(logits[: len(y)], y)}


@dataclass(frozen=True)
class TrainingRecipe:
    """The objective and the ball that a network is trained with."""

    objective: TrainingObjective
    ball: Ball | None = None


def recipe(model: nn.Module, data: Examples) -> TrainingRecipe:
    """How `model` is trained on `data`: as usual, but for broken defences that are made by their training."""
    name = model.name if isinstance(model, BrokenDefence) else ""
    objectives = {"pgd": PGDTraining(), "fgsm-masked": FGSMMix(), "detector": DetectorTraining()}
    if name in objectives:
        return TrainingRecipe(objectives[name], ball_of(data, EPS))
    return TrainingRecipe(Plain())


def ball_of(data: Examples, eps: float) -> Ball:
    """The max norm's ball whose radius is the share `eps` of the data's range; without a box where none is known."""
    width = data.hi - data.lo
    if isfinite(width):
        return Linf(eps=eps * width, lo=data.lo, hi=data.hi)
    return Linf(eps=eps * float(data.x.max() - data.x.min()))
