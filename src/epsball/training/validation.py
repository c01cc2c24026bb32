"""How robust is the model now? And has single-step training overfitted catastrophically?

Single-step training can break from one moment to the next: the model learns to be safe from the one step that it is
trained on, and PGD finds it wide open (Wong, Rice and Kolter, ICLR 2020, section 5.4). FGSM alone never shows it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from epsball.attacks.fgsm import FGSM
from epsball.attacks.pgd import PGD
from epsball.balls.ball import Ball
from epsball.data.examples import Examples
from epsball.problem.objective import ModelWarning, frozen, prediction
from epsball.problem.outputs import two_columns
from epsball.training import ranks

GLANCE = 256
"""Examples that are looked at within an epoch; at its end it is all that are held out."""
COLLAPSE, LOST, NEAR = 0.5, 0.2, 0.1
"""PGD's accuracy has collapsed below this share of the best seen, and by more than so much, while a single step's is no
farther below that best than this. Below `LOST` there is no robustness yet that could collapse: it comes and goes.
"""
FADES = 0.9
"""What is left of the best at each look while the radius grows."""
WIDTH = 256


@dataclass(frozen=True)
class Check:
    """Accuracies on held-out examples: `clean`, under FGSM and under PGD-10, of `examples`; without a ball clean only.

    `step` counts the optimiser's steps before it; `epoch` is counted from 1; `radius` is the share of the ball's radius
    that was looked at, less than 1 while it grows; `averaged` says that it is of the averaged weights, `event` what was
    found and done.
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
        """Under PGD; without a ball the clean accuracy."""
        return self.clean if self.pgd is None else self.pgd


def check(model: nn.Module, held: Examples, ball: Ball | None, *, step: int, epoch: int, seed: int) -> Check:
    """The accuracies now, in eval mode; processes share the examples."""
    device = next(model.parameters()).device
    mine = torch.arange(ranks.rank(), len(held), ranks.world())
    right = torch.zeros(3, dtype=torch.int64)
    with frozen(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)  # saturated logits are no news in the middle of a training
        for rows in mine.split(WIDTH):
            part = held.rows(rows)
            x, y = part.x.to(device), part.y.to(device)
            standing = _right(model, x, y)
            right[0] += standing.sum().cpu()
            if ball is None or not bool(standing.any()):
                continue
            within, x, y, ids = ball.rows(rows).rows(standing.cpu()), x[standing], y[standing], part.ids[standing.cpu()]
            after_one = _right(model, FGSM()(model, x, y, within, ids=ids, seed=seed), y)
            right[1] += after_one.sum().cpu()
            found = PGD(steps=10)(model, x, y, within, ids=ids, seed=seed)
            # The worse of the two, as a robust accuracy is.
            right[2] += (_right(model, found, y) & after_one).sum().cpu()
    ranks.summed([right])
    clean, fgsm, pgd = (count / len(held) for count in right.tolist())
    if ball is None:
        return Check(step, epoch, len(held), clean)
    return Check(step, epoch, len(held), clean, fgsm, pgd)


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return prediction(two_columns(model(x))) == y


def overfitted(now: Check, best: float, trained: float | None) -> bool:
    """Whether PGD's accuracy has collapsed from the best seen while a single step's has not.

    `trained` is the accuracy on the examples that the training itself made since the last check, where it logs one.
    """
    if now.pgd is None or now.fgsm is None:
        return False
    single = max(now.fgsm, trained or 0.0)
    return now.pgd < COLLAPSE * best and best - now.pgd > LOST and single > best - NEAR
