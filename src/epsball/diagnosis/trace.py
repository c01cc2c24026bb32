"""The path of an attack, step by step, for the diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import Attack, State
from epsball.attacks.driver import Driver
from epsball.attacks.early_stopping import success_margin
from epsball.problem.objective import Objective, Point
from epsball.problem.task import Task

S = TypeVar("S", bound=State)

MAX_STEPS = 100


@dataclass(frozen=True, eq=False)
class Trace:
    """The loss of every row at each step of an attack, NaN after a row's attack has ended.

    `loss` is the loss that the attack maximises; where that has several columns, the margin of the best wrong class;
    where the attack sees labels only, 1 for a success and else 0. `x_adv` (n, *shape) is the first adversarial example
    of a row, else where its attack ended, and `broken` says whether it is misclassified.
    """

    loss: Float[Tensor, "steps n"]
    x_adv: Float[Tensor, "n *shape"]
    broken: Bool[Tensor, " n"]

    @property
    def backslide(self) -> Float[Tensor, " n"]:
        """The share of the loss's total variation that is decrease: 0 for an ascent, about .5 for a random walk.

        Changes within the rounding of the loss do not count.
        """
        loss = self.loss.double()
        change = loss.diff(dim=0).nan_to_num(0.0)
        rounding = 64 * torch.finfo(self.loss.dtype).eps * loss.abs().nan_to_num(0.0).amax(0)
        change = torch.where(change.abs() > rounding, change, 0)
        decrease, variation = change.clamp_max(0).sum(0).neg(), change.abs().sum(0)
        return torch.where(variation > 0, decrease / variation.clamp_min(torch.finfo(variation.dtype).tiny), 0)


def trace(attack: Attack[S], objective: Objective, task: Task, *, max_steps: int = MAX_STEPS) -> Trace:
    """The first job of every row of `task`, for at most `max_steps`; `task` has the clean logits where they are read.

    `objective` is open, and made for this attack. The model is not called for a row that is broken or has ended.
    """
    n, dtype = len(task.x), torch.promote_types(task.x.dtype, torch.float32)
    job, exists = attack.job(task, task.noise.restart)
    x_adv, broken = task.x.clone(), torch.zeros_like(exists)
    losses: list[Tensor] = []
    rows = exists.nonzero().squeeze(1)
    driver = Driver(attack, objective, job.rows(rows)) if len(rows) else None
    while driver is not None and len(rows):
        job = driver.task
        point = driver.advance()
        loss = torch.full((n,), torch.nan, dtype=dtype, device=task.x.device)
        loss[rows] = _shown_loss(objective, point, job).to(dtype)
        losses.append(loss)
        success = point.fooled if attack.until == "fooled" else torch.zeros_like(point.fooled)
        x_adv[rows[success]], broken[rows[success]] = point.z[success], True
        ended = (torch.tensor(driver.ended, device=success.device) | (len(losses) == max_steps)) & ~success
        if bool(ended.any()):
            index = ended.nonzero().squeeze(1)
            answers = driver.answers[index]
            x_adv[rows[index]] = answers
            broken[rows[index]] = objective.evaluate_at(answers, job.rows(index)).fooled
        left = (~(success | ended)).nonzero().squeeze(1)
        if 0 < len(left) < len(rows):
            driver.keep(left)
        rows = rows[left]
    return Trace(torch.stack(losses) if losses else task.x.new_zeros(0, n, dtype=dtype), x_adv, broken)


def _shown_loss(objective: Objective, point: Point, job: Task) -> Float[Tensor, " n"]:
    if objective.needs == "label":
        return point.fooled.double()
    return point.loss if point.loss.ndim == 1 else success_margin(point.logits, job)
