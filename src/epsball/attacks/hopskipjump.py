"""HopSkipJump: the nearest adversarial example from labels alone, by a walk along the decision boundary.

Chen, Jordan and Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack" (IEEE S&P 2020,
arXiv:1904.02144), algorithm 2: find the boundary on the way to an adversarial example, estimate its normal there from
the labels around, step ahead, repeat. Departures from the paper, each because it needs fewer queries:

- The estimate of the normal is carried from one place to the next, and each question is put orthogonally to it
  (`decision_based.py`); the paper starts anew each time.
- The point ahead is the best one of a smaller ball by the present normal; the paper's step goes along the normal and
  takes no notice of the box.
- The normal is estimated away from the faces of the box, which would cut questions off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.decision_based import (
    NormalEstimate,
    References,
    dot,
    nearest_references,
    open_count,
    starting_point,
    unit,
)
from epsball.attacks.minimum_norm import MinimumNorm, MinimumNormState
from epsball.common.shapes import column, flat
from epsball.problem.objective import Point
from epsball.problem.task import Task

ROUGH = 2.0**-5
"""The share of the way that the coarse search leaves open."""
CLOSE = 2.0**-14
"""The share that the last search leaves open."""
LAST_QUERIES = 8
"""The queries that are reserved for the last search."""
MOVE_QUERIES = 10
"""The queries that are reserved, beside, for a point ahead and the coarse search before it."""
NEARER = 0.005
"""The least share by which a point ahead must be nearer than the best."""
LEAST_SHARE = 0.125
"""The least share of the way to the best point of the smaller ball that is tried."""
RAISES = 6
"""The raises after which the boundary is searched closer to the faces of the box."""
REACH = 0.3
"""The distance of questions from the boundary, as a share of that to the example, times sqrt(d)."""
OFF = 0.2
"""How far from the boundary the centre of the questions may be, as a share of what decides an answer."""
STARTS = 16
"""The starting points that are tried: the best of several lies near a closer boundary, of several classes, than one."""
QUESTIONS = 60
"""The questions of the first round; the k-th has sqrt(k) times as many (the paper: 100)."""


class Phase(IntEnum):
    """What a row does with its next query."""

    CLEAN = 0  # evaluate the example itself
    START = 1  # find an adversarial example
    COARSE = 2  # find the boundary before it, roughly
    RAISE = 3  # find an upper end for the boundary away from the faces of the box
    LOWER = 4  # and a lower end
    FINE = 5  # find the boundary between them, finely
    ASK = 6  # estimate the normal there
    MOVE = 7  # try a point ahead
    LAST = 8  # find the boundary before the best point, finely
    END = 9


@dataclass(frozen=True, eq=False)
class Bracket:
    """The boundary is between the shares `low` and `high` of the way from the example to the adversarial `anchor`.

    A bracket grows by `growth`; `gain` is the share of the way that the last move gained.
    """

    anchor: Float[Tensor, "n *shape"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]
    growth: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]

    def before(self, rows: Bool[Tensor, " n"], anchor: Float[Tensor, "n *shape"]) -> Self:
        """The whole way to a new `anchor` for `rows`."""
        return replace(
            self,
            anchor=torch.where(column(rows, anchor.ndim), anchor, self.anchor),
            low=torch.where(rows, 0, self.low),
            high=torch.where(rows, 1, self.high),
        )

    def middle(self) -> Float[Tensor, " n"]:
        """Where the bracket is cut: the first time where the boundary is likely to be beyond, by the last move."""
        half = (self.low + self.high) / 2
        return torch.where((self.low == 0) & (self.high == 1), torch.maximum(half, 1 - 2 * self.gain), half)

    def halve(self, fooled: Bool[Tensor, " n"]) -> Self:
        middle = self.middle()
        return replace(self, low=torch.where(fooled, self.low, middle), high=torch.where(fooled, middle, self.high))

    def point(self, share: Float[Tensor, " n"], task: Task) -> Float[Tensor, "n *shape"]:
        """The point at that share of the way."""
        return task.ball.clip(torch.lerp(task.x, self.anchor, column(share, task.x.ndim).to(task.x.dtype)))

    def length(self, task: Task) -> Float[Tensor, " n"]:
        return dot(self.anchor - task.x, self.anchor - task.x).sqrt()


@dataclass(frozen=True, eq=False)
class HopSkipJumpState(MinimumNormState):
    """What a row is at (`phase`), for how many queries (`count`), its bracket, and what it knows of the normal.

    `tried` counts the starting points, `moves` the points ahead that were adversarial; `share` is how much of the way
    to the next is tried. `order` is that of the references.
    """

    phase: Int64[Tensor, " n"]
    count: Int64[Tensor, " n"]
    tried: Int64[Tensor, " n"]
    moves: Int64[Tensor, " n"]
    share: Float[Tensor, " n"]
    bracket: Bracket
    normal: NormalEstimate
    order: Int64[Tensor, "n k"]


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(MinimumNorm[HopSkipJumpState]):
    """The nearest adversarial example from labels alone, in L2 and Linf, for any model; one query a step.

    `steps` queries an example, the first of which evaluates the example itself. A row starts from `task.warm_start`,
    the best point of the attacks before it, with `warm_start`; from the nearest of `references` whose class is wanted,
    where there are any (which a target needs, as a rule); then from noise, until one is adversarial. It ends early
    where nothing more is to be learnt.

    On linear models of 20 to 784 coordinates, with a box, 2,000 queries end within 1.1 of the least distance in the
    median (docs/benchmarks.md).

    >>> from epsball import L2
    >>> label = lambda x: (x.sum(1) > 1).long()  # a black box would do
    >>> x_adv = HopSkipJump(steps=200)(label, torch.zeros(1, 2), torch.tensor([0]), L2(eps=torch.inf, lo=0, hi=1))
    >>> [round(v, 2) for v in x_adv[0].tolist()]
    [0.5, 0.5]
    """

    needs = "label"
    takes = ("intervals", "euclidean")

    steps: int = 2000
    references: References | None = None
    warm_start: bool = False

    @property
    def uses_warm_start(self) -> bool:
        return self.warm_start

    def init(self, task: Task) -> HopSkipJumpState:
        x, zero = task.x, torch.zeros_like(task.y)
        still, none = torch.zeros_like(x), zero.to(torch.promote_types(x.dtype, torch.float32))
        return HopSkipJumpState.start(
            x,
            task,
            phase=zero,
            count=zero,
            tried=zero,
            moves=zero,
            share=none,
            bracket=Bracket(anchor=x, low=none, high=none, growth=none, gain=none + 1),
            normal=NormalEstimate(centre=x, reach=none, direction=still, spread=none, probe=still, asked=zero),
            order=nearest_references(task, self.references),
        )

    def step(self, state: HopSkipJumpState, point: Point, task: Task) -> HopSkipJumpState:
        state = replace(self.keep_nearest(state, point, task), t=state.t + 1)
        for functions, more in ((LEARN, (point.fooled,)), (QUERY, ())):
            phases = state.phase
            for phase in set(phases.tolist()) & functions.keys():
                state = _in_rows(phases == phase, functions[phase], self, state, task, *more)
        return replace(state, done=(state.phase == Phase.END) | (state.t >= self.steps))

    @property
    def starts(self) -> int:
        """The number of starting points that are tried, each nearer than the best before it."""
        return min(STARTS, self.steps // 40)

    def left(self, s: HopSkipJumpState) -> Int64[Tensor, " n"]:
        """The queries that are left."""
        return self.steps - s.t

    # What an answer changes, phase by phase.

    def after_clean(self, s: HopSkipJumpState, task: Task, fooled: Tensor) -> HopSkipJumpState:
        return replace(s, phase=torch.where(fooled, Phase.END, Phase.START))

    def after_start(self, s: HopSkipJumpState, task: Task, fooled: Tensor) -> HopSkipJumpState:
        tried = s.tried + 1
        enough = (s.count == 0) & (tried >= self.starts) & (s.distance < math.inf)
        return replace(
            s,
            tried=tried,
            moves=torch.where(fooled, 0, s.moves),
            phase=torch.where(fooled | enough, Phase.COARSE, s.phase),
            bracket=s.bracket.before(fooled, s.z),
        )

    def after_coarse(self, s: HopSkipJumpState, task: Task, fooled: Tensor) -> HopSkipJumpState:
        bracket = s.bracket.halve(fooled)
        width = bracket.high - bracket.low
        ready = width <= ROUGH * bracket.high
        root, rounding = open_count(task).sqrt(), torch.finfo(s.z.dtype).eps
        length = bracket.length(task) * bracket.high
        # A question must be farther away than a point is rounded.
        scale = 8 * rounding * (1 + flat(task.x).abs().amax(1)).to(length)
        reach = torch.where(ready, torch.maximum(REACH * length / root, scale * root), s.normal.reach)
        normal = replace(s.normal, reach=reach)
        free = torch.ones_like(ready)
        for share in (bracket.low, bracket.high):
            z = bracket.point(share, task)
            free &= flat(z == normal.off_faces(z, task)).all(1)
        phase = torch.where(free, Phase.FINE, Phase.RAISE)
        again = (s.moves == 0) & (s.count == 0) & (s.tried < self.starts)
        phase = torch.where(again, Phase.START, phase)
        phase = torch.where(self.left(s) <= LAST_QUERIES, Phase.LAST, phase)
        return replace(
            s,
            phase=torch.where(ready, phase, Phase.COARSE),
            count=torch.where(ready & (phase != Phase.START), 0, s.count),
            bracket=replace(bracket, growth=torch.where(ready, width, bracket.growth)),
            normal=normal,
        )

    def after_raise(self, s: HopSkipJumpState, task: Task, fooled: Tensor) -> HopSkipJumpState:
        b = s.bracket
        low, high = torch.where(fooled, b.low, b.high), torch.where(fooled, b.high, b.high + b.growth)
        growth, count = torch.where(fooled, high - low, 2 * b.growth), torch.where(fooled, 0, s.count + 1)
        lost = count >= RAISES  # the adversarial examples are closer to the faces than questions are asked
        # Raised at least once, the lower end has been evaluated.
        found = torch.where(s.count == 0, Phase.LOWER, Phase.FINE)
        return replace(
            s,
            phase=torch.where(fooled, found, Phase.RAISE),
            count=torch.where(lost, 0, count),
            bracket=replace(
                b,
                low=torch.where(lost, 1 - ROUGH, low),
                high=torch.where(lost, 1, high),
                growth=torch.where(lost, ROUGH, growth),
            ),
            normal=replace(s.normal, reach=torch.where(lost, s.normal.reach / 4, s.normal.reach)),
        )

    def after_lower(self, s: HopSkipJumpState, task: Task, fooled: Tensor) -> HopSkipJumpState:
        b = s.bracket
        low = torch.where(fooled, (b.low - b.growth).clamp_min(0), b.low)
        bracket = replace(b, low=low, high=torch.where(fooled, b.low, b.high), growth=2 * b.growth)
        return replace(s, phase=torch.where(fooled & (b.low > 0), Phase.LOWER, Phase.FINE), bracket=bracket)

    def after_fine(self, s: HopSkipJumpState, task: Task, fooled: Tensor) -> HopSkipJumpState:
        bracket, normal, first = s.bracket.halve(fooled), s.normal, s.normal.asked == 0
        spread = torch.where(first, NormalEstimate.first_spread(task), normal.spread)
        width = bracket.high - bracket.low
        ready = width * bracket.length(task) <= OFF * normal.reach * spread
        ready |= width <= torch.finfo(s.z.dtype).eps * bracket.high
        centre = normal.off_faces(bracket.point(bracket.high, task), task)
        direction = unit(bracket.anchor - task.x)
        return replace(
            s,
            phase=torch.where(ready, Phase.ASK, Phase.FINE),
            bracket=replace(bracket, gain=torch.where(ready, (1 - bracket.high).clamp_min(NEARER), bracket.gain)),
            normal=replace(
                normal,
                spread=spread,
                centre=torch.where(column(ready, s.z.ndim), centre, normal.centre),
                direction=torch.where(column(first, s.z.ndim), direction, normal.direction),
            ),
        )

    def after_question(self, s: HopSkipJumpState, task: Task, fooled: Tensor) -> HopSkipJumpState:
        count = s.count + 1
        enough = count >= QUESTIONS * (s.moves + 1.0).sqrt()
        enough |= self.left(s) <= LAST_QUERIES + MOVE_QUERIES
        return replace(
            s,
            normal=s.normal.learn(fooled, task),
            count=torch.where(enough, 0, count),
            phase=torch.where(enough, Phase.MOVE, Phase.ASK),
            share=torch.ones_like(s.share),
        )

    def after_move(self, s: HopSkipJumpState, task: Task, fooled: Tensor) -> HopSkipJumpState:
        share = s.share / 2
        missed = ~fooled & (share < LEAST_SHARE)
        last = ~fooled & ((self.left(s) <= LAST_QUERIES) | (missed & s.normal.converged(task)))
        bracket = s.bracket.before(fooled, s.z).before(last, s.best)
        phase = torch.where(fooled, Phase.COARSE, torch.where(missed, Phase.ASK, Phase.MOVE))
        return replace(
            s,
            share=share,
            moves=s.moves + fooled,
            phase=torch.where(last, Phase.LAST, phase),
            # The boundary is at most a coarse search before the best point.
            bracket=replace(bracket, low=torch.where(last, 1 - 2 * ROUGH, bracket.low)),
        )

    def after_last(self, s: HopSkipJumpState, task: Task, fooled: Tensor) -> HopSkipJumpState:
        bracket = s.bracket.halve(fooled)
        over = bracket.high - bracket.low <= CLOSE * bracket.high
        # What is left is spent on a nearer boundary elsewhere: that of another class.
        return replace(
            s,
            phase=torch.where(over, Phase.START, Phase.LAST),
            count=over.long(),
            bracket=bracket,
            normal=replace(s.normal, asked=torch.where(over, 0, s.normal.asked)),
        )

    # The next query, phase by phase.

    def query_start(self, s: HopSkipJumpState, task: Task) -> HopSkipJumpState:
        z = starting_point(task, s.tried, task.warm_start if self.warm_start else None, self.references, s.order)
        nearer = (1 - ROUGH) * s.distance / task.ball.distance(z, task.x).clamp_min(torch.finfo(z.dtype).tiny)
        return replace(s, z=task.ball.clip(torch.lerp(task.x, z, column(nearer.clamp_max(1), z.ndim).to(z.dtype))))

    def query_bracket(self, s: HopSkipJumpState, task: Task) -> HopSkipJumpState:
        share = torch.where(s.phase == Phase.RAISE, s.bracket.high, s.bracket.middle())
        z = s.bracket.point(torch.where(s.phase == Phase.LOWER, s.bracket.low, share), task)
        on_way = (s.phase == Phase.COARSE) | (s.phase == Phase.LAST)
        return replace(s, z=torch.where(column(on_way, z.ndim), z, s.normal.off_faces(z, task)))

    def query_normal(self, s: HopSkipJumpState, task: Task) -> HopSkipJumpState:
        normal, z = s.normal.question(task)
        return replace(s, normal=normal, z=z)

    def query_move(self, s: HopSkipJumpState, task: Task) -> HopSkipJumpState:
        """The best point, by the normal, of a ball a little smaller than the distance; later, part of the way to it."""
        radius = (1 - NEARER) * s.distance
        units = task.ball.feature_units(task.x)
        eps = radius.to(task.x.dtype) if units is None else column(radius, units.ndim).to(units) * units
        z = replace(task.ball, eps=eps).argmax(s.normal.direction, task.x)
        part = (s.share < 1).nonzero().squeeze(1)
        if len(part):
            x, ball = task.x[part], task.ball.rows(part)
            there = torch.lerp(s.normal.centre[part], z[part], column(s.share[part], z.ndim).to(z.dtype))
            scale = radius[part] / ball.distance(there, x).clamp_min(torch.finfo(x.dtype).tiny)
            z = z.index_copy(0, part, ball.clip(torch.lerp(x, there, column(scale, z.ndim).to(z.dtype))))
        return replace(s, z=z)


LEARN: dict[int, Callable[..., HopSkipJumpState]] = {
    Phase.CLEAN: HopSkipJump.after_clean,
    Phase.START: HopSkipJump.after_start,
    Phase.COARSE: HopSkipJump.after_coarse,
    Phase.RAISE: HopSkipJump.after_raise,
    Phase.LOWER: HopSkipJump.after_lower,
    Phase.FINE: HopSkipJump.after_fine,
    Phase.ASK: HopSkipJump.after_question,
    Phase.MOVE: HopSkipJump.after_move,
    Phase.LAST: HopSkipJump.after_last,
}
QUERY: dict[int, Callable[..., HopSkipJumpState]] = {
    Phase.START: HopSkipJump.query_start,
    Phase.COARSE: HopSkipJump.query_bracket,
    Phase.RAISE: HopSkipJump.query_bracket,
    Phase.LOWER: HopSkipJump.query_bracket,
    Phase.FINE: HopSkipJump.query_bracket,
    Phase.ASK: HopSkipJump.query_normal,
    Phase.MOVE: HopSkipJump.query_move,
    Phase.LAST: HopSkipJump.query_bracket,
}


def _in_rows(
    here: Bool[Tensor, " n"],
    function: Callable[..., HopSkipJumpState],
    attack: HopSkipJump,
    state: HopSkipJumpState,
    task: Task,
    *more: Tensor,
) -> HopSkipJumpState:
    """The state with `function` applied to the rows that are `here`."""
    if bool(here.all()):
        return function(attack, state, task, *more)
    rows = here.nonzero().squeeze(1)
    part = function(attack, state.map(lambda old: old[rows]), task.rows(rows), *(each[rows] for each in more))
    return state.map(lambda old, new: old.index_copy(0, rows, new), part)
