"""The path of an attack, pass by pass: what a diagnosis looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import Attack, State
from epsball.attacks.early_stopping import success_margin
from epsball.common.shapes import column, flat
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
    """The first job of every row of `task`, which has the clean logits where the attack aims, for `most` passes.

    `objective` is open, and made for this attack. Rows that have fooled or ended cost no more passes.
    """
    n, wide = len(task.x), torch.promote_types(task.x.dtype, torch.float32)
    job, exists = attack.job(task, task.noise.restart)
    x_adv, fell = task.x.clone(), torch.zeros_like(exists)
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    rows = exists.nonzero().squeeze(1)
    job = job.rows(rows)
    state = attack.init(job) if len(rows) else None
    while state is not None:
        point = objective(state.z, job)
        loss = point.loss if objective.needs != "label" and point.loss.ndim == 1 else None
        if loss is None:
            loss = success_margin(point.logits, job) if objective.needs != "label" else point.fooled.to(wide)
        size = flat(point.grad).to(wide).norm(dim=1) if objective.needs == "grad" else torch.zeros_like(loss)
        loss, size, far = (_at(part.to(wide), rows, n) for part in (loss, size, job.ball.distance(state.z, job.x)))
        seen.append((loss, size, far, _at(point.fooled, rows, n, False)))
        stepped = attack.step(state, point, job)
        ends = point.fooled if attack.until == "fooled" else torch.zeros_like(point.fooled)
        x_adv[rows[ends]], fell[rows[ends]] = state.z[ends], True
        last = len(seen) == (most if attack.max_steps is None else min(attack.max_steps, most))
        over = stepped.done if attack.max_steps is None else torch.zeros_like(ends)
        over = (over | last) & ~ends
        if bool(over.any()):
            at = over.nonzero().squeeze(1)
            best = stepped.best[at]
            best = torch.where(column(flat(best).isfinite().all(1), best.ndim), best, job.x[at])
            x_adv[rows[at]] = best
            fell[rows[at]] = objective.evaluate_at(best, job.rows(at)).fooled
        left = (~(ends | over)).nonzero().squeeze(1)
        if not len(left):
            break
        if len(left) < len(rows):
            stepped, job, rows = stepped.map(lambda part, at=left: part[at]), job.rows(left), rows[left]
        state = stepped
    empty = task.x.new_zeros(0, n, dtype=wide)
    loss, size, distance, fooled = (
        torch.stack(parts) if parts else empty for parts in (zip(*seen, strict=True) if seen else ((), (), (), ()))
    )
    return Trace(loss, size, distance, fooled.bool(), x_adv, fell)


def _at(part: Tensor, rows: Tensor, n: int, fill: float | bool = torch.nan) -> Tensor:
    """The values of some rows among all."""
    whole = torch.full((n,), fill, dtype=part.dtype, device=part.device)
    whole[rows] = part
    return whole
