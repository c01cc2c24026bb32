"""The queue: continuous batching of attack jobs.

An attack on one example may succeed after two steps and on another never. In a fixed batch the first would wait for
the second. Here a pool of `batch_size` rows works through a list of jobs (example, restart), as a server of language
models does with its requests: every turn makes one model call for the whole pool; jobs that succeeded or ended leave,
and the next jobs take their rows. So examples at different steps share a model call.

Jobs are listed restart by restart. The answer of an example is that of its lowest restart that succeeds; a success
cancels only the higher restarts. So neither the answer nor its cost depends on what else was in the pool.

Where a job ends without success in sight, its answer gets one more forward pass; these are made in batches of their
own. When no jobs are left the pool is halved as it empties, down to 32 rows.

With a query budget the restarts come one after the other, so that none spends what an earlier one still needs. Where
the budget ends a search before the attack does, or leaves it fewer steps than it asks for, the example is exhausted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.driver import Driver
from epsball.common.shapes import column, flat
from epsball.engine.batches import MIN_BATCH, forward_rows, padded_size
from epsball.engine.outcome import AttackOutcome, JobResults
from epsball.problem.objective import Objective, Point
from epsball.problem.task import Task

OnTurn = Callable[[int], None]
"""Called after every model call of the pool, with the number of examples that the attack has succeeded on so far."""


@dataclass(frozen=True, eq=False)
class SuccessCheck:
    """A second model call at a success, without which it does not count and its job continues.

    `evaluator` is open, and need not be the objective that the attack climbs. It is called at the point as it will be
    stored, `stored(z, x)`: (n, *shape) both, rounded for a file, for instance.
    """

    evaluator: Objective
    stored: Callable[[Tensor, Tensor], Tensor]

    def confirmed(self, z: Float[Tensor, "n *shape"], task: Task, batch_size: int) -> Bool[Tensor, " n"]:
        """Where the stored point is a success too, and in the ball."""
        point = self.stored(z, task.x)
        output = forward_rows(self.evaluator, task, point, batch_size)
        return self.evaluator.succeeds(output, task) & task.ball.contains(point, task.x)


@dataclass(frozen=True, eq=False)
class QueueOptions:
    """How jobs are run.

    `batch_size` is the number of rows of the pool. With an `evaluator`, another open objective, the attack is a
    transfer: it climbs on its own objective to the end, and success is what the evaluator says there. With a `check` a
    success counts where it is confirmed. With `warm_start` the outcome's `warm_start` and `margin` are filled, which
    costs a job without success one more forward pass where its best point is not where it ended.
    """

    batch_size: int = 128
    evaluator: Objective | None = None
    check: SuccessCheck | None = None
    warm_start: bool = False
    on_turn: OnTurn = lambda broken: None


def run(attack: Attack, objective: Objective, task: Task, options: QueueOptions | None = None) -> AttackOutcome:
    """Attack every row of `task`; `objective` is open, and made for this attack."""
    attack.check_ball(task.ball)
    queue = _Queue(attack, objective, task, options or QueueOptions())
    calls = queue.model_calls()
    if len(task.x):
        queue.run()
    return queue.results.outcome(queue.model_calls() - calls)


@dataclass(frozen=True, eq=False)
class _Ended:
    """Jobs that have ended, whose answers (and best points, for a warm start) the model has yet to be called at."""

    example: np.ndarray
    restart: np.ndarray
    answer: Tensor
    best_point: Tensor


class _Queue:
    """The jobs of one attack: which are in the pool, which are waiting, which have ended."""

    def __init__(self, attack: Attack, objective: Objective, task: Task, options: QueueOptions) -> None:
        self.attack, self.objective, self.task, self.options = attack.within_budget(objective), objective, task, options
        budget = objective.budget
        self.has_budget, self.shortened = budget is not None, budget is not None and attack.queries > budget
        self.results = JobResults(task, attack.jobs, minimises=attack.minimises, warm_start=options.warm_start)
        self.evaluator = options.evaluator or objective
        self.ends_at_success = attack.until == "fooled" and options.evaluator is None
        self.driver: Driver | None
        self.next_job, self.n_jobs = 0, len(task.x) * attack.jobs
        self.ended: list[_Ended] = []
        self.empty_pool()

    def empty_pool(self) -> None:
        """A pool without jobs, of the size that fits those that are left."""
        most = padded_size(self.options.batch_size, self.options.batch_size)
        size = min(most, -(-(self.n_jobs - self.next_job) // MIN_BATCH) * MIN_BATCH)
        self.driver = None
        self.example, self.restart = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        self.live = np.zeros(size, dtype=bool)  # whether a row of the pool has a job

    def run(self) -> None:
        """Until no job is left: fill the pool, step, and remove jobs that have succeeded or ended or are not needed."""
        while True:
            self.refill()
            if not self.live.any():
                if self.ended:
                    self.evaluate_ended()
                elif self.next_job == self.n_jobs:
                    return
                if self.has_budget:
                    self.empty_pool()
                continue
            self.turn()
            if sum(len(part.example) for part in self.ended) >= len(self.live):
                self.evaluate_ended()
            self.options.on_turn(int((self.results.winner < self.attack.jobs).sum()))

    def model_calls(self) -> np.ndarray:
        """Forward and backward passes of all models so far, in rows."""
        check = self.options.check
        objectives = {self.objective, self.evaluator} | (set() if check is None else {check.evaluator})
        return np.array([(one.forwards, one.backwards) for one in objectives]).sum(0)

    def job(self, example: np.ndarray, restart: np.ndarray) -> tuple[Task, Bool[Tensor, " n"]]:
        """The task of these jobs, and which of them exist."""
        device = self.task.x.device
        rows = self.task.rows(torch.from_numpy(example).to(device))
        return self.attack.job(rows, torch.from_numpy(restart).to(device))

    def take(self, most: int) -> tuple[np.ndarray, np.ndarray]:
        """Examples and restarts of the next jobs, at most so many, without those that are not needed any more."""
        n = len(self.task.x)
        taken = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        while most > 0 and self.next_job < self.n_jobs:
            end = min(self.next_job + most, self.n_jobs)
            if self.has_budget:  # one restart after the other
                if self.next_job % n == 0 and (self.live.any() or self.ended or any(len(part) for part, _ in taken)):
                    break
                end = min(end, (self.next_job // n + 1) * n)
            job = np.arange(self.next_job, end)
            self.next_job += len(job)
            example, restart = job % n, job // n
            needed = self.results.needed(example, restart)
            if self.has_budget:
                needed[needed] = self.affordable(example[needed], restart[needed])
            taken.append((example[needed], restart[needed]))
            most -= int(needed.sum())
        examples, restarts = zip(*taken, strict=True)
        return np.concatenate(examples), np.concatenate(restarts)

    def affordable(self, example: np.ndarray, restart: np.ndarray) -> np.ndarray:
        """Which jobs have a query left; the examples of the others are exhausted, where there is such a job."""
        rows, exists = self.job(example, restart)
        exhausted = self.objective.exhausted(rows)
        assert exhausted is not None, "there is a budget"
        self.results.exhausted[example[(exhausted & exists).cpu().numpy()]] = True
        return ~exhausted.cpu().numpy()

    def refill(self) -> None:
        """Put new jobs into the free rows of the pool; shrink it where there are too few."""
        device = self.task.x.device
        free = np.flatnonzero(~self.live)
        example, restart = self.take(len(free))
        if self.driver is None and not len(example):
            return
        if self.driver is None:  # rows beyond the last job repeat the first one, and are not live
            spare = len(free) - len(example)
            self.live[: len(example)] = True
            self.example, self.restart = (np.append(part, np.full(spare, part[0])) for part in (example, restart))
            pool, exists = self.job(self.example, self.restart)
            self.driver = Driver(self.attack, self.objective, pool)
        elif len(example):
            rows = free[: len(example)]
            self.example[rows], self.restart[rows], self.live[rows] = example, restart, True
            pool, exists = self.job(self.example, self.restart)
            self.driver.enter(torch.from_numpy(rows).to(device), self.job(example, restart)[0], pool)
        elif (size := padded_size(int(self.live.sum()), len(self.live))) < len(self.live):
            rows = np.argsort(~self.live, kind="stable")[:size]
            self.example, self.restart, self.live = (part[rows] for part in (self.example, self.restart, self.live))
            pool, exists = self.job(self.example, self.restart)
            self.driver.keep(torch.from_numpy(rows).to(device), pool)
        else:
            return
        self.live &= exists.cpu().numpy()

    def turn(self) -> None:
        """One step of every job in the pool."""
        driver, results = self.driver, self.results
        assert driver is not None, "refill comes first"
        state, pool, calls = driver.state, driver.task, self.model_calls()
        z = None
        if not self.live.all() and self.objective.exhausted(pool) is not None:
            # A row without a job looks at its example, where a black box remembers its answer: that costs no query.
            z = torch.where(column(torch.from_numpy(self.live).to(pool.x.device), pool.x.ndim), state.z, pool.x)
        point = driver.advance(z)
        forwards, backwards = (self.model_calls() - calls) // len(self.live)
        results.forwards[self.example[self.live], self.restart[self.live]] += forwards
        results.backwards[self.example[self.live], self.restart[self.live]] += backwards
        ended = driver.ended
        exhausted = self.objective.exhausted(pool)
        if exhausted is not None:
            cut = exhausted.cpu().numpy() & ~ended
            if self.shortened:
                cut |= ended & (driver.made >= self.attack.queries)
            self.results.exhausted[self.example[self.live & cut]] = True
            ended = ended | cut
        valid = point.valid.cpu().numpy()
        invalid = self.live & ~valid
        if self.ends_at_success:
            success = self.confirmed(self.live & point.fooled.cpu().numpy(), self.example, self.restart, state.z)
            rows = np.flatnonzero(success)
            results.record_successes(self.example[rows], self.restart[rows], state.z, rows)
            self.live &= ~success
        results.record_invalid(self.example[invalid], self.restart[invalid])
        self.live &= results.needed(self.example, self.restart)
        self.end(self.live & valid & ended, driver.state.best, self.attack.best_point(driver.state))
        if not self.ends_at_success:  # what a job had found before the model failed still counts
            elsewhere = flat(state.best != state.z).any(1).cpu().numpy()
            self.end(self.live & invalid & elsewhere, state.best, state.best)
        self.live &= valid

    def confirmed(self, success: np.ndarray, example: np.ndarray, restart: np.ndarray, z: Tensor) -> np.ndarray:
        """Which successes of the jobs (example, restart) at z are confirmed; all where there is no check."""
        check, rows = self.options.check, np.flatnonzero(success)
        if check is None or not len(rows):
            return success
        task = self.job(example[rows], restart[rows])[0]
        passed = check.confirmed(z[torch.from_numpy(rows).to(z.device)], task, self.options.batch_size)
        self.results.forwards[example[rows], restart[rows]] += check.evaluator.eot
        confirmed = success.copy()
        confirmed[rows] = passed.cpu().numpy()
        self.results.unconfirmed[example[success & ~confirmed]] = True
        return confirmed

    def end(self, ended: np.ndarray, answer: Tensor, best_point: Tensor) -> None:
        """Take the jobs in these rows out of the pool; the model is yet to be called at their answers."""
        rows = np.flatnonzero(ended)
        self.live[rows] = False
        if len(rows):
            index = torch.from_numpy(rows)
            answers = answer[index]
            separate = self.options.warm_start and best_point is not answer
            best_points = best_point[index] if separate else answers
            self.ended.append(_Ended(self.example[rows], self.restart[rows], answers, best_points))

    def evaluate_ended(self) -> None:
        """Call the model at the answers of the jobs that have ended."""
        example, restart = (np.concatenate([getattr(e, name) for e in self.ended]) for name in ("example", "restart"))
        z, best_point = torch.cat([e.answer for e in self.ended]), torch.cat([e.best_point for e in self.ended])
        self.ended = []
        evaluator, results, task = self.evaluator, self.results, self.job(example, restart)[0]
        output = forward_rows(evaluator, task, z, self.options.batch_size)
        results.forwards[example, restart] += evaluator.eot
        point = Point(z, output, None, None, evaluator.success, task)
        success, valid = self.confirmed(point.fooled.cpu().numpy(), example, restart, z), point.valid.cpu().numpy()
        exhausted = evaluator.exhausted(task)
        if exhausted is not None:  # what has no answer for lack of queries is not invalid
            unanswered = ~valid & exhausted.cpu().numpy()
            results.exhausted[example[unanswered]] = True
            valid |= unanswered
        results.record_invalid(example[~valid], restart[~valid])
        results.record_successes(example[success], restart[success], z, np.flatnonzero(success))
        self.live &= results.needed(self.example, self.restart)
        if not (self.options.warm_start and output.is_floating_point()):
            return
        results.record_margins(example, restart, z, output, task)
        rows = np.flatnonzero(~success & flat(best_point != z).any(1).cpu().numpy())
        if len(rows):  # the last point of an ascent need not be its best
            index = torch.from_numpy(rows).to(z.device)
            best_point, task = best_point[index], task.rows(index)
            logits = forward_rows(evaluator, task, best_point, self.options.batch_size)
            results.record_margins(example[rows], restart[rows], best_point, logits, task)
            results.forwards[example[rows], restart[rows]] += evaluator.eot
