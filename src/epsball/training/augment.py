"""The older way: find adversarial examples of the model as it is, add them to the training set, go on.

Szegedy et al., "Intriguing properties of neural networks" (ICLR 2014), section 4.2: a pool of adversarial examples is
mixed into the training set and renewed. Goodfellow et al. (2015) found making them anew in each step better.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.attacks.attack import Attack
from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.problem.objective import ModelWarning
from epsball.training.plain import Plain
from epsball.training.step import Step, TrainingObjective

SET = 1 << 40
"""Adversarial examples of epoch k have the ids of theirs plus k times this."""
WIDTH = 256


@dataclass(frozen=True, kw_only=True)
class Augment(TrainingObjective):
    """`objective` on a training set to which `attack`'s examples are added, before each `every`-th epoch but the first.

    They keep the labels of theirs, and have ids of their own. Those of the last `keep` attacks are in the set, so that
    it is at most 1 + keep times as long, and as large in memory. An attack costs its passes once for each example of
    the data (FGSM: one pass), beside the objective's for each row of the longer set. It is in eval mode.
    """

    accelerates = False

    attack: Attack = field(default_factory=FGSM)
    every: int = 1
    keep: int = 3
    objective: TrainingObjective = field(default_factory=Plain)

    def __post_init__(self) -> None:
        check_whole("every", self.every, 1)
        check_whole("keep", self.keep, 1)
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
        made = data.ids // SET  # 0: an example of the data
        originals = data.rows((made == 0).nonzero().squeeze(1))
        sets = sorted(set(made.tolist()) - {0})
        dropped = torch.tensor(sets[: max(0, len(sets) + 1 - self.keep)], dtype=made.dtype)
        stays = data.rows((~torch.isin(made, dropped)).nonzero().squeeze(1))
        ids = originals.ids + number * SET
        x_adv = self._found(model, originals, ball, ids, seed)
        return replace(
            stays,
            x=torch.cat([stays.x, x_adv]),
            y=torch.cat([stays.y, originals.y]),
            ids=torch.cat([stays.ids, ids]),
        )

    def _found(
        self, model: nn.Module, data: Examples, ball: Ball, ids: Int64[Tensor, " n"], seed: int
    ) -> Float[Tensor, "n *shape"]:
        device, found = next(model.parameters()).device, []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelWarning)  # rows without a gradient are no news in training
            for rows in torch.arange(len(data)).split(WIDTH):
                x, y = data.x[rows].to(device), data.y[rows].to(device)
                x_adv = self.attack(model, x, y, ball, ids=ids[rows].to(device), seed=seed)
                found.append(x_adv.to(data.x.device))
        return torch.cat(found)

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball | None, step: Step
    ) -> dict[str, Tensor | float]:
        return dict(self.objective(model, x, y, ball, step))


def _per_example(ball: Ball) -> bool:
    none = ball.rows(torch.arange(0))
    parts = (none.eps, none.lo, none.hi, none.mask)
    return any(isinstance(part, Tensor) and part.ndim > 0 and len(part) == 0 for part in parts)
