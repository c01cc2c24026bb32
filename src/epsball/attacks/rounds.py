"""Rounds of Adam on |z - x|^2 - c * loss, and the search for each row's c: what CW and the goal's distance share.

A round starts from the example with one constant c per row; where it fooled the next c is smaller, else larger. All
units are the row's own: lengths in multiples of `reach`, the distance at which the loss, linearised where the job
starts, has risen by what is wanted, and c in multiples of the one for which that linear problem ends there. So neither
the scale of the data nor that of the logits matters, and no box is needed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.nearest import MinimumNorm, Nearest, unseen
from epsball.attacks.penalty import (
    POLISH,
    adam,
    at_border,
    half_way,
    near_enough,
    open_part,
    reaching,
    rounding,
    starting,
    tightened,
)
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import column, flat
from epsball.problem.objective import Point
from epsball.problem.task import Task

BOLDER = 4.0
"""The factor of the step after a round, while no fooling point has been seen: the linearisation was too short."""

CLOSED = 1.02
"""The bracket of c at which a job ends: the nearest points for its two ends are about that alike."""

IDLE = 2
"""The rounds in a row that bring no nearer point, after which a job ends."""

NEARER = 1e-3
"""The share of its distance by which a nearer point, or of its objective by which a better one, has to be so."""

CAREFUL = 0.25
"""The share of the first step in the last third of the rounds: long steps come nearer where a network is curved, as
robust ones are, short ones where it is almost linear."""

LAST = 1 << 40
"""The round of rows that polish their nearest point."""

STEEPEST = 1e30
"""The greatest factor of a gradient."""


@dataclass(frozen=True, eq=False)
class Weighing(Nearest):
    """A row's round of Adam and its search for c.

    `fine` is z before it is rounded to the data's dtype, `first` and `second` Adam's moments; `c`, `low`, `high` the
    constant and its bracket; `reach`, `slope` the units of length and loss, `size` the first step of the round and
    `stride` that for a length of one; `place` (n,)
    how far the round has come on its schedule, `made` the steps it has made, `round` the rounds before; `hit` whether
    it fooled, `least` the least objective in it, `checked` that at the last check, `idle` the rounds that brought
    nothing, `before` the distance of `best` when the round began.
    """

    fine: Float[Tensor, "n *shape"]
    first: Float[Tensor, "n *shape"]
    second: Float[Tensor, "n *shape"]
    c: Float[Tensor, " n"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]
    reach: Float[Tensor, " n"]
    slope: Float[Tensor, " n"]
    stride: Float[Tensor, " n"]
    size: Float[Tensor, " n"]
    place: Int64[Tensor, " n"]
    made: Int64[Tensor, " n"]
    round: Int64[Tensor, " n"]
    hit: Bool[Tensor, " n"]
    least: Float[Tensor, " n"]
    checked: Float[Tensor, " n"]
    idle: Int64[Tensor, " n"]
    before: Float[Tensor, " n"]

    @classmethod
    def beginning(cls, z: Float[Tensor, "n *shape"], best: Float[Tensor, "n *shape"], far: Float[Tensor, " n"]) -> Self:
        """Rows that begin their first round at z; `far` (n,) is infinite."""
        fine, none, zero = (
            z.to(far.dtype),
            torch.zeros_like(far),
            torch.zeros(len(z), dtype=torch.long, device=z.device),
        )
        return cls(
            z=z,
            best=best,
            t=zero,
            done=zero != 0,
            distance=far,
            fine=fine,
            first=torch.zeros_like(fine),
            second=torch.zeros_like(fine),
            c=none,
            low=none,
            high=far,
            reach=none,
            slope=none,
            stride=none,
            size=none,
            place=zero,
            made=zero,
            round=zero,
            hit=zero != 0,
            least=far,
            checked=far,
            idle=zero,
            before=far,
        )


@dataclass(frozen=True, kw_only=True)
class Penalty(MinimumNorm[Weighing]):
    """Rounds of Adam, `steps` passes each at most, the step falling as a half cosine from `lr` to nothing.

    `c` is the first constant, in units of the linearisation; `lr` the first step, as the multiple of `reach` that Adam
    would go if every coordinate moved. `early` lets a row that no longer improves skip ahead on its schedule, and ends
    a job that further rounds bring nothing.
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
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(
                    f"`{name}` must be > 0 and finite, got {getattr(self, name)}; the default suits any scale"
                )

    @property
    def rounds(self) -> int:
        """How many rounds a job has at most."""
        return self.binary_steps

    @property
    def length(self) -> int:
        """The steps of a round: where there are enough, it leaves room for the last points, so that one round costs
        `steps` passes with them."""
        return self.steps - POLISH if self.steps >= 5 * POLISH else self.steps

    @property
    def bold(self) -> int:
        """How many of them take long steps; the last third takes short ones."""
        return self.rounds - self.rounds // 3

    @abstractmethod
    def wanted(self, point: Point, task: Task) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
        """Where the point is what is sought, and by how much the loss falls short of what is worth climbing to."""

    @abstractmethod
    def border(self, point: Point, task: Task) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """What is zero where success begins and rises towards it, and its gradient as a multiple of the loss's."""

    def kept(
        self, state: Weighing, point: Point, task: Task, value: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, " n"]]:
        """`best` and `distance` after a look at a point at which the objective is `value` (n,)."""
        return self.seen(state, point, task)

    def seen(self, state: Weighing, point: Point, task: Task) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, " n"]]:
        # As inherited, but only the rows that came nearer are projected and copied.
        distance = task.ball.distance(state.z, task.x).to(state.distance)
        closer = point.fooled & (distance < state.distance)
        rows = closer.nonzero().squeeze(1)
        if not len(rows):
            return state.best, state.distance
        z = task.ball.rows(rows).project(state.z[rows], task.x[rows])
        return state.best.index_copy(0, rows, z), torch.where(closer, distance, state.distance)

    def inside(self, z: Float[Tensor, "n *shape"], task: Task) -> Float[Tensor, "n *shape"]:
        """The next point of a round, where it is allowed to be."""
        return near_enough(z, task)

    def start(self, task: Task) -> Float[Tensor, "n *shape"]:
        """Where each round starts."""
        return starting(task, max(self.n_targets, 1))

    def centre(self, task: Task) -> Float[Tensor, "n *shape"]:
        """What the distance in the objective is measured from."""
        return task.x

    def travel(self, reach: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The length that the steps of the first round are measured by."""
        return reach

    def first_c(self, reach: Float[Tensor, " n"], slope: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The first constant, in units of the linearisation: 2 reach / slope of what multiplies the loss."""
        return torch.full_like(reach, self.c)

    def init(self, task: Task) -> Weighing:
        return Weighing.beginning(self.start(task), task.x, unseen(task))

    def step(self, state: Weighing, point: Point, task: Task) -> Weighing:
        x = task.x
        good, gap = self.wanted(point, task)
        gap, grad = gap.to(state.distance), open_part(point.grad, task.ball).to(state.fine.dtype)
        state, done = self._scaled(state, point, gap, grad, task)
        away = state.fine - self.centre(task)
        pull = torch.where(gap > 0, state.c, 0)
        descent = away * column(1 / state.reach, x.ndim)
        descent.addcmul_(grad, column((-pull / state.slope).clamp_min(-STEEPEST), x.ndim))
        if task.ball.mask is not None:
            descent = open_part(descent, task.ball)
        length = torch.linalg.vector_norm(flat(away), dim=1)
        value = (length.square() / state.reach + 2 * pull * (gap / state.slope)) / state.reach
        best, distance = self.kept(state, point, task, value)
        least, hit = torch.minimum(state.least, value), state.hit | good
        size = state.size * torch.cos(state.place * (math.pi / self.length)).add_(1).mul_(0.5)
        ahead, first, second = adam(state.fine, state.first, state.second, descent, state.made, size)
        fine = self.inside(ahead, task)
        place, checked = state.place + 1, state.checked
        every = max(self.length // 10, 9)
        if self.early and bool((due := place % every == 0).any()):
            stale = due & ~(least < (1 - NEARER) * checked)
            checked, place = torch.where(due, least, checked), torch.where(stale, place + 2 * every, place)
        state = replace(
            state,
            z=fine.to(x.dtype),
            best=best,
            t=state.t + 1,
            done=done | (distance == 0),
            distance=distance,
            fine=fine,
            first=first,
            second=second,
            place=place,
            made=state.made + 1,
            hit=hit,
            least=least,
            checked=checked,
        )
        polishing = state.round == LAST
        if bool(polishing.any()):
            state = self._polished(state, point, grad, task, polishing.nonzero().squeeze(1))
        ended = ((place >= self.length) & ~polishing).nonzero().squeeze(1)
        return self._next_round(state, task, ended) if len(ended) else state

    def _polished(
        self, state: Weighing, point: Point, grad: Float[Tensor, "n *shape"], task: Task, rows: Int64[Tensor, " k"]
    ) -> Weighing:
        """The state in which `rows` go to the point of the border, linearised where they are, that is nearest to x.

        A round ends where Adam left it, this where the gradient says: exactly, if the model is linear.
        """
        lead, factor = (part.to(state.distance)[rows] for part in self.border(point, task))
        normal = grad[rows] * column(factor, grad.ndim)
        ahead = at_border(
            lead - rounding(point)[rows].to(lead), normal, point.z[rows], point.fooled[rows], task.rows(rows)
        )
        distance = state.distance[rows]  # the first look is at the point that is there already
        idle = (state.made[rows] > 1) & point.fooled[rows] & ~(distance < (1 - NEARER) * state.checked[rows])
        done = state.done[rows] | idle | (state.made[rows] >= POLISH)
        ahead = torch.where(column(done, ahead.ndim), state.best[rows].to(ahead.dtype), ahead)
        fine = state.fine.index_copy(0, rows, ahead)
        return replace(
            state,
            z=fine.to(state.z.dtype),
            fine=fine,
            done=state.done.index_copy(0, rows, done),
            checked=state.checked.index_copy(0, rows, distance),
        )

    def _scaled(
        self, state: Weighing, point: Point, gap: Float[Tensor, " n"], grad: Float[Tensor, "n *shape"], task: Task
    ) -> tuple[Weighing, Bool[Tensor, " n"]]:
        """The state with units for the rows that were looked at for the first time; done is where nothing can move."""
        rows = (state.t == 0).nonzero().squeeze(1)
        if not len(rows):
            return state, state.done
        part = task if len(rows) == len(task.y) else task.rows(rows)
        lead, factor = (part.to(gap)[rows] for part in self.border(point, task))
        reach, slope, count = reaching(lead, grad[rows] * column(factor, grad.ndim), part)
        stuck, stride = slope == 0, self.lr / count.sqrt()
        reach, slope, stride = (part.to(gap) for part in (reach, torch.where(stuck, 1, slope), stride))

        def put(old: Float[Tensor, " n"], new: Float[Tensor, " k"]) -> Float[Tensor, " n"]:
            return old.index_copy(0, rows, new.to(old))

        state = replace(
            state,
            reach=put(state.reach, reach),
            slope=put(state.slope, slope),
            stride=put(state.stride, stride),
            size=put(state.size, torch.minimum(stride * self.travel(reach), half_way(part).to(stride))),
            c=put(state.c, self.first_c(reach, slope)),
        )
        return state, state.done.index_copy(0, rows, state.done[rows] | stuck)

    def _next_round(self, state: Weighing, task: Task, ended: Int64[Tensor, " k"]) -> Weighing:
        """The state in which the rows `ended` begin another round, or are done."""
        hit, distance, now = state.hit[ended], state.distance[ended], task.rows(ended)
        c, low, high = tightened(state.c[ended], state.low[ended], state.high[ended], hit)
        idle = torch.where(hit & ~(distance < (1 - NEARER) * state.before[ended]), state.idle[ended] + 1, 0)
        idle = torch.where(hit, idle, state.idle[ended])
        round_ = state.round[ended] + 1
        found, bold = distance.isfinite(), round_ <= self.bold
        over = (high <= CLOSED * low) | (idle >= IDLE) if self.early else torch.zeros_like(found)
        careful = bold & found & (over | (round_ == self.bold)) & (self.bold < self.rounds)
        last = (round_ >= self.rounds) | (over & ~careful)
        # Far points that bold steps fooled at say nothing of the constant for careful ones: its search starts anew.
        c, low, high, idle, round_ = (
            torch.where(careful, new, old)
            for new, old in (
                (self.first_c(state.reach[ended], state.slope[ended]), c),
                (0.0, low),
                (math.inf, high),
                (0, idle),
                (self.bold, round_),
            )
        )
        # Where the nearest point is farther away than the linearisation said, it is the better measure.
        length = torch.maximum(distance, state.reach[ended]) * torch.where(round_ >= self.bold, CAREFUL, 1.0).to(low)
        size = torch.where(found, length * state.stride[ended], state.size[ended] * BOLDER)
        size = torch.minimum(size, half_way(now).to(size))
        polished = last & self.minimises & found
        best = state.best[ended]
        z = torch.where(column(polished, best.ndim), best, self.start(now))
        fresh = replace(
            Weighing.beginning(z, best, torch.full_like(distance, math.inf)),
            t=state.t[ended],
            done=state.done[ended] | (last & ~polished),
            distance=distance,
            c=c,
            low=low,
            high=high,
            reach=state.reach[ended],
            slope=state.slope[ended],
            stride=state.stride[ended],
            size=size,
            round=torch.where(last, LAST, round_),
            idle=idle,
            before=distance,
        )
        return state.map(lambda old, new: old.index_copy(0, ended, new), fresh)
