"""Bases of objectives that attack inside the step, and of those that train on the adversarial batch alone."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import get_args

from torch import nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_one_of
from epsball.common.shapes import Batch
from epsball.training.cross_entropy import CrossEntropyTraining
from epsball.training.inner_attack import Mode, attackable
from epsball.training.training_objective import Labels, Logged, TrainingStep


@dataclass(frozen=True, kw_only=True)
class AttackingTraining(CrossEntropyTraining):
    """An objective with an attack of its own: in `attack_mode` "train" or "eval"."""

    attack_mode: Mode = "eval"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("attack_mode", self.attack_mode, get_args(Mode))


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(AttackingTraining):
    """J(x_adv), x_adv by the `attack` of a subclass; a forward and a backward pass a step beside the attack's.

    Logs "loss" and "adversarial_accuracy".
    """

    @abstractmethod
    def attack(self, model: nn.Module, x: Batch, y: Labels, ball: Ball, step: TrainingStep) -> Batch:
        """The points to train on; parameters are frozen, and only input gradients are to be taken."""

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        with attackable(model, self.attack_mode):
            x_adv = self.attack(model, x, y, self.need(ball), step)
        loss, accuracy = self.backpropagate(model, x_adv, y)
        return {"loss": loss, "adversarial_accuracy": accuracy}
