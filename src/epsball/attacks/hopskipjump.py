"""HopSkipJump: the nearest fooling point from labels alone, by a walk along the border.

Chen, Jordan and Wainwright, "HopSkipJumpAttack: a query-efficient decision-based attack" (IEEE S&P 2020, algorithm 2):
find the border on the way to a fooling point, estimate its normal there from the labels around, go ahead, repeat.
Different here: what is known of the normal is kept from one place to the next, and each question is put across it
(`normals.py`: the paper starts anew each time); the point ahead is the best one of a smaller ball by the present normal
(the paper's step goes along it, and takes no notice of the box); the normal is asked for away from the box's faces.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks import normals
from epsball.attacks.nearest import MinimumNorm, Nearest, unseen
from epsball.attacks.starting_points import References, candidates, in_order
from epsball.common.shapes import column, flat
from epsball.problem.objective import Point
from epsball.problem.task import Task

CLEAN, START, COARSE, RAISE, LOWER, FINE, ASK, AIM, LAST, END = range(10)
"""What a row is at: the example itself; a first fooling point; the border before it, roughly; an upper and a lower end
for the border away from the box's faces; the border there, finely; its normal; a point ahead; the border before the
best point, finely; nothing more."""

ROUGH = 2.0**-5
"""The share of the way that the rough search leaves open."""
CLOSE = 2.0**-14
"""The share that the last search leaves open."""
RESERVE = 8
"""The queries that are kept for the last search."""
ROUND = 10
"""The queries that are kept, beside, for a point ahead and the rough search before it."""
NEARER = 0.005
"""The least share by which a point ahead must be nearer than the best."""
LEAST_SHARE = 0.125
"""The least share of the way to the best point of the smaller ball that is tried."""
RAISES = 6
"""The raises after which the border is looked for closer to the faces."""
REACH = 0.3
"""The distance of questions from the border, as a share of that to the example, times sqrt(d)."""
OFF = 0.2
"""How far from the border its point may be, as a share of what tells an answer."""
STARTS = 16
"""The points that are tried first: the best of several is before a nearer border, of several classes, than any one."""
QUESTIONS = 60
"""The questions of the first round; the k-th has sqrt(k) times as many (the paper: 100)."""


@dataclass(frozen=True, eq=False)
class Hopping(Nearest):
    """What a row is at (`phase`), for how many queries (`count`), and what it knows.

    The border is between the shares `low` and `high` of the way from the example to `anchor`, a fooling point; `width`
    is what a bracket grows by. `centre` is on the border, and questions are asked at the distance `reach` from it.
    `normal` is the border's as far as it is known, of length one, `spread` the standard deviation of the components
    that it still lacks; `asked` counts the questions, `probe` is the present one. `moves` counts the points ahead that
    fooled, `share` is how much of the way to the next is tried. `order` is that of the references.
    """

    phase: Int64[Tensor, " n"]
    count: Int64[Tensor, " n"]
    tried: Int64[Tensor, " n"]
    asked: Int64[Tensor, " n"]
    moves: Int64[Tensor, " n"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]
    width: Float[Tensor, " n"]
    reach: Float[Tensor, " n"]
    spread: Float[Tensor, " n"]
    share: Float[Tensor, " n"]
    gain: Float[Tensor, " n"]
    anchor: Float[Tensor, "n *shape"]
    centre: Float[Tensor, "n *shape"]
    normal: Float[Tensor, "n *shape"]
    probe: Float[Tensor, "n *shape"]
    order: Int64[Tensor, "n k"]


@dataclass(frozen=True, kw_only=True)
class HopSkipJump(MinimumNorm[Hopping]):
    """The nearest fooling point from labels alone, in L2 and Linf, for any model; one query a step.

    `steps` queries an example, the first of which looks at the example itself. A row starts from `task.warm_start`, the best
    point of the attacks before it, where it is to go `warm_start`; from the nearest of `references` whose class is wanted,
    where there are any (which a target needs, as a rule); then from noise, until something fools. It ends early where
    nothing more is to be learnt.

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

    def init(self, task: Task) -> Hopping:
        none, zero, still = unseen(task), torch.zeros_like(task.y), torch.zeros_like(task.x)
        scalar = torch.zeros_like(none)
        return Hopping.at(
            task.x,
            distance=none,
            phase=zero,
            count=zero,
            tried=zero,
            asked=zero,
            moves=zero,
            low=scalar,
            high=scalar,
            width=scalar,
            reach=scalar,
            spread=scalar,
            share=scalar,
            gain=scalar + 1,
            anchor=task.x,
            centre=task.x,
            normal=still,
            probe=still,
            order=in_order(task, self.references),
        )

    def step(self, state: Hopping, point: Point, task: Task) -> Hopping:
        best, distance = self.seen(state, point, task)
        state, phase, fooled = replace(state, best=best, distance=distance, t=state.t + 1), state.phase, point.fooled
        present = set(phase.tolist())
        for at, learn in LEARN.items():
            if at in present:
                state = _where(phase == at, learn, self, state, task, fooled)
        phase = state.phase
        present = set(phase.tolist())
        for at, look in LOOK.items():
            if at in present:
                state = _where(phase == at, look, self, state, task, fooled)
        return replace(state, done=(phase == END) | (state.t >= self.steps))

    @property
    def tries(self) -> int:
        """The points that are tried first, each nearer than the best before it."""
        return min(STARTS, self.steps // 40)

    def left(self, s: Hopping) -> Int64[Tensor, " n"]:
        """The queries that are left."""
        return self.steps - s.t

    # What an answer changes.

    def clean(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        return replace(s, phase=torch.where(fooled, END, START))

    def started(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        tried = s.tried + 1
        first = s.count == 0
        enough = first & ~fooled & (tried >= self.tries) & (s.distance < math.inf)
        s = replace(s, tried=tried, moves=torch.where(fooled, 0, s.moves), phase=torch.where(enough, COARSE, s.phase))
        return _anchored(s, fooled, s.z)

    def coarse(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        s = _halved(s, fooled)
        ready = s.high - s.low <= ROUGH * s.high
        d, rounding = normals.open_count(task), torch.finfo(s.z.dtype).eps
        length = _length(s.anchor - task.x) * s.high
        # A question must be more than the rounding of a point.
        scale = 8 * rounding * (1 + flat(task.x).abs().amax(1)).to(length)
        reach = torch.maximum(REACH * length / d.sqrt(), scale * d.sqrt())
        s = replace(s, reach=torch.where(ready, reach, s.reach), width=torch.where(ready, s.high - s.low, s.width))
        free = torch.ones_like(ready)
        for share in (s.low, s.high):
            z = _along(s, task, share)
            free &= flat(z == _inner(s, task, z)).all(1)
        warm_start = torch.where(free, FINE, RAISE)
        warm_start = torch.where((s.moves == 0) & (s.count == 0) & (s.tried < self.tries), START, warm_start)
        warm_start = torch.where(self.left(s) <= RESERVE, LAST, warm_start)
        return replace(
            s,
            phase=torch.where(ready, warm_start, COARSE),
            count=torch.where(ready & (warm_start != START), 0, s.count),
        )

    def raised(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        found = torch.where(s.count == 0, LOWER, FINE)  # raised once, the lower end has been seen
        low, high = torch.where(fooled, s.low, s.high), torch.where(fooled, s.high, s.high + s.width)
        width, count = torch.where(fooled, high - low, 2 * s.width), torch.where(fooled, 0, s.count + 1)
        lost = count >= RAISES  # what fools is closer to the faces than questions are asked
        high, width = torch.where(lost, 1, high), torch.where(lost, ROUGH, width)
        return replace(
            s,
            phase=torch.where(fooled, found, RAISE),
            low=torch.where(lost, 1 - ROUGH, low),
            high=high,
            width=width,
            count=torch.where(lost, 0, count),
            reach=torch.where(lost, s.reach / 4, s.reach),
        )

    def lowered(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        low = torch.where(fooled, (s.low - s.width).clamp_min(0), s.low)
        high = torch.where(fooled, s.low, s.high)
        return replace(s, phase=torch.where(fooled & (s.low > 0), LOWER, FINE), low=low, high=high, width=2 * s.width)

    def fine(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        s = _halved(s, fooled)
        spread = torch.where(s.asked == 0, normals.unknown(task), s.spread)
        open_ = s.high - s.low
        ready = open_ * _length(s.anchor - task.x) <= OFF * s.reach * spread
        ready |= open_ <= torch.finfo(s.z.dtype).eps * s.high
        centre = _inner(s, task, _along(s, task, s.high))
        first = column(s.asked == 0, s.z.ndim)
        return replace(
            s,
            phase=torch.where(ready, ASK, FINE),
            gain=torch.where(ready, (1 - s.high).clamp_min(NEARER), s.gain),
            spread=spread,
            centre=torch.where(column(ready, s.z.ndim), centre, s.centre),
            normal=torch.where(first, normals.unit(s.anchor - task.x), s.normal),
        )

    def answered(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        normal, spread = normals.learnt(s.normal, s.spread, s.probe, s.asked, fooled, task)
        count = s.count + 1
        enough = count >= QUESTIONS * (s.moves + 1.0).sqrt()
        enough |= self.left(s) <= RESERVE + ROUND
        return replace(
            s,
            normal=normal,
            spread=spread,
            asked=s.asked + 1,
            count=torch.where(enough, 0, count),
            phase=torch.where(enough, AIM, ASK),
            share=torch.ones_like(s.share),
        )

    def aimed(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        share = s.share / 2
        missed = ~fooled & (share < LEAST_SHARE)
        last = ~fooled & ((self.left(s) <= RESERVE) | (missed & normals.settled(s.spread, task)))
        phase = torch.where(missed, ASK, AIM)
        s = replace(s, share=share, moves=s.moves + fooled, phase=phase)
        s = _anchored(_anchored(s, fooled, s.z), last, s.best)
        # The border is at most a rough search before the best point.
        low = torch.where(last, 1 - 2 * ROUGH, s.low)
        return replace(s, phase=torch.where(last, LAST, s.phase), low=low)

    def last(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        s = _halved(s, fooled)
        over = s.high - s.low <= CLOSE * s.high
        # What is left is spent on a nearer border elsewhere: that of another class.
        again = over.long()
        return replace(s, phase=torch.where(over, START, LAST), count=again, asked=torch.where(over, 0, s.asked))

    # Where to look next.

    def at_start(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        near = task.warm_start if self.warm_start else None
        z = candidates(task, s.tried, near, self.references, s.order)
        nearer = (1 - ROUGH) * s.distance / task.ball.distance(z, task.x).clamp_min(torch.finfo(z.dtype).tiny)
        return replace(s, z=task.ball.clip(torch.lerp(task.x, z, column(nearer.clamp_max(1), z.ndim).to(z.dtype))))

    def at_middle(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        return replace(s, z=_along(s, task, _middle(s)))

    def at_inner_middle(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        return replace(s, z=_inner(s, task, _along(s, task, (s.low + s.high) / 2)))

    def at_upper_end(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        return replace(s, z=_inner(s, task, _along(s, task, s.high)))

    def at_lower_end(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        return replace(s, z=_inner(s, task, _along(s, task, s.low)))

    def at_question(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        probe, way = normals.question(s.normal, s.spread, s.asked, task)
        return replace(s, probe=probe, z=task.ball.clip(s.centre + way * column(s.reach, way.ndim).to(way.dtype)))

    def ahead(self, s: Hopping, fooled: Bool[Tensor, " n"], task: Task) -> Hopping:
        radius = (1 - NEARER) * s.distance
        unit = task.ball.feature_units(task.x)
        eps = radius.to(task.x.dtype) if unit is None else column(radius, unit.ndim).to(unit) * unit
        z = replace(task.ball, eps=eps).argmax(s.normal, task.x)
        part = (s.share < 1).nonzero().squeeze(1)
        if len(part):
            x, ball = task.x[part], task.ball.rows(part)
            there = torch.lerp(s.centre[part], z[part], column(s.share[part], z.ndim).to(z.dtype))
            far = radius[part] / ball.distance(there, x).clamp_min(torch.finfo(x.dtype).tiny)
            z = z.index_copy(0, part, ball.clip(torch.lerp(x, there, column(far, z.ndim).to(z.dtype))))
        return replace(s, z=z)


Turn = Callable[[HopSkipJump, Hopping, Tensor, Task], Hopping]
LEARN: dict[int, Turn] = {
    CLEAN: HopSkipJump.clean,
    START: HopSkipJump.started,
    COARSE: HopSkipJump.coarse,
    RAISE: HopSkipJump.raised,
    LOWER: HopSkipJump.lowered,
    FINE: HopSkipJump.fine,
    ASK: HopSkipJump.answered,
    AIM: HopSkipJump.aimed,
    LAST: HopSkipJump.last,
}
LOOK: dict[int, Turn] = {
    START: HopSkipJump.at_start,
    COARSE: HopSkipJump.at_middle,
    RAISE: HopSkipJump.at_upper_end,
    LOWER: HopSkipJump.at_lower_end,
    FINE: HopSkipJump.at_inner_middle,
    ASK: HopSkipJump.at_question,
    AIM: HopSkipJump.ahead,
    LAST: HopSkipJump.at_middle,
}


def _where(
    here: Bool[Tensor, " n"], turn: Turn, attack: HopSkipJump, state: Hopping, task: Task, fooled: Tensor
) -> Hopping:
    """The state after `turn` of the rows that are `here`."""
    rows = here.nonzero().squeeze(1)
    if len(rows) == len(here):
        return turn(attack, state, fooled, task)
    part = turn(attack, state.map(lambda old: old[rows]), fooled[rows], task.rows(rows))
    return state.map(lambda old, new: old.index_copy(0, rows, new), part)


def _anchored(s: Hopping, rows: Bool[Tensor, " n"], z: Float[Tensor, "n *shape"]) -> Hopping:
    """The rows with a new fooling point, before which the border is to be searched."""
    return replace(
        s,
        anchor=torch.where(column(rows, z.ndim), z, s.anchor),
        low=torch.where(rows, 0, s.low),
        high=torch.where(rows, 1, s.high),
        phase=torch.where(rows, COARSE, s.phase),
    )


def _middle(s: Hopping) -> Float[Tensor, " n"]:
    """Where the bracket is cut: the first time where the border is likely to be beyond, by the last move."""
    half = (s.low + s.high) / 2
    return torch.where((s.low == 0) & (s.high == 1), torch.maximum(half, 1 - 2 * s.gain), half)


def _halved(s: Hopping, fooled: Bool[Tensor, " n"]) -> Hopping:
    middle = _middle(s)
    return replace(s, low=torch.where(fooled, s.low, middle), high=torch.where(fooled, middle, s.high))


def _along(s: Hopping, task: Task, share: Float[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    """The point at that share of the way from the example to the anchor."""
    return task.ball.clip(torch.lerp(task.x, s.anchor, column(share, s.z.ndim).to(s.z.dtype)))


def _inner(s: Hopping, task: Task, z: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
    """The nearest point to z at which questions stay within the box: where they are cut off, all lean one way."""
    room = normals.room(s.reach, task).to(z.dtype)
    lo, hi = (torch.as_tensor(side).to(z) for side in (task.ball.lo, task.ball.hi))
    middle = ((lo + hi) / 2).nan_to_num(nan=0.0)
    low = torch.where(lo.isfinite() & hi.isfinite(), torch.minimum(lo + room, middle), lo + room)
    high = torch.where(lo.isfinite() & hi.isfinite(), torch.maximum(hi - room, middle), hi - room)
    inside = torch.minimum(torch.maximum(z, low), high)
    return inside if task.ball.mask is None else torch.where(task.ball.mask, inside, z)


def _length(delta: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    return normals.dot(delta, delta).sqrt()
