"""The protocol of an attack: a frozen dataclass of hyperparameters with two pure functions, `init` and `step`.

An attack never sees a model. `init` says where each row starts; `step` is shown a `Point` (what the model returned
there) and says where to look next. `driver.py` makes the model calls. Every row is on its own: a batch only saves time.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Generic, Literal, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.driver import Driver
from epsball.attacks.state import State as State
from epsball.balls.ball import Ball, Trait
from epsball.balls.registry import BALLS
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import column
from epsball.problem.black_box_objective import objective_for
from epsball.problem.inputs import batch_for
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import (
    Model,
    Needs,
    Objective,
    Point,
    SearchWarning,
    Success,
    changes_prediction,
    check_labels,
)
from epsball.problem.task import AWAY, Task, check_target, task_of

S = TypeVar("S", bound=State)


@dataclass(frozen=True, kw_only=True)
class Attack(ABC, Generic[S]):
    """Hyperparameters that all attacks share.

    `needs` says what the model must give, `until` whether a job ends at its first success ("fooled") or when the
    attack says so ("done": minimum norm, training), `takes` which traits of a ball it can work with, () for every ball.
    An example has `restarts` x max(`n_targets`, 1) jobs: with n_targets = k, one for each of the k most likely other
    classes at the clean input, those left out that are proved not to be reached (`Task.rivals`).
    """

    needs: ClassVar[Needs] = "grad"
    until: ClassVar[Literal["fooled", "done"]] = "fooled"
    reads_clean: ClassVar[bool] = False
    takes: ClassVar[tuple[Trait, ...]] = ()

    restarts: int = 1
    n_targets: int = 0

    def __post_init__(self) -> None:
        for name, least in (("restarts", 1), ("n_targets", 0)):
            check_whole(name, getattr(self, name), least)

    @property
    def loss(self) -> Loss:
        """The loss whose value and gradient a `Point` shows. It can be chosen for a `LossAttack` only."""
        return cross_entropy

    @classmethod
    def fits(cls, ball: Ball | type[Ball]) -> bool:
        """Whether the attack is defined in such balls."""
        return not cls.takes or not ball.traits.isdisjoint(cls.takes)

    @classmethod
    def norms(cls) -> tuple[str, ...]:
        """The names of the registered norms that the attack is defined in."""
        return tuple(name for name, ball in BALLS.items() if cls.fits(ball))

    def check_ball(self, ball: Ball) -> None:
        """Raise `BadInput` where the attack is not defined for balls of this norm."""
        if not self.fits(ball):
            raise BadInput(
                f"`ball` must be {' or '.join(self.norms())} for {type(self).__name__}, got {ball.name}; "
                "`epsball attacks` says which attack takes which norm"
            )

    @property
    def max_steps(self) -> int | None:
        """The number of steps of every job where it is known beforehand, else None.

        Where it is known the driver counts, and `step` need not set `t` and `done`.
        """
        return None

    @property
    def step_limit(self) -> int:
        """A job that is not `done` after so many steps is an error, where `max_steps` is None.

        It is 10 times the product of all options that are whole numbers (steps, rounds), and 10,000 at least.
        """
        options = (getattr(self, field.name) for field in fields(self))
        return max(10_000, 10 * math.prod(max(option, 1) for option in options if type(option) is int))

    @property
    def queries(self) -> int:
        """The queries that a job of an attack without gradients makes at most: one a step."""
        return next((getattr(self, field.name) for field in fields(self) if field.name == "steps"), 1)

    def with_queries(self, queries: int) -> Self:
        """The same attack, of so many steps where it has any: a schedule is spread over them."""
        return replace(self, **{field.name: queries for field in fields(self) if field.name == "steps"})

    def within_budget(self, objective: Objective) -> Self:
        """The attack with no more steps than the query budget of the model allows, where that has one.

        Where the budget is that of all jobs, each leaves its part of the queries that are kept for final evaluations.
        """
        most, budget = objective.max_steps, objective.budget
        if most is None or budget is None:
            return self
        if self.jobs * self.queries <= budget:
            most = max(most // self.jobs, 1)
        return self if self.queries <= most else self.with_queries(most)

    @property
    def uses_warm_start(self) -> bool:
        """Whether it starts from the best points of earlier attacks, `task.warm_start`, where there are any."""
        return False

    @property
    def minimises(self) -> bool:
        """Whether it continues after a success, to the nearest adversarial example that it can find."""
        return False

    @property
    def jobs(self) -> int:
        """Jobs per example; a job's restart index is restart * max(n_targets, 1) + the rank of its target class."""
        return self.restarts * max(self.n_targets, 1)

    @abstractmethod
    def init(self, task: Task) -> S:
        """The state of new rows: where to evaluate the model first."""

    @abstractmethod
    def step(self, state: S, point: Point, task: Task) -> S:
        """The state after the model call at `state.z` gave `point`. Pure, row by row."""

    def best_point(self, state: S) -> Float[Tensor, "n *shape"]:
        """The best point that a finished job evaluated, from which later attacks start.

        It is `best` where an attack does not keep another one.
        """
        return state.best

    def job(self, task: Task, restart: Int64[Tensor, " n"]) -> tuple[Task, Bool[Tensor, " n"]]:
        """The task of the rows' jobs with that restart index, and which rows have such a job.

        There are as many jobs as wrong classes at most; with a user's target each restart has one job only.
        """
        if not self.n_targets:
            return (task if restart is task.noise.restart else task.with_jobs(restart, task.aim)), restart >= 0
        place = restart % self.n_targets
        if task.clean is None:
            raise BadInput(
                f"`n_targets` must be 0 where the model gives no logits, got {self.n_targets}; they rank the classes"
            )
        rivals = task.clean.scatter(1, task.y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :-1]
        count: Tensor | int = rivals.shape[1]
        if task.rivals is not None:
            reachable = task.rivals.gather(1, rivals)
            rivals = rivals.gather(1, reachable.long().argsort(dim=1, descending=True, stable=True))
            count = reachable.sum(1)
        aimed = rivals.gather(1, place.clamp_max(rivals.shape[1] - 1)[:, None]).squeeze(1)
        free = task.target == AWAY
        exists = torch.where(free, place < count, place == 0)
        return task.with_jobs(restart, torch.where(free, aimed, task.target)), exists

    def __call__(
        self,
        model: Model,
        x: Float[Tensor, "n *shape"],
        y: Int64[Tensor, " n"],
        ball: Ball | str,
        *,
        target: Int64[Tensor, " n"] | int | None = None,
        ids: Int64[Tensor, " n"] | None = None,
        seed: int = 0,
        success: Success = changes_prediction,
        eot: int = 1,
    ) -> Float[Tensor, "n *shape"]:
        """Attack a batch: per example the first adversarial example found, else the point where the attack ended.

        `x` (n, *shape) is in the units of the ball, of any kind that `from_arrays` takes; `y` (n,) are labels, or one
        for all rows; `ball` may be text, "linf:8/255"; `target` is one class or (n,) classes, none of them the row's
        label; `ids` key the noise (default: row numbers); `eot` forward passes are averaged, for a stochastic model. k
        steps cost exactly k model calls for the first restart; further restarts run on the rows that are robust so far
        (on all rows for a minimum-norm attack). Every returned point is in the ball, adversarial or not, on the device
        of `x` and in the dtype in which the model was asked: that of its parameters, if it does not take that of `x`.
        Where the query budget of a black box runs out first, a warning says so.
        Questions about the model are asked beside the steps: one output per example in [0, 1] costs four calls (is it a
        probability?), x of shape (n,) up to two (is it one example?).

        Raises `BadInput` for arguments that do not fit; the model comes back as it was, also after an exception.
        """
        given, (model, x, ball) = x, batch_for(model, x, ball)
        self.check_ball(ball)
        task = task_of(x, y, ball, target=target, ids=ids, seed=seed)
        if target is not None:
            check_target(task.target, task.y)
        if len(x) == 0:
            return x.clone()
        with objective_for(model, self.loss, needs=self.needs, success=success, eot=eot) as objective:
            objective.begin_search()
            attack = self.within_budget(objective)
            if self.n_targets or self.reads_clean:
                output = objective.forward(x)
                if output.is_floating_point():
                    check_labels(output, task)
                    task = replace(task, clean=output)
            job, _ = self.job(task, task.noise.restart)
            answer, fooled = attack._run(objective, job)
            for restart in range(1, self.jobs):
                if restart == 1 and self.until == "done":  # its end is not yet a success
                    fooled = objective.evaluate_at(answer, job).fooled
                job, exists = self.job(task, torch.full_like(task.y, restart))
                # A minimum-norm attack runs its other jobs after a success, too.
                index = (exists & (~fooled | self.minimises)).nonzero().squeeze(1)
                if not len(index):
                    continue
                job = job.rows(index)
                found, hit = attack._run(objective, job)
                if self.until == "done":
                    hit = objective.evaluate_at(found, job).fooled
                before = job.ball.distance(answer[index], job.x)
                hit = hit & (~fooled[index] | (job.ball.distance(found, job.x) < before))
                answer[index[hit]] = found[hit]
                fooled[index] |= hit
            self._warn_of_budget(objective, task, answer)
        return answer.to(given.device) if isinstance(given, Tensor) else answer

    def _warn_of_budget(self, objective: Objective, task: Task, answer: Tensor) -> None:
        """Say how many examples had no queries left to search with."""
        exhausted, budget = objective.exhausted(task), objective.budget
        if exhausted is None or budget is None or self.jobs * self.queries <= budget:
            return
        if self.queries > budget:
            exhausted = torch.ones_like(exhausted)  # no row had all its steps
        if self.until == "fooled":
            exhausted = exhausted & ~objective.evaluate_at(answer, task).fooled
        if count := int(exhausted.sum()):
            warnings.warn(
                f"the query budget of {budget} ran out for {count} of {len(answer)} examples before the attack ended: "
                f"what it did not find may be there; with budget={self.jobs * self.queries} it ends",
                SearchWarning,
                stacklevel=3,
            )

    def _run(self, objective: Objective, task: Task) -> tuple[Float[Tensor, "n *shape"], Bool[Tensor, " n"]]:
        """One job of every row: the answers, and which of them were found to be adversarial."""
        driver = Driver(self, objective, task)
        first, fooled = torch.empty_like(task.x), torch.zeros_like(task.y, dtype=torch.bool)
        seen: list[Point] = []
        searching = self.until == "fooled"
        for point in driver.until_end():
            if searching:
                point.drop_gradient()
                seen.append(point)
                if len(seen) == MAX_PENDING or len(seen) * point.z.nbytes > MAX_PENDING_BYTES:
                    searching = not _enter_first_fooled(seen, first, fooled)
                    seen.clear()
        _enter_first_fooled(seen, first, fooled)
        best = driver.answers
        return (best if self.until == "done" else torch.where(column(fooled, best.ndim), first, best)), fooled


@dataclass(frozen=True, kw_only=True)
class LossAttack(Attack[S], Generic[S]):
    """An attack that climbs a loss of the user's choice."""

    loss: Loss = cross_entropy  # pyright: ignore[reportIncompatibleMethodOverride] - a field is a property, too

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(self.loss):
            raise BadInput(
                f"`loss` must be a callable (logits, task) -> (n,), got {self.loss!r}; see epsball.problem.losses"
            )


MAX_PENDING, MAX_PENDING_BYTES = 16, 1 << 20
"""Whether points are adversarial is read from the device once for so many points, or so many bytes of them."""


def _enter_first_fooled(seen: list[Point], first: Float[Tensor, "n *shape"], fooled: Bool[Tensor, " n"]) -> bool:
    """Write into `first` and `fooled` the rows whose first adversarial example is in `seen`; whether all have one."""
    for point in seen:
        if point.fooled.any() and (fresh := point.fooled & ~fooled).any():
            first[fresh] = point.z[fresh]
            fooled |= fresh
            if fooled.all():
                return True
    return False
