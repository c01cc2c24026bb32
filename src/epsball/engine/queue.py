"""The queue: continuous batching of attack jobs.

A server of language models refills its batch as soon as a sequence ends; an attack can do the same, since its state
is per example: examples at different iterations share one forward and backward. A job is (example, restart); jobs enter
restart by restart, `batch_size` at a time; fooled and finished jobs leave after every pass and new ones take their rows. The
lowest restart that succeeds is an example's answer, and a success drops that example's higher restart_indices only: so neither the
answer nor its cost depends on what else was in the pool.

Pools are padded to a multiple of 32 rows and halve as they drain: with few shapes the same row gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.attack import Attack, State
from epsball.attacks.early_stopping import success_margin
from epsball.common.shapes import column, flat
from epsball.problem.objective import Objective, Point
from epsball.problem.task import Task

LEAST = 32
"""The smallest pool; below it the kernels of a row may round differently, and verdicts, not bits, are compared."""

OnTurn = Callable[[int], None]
"""UserAttack after every pass with the number of examples that have fallen so far."""


@dataclass(frozen=True, eq=False)
class SuccessCheck:
    """A second look at a success, without which it does not count and its job goes on.

    `evaluator` is open, and need not be the objective that the attack climbs; it is asked about the points as `kept`
    (z, x) says that they will be: (n, *shape) both, rounded for a file, for instance.
    """

    evaluator: Objective
    kept: Callable[[Tensor, Tensor], Tensor]

    def stands(self, z: Float[Tensor, "n *shape"], task: Task, batch_size: int) -> Bool[Tensor, " n"]:
        """Where what is kept of z still is a success, in the ball."""
        point = self.kept(z, task.x)
        output = forward_rows(self.evaluator, task, point, batch_size)
        return self.evaluator.succeeds(output, task) & task.ball.contains(point, task.x)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an attack did to each row of its task, and what that cost.

    `x_adv` (n, *shape) is the fooling point where `fooled`, else the example itself; `restart` the winning job, -1 for
    none; `invalid` where logits were not finite and nothing fooled. Where a run was asked for the approach, `warm_start`
    (n, *shape) is the best of the points at which jobs ended and of their peaks, the example itself where none ended,
    and `margin` (n,) by how much the wrong class was ahead there (-inf).
    `forwards` and `backwards` (n,) count the passes up to the winner; `speculative_*` those of jobs that a lower restart
    made needless, `padding_*` those of rows that only filled the pool. `unconfirmed` rows had a success that did not
    stand a second look, and none that did.
    """

    x_adv: Float[Tensor, "n *shape"]
    fooled: Bool[Tensor, " n"]
    invalid: Bool[Tensor, " n"]
    restart: Int64[Tensor, " n"]
    warm_start: Float[Tensor, "n *shape"]
    margin: Float[Tensor, " n"]
    forwards: Int64[Tensor, " n"]
    backwards: Int64[Tensor, " n"]
    speculative_forwards: int
    speculative_backwards: int
    padding_forwards: int
    padding_backwards: int
    unconfirmed: int = 0


def pool_size(wanted: int, batch_size: int) -> int:
    """The rows of a pool for `wanted` jobs: `batch_size` halved as long as that is enough, a multiple of 32.

    >>> [pool_size(wanted, 128) for wanted in (500, 128, 65, 64, 33, 1)]
    [128, 128, 128, 64, 64, 32]
    """
    least = min(LEAST, batch_size)
    size = -(-batch_size // least) * least
    while size > least and (half := -(-size // 2 // least) * least) >= wanted:
        size = half
    return size


def forward_rows(objective: Objective, task: Task, z: Float[Tensor, "n *shape"], batch_size: int) -> Tensor:
    """Logits or labels at z, `batch_size` rows of the task at a time, the last batch padded as a pool is."""
    outputs = []
    for start in range(0, len(z), batch_size):
        rows = min(batch_size, len(z) - start)
        index = start + torch.arange(pool_size(rows, batch_size), device=z.device).clamp_max(rows - 1)
        outputs.append(objective.forward(z[index], task.rows(index))[:rows])
    return torch.cat(outputs)


def run(
    attack: Attack,
    objective: Objective,
    task: Task,
    *,
    evaluator: Objective | None = None,
    look: SuccessCheck | None = None,
    approach: bool = False,
    batch_size: int = 128,
    on_turn: OnTurn | None = None,
) -> Outcome:
    """Attack every row of `task` through a pool of `batch_size` rows. `objective` is open, and made for this attack.

    With a `evaluator`, another open objective, the attack is a transfer: it climbs on `objective` to its end, and only
    where it ends does the evaluator look. With a `look` a success counts, and ends its job, where it stands that look.
    With `approach` the outcome's `warm_start` and `margin` are filled, which costs jobs without success one more forward where
    their peak is not where they end.
    """
    attack.check_ball(task.ball)
    queue = _Queue(attack, objective, task, batch_size, evaluator, look, approach)
    if len(task.x):
        queue.drive(on_turn or (lambda fallen: None))
    return queue.outcome()


@dataclass(eq=False)
class _Queue:
    """The book-keeping of one run: which job sits in which row of the pool, and what each job has cost."""

    attack: Attack
    objective: Objective
    task: Task
    batch_size: int
    evaluator: Objective | None
    look: SuccessCheck | None
    approach: bool
    state: State | None = None
    finals: list[tuple[np.ndarray, np.ndarray, Tensor, Tensor]] = field(default_factory=list)
    waiting: int = 0
    entered: int = 0

    def __post_init__(self) -> None:
        n, jobs = len(self.task.x), self.attack.jobs
        self.x_adv = self.task.x.clone()
        self.winner = np.full(n, jobs)
        # A success makes jobs of higher restart needless; where the nearest point is sought, none are.
        self.needed = np.full(n, jobs) if self.attack.minimises else self.winner
        self.distance = np.full(n, np.inf)
        self.invalid_at = np.full(n, jobs)
        self.refused = np.zeros(n, dtype=bool)
        self.warm_start = self.task.x.clone() if self.approach else self.task.x
        self.margin, self.warm_start_restart = np.full(n, -np.inf), np.full(n, jobs)
        self.forwards = np.zeros((n, jobs), dtype=np.int64)
        self.backwards = np.zeros((n, jobs), dtype=np.int64)
        self.standing = self.attack.until == "fooled" and self.evaluator is None
        self.passes_before = self.made()
        size = min(pool_size(self.batch_size, self.batch_size), -(-n * jobs // LEAST) * LEAST)
        self.row, self.restart = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        self.turns, self.live = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=bool)

    def made(self) -> np.ndarray:
        """Forwards and backwards of all models so far, in rows."""
        seen = {self.objective, self.evaluator, None if self.look is None else self.look.evaluator} - {None}
        return np.array([(one.forwards, one.backwards) for one in seen if one is not None]).sum(0)

    def drive(self, on_turn: OnTurn) -> None:
        """Until no job is left: fill the pool, make a pass, let go what is fooled, finished or dropped."""
        while True:
            self.refill()
            if not self.live.any():
                if self.waiting:
                    self.settle_finals()
                elif self.entered == self.forwards.size:
                    return
                continue
            self.turn()
            if self.waiting >= len(self.row):
                self.settle_finals()
            on_turn(int((self.winner < self.attack.jobs).sum()))

    def take(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """The next jobs, restart-major, without those whose example has fallen at a lower restart."""
        n, jobs = self.forwards.shape
        rows, restart_indices = [], []
        while most > 0 and self.entered < n * jobs:
            job = np.arange(self.entered, min(self.entered + most, n * jobs))
            self.entered += len(job)
            row, restart = job % n, job // n
            wanted = restart < self.needed[row]
            rows.append(row[wanted])
            restart_indices.append(restart[wanted])
            most -= int(wanted.sum())
        return np.concatenate([*rows, np.zeros(0, np.int64)]), np.concatenate([*restart_indices, np.zeros(0, np.int64)])

    def refill(self) -> None:
        """Seat new jobs in the empty rows; shrink the pool where there are too few."""
        free = np.flatnonzero(~self.live)
        row, restart = self.take(len(free))
        if self.state is None:  # the first fill: rows beyond the last job repeat the first one, and do not live
            spare = len(free) - len(row)
            self.live[: len(row)] = True
            row, restart = (np.concatenate([part, np.full(spare, part[0])]) for part in (row, restart))
            self.row, self.restart, self.state = row, restart, self.attack.init(self.job(row, restart)[0])
        elif len(row):
            slots = free[: len(row)]
            self.row[slots], self.restart[slots], self.turns[slots], self.live[slots] = row, restart, 0, True
            at = torch.from_numpy(slots).to(self.task.x.device)
            arriving = self.attack.init(self.job(row, restart)[0])
            self.state = self.state.map(lambda old, new: old.index_copy(0, at, new), arriving)
        elif (size := pool_size(int(self.live.sum()), len(self.row))) < len(self.row):
            keep = np.argsort(~self.live, kind="stable")[:size]
            self.row, self.restart, self.turns, self.live = (
                part[keep] for part in (self.row, self.restart, self.turns, self.live)
            )
            at = torch.from_numpy(keep).to(self.task.x.device)
            self.state = self.state.map(lambda part: part[at])
        else:
            return
        self.pool, exists = self.job(self.row, self.restart)
        self.live &= exists.cpu().numpy()

    def job(self, row: np.ndarray, restart: np.ndarray) -> tuple[Task, Bool[Tensor, " n"]]:
        device = self.task.x.device
        return self.attack.job(self.task.rows(torch.from_numpy(row).to(device)), torch.from_numpy(restart).to(device))

    def turn(self) -> None:
        """One pass over the pool."""
        state = self.state
        assert state is not None, "refill comes first"
        before = self.made()
        z = state.z
        if not self.live.all() and self.objective.exhausted(self.pool) is not None:
            # Rows that have ended look at their example, which is known: no query is spent on them.
            z = torch.where(column(torch.from_numpy(self.live).to(z.device), z.ndim), z, self.pool.x)
        point = self.objective(z, self.pool)
        forwards, backwards = (self.made() - before) // len(self.row)
        self.state = stepped = self.attack.step(state, point, self.pool)
        self.turns += 1
        self.forwards[self.row[self.live], self.restart[self.live]] += forwards
        self.backwards[self.row[self.live], self.restart[self.live]] += backwards
        passes = self.attack.max_steps
        done = self.turns >= passes if passes is not None else stepped.done.cpu().numpy()
        exhausted = self.objective.exhausted(self.pool)
        if exhausted is not None:
            done = done | exhausted.cpu().numpy()
        valid = point.valid.cpu().numpy()
        fooled = np.zeros_like(done)
        if self.standing:
            fooled = self.stood(self.live & point.fooled.cpu().numpy(), self.row, self.restart, state.z)
            self.settle(self.row[fooled], self.restart[fooled], state.z, np.flatnonzero(fooled))
        failed = self.live & ~valid
        np.minimum.at(self.invalid_at, self.row[failed], self.restart[failed])
        self.live &= ~fooled & (self.restart < self.needed[self.row])
        self.end(self.live & valid & done, stepped.best, self.attack.best_point(stepped))
        if not self.standing:  # what it had found before still counts
            elsewhere = flat(state.best != state.z).any(1).cpu().numpy()
            self.end(self.live & failed & elsewhere, state.best, state.best)
        self.live &= valid

    def stood(self, fooled: np.ndarray, row: np.ndarray, restart: np.ndarray, z: Tensor) -> np.ndarray:
        """Which successes among the jobs (row, restart) at z stand a second look, where one is asked for."""
        hits = np.flatnonzero(fooled)
        if self.look is None or not len(hits):
            return fooled
        task = self.job(row[hits], restart[hits])[0]
        good = self.look.stands(z[torch.from_numpy(hits).to(z.device)], task, self.batch_size)
        self.forwards[row[hits], restart[hits]] += self.look.evaluator.eot
        stood = fooled.copy()
        stood[hits] = good.cpu().numpy()
        self.refused[row[fooled & ~stood]] = True
        return stood

    def end(self, ended: np.ndarray, best: Tensor, peak: Tensor) -> None:
        """Free the rows of jobs that have ended, whose best points are to be looked at."""
        rows = np.flatnonzero(ended)
        self.live[rows] = False
        if len(rows):
            at = torch.from_numpy(rows)
            last = best[at]
            peak = peak[at] if self.approach and peak is not best else last
            self.finals.append((self.row[rows], self.restart[rows], last, peak))
            self.waiting += len(rows)

    def settle(self, row: np.ndarray, restart: np.ndarray, z: Tensor, index: np.ndarray) -> None:
        """Jobs that succeeded, at z[index]: of each example the nearest point that is sought, or the lowest restart's."""
        distance = np.zeros(len(row))
        if self.attack.minimises:
            at = self.task.rows(torch.from_numpy(row).to(z.device))
            distance = at.ball.distance(z[torch.from_numpy(index).to(z.device)], at.x).double().cpu().numpy()
        order = np.lexsort((-restart, -distance))  # the answer is written last
        before, lowest = self.distance[row[order]], self.winner[row[order]]
        order = order[(distance[order] < before) | ((distance[order] == before) & (restart[order] < lowest))]
        last = {int(row[i]): i for i in order}
        if last:
            at = np.fromiter(last, np.int64), np.fromiter(last.values(), np.int64)
            self.winner[at[0]], self.distance[at[0]] = restart[at[1]], distance[at[1]]
            self.x_adv[torch.from_numpy(at[0])] = z[torch.from_numpy(index[at[1]])]

    def settle_finals(self) -> None:
        """One forward for the points where finished jobs ended."""
        row, restart = (np.concatenate([final[i] for final in self.finals]) for i in (0, 1))
        z, peak = torch.cat([final[2] for final in self.finals]), torch.cat([final[3] for final in self.finals])
        self.finals, self.waiting = [], 0
        evaluator, task = self.evaluator or self.objective, self.job(row, restart)[0]
        output = forward_rows(evaluator, task, z, self.batch_size)
        self.forwards[row, restart] += evaluator.eot
        point = Point(z, output, None, None, evaluator.success, task)
        fooled, valid = self.stood(point.fooled.cpu().numpy(), row, restart, z), point.valid.cpu().numpy()
        np.minimum.at(self.invalid_at, row[~valid], restart[~valid])
        self.settle(row[fooled], restart[fooled], z, np.flatnonzero(fooled))
        self.live &= self.restart < self.needed[self.row]
        if not (self.approach and output.is_floating_point()):
            return
        self.note(row, restart, z, output, task)
        rows = np.flatnonzero(~fooled & flat(peak != z).any(1).cpu().numpy())
        if len(rows):  # the last point of a climb need not be its best
            at = torch.from_numpy(rows).to(z.device)
            peak, task = peak[at], task.rows(at)
            self.note(row[rows], restart[rows], peak, forward_rows(evaluator, task, peak, self.batch_size), task)
            self.forwards[row[rows], restart[rows]] += evaluator.eot

    def note(self, row: np.ndarray, restart: np.ndarray, z: Tensor, output: Tensor, task: Task) -> None:
        """Points z of jobs with their logits: the furthest ahead of each example is kept, of equals the first job's."""
        valid = output.isfinite().all(1)
        ahead = torch.where(valid, success_margin(output, task), -torch.inf).double().cpu().numpy()
        order = np.lexsort((-restart, ahead))  # the best is written last
        further = (ahead > self.margin[row]) | ((ahead == self.margin[row]) & (restart < self.warm_start_restart[row]))
        order = order[(further & np.isfinite(ahead))[order]]
        last = {int(row[i]): i for i in order}
        if last:
            at = np.fromiter(last, np.int64), np.fromiter(last.values(), np.int64)
            self.margin[at[0]], self.warm_start_restart[at[0]] = ahead[at[1]], restart[at[1]]
            self.warm_start[torch.from_numpy(at[0])] = z[torch.from_numpy(at[1])]

    def outcome(self) -> Outcome:
        needed = np.arange(self.forwards.shape[1]) <= self.needed[:, None]
        forwards, backwards = (np.where(needed, part, 0).sum(1) for part in (self.forwards, self.backwards))
        fooled = self.winner < self.attack.jobs
        made = self.made() - self.passes_before
        return Outcome(
            x_adv=self.x_adv,
            fooled=torch.from_numpy(fooled),
            invalid=torch.from_numpy(~fooled & (self.invalid_at < self.attack.jobs)),
            restart=torch.from_numpy(np.where(fooled, self.winner, -1)),
            warm_start=self.warm_start,
            margin=torch.from_numpy(self.margin),
            forwards=torch.from_numpy(forwards),
            backwards=torch.from_numpy(backwards),
            speculative_forwards=int(self.forwards.sum() - forwards.sum()),
            speculative_backwards=int(self.backwards.sum() - backwards.sum()),
            padding_forwards=int(made[0] - self.forwards.sum()),
            padding_backwards=int(made[1] - self.backwards.sum()),
            unconfirmed=int((self.refused & ~fooled).sum()),
        )
