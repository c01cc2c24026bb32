"""How the broken_defence networks are trained: most as usual; three owe to their training what they are.

`fgsm-masked` is trained against single steps, and its input has waves in which it sees them: it overfits to them at
once, as in Tramer et al. (ICLR 2018), section 3, and Wong et al. (ICLR 2020), section 5. `detector` learns attacked
examples as a class of their own: Grosse et al. (arXiv:1702.06280). `pgd` is a sound one: Madry et al. (ICLR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.balls.linf import Linf
from epsball.data.examples import Examples
from epsball.models.broken_defences import BrokenDefence
from epsball.training.climb import ascend, climbing, summed_cross_entropy
from epsball.training.cross_entropy import CrossEntropyTraining, accuracy, logits_of
from epsball.training.fgsm_mix import FGSMMix
from epsball.training.pgd import PGDTraining
from epsball.training.plain import Plain
from epsball.training.step import Step, TrainingObjective

EPS = 0.1
"""Radius that networks are trained against, in the units of a box [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Detecting(CrossEntropyTraining):
    """The label's cross-entropy at x, and that of the last class at the points that `steps` steps away from it lead to.

    Noise of the ball's size stays with the label, or the last class would be that of whatever is not clean. Logs
    "loss".
    """

    steps: int = 3

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball | None, step: Step
    ) -> dict[str, Tensor | float]:
        ball = self.need(ball)
        noisy = ball.sample(x, step.noise)
        with climbing(model, "eval"):
            climb = summed_cross_entropy(y)
            x_adv = ascend(model, noisy, x, ball, climb, steps=self.steps, step_size=1 / self.steps)
        logits = logits_of(model, torch.cat([x, noisy, x_adv]))
        attacked = torch.full_like(y, logits.shape[1] - 1)
        loss = self.loss(logits, torch.cat([y, y, attacked]))
        loss.backward()
        return {"loss": loss.detach(), "accuracy": accuracy(logits[: len(y)], y)}


@dataclass(frozen=True)
class Recipe:
    """What `fit` is told of a network."""

    objective: TrainingObjective
    ball: Ball | None = None


def recipe(model: nn.Module, data: Examples) -> Recipe:
    """How `model` is trained on `data`: as usual, but for broken_defence networks that are made by their training."""
    name = model.name if isinstance(model, BrokenDefence) else ""
    if name == "pgd":
        return Recipe(PGDTraining(), ball_of(data, EPS))
    if name == "fgsm-masked":
        return Recipe(FGSMMix(), ball_of(data, EPS))
    if name == "detector":
        return Recipe(Detecting(), ball_of(data, EPS))
    return Recipe(Plain())


def ball_of(data: Examples, eps: float) -> Ball:
    """The max norm's ball of that share of the data's range; where its box is not known, there is none."""
    width = data.hi - data.lo
    if isfinite(width):
        return Linf(eps=eps * width, lo=data.lo, hi=data.hi)
    return Linf(eps=eps * float(data.x.max() - data.x.min()))
