"""The penalty method: the squared distance less c times a loss, minimised by Adam, and a search for each row's c.

CW and the goal's distance share it. A round starts from the example with one constant c per row; if it succeeded the
next c is smaller, else larger (`ConstantSearch`). All units are the row's own: lengths in multiples of the distance to
the decision boundary as it is linearised where the job starts, and c in multiples of the one for which that linear
problem ends there. So neither the scale of the data nor that of the logits matters, and no box is needed.

The last rounds take short steps, and the last `POLISH` steps of a job go to the boundary as it is linearised at the
nearest adversarial example: exactly, if the model is linear. Carlini and Wagner (S&P 2017) have neither.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.boundary import (
    beyond_boundary,
    boundary_distance,
    clip_to_range,
    logit_rounding,
    on_mask,
    room_in_box,
)
from epsball.attacks.minimum_norm import MinimumNorm, MinimumNormState, start_points
from epsball.attacks.optimisers import Adam, ConstantSearch
from epsball.attacks.state import map_tensors
from epsball.common.checks import check_positive, check_whole
from epsball.common.shapes import column, flat
from epsball.problem.objective import Point
from epsball.problem.task import Task

POLISH = 6
"""The number of steps from linearised boundary to linearised boundary at the end of a job."""

BOLDER = 4.0
"""The factor of the step size after a round without any adversarial example: the linearisation was too short."""

CLOSED = 1.02
"""The ratio of the ends of c's bracket at which a job ends: their nearest adversarial examples are about that alike."""

IDLE = 2
"""The successful rounds in a row without a nearer adversarial example, after which a job ends."""

NEARER = 1e-3
"""The share by which a distance, or an objective, has to fall to count as an improvement."""

CAREFUL = 0.25
"""The share of the first step size in the last third of the rounds: long steps come nearer where a network is curved,
as robust ones are, short ones where it is almost linear."""

POLISHING = 1 << 40
"""The round of rows that polish their nearest adversarial example."""

STEEPEST = 1e30
"""The greatest factor of a gradient."""


@dataclass(frozen=True, eq=False)
class Units:
    """The row's units, from the linearisation where it starts: the distance to the boundary, the loss's slope."""

    distance: Float[Tensor, " n"]
    slope: Float[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The step sizes of a round, a half cosine from `first` to zero; `place` (n,) is where on it the round is.

    `per_length` is the first step size for a length of one.
    """

    per_length: Float[Tensor, " n"]
    first: Float[Tensor, " n"]
    place: Int64[Tensor, " n"]

    def step_size(self, length: int) -> Float[Tensor, " n"]:
        return self.first * torch.cos(self.place * (math.pi / length)).add_(1).mul_(0.5)


@dataclass(frozen=True, eq=False)
class Round:
    """The progress of a round: its `index`, whether it succeeded, the `least` objective, that at the last check.

    `idle` counts successful rounds before it that brought nothing nearer, `distance` is that of `best` at its start.
    """

    index: Int64[Tensor, " n"]
    success: Bool[Tensor, " n"]
    least: Float[Tensor, " n"]
    checked: Float[Tensor, " n"]
    idle: Int64[Tensor, " n"]
    distance: Float[Tensor, " n"]

    @classmethod
    def start(cls, index: Int64[Tensor, " n"], idle: Int64[Tensor, " n"], distance: Float[Tensor, " n"]) -> Self:
        far = torch.full_like(distance, math.inf)
        return cls(index, torch.zeros_like(index, dtype=torch.bool), far, far, idle, distance)


@dataclass(frozen=True, eq=False)
class PenaltyState(MinimumNormState):
    """With z before it is rounded to the data's dtype, Adam, the search for c, and where the round is."""

    z_wide: Float[Tensor, "n *shape"]
    adam: Adam
    search: ConstantSearch
    units: Units
    schedule: Schedule
    round: Round


@dataclass(frozen=True, kw_only=True)
class PenaltyAttack(MinimumNorm[PenaltyState]):
    """Rounds of Adam, `steps` steps each at most, the step size falling as a half cosine from `lr` to zero.

    `c` is the first constant, in units of the linearisation; `lr` the first step size, as the multiple of the distance
    to the linearised boundary that Adam would go if every coordinate moved. With `early` a row that no longer improves
    skips ahead on its schedule, and a job ends when further rounds bring nothing.
    """

    takes = ("euclidean",)

    steps: int = 100
    binary_steps: int = 9
    lr: float = 4.0
    c: float = 4.0
    early: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("binary_steps", self.binary_steps, 1)
        for name in ("lr", "c"):
            check_positive(name, getattr(self, name), "the default suits any scale")

    @property
    def rounds(self) -> int:
        """How many rounds a job has at most."""
        return self.binary_steps

    @property
    def round_length(self) -> int:
        """The steps of a round: where there are enough, a job of one round has `steps` steps with those that polish."""
        return self.steps - POLISH if self.steps >= 5 * POLISH else self.steps

    @property
    def bold_rounds(self) -> int:
        """How many of the rounds take long steps; the last third takes short ones."""
        return self.rounds - self.rounds // 3

    # What the attacks that share this say of their loss.

    @abstractmethod
    def shortfall(self, point: Point, task: Task) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
        """Where the point is what is sought, and how much the loss falls short of the value where it is flat."""

    @abstractmethod
    def boundary(self, point: Point, task: Task) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """What is zero on the boundary and rises towards success, and its gradient as a multiple of the loss's."""

    def keep_best(self, state: PenaltyState, point: Point, task: Task, objective: Float[Tensor, " n"]) -> PenaltyState:
        """The state with `state.z`, whose `objective` is (n,), as `best` where it is better."""
        return self.keep_nearest(state, point, task)

    def round_start(self, task: Task) -> Float[Tensor, "n *shape"]:
        """Where each round starts."""
        return start_points(task, self.n_targets, 0.1)

    def centre(self, task: Task) -> Float[Tensor, "n *shape"]:
        """What the distance in the objective is measured from."""
        return task.x

    def clip(self, z: Float[Tensor, "n *shape"], task: Task) -> Float[Tensor, "n *shape"]:
        """z, brought to where a round may go."""
        return clip_to_range(z, task)

    def first_length(self, units: Units) -> Float[Tensor, " n"]:
        """The length that the steps of the first round are measured by."""
        return units.distance

    def first_c(self, units: Units) -> Float[Tensor, " n"]:
        """The first constant, as a multiple of 2 `units.distance` / `units.slope`."""
        return torch.full_like(units.distance, self.c)

    # The algorithm.

    def init(self, task: Task) -> PenaltyState:
        z, zero = self.round_start(task), torch.zeros_like(task.y)
        z_wide = z.to(torch.promote_types(z.dtype, torch.float32))
        none = zero.to(z_wide)
        return PenaltyState.start(
            z,
            task,
            z_wide=z_wide,
            adam=Adam.start(z_wide),
            search=ConstantSearch.start(none),
            units=Units(none, none),
            schedule=Schedule(none, none, zero),
            round=Round.start(zero, zero, none + math.inf),
        )

    def step(self, state: PenaltyState, point: Point, task: Task) -> PenaltyState:
        success, gap = self.shortfall(point, task)
        gap, grad = gap.to(state.distance), on_mask(point.grad, task.ball).to(state.z_wide)
        state = self._with_units(state, point, grad, task)
        objective, descent = self._objective(state, gap, grad, task)
        state = self.keep_best(state, point, task, objective)
        z_wide, adam = state.adam.step(state.z_wide, descent, state.schedule.step_size(self.round_length))
        z_wide = self.clip(z_wide, task)
        round_ = replace(
            state.round, success=state.round.success | success, least=torch.minimum(state.round.least, objective)
        )
        state = replace(
            state,
            z=z_wide.to(task.x.dtype),
            z_wide=z_wide,
            adam=adam,
            t=state.t + 1,
            done=state.done | (state.distance == 0),
            schedule=replace(state.schedule, place=state.schedule.place + 1),
            round=round_,
        )
        state = self._skip_ahead(state) if self.early else state
        polishing = state.round.index == POLISHING
        if bool(polishing.any()):
            state = self._polish(state, point, grad, task, polishing.nonzero().squeeze(1))
        ended = ((state.schedule.place >= self.round_length) & ~polishing).nonzero().squeeze(1)
        return self._next_round(state, task, ended) if len(ended) else state

    def _with_units(
        self, state: PenaltyState, point: Point, grad: Float[Tensor, "n *shape"], task: Task
    ) -> PenaltyState:
        """The state with units for the rows at their first step; done where the gradient is zero, so nothing moves."""
        rows = (state.t == 0).nonzero().squeeze(1)
        if not len(rows):
            return state
        part = task if len(rows) == len(task.y) else task.rows(rows)
        gap, factor = (value.to(state.distance)[rows] for value in self.boundary(point, task))
        distance, slope, count = boundary_distance(gap, grad[rows] * column(factor, grad.ndim), part)
        stuck = slope == 0
        units = Units(distance.to(gap), torch.where(stuck, 1, slope).to(gap))
        per_length = (self.lr / count.sqrt()).to(gap)
        first = torch.minimum(per_length * self.first_length(units), _half_way(part).to(gap))

        def put(old: Tensor, new: Tensor) -> Tensor:
            return old.index_copy(0, rows, new.to(old))

        return replace(
            state,
            done=put(state.done, state.done[rows] | stuck),
            search=replace(state.search, c=put(state.search.c, self.first_c(units))),
            units=map_tensors(put, state.units, units),
            schedule=replace(
                state.schedule,
                per_length=put(state.schedule.per_length, per_length),
                first=put(state.schedule.first, first),
            ),
        )

    def _objective(
        self, state: PenaltyState, gap: Float[Tensor, " n"], grad: Float[Tensor, "n *shape"], task: Task
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n *shape"]]:
        """|z - centre|^2 + c * gap in the row's units, and half its gradient in z."""
        length, slope = state.units.distance, state.units.slope
        delta = state.z_wide - self.centre(task)
        pull = torch.where(gap > 0, state.search.c, 0)
        descent = delta * column(1 / length, delta.ndim)
        descent.addcmul_(grad, column((-pull / slope).clamp_min(-STEEPEST), delta.ndim))
        if task.ball.mask is not None:
            descent = on_mask(descent, task.ball)
        distance = torch.linalg.vector_norm(flat(delta), dim=1)
        return (distance.square() / length + 2 * pull * (gap / slope)) / length, descent

    def _skip_ahead(self, state: PenaltyState) -> PenaltyState:
        """The state, a fifth of the schedule on where the objective has not fallen since the last check."""
        every = max(self.round_length // 10, 9)
        place, progress = state.schedule.place, state.round
        due = place % every == 0
        if not bool(due.any()):
            return state
        stale = due & ~(progress.least < (1 - NEARER) * progress.checked)
        return replace(
            state,
            schedule=replace(state.schedule, place=torch.where(stale, place + 2 * every, place)),
            round=replace(progress, checked=torch.where(due, progress.least, progress.checked)),
        )

    def _polish(
        self, state: PenaltyState, point: Point, grad: Float[Tensor, "n *shape"], task: Task, rows: Int64[Tensor, " k"]
    ) -> PenaltyState:
        """The state in which `rows` go to the point nearest to x of the boundary, linearised where they are."""
        gap, factor = (value.to(state.distance)[rows] for value in self.boundary(point, task))
        gap, normal = gap - logit_rounding(point)[rows].to(gap), grad[rows] * column(factor, grad.ndim)
        there = beyond_boundary(gap, normal, point.z[rows], point.fooled[rows], task.rows(rows))
        # The first of these steps was at the nearest adversarial example itself.
        made, distance, checked = state.adam.steps[rows], state.distance[rows], state.round.checked
        idle = (made > 1) & point.fooled[rows] & ~(distance < (1 - NEARER) * checked[rows])
        done = state.done[rows] | idle | (made >= POLISH)
        there = torch.where(column(done, there.ndim), state.best[rows].to(there), there)
        z_wide = state.z_wide.index_copy(0, rows, there)
        return replace(
            state,
            z=z_wide.to(state.z.dtype),
            z_wide=z_wide,
            done=state.done.index_copy(0, rows, done),
            round=replace(state.round, checked=checked.index_copy(0, rows, distance)),
        )

    def _next_round(self, state: PenaltyState, task: Task, ended: Int64[Tensor, " k"]) -> PenaltyState:
        """The state in which the rows `ended` begin another round, polish, or are done."""
        old, task = state.map(lambda part: part[ended]), task.rows(ended)
        found, improved = old.distance.isfinite(), old.distance < (1 - NEARER) * old.round.distance
        search, index = old.search.next(old.round.success), old.round.index + 1
        idle = torch.where(old.round.success, torch.where(improved, 0, old.round.idle + 1), old.round.idle)
        over = search.closed(CLOSED) | (idle >= IDLE) if self.early else torch.zeros_like(found)
        # Far adversarial examples of bold steps say nothing of the constant for careful ones: its search starts anew.
        bold = index <= self.bold_rounds
        careful = bold & found & (over | (index == self.bold_rounds)) & (self.bold_rounds < self.rounds)
        last = (index >= self.rounds) | (over & ~careful)
        anew = ConstantSearch.start(self.first_c(old.units).to(search.c))
        search = map_tensors(lambda new, old: torch.where(careful, new, old), anew, search)
        idle, index = torch.where(careful, 0, idle), torch.where(careful, self.bold_rounds, index)
        # Where the nearest adversarial example is farther away than the linearisation said, it is the better measure.
        share = torch.where(index >= self.bold_rounds, CAREFUL, 1.0).to(search.low)
        length = torch.maximum(old.distance, old.units.distance) * share
        first = torch.where(found, length * old.schedule.per_length, old.schedule.first * BOLDER)
        polish = last & self.minimises & found
        z = torch.where(column(polish, old.best.ndim), old.best, self.round_start(task))
        z_wide = z.to(old.z_wide)
        fresh = replace(
            old,
            z=z,
            z_wide=z_wide,
            done=old.done | (last & ~polish),
            adam=Adam.start(z_wide),
            search=search,
            schedule=Schedule(
                old.schedule.per_length, torch.minimum(first, _half_way(task).to(first)), torch.zeros_like(index)
            ),
            round=Round.start(torch.where(last, POLISHING, index), idle, old.distance),
        )
        return state.map(lambda before, after: before.index_copy(0, ended, after), fresh)


def _half_way(task: Task) -> Float[Tensor, " n"]:
    """Half of the way that any coordinate has in the box: no step is longer."""
    return flat(room_in_box(task)).amax(1) / 2
