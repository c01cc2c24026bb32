"""Training on the adversarial batch alone: an attack, then the cross-entropy where it ended."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.checks import check_one_of
from epsball.training.climb import MODES, Mode, climbing
from epsball.training.cross_entropy import CrossEntropyTraining, accuracy, logits_of
from epsball.training.step import Step


@dataclass(frozen=True, kw_only=True)
class OnAdversarial(CrossEntropyTraining):
    """J(x_adv), for an attack that a subclass makes in `attack_mode`; one pass a step beside the attack's.

    Logs "loss" and "adversarial_accuracy".
    """

    attack_mode: Mode = "eval"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_one_of("attack_mode", self.attack_mode, MODES)

    @abstractmethod
    def attack(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball, step: Step
    ) -> Float[Tensor, "n *shape"]:
        """The points to train on; the model is as `climbing` leaves it, and only input gradients are to be taken."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball | None, step: Step
    ) -> dict[str, Tensor | float]:
        ball = self.need(ball)
        with climbing(model, self.attack_mode):
            x_adv = self.attack(model, x, y, ball, step)
        logits = logits_of(model, x_adv)
        loss = self.loss(logits, y)
        loss.backward()
        return {"loss": loss.detach(), "adversarial_accuracy": accuracy(logits, y)}
