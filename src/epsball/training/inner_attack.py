"""The attack inside a step of training, and the objectives that have one.

Only input gradients are computed: parameters are frozen during the attack, and running statistics are restored after
it. In "train" mode BatchNorm normalises by the attacked batch and dropout draws, as in the pass that is trained on; in
"eval" mode the running statistics are used, and nothing is random.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from epsball.balls.ball import Ball
from epsball.common.shapes import Batch
from epsball.models.frozen import frozen, restored_buffers
from epsball.problem.gradients import finite_gradient
from epsball.training.cross_entropy import CrossEntropyTraining, input_gradient, logits_of
from epsball.training.training_objective import Labels, Logged, TrainingStep

Mode = Literal["train", "eval"]
AttackLoss = Callable[[Tensor], Tensor]
"""Logits (n, classes) -> the scalar that an attack increases, summed over the rows."""


class AttackingTraining(CrossEntropyTraining):
    """An objective with an attack of its own, in `attack_mode` "train" or "eval"."""

    attack_mode: Mode = "eval"


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


@contextmanager
def attackable(model: nn.Module, mode: Mode) -> Iterator[None]:
    """The model in `mode`, with frozen parameters; on leaving, flags and buffers are what they were."""
    buffers = restored_buffers(model.modules()) if mode == "train" else nullcontext()
    with frozen(model, evaluating=mode == "eval"), buffers:
        yield


def summed_cross_entropy(y: Labels) -> AttackLoss:
    """The loss that most attacks increase."""
    return lambda logits: F.cross_entropy(logits, y, reduction="sum")


def attack_gradient(model: nn.Module, z: Batch, loss: AttackLoss) -> Batch:
    """The input gradient of the loss at z, zero where it is not finite: a forward and a backward pass."""
    leaf = z.detach().requires_grad_()
    return finite_gradient(input_gradient(loss(logits_of(model, leaf)), leaf))


def ascend(
    model: nn.Module, start: Batch, x: Batch, ball: Ball, loss: AttackLoss, *, steps: int, step_size: float
) -> Batch:
    """Where `steps` steps of length `step_size` * eps lead from `start`, in the ball around x.

    Each costs a forward and a backward pass.
    """
    z, ball = start, ball.held(x)
    for _ in range(steps):
        z = ball.step(attack_gradient(model, z, loss), z, x, step_size)
    return z
