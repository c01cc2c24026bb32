"""The path of an attack, pass by pass: what a diagnosis looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import Attack, State
from epsball.attacks.driver import Driver
from epsball.attacks.early_stopping import success_margin
from epsball.common.shapes import flat
from epsball.problem.objective import Objective
from epsball.problem.task import Task

S = TypeVar("S", bound=State)

MOST = 100
"""Passes of a trace."""


@dataclass(frozen=True, eq=False)
class Trace:
    """What each pass of an attack found at each row; not a number where a row had ended before.

    `loss` is what is climbed (the lead of the best wrong class, where the loss has several columns), `size` the
    Euclidean norm of its gradient (0 for an attack without one), `distance` that from the example in the ball's norm.
    `x_adv` (n, *shape) is the first fooling point, else where the row ended, and `fell` says where that fools.
    """

    loss: Float[Tensor, "passes n"]
    size: Float[Tensor, "passes n"]
    distance: Float[Tensor, "passes n"]
    fooled: Bool[Tensor, "passes n"]
    x_adv: Float[Tensor, "n *shape"]
    fell: Bool[Tensor, " n"]

    @property
    def backslide(self) -> Float[Tensor, " n"]:
        """The share of the loss's way, up and down, that led down: 0 for a climb, about .5 for a random walk.

        Changes within the rounding of the loss do not count.
        """
        loss = self.loss.double()
        change = loss.diff(dim=0).nan_to_num(0.0)
        rounding = 64 * torch.finfo(self.loss.dtype).eps * loss.abs().nan_to_num(0.0).amax(0)
        change = torch.where(change.abs() > rounding, change, 0)
        down, way = change.clamp_max(0).sum(0).neg(), change.abs().sum(0)
        return torch.where(way > 0, down / way.clamp_min(torch.finfo(way.dtype).tiny), 0)


def trace(attack: Attack[S], objective: Objective, task: Task, *, most: int = MOST) -> Trace:
    """The first job of every row of `task`, for at most `most` steps; `task` has the clean logits where they are read.

    `objective` is open, and made for this attack. The model is not called for a row that is misclassified or has ended.
    """
    n, wide = len(task.x), torch.promote_types(task.x.dtype, torch.float32)
    job, exists = attack.job(task, task.noise.restart)
    x_adv, fell = task.x.clone(), torch.zeros_like(exists)
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    rows = exists.nonzero().squeeze(1)
    driver = Driver(attack, objective, job.rows(rows)) if len(rows) else None
    while driver is not None:
        job = driver.task
        point = driver.advance()
        loss = point.loss if objective.needs != "label" and point.loss.ndim == 1 else None
        if loss is None:
            loss = success_margin(point.logits, job) if objective.needs != "label" else point.fooled.to(wide)
        size = flat(point.grad).to(wide).norm(dim=1) if objective.needs == "grad" else torch.zeros_like(loss)
        loss, size, far = (_at(part.to(wide), rows, n) for part in (loss, size, job.ball.distance(point.z, job.x)))
        seen.append((loss, size, far, _at(point.fooled, rows, n, False)))
        ends = point.fooled if attack.until == "fooled" else torch.zeros_like(point.fooled)
        x_adv[rows[ends]], fell[rows[ends]] = point.z[ends], True
        over = (torch.from_numpy(driver.ended).to(ends.device) | (len(seen) == most)) & ~ends
        if bool(over.any()):
            at = over.nonzero().squeeze(1)
            answers = driver.answers[at]
            x_adv[rows[at]] = answers
            fell[rows[at]] = objective.evaluate_at(answers, job.rows(at)).fooled
        left = (~(ends | over)).nonzero().squeeze(1)
        if not len(left):
            break
        if len(left) < len(rows):
            driver.keep(left)
            rows = rows[left]
    if not seen:
        empty = task.x.new_zeros(0, n, dtype=wide)
        return Trace(empty, empty, empty, empty.bool(), x_adv, fell)
    loss, size, distance, fooled = (torch.stack(parts) for parts in zip(*seen, strict=True))
    return Trace(loss, size, distance, fooled, x_adv, fell)


def _at(part: Tensor, rows: Tensor, n: int, fill: float | bool = torch.nan) -> Tensor:
    """The values of some rows among all."""
    whole = torch.full((n,), fill, dtype=part.dtype, device=part.device)
    whole[rows] = part
    return whole
