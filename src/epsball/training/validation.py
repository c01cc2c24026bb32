"""Accuracies on held-out examples during a training, and the signs of catastrophic overfitting.

Single-step training can break from one moment to the next: the model becomes safe from the one step that it is trained
on, and PGD still succeeds (Wong, Rice and Kolter, ICLR 2020, section 5.4). FGSM's accuracy alone never shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from epsball.attacks.fgsm import FGSM
from epsball.attacks.pgd import PGD
from epsball.balls.ball import Ball
from epsball.common.record import Record
from epsball.common.shapes import Batch
from epsball.common.undo import without_warnings
from epsball.data.examples import Examples
from epsball.models.frozen import frozen
from epsball.models.last_activation import before_activation
from epsball.problem.objective import ModelWarning, prediction
from epsball.problem.outputs import two_columns
from epsball.training import distributed
from epsball.training.training_objective import Labels

COLLAPSE, LOST, NEAR = 0.5, 0.2, 0.1
"""Catastrophic overfitting: PGD accuracy falls below COLLAPSE times the reference, and by more than LOST, while the
accuracy after a single step is within NEAR of the reference. Below LOST there is no robustness yet that could collapse.
"""
BATCH = 256


@dataclass(frozen=True)
class Check(Record):
    """Accuracies on `examples` held-out examples: `clean`, after FGSM, and after PGD-10; without a ball clean only.

    `step` counts the optimiser's steps before it, `epoch` from 1. `radius` is the share of the ball's radius that was
    attacked in, less than 1 while it grows; `averaged` says that it is of the averaged weights, `event` what was found
    and what the training did.
    """

    step: int
    epoch: int
    examples: int
    clean: float
    fgsm: float | None = None
    pgd: float | None = None
    radius: float = 1.0
    averaged: bool = False
    event: str = ""

    @property
    def robust(self) -> float:
        """The accuracy after PGD; without a ball the clean accuracy."""
        return self.clean if self.pgd is None else self.pgd


def check(model: nn.Module, data: Examples, ball: Ball | None, *, step: int, epoch: int, seed: int) -> Check:
    """The accuracies of `model` now, in eval mode; the processes share the examples."""
    device = next(model.parameters()).device
    counts = torch.zeros(3, dtype=torch.int64)
    with frozen(model), without_warnings(ModelWarning):  # saturated logits are common in the middle of a training
        for rows in torch.arange(distributed.rank(), len(data), distributed.world_size()).split(BATCH):
            part = data.rows(rows)
            x, y = part.x.to(device), part.y.to(device)
            clean = _correct(model, x, y)
            counts[0] += clean.sum().cpu()
            if ball is None or not bool(clean.any()):
                continue
            ball_rows, x, y, ids = ball.rows(rows).rows(clean.cpu()), x[clean], y[clean], part.ids[clean.cpu()]
            after_fgsm = _correct(model, FGSM()(model, x, y, ball_rows, ids=ids, seed=seed), y)
            after_pgd = _correct(model, PGD(steps=10)(model, x, y, ball_rows, ids=ids, seed=seed), y)
            counts[1] += after_fgsm.sum().cpu()
            counts[2] += (after_pgd & after_fgsm).sum().cpu()  # robust accuracy: the worse of the two
    distributed.sum_over_processes([counts])
    clean, fgsm, pgd = (count / len(data) for count in counts.tolist())
    return Check(step, epoch, len(data), clean, *(() if ball is None else (fgsm, pgd)))


def _correct(model: nn.Module, x: Batch, y: Labels) -> torch.Tensor:
    with torch.no_grad():
        return prediction(two_columns(before_activation(model, x)[0])) == y


def overfitted(now: Check, reference: float, training_accuracy: float | None) -> bool:
    """Whether PGD accuracy has collapsed from the `reference` while the accuracy after a single step has not.

    `training_accuracy` is that on the adversarial examples that the training itself made since the last check, where
    the objective logs one.
    """
    if now.pgd is None or now.fgsm is None:
        return False
    single_step = max(now.fgsm, training_accuracy or 0.0)
    return now.pgd < COLLAPSE * reference and reference - now.pgd > LOST and single_step > reference - NEAR
