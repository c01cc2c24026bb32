"""The older way: find adversarial examples of the model as it is, add them to the training set, and continue.

Szegedy et al., "Intriguing properties of neural networks" (ICLR 2014), section 4.2: a pool of adversarial examples is
mixed into the training set and renewed. Goodfellow et al. (2015) found that making them anew in each step is better.
"""

from __future__ import annotations

from dataclasses import field, replace

import torch
from torch import Tensor, nn

from epsball.attacks.attack import Attack
from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common.config import Config
from epsball.common.errors import BadInput
from epsball.common.shapes import Batch
from epsball.common.undo import without_warnings
from epsball.data.examples import Examples
from epsball.problem.objective import ModelWarning
from epsball.training.cross_entropy import Count
from epsball.training.plain import Plain
from epsball.training.training_objective import Labels, Logged, TrainingObjective, TrainingStep

ID_STRIDE = 1 << 40
"""The adversarial examples of epoch k have the ids of their originals plus k times this."""
ATTACK_BATCH = 256


class Augment(Config, TrainingObjective):
    """`objective` on a training set to which `attack`'s examples are added, before each `every`-th epoch but the first.

    Adversarial examples have the labels of their originals, and ids of their own. The set holds those of the last
    `keep` attacks, so that it is at most 1 + keep times as long, and as large in memory. An attack costs its model
    calls once for each example of the data (FGSM: one forward and one backward pass), beside the objective's for each
    row of the longer set. It is in eval mode.
    """

    accelerates = False
    cost = "those of `objective`, and the attack's once for each example, in eval mode"
    source = "Szegedy et al. 2014, section 4.2"

    attack: Attack = field(default_factory=FGSM)
    every: Count = 1
    keep: Count = 3
    objective: TrainingObjective = field(default_factory=Plain)

    def check(self) -> None:
        if not isinstance(self.attack, Attack):
            raise BadInput(f"`attack` must be an Attack, got {self.attack!r}; as in Augment(attack=FGSM())")

    @property
    def replays(self) -> int:
        """The objective's."""
        return self.objective.replays

    def epoch(self, model: nn.Module, data: Examples, ball: Ball | None, number: int, seed: int) -> Examples:
        """The examples of the epoch before, without the oldest adversarial ones, and with those of the model now."""
        if ball is None:
            raise BadInput("`ball` must be given for Augment, got None; as in Linf(eps=0.3, lo=0, hi=1)")
        if _per_example(ball):
            raise BadInput(
                "`ball` must be the same for all examples with Augment, got parts that are one per example: examples "
                "are added that it says nothing about; give one eps, lo, hi and mask"
            )
        data = self.objective.epoch(model, data, ball, number, seed)
        if number == 0 or number % self.every:
            return data
        epoch_of = data.ids // ID_STRIDE  # 0: an original
        originals = data.rows((epoch_of == 0).nonzero().squeeze(1))
        pools = sorted(set(epoch_of.tolist()) - {0})
        dropped = torch.tensor(pools[: max(0, len(pools) + 1 - self.keep)], dtype=epoch_of.dtype)
        remaining = data.rows((~torch.isin(epoch_of, dropped)).nonzero().squeeze(1))
        added = replace(originals, ids=originals.ids + number * ID_STRIDE)
        return replace(
            remaining,
            x=torch.cat([remaining.x, self._attacked(model, added, ball, seed)]),
            y=torch.cat([remaining.y, added.y]),
            ids=torch.cat([remaining.ids, added.ids]),
        )

    def _attacked(self, model: nn.Module, data: Examples, ball: Ball, seed: int) -> Batch:
        device, x_adv = next(model.parameters()).device, []
        with without_warnings(ModelWarning):  # rows without a gradient are common in training
            for rows in torch.arange(len(data)).split(ATTACK_BATCH):
                x, y, ids = (part[rows].to(device) for part in (data.x, data.y, data.ids))
                x_adv.append(self.attack(model, x, y, ball, ids=ids, seed=seed).to(data.x.device))
        return torch.cat(x_adv)

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        return dict(self.objective(model, x, y, ball, step))


def _per_example(ball: Ball) -> bool:
    """Whether a part of the ball has one entry per example."""
    no_rows = ball.rows(torch.arange(0))
    parts = (no_rows.eps, no_rows.lo, no_rows.hi, no_rows.mask)
    return any(isinstance(part, Tensor) and part.ndim > 0 and len(part) == 0 for part in parts)
