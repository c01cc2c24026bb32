"""An attack on one image, iterate by iterate, without a stop at the first that fools."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.problem.losses import margin
from epsball.problem.objective import Objective
from epsball.problem.task import Task

MOST = 1000
"""Iterates that are kept, at most."""


@dataclass(frozen=True, eq=False)
class Path:
    """The points z_0, z_1, ... that the attack looked at, the one it ended at last, and what the model said there.

    `z` (k, *shape), `logits` (k, classes), and `margin` (k,), which is > 0 where the point fools.
    """

    z: Float[Tensor, "k *shape"]
    logits: Float[Tensor, "k classes"]
    margin: Float[Tensor, " k"]

    def __len__(self) -> int:
        return len(self.z)


def path(attack: Attack, objective: Objective, task: Task) -> Path:
    """The way of the first job of a task of one row; `objective` is open, and made for this attack."""
    job, _ = attack.job(task, task.noise.restart)
    state, seen, said = attack.init(job), [], []
    for turn in range(1, MOST):
        point = objective(state.z, job)
        seen.append(state.z)
        said.append(point.logits)
        state = attack.step(state, point, job)
        if turn == attack.max_steps or (attack.max_steps is None and bool(state.done.all())):
            break
    end = torch.where(state.best.isfinite().all(), state.best, job.x)
    seen.append(end)
    said.append(objective.forward(end, job))
    logits = torch.cat(said)
    every = task.rows(torch.zeros(len(seen), dtype=torch.long, device=task.x.device))
    return Path(torch.cat(seen), logits, margin(logits, every))
