"""The loop that runs an attack: call the model where the attack looks, let the attack step, count, stop.

A direct call, the queue, a diagnosis and the page all run attacks through `Driver`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.state import State
from epsball.common.errors import BadInput
from epsball.common.shapes import column, flat
from epsball.problem.objective import Objective, Point
from epsball.problem.task import Task

S = TypeVar("S", bound=State)


class Steps(Protocol[S]):
    """What the driver needs of an attack."""

    @property
    def max_steps(self) -> int | None: ...
    @property
    def step_limit(self) -> int: ...
    def init(self, task: Task) -> S: ...
    def step(self, state: S, point: Point, task: Task) -> S: ...


class Driver(Generic[S]):
    """An attack that is running on the rows of a task.

    `state` is the attack's present state, `steps` the number of steps that the driver has made. A row ends after
    `max_steps` steps, whatever its `done` says, or, where the attack has no `max_steps`, when it is `done`.
    A row that is not done after about `step_limit` steps is an error.
    """

    def __init__(self, attack: Steps[S], objective: Objective, task: Task) -> None:
        self.attack, self.objective, self.task = attack, objective, _held(task)
        self.max_steps = attack.max_steps
        self.state = attack.init(self.task)
        self.steps = 0
        self._entered: int | np.ndarray = 0  # the value of `steps` when a row began

    def advance(self, z: Float[Tensor, "n *shape"] | None = None) -> Point:
        """One step: what the model shows at `state.z` (or at `z` instead), after which `state` is the next one."""
        point = self.objective(self.state.z if z is None else z, self.task)
        self.state = self.attack.step(self.state, point, self.task)
        self.steps += 1
        if self.max_steps is None and self.steps % 1000 == 0:
            self._check_limit()
        return point

    def until_end(self) -> Iterator[Point]:
        """Step until all rows, which began together, have ended. A row that ends earlier keeps its state."""
        while True:
            before = self.state
            point = self.advance()
            if self.max_steps is None and before.done.any():
                self.state = before.map(
                    lambda old, new: torch.where(column(before.done, old.ndim), old, new),  # noqa: B023
                    self.state,
                )
            yield point
            if self.state.done.all() if self.max_steps is None else self.steps >= self.max_steps:
                return

    @property
    def ended(self) -> np.ndarray:
        """Which rows have ended, (n,) boolean."""
        if self.max_steps is None:
            return self.state.done.cpu().numpy()
        return self.made >= self.max_steps

    @property
    def made(self) -> np.ndarray:
        """The number of steps that each row has made, (n,)."""
        return np.broadcast_to(self.steps - self._entered, len(self.state.z)).copy()

    @property
    def answers(self) -> Float[Tensor, "n *shape"]:
        """Each row's `best`, or its example where that is not finite: a gradient that is no number leads nowhere."""
        best = self.state.best
        if math.isfinite(best.sum().item()):
            return best
        return torch.where(column(flat(best).isfinite().all(1), best.ndim), best, self.task.x)

    def keep(self, index: Tensor, task: Task | None = None) -> None:
        """Go on with the rows `index` only; `task` is their task where it is known already."""
        self._entered = np.broadcast_to(self._entered, len(self.state.z))[index.cpu().numpy()]
        self.state = self.state.map(lambda part: part[index])
        self.task = _held(self.task.rows(index) if task is None else task)

    def enter(self, index: Tensor, arriving: Task, task: Task) -> None:
        """Begin new jobs, those of `arriving`, in the rows `index`; `task` is that of all rows from now on."""
        self._entered = np.broadcast_to(self._entered, len(self.state.z)).copy()
        self._entered[index.cpu().numpy()] = self.steps
        self.state = self.state.map(lambda old, new: old.index_copy(0, index, new), self.attack.init(arriving))
        self.task = _held(task)

    def _check_limit(self) -> None:
        limit = self.attack.step_limit
        if (self.made >= limit)[~self.state.done.cpu().numpy()].any():
            raise BadInput(
                f"`step` of {type(self.attack).__name__} must set `done`: a job is not done after {limit:,} steps; let "
                "`max_steps` say how many there are, or `step_limit` allow more"
            )


def _held(task: Task) -> Task:
    """The task with a ball that computes once what depends on its examples alone."""
    return replace(task, ball=task.ball.held(task.x))
