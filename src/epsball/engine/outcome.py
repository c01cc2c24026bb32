"""What an attack achieved on each example, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.early_stopping import success_margin
from epsball.problem.task import Task


@dataclass(frozen=True, eq=False)
class AttackOutcome:
    """The result of an attack on the examples of a task.

    `x_adv` (n, *shape) is the adversarial example where `fooled`, else the example itself; `restart` the restart index
    that found it, -1 for none; `invalid` where logits were not finite and no job succeeded; `exhausted` where the query
    budget ran out before the attack had ended, and no job succeeded or, with a minimum-norm attack, none ended.
    `warm_start` (n, *shape),
    where it was wanted, is the point with the largest success margin among those where jobs ended and their best
    points, the example itself where there is none, and `margin` (n,) that margin (-inf).
    `forwards` and `backwards` (n,) count the model calls up to the success; `speculative_*` those of jobs that an
    earlier restart made needless, `padding_*` those of rows that only filled a batch. `unconfirmed` is the number of
    examples with a success that was not confirmed, and none that was.
    """

    x_adv: Float[Tensor, "n *shape"]
    fooled: Bool[Tensor, " n"]
    invalid: Bool[Tensor, " n"]
    restart: Int64[Tensor, " n"]
    warm_start: Float[Tensor, "n *shape"]
    margin: Float[Tensor, " n"]
    forwards: Int64[Tensor, " n"]
    backwards: Int64[Tensor, " n"]
    exhausted: Bool[Tensor, " n"]
    speculative_forwards: int
    speculative_backwards: int
    padding_forwards: int
    padding_backwards: int
    unconfirmed: int = 0


class JobResults:
    """The results of the jobs (example, restart) of one attack, as they come in.

    An example's answer is that of the lowest restart that succeeds, so it does not depend on the order of the jobs;
    with `minimises` it is the nearest one, and of equally near ones that of the lowest restart.
    """

    def __init__(self, task: Task, jobs: int, *, minimises: bool, warm_start: bool) -> None:
        n = len(task.x)
        self.task, self.jobs, self.minimises = task, jobs, minimises
        self.x_adv, self.nearness, self.winner = task.x.clone(), np.full(n, -np.inf), np.full(n, jobs)
        self.warm_start = task.x.clone() if warm_start else task.x
        self.margin, self.warm_start_restart = np.full(n, -np.inf), np.full(n, jobs)
        self.invalid_restart = np.full(n, jobs)  # the lowest restart with logits that are not finite
        self.unconfirmed, self.exhausted = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self.forwards, self.backwards = np.zeros((n, jobs), dtype=np.int64), np.zeros((n, jobs), dtype=np.int64)

    def needed(self, example: np.ndarray, restart: np.ndarray) -> np.ndarray:
        """Which jobs can still change an answer: those of lower restarts than a success; all with `minimises`."""
        return np.ones(len(example), dtype=bool) if self.minimises else restart < self.winner[example]

    def record_invalid(self, example: np.ndarray, restart: np.ndarray) -> None:
        """Jobs that saw logits that are not finite."""
        np.minimum.at(self.invalid_restart, example, restart)

    def record_successes(self, example: np.ndarray, restart: np.ndarray, z: Tensor, index: np.ndarray) -> None:
        """Jobs that succeeded, with the points z[index]."""
        nearness = np.zeros(len(example))
        if self.minimises:
            rows = self.task.rows(torch.from_numpy(example).to(z.device))
            distance = rows.ball.distance(z[torch.from_numpy(index).to(z.device)], rows.x)
            nearness = -distance.double().cpu().numpy()
        at, which = _improvements(example, restart, nearness, self.nearness, self.winner)
        if len(at):
            self.winner[at], self.nearness[at] = restart[which], nearness[which]
            self.x_adv[torch.from_numpy(at)] = z[torch.from_numpy(index[which])]

    def record_margins(self, example: np.ndarray, restart: np.ndarray, z: Tensor, logits: Tensor, task: Task) -> None:
        """Points z of jobs with their logits: the one with the largest success margin is kept as the warm start."""
        margin = torch.where(logits.isfinite().all(1), success_margin(logits, task), -torch.inf).double().cpu().numpy()
        at, which = _improvements(example, restart, margin, self.margin, self.warm_start_restart)
        if len(at):
            self.margin[at], self.warm_start_restart[at] = margin[which], restart[which]
            self.warm_start[torch.from_numpy(at)] = z[torch.from_numpy(which)]

    def outcome(self, calls: np.ndarray) -> AttackOutcome:
        """The outcome, where `calls` are all forward and backward passes that were made, in rows."""
        last = self.winner if not self.minimises else np.full(len(self.winner), self.jobs)
        needed = np.arange(self.jobs) <= last[:, None]
        forwards, backwards = (np.where(needed, part, 0).sum(1) for part in (self.forwards, self.backwards))
        fooled = self.winner < self.jobs
        return AttackOutcome(
            x_adv=self.x_adv,
            fooled=torch.from_numpy(fooled),
            invalid=torch.from_numpy(~fooled & (self.invalid_restart < self.jobs)),
            restart=torch.from_numpy(np.where(fooled, self.winner, -1)),
            warm_start=self.warm_start,
            margin=torch.from_numpy(self.margin),
            exhausted=torch.from_numpy(self.exhausted & (~fooled | self.minimises)),
            forwards=torch.from_numpy(forwards),
            backwards=torch.from_numpy(backwards),
            speculative_forwards=int(self.forwards.sum() - forwards.sum()),
            speculative_backwards=int(self.backwards.sum() - backwards.sum()),
            padding_forwards=int(calls[0] - self.forwards.sum()),
            padding_backwards=int(calls[1] - self.backwards.sum()),
            unconfirmed=int((self.unconfirmed & ~fooled).sum()),
        )


def _improvements(
    example: np.ndarray, restart: np.ndarray, score: np.ndarray, best: np.ndarray, best_restart: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The examples whose `best` score (of restart `best_restart`) some job beats, and the index of that job.

    Of equal scores the lowest restart is the best.
    """
    better = (score > best[example]) | ((score == best[example]) & (restart < best_restart[example]))
    order = np.lexsort((-restart, score))  # the best comes last
    order = order[(better & np.isfinite(score))[order]]
    winners = {int(example[i]): i for i in order}
    return np.fromiter(winners, np.int64, len(winners)), np.fromiter(winners.values(), np.int64, len(winners))
