"""Box-constrained L-BFGS: the oldest of these attacks, least distance against the likelihood of another class.

Szegedy et al., "Intriguing properties of neural networks" (ICLR 2014), section 4.1: minimise |z - x|^2 - c * log p_t(z)
in the box, and search for the c that just fools. Each row has its own history of steps, line search and c: the
two-loop recursion (Nocedal 1980) on the coordinates that the box does not hold (Bertsekas 1982), steps that are clipped
to the box and halved until the objective falls enough (Armijo 1966).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from epsball.attacks.attack import LossAttack
from epsball.attacks.nearest import MinimumNorm, Nearest, unseen
from epsball.attacks.penalty import near_enough, open_part, reaching, starting, tightened
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import column, flat
from epsball.problem.losses import Loss, margin
from epsball.problem.objective import Point
from epsball.problem.task import AWAY, Task

CLOSED = 1.002
"""The bracket of c at which a job ends: the least points of its two ends are about that alike."""
ENOUGH = 1e-4
"""The share of what the slope promises that a step must gain (Armijo's)."""
HALVINGS = 8
"""The halvings of a step after which a round ends."""
FLAT = 1e-3
"""The share of its largest possible change at which the gradient of the objective counts as zero: the round ends."""


def log_chance(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """log p_t of the target t; away from y it is log(1 - p_y), all that is not y.

    Towards an aim, where any wrong class is a success, it is log p_t of the two classes t and y alone: then the least
    point for some c is the nearest point of the border between these two, if the logits are linear.
    """
    goal = task.goal[:, None]
    own = logits.gather(1, goal).squeeze(1)
    others = logits.scatter(1, goal, -torch.inf).logsumexp(1)
    lead = task.signed(others - own)
    if task.some_aimed:
        pair = own - logits.gather(1, task.y[:, None]).squeeze(1)
        lead = torch.where(task.aimed & (task.target == AWAY), pair, lead)
    return -F.softplus(-lead)


@dataclass(frozen=True, eq=False)
class Lines(Nearest):
    """A row's round of L-BFGS and its search for c.

    `base` is the point that the last step led to, `value` the objective there, `slope` its gradient, `fools` whether it
    fools; `steps_made`, `bends` (n, m, d) the last m steps between such points and the changes of the gradient, zero
    where there are fewer; `ahead` the direction that is being searched and `length` how much of it is tried; `halvings`
    of it so far, `inner` the passes of this round, `round` the rounds before; `c`, `low`, `high` the constant and its
    bracket, `reach` and `rise` the units of length and of the loss's slope.
    """

    base: Float[Tensor, "n *shape"]
    value: Float[Tensor, " n"]
    slope: Float[Tensor, "n *shape"]
    fools: Bool[Tensor, " n"]
    steps_made: Float[Tensor, "n m d"]
    bends: Float[Tensor, "n m d"]
    ahead: Float[Tensor, "n *shape"]
    length: Float[Tensor, " n"]
    halvings: Int64[Tensor, " n"]
    inner: Int64[Tensor, " n"]
    round: Int64[Tensor, " n"]
    c: Float[Tensor, " n"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]
    reach: Float[Tensor, " n"]
    rise: Float[Tensor, " n"]

    @classmethod
    def beginning(cls, z: Tensor, best: Tensor, far: Float[Tensor, " n"], memory: int) -> Self:
        """Rows that begin their first round at z; `far` (n,) is infinite."""
        base, none = z.to(far.dtype), torch.zeros_like(far)
        zero, history = (
            torch.zeros(len(z), dtype=torch.long, device=z.device),
            flat(base).new_zeros(len(z), memory, flat(base).shape[1]),
        )
        return cls(
            z=z,
            best=best,
            t=zero,
            done=zero != 0,
            distance=far,
            base=base,
            value=far,
            slope=torch.zeros_like(base),
            fools=zero != 0,
            steps_made=history,
            bends=history,
            ahead=torch.zeros_like(base),
            length=none,
            halvings=zero,
            inner=zero,
            round=zero,
            c=none,
            low=none,
            high=far,
            reach=none,
            rise=none,
        )


@dataclass(frozen=True, kw_only=True)
class BoxLBFGS(LossAttack[Lines], MinimumNorm[Lines]):
    """Box-constrained L-BFGS in L2: `binary_steps` rounds of at most `steps` passes, each with a constant of its own.

    `memory` steps are remembered; `c` is the first constant, in units of the linearised problem as in CW. Any loss
    will do that rises towards success; the paper's is the logarithm of the probability of the goal, and away from the
    label, where it is silent, that of all other classes together.

    >>> from epsball.balls.l2 import L2
    >>> x, y = torch.tensor([[0.0, 1.0]]), torch.tensor([0])
    >>> model = lambda x: x @ torch.tensor([4.0, -3.0]) - 0.5  # the border is 3.5 / 5 away
    >>> z = BoxLBFGS()(model, x, y, L2(eps=math.inf, lo=0, hi=1))
    >>> bool(model(z) > 0), round(torch.linalg.vector_norm(z - x).item(), 2)
    (True, 0.7)
    """

    takes = ("euclidean",)

    loss: Loss = log_chance
    steps: int = 50
    binary_steps: int = 12
    c: float = 4.0
    memory: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("binary_steps", self.binary_steps, 1)
        check_whole("memory", self.memory, 1)
        if not 0 < self.c < math.inf:
            raise BadInput(f"`c` must be > 0 and finite, got {self.c}; the default suits any scale")

    def init(self, task: Task) -> Lines:
        return Lines.beginning(starting(task, max(self.n_targets, 1)), task.x, unseen(task), self.memory)

    def step(self, state: Lines, point: Point, task: Task) -> Lines:
        x, ndim = task.x, task.x.ndim
        best, distance = self.seen(state, point, task)
        loss, grad = point.loss.to(distance), open_part(point.grad, task.ball).to(state.base.dtype)
        state, stuck = self._scaled(state, point, grad, task)
        here = near_enough(state.base + state.ahead * column(state.length, ndim), task)
        away, pull, grad = here - x, state.c * state.reach, grad / column(state.rise, ndim)
        value = flat(away).square().sum(1) / 2 - pull * (loss / state.rise)
        slope = open_part(away, task.ball).sub(column(pull, ndim) * grad)
        move = flat(here - state.base)
        promised = (move * flat(state.slope)).sum(1)
        taken = (state.inner == 0) | (value <= state.value + ENOUGH * promised)
        state = self._taken(state, taken, here, move, value, slope, point.fooled)
        turn = taken.nonzero().squeeze(1)
        ahead = state.ahead
        if len(turn):
            ahead = ahead.index_copy(0, turn, self._direction(state, task, turn))
        first = taken & (state.inner == 0)
        length = torch.where(taken, torch.where(first, 1 / state.c.clamp_min(1), 1.0), state.length / 2)
        halvings = torch.where(taken, 0, state.halvings + 1)
        inner, t = state.inner + 1, state.t + 1
        most = flat(task.ball.clip(state.base - state.slope) - state.base).abs().amax(1)
        settled = taken & (most <= FLAT * state.reach / math.sqrt(flat(x).shape[1]))
        z = near_enough(state.base + ahead * column(length, ndim), task).to(x.dtype)
        state = replace(
            state,
            z=z,
            best=best,
            t=t,
            done=state.done | stuck | (distance == 0),
            distance=distance,
            ahead=ahead,
            length=length,
            halvings=halvings,
            inner=inner,
        )
        ended = ((inner >= self.steps) | (halvings > HALVINGS) | settled).nonzero().squeeze(1)
        return self._next_round(state, task, ended) if len(ended) else state

    def _scaled(self, state: Lines, point: Point, grad: Tensor, task: Task) -> tuple[Lines, Bool[Tensor, " n"]]:
        """The state with units for the rows that were looked at for the first time; and which of them cannot move."""
        new = state.t == 0
        if not bool(new.any()):
            return state, new
        reach, rise, _ = reaching(margin(point.logits, task).to(state.distance), grad, task)
        stuck = new & (rise == 0)
        reach, rise = reach.to(state.reach), torch.where(rise > 0, rise, 1).to(state.rise)
        return replace(
            state,
            reach=torch.where(new, reach, state.reach),
            rise=torch.where(new, rise, state.rise),
            c=torch.where(new, self.c, state.c),
        ), stuck

    def _taken(
        self, state: Lines, taken: Tensor, here: Tensor, move: Tensor, value: Tensor, slope: Tensor, fooled: Tensor
    ) -> Lines:
        """The state with the step made where it is taken, and remembered where the objective curves up along it."""
        bend, ndim = flat(slope - state.slope), here.ndim
        curve = (move * bend).sum(1)
        useful = taken & (state.inner > 0) & (curve > 1e-8 * bend.square().sum(1))
        at = useful.nonzero().squeeze(1)
        steps_made, bends = state.steps_made, state.bends
        if len(at):
            pushed = [torch.cat([old[at, 1:], new[at, None]], 1) for old, new in ((steps_made, move), (bends, bend))]
            steps_made, bends = steps_made.index_copy(0, at, pushed[0]), bends.index_copy(0, at, pushed[1])
        wide = column(taken, ndim)
        return replace(
            state,
            base=torch.where(wide, here, state.base),
            value=torch.where(taken, value, state.value),
            slope=torch.where(wide, slope, state.slope),
            fools=torch.where(taken, fooled, state.fools),
            steps_made=steps_made,
            bends=bends,
        )

    def _direction(self, state: Lines, task: Task, rows: Int64[Tensor, " k"]) -> Float[Tensor, "k *shape"]:
        """The two-loop recursion on the coordinates that the box leaves free; downhill, or the steepest descent."""
        base, slope, ball = state.base[rows], state.slope[rows], task.ball.rows(rows)
        free = flat(torch.where(slope > 0, base > ball.lo, base < ball.hi))
        down = flat(slope) * free
        moves, bends = state.steps_made[rows] * free[:, None], state.bends[rows] * free[:, None]
        curve = (moves * bends).sum(2)
        share = torch.where(curve > 0, 1 / curve, 0)
        ahead, weights = down, []
        for i in reversed(range(self.memory)):
            weights.append(share[:, i] * (moves[:, i] * ahead).sum(1))
            ahead = ahead - weights[-1][:, None] * bends[:, i]
        last = bends[:, -1].square().sum(1)
        ahead = ahead * torch.where((curve[:, -1] > 0) & (last > 0), curve[:, -1] / last, 1)[:, None]
        for i in range(self.memory):
            back = share[:, i] * (bends[:, i] * ahead).sum(1)
            ahead = ahead + (weights[self.memory - 1 - i] - back)[:, None] * moves[:, i]
        sound = ((ahead * down).sum(1) > 0)[:, None]
        return torch.where(sound, -ahead, -down).reshape(base.shape)

    def _next_round(self, state: Lines, task: Task, ended: Int64[Tensor, " k"]) -> Lines:
        """The state in which the rows `ended` begin another round, or are done."""
        c, low, high = tightened(state.c[ended], state.low[ended], state.high[ended], state.fools[ended])
        round_, distance = state.round[ended] + 1, state.distance[ended]
        z = starting(task.rows(ended), max(self.n_targets, 1))
        fresh = replace(
            Lines.beginning(z, state.best[ended], torch.full_like(distance, math.inf), self.memory),
            t=state.t[ended],
            done=state.done[ended] | (round_ >= self.binary_steps) | (high <= CLOSED * low),
            distance=distance,
            round=round_,
            c=c,
            low=low,
            high=high,
            reach=state.reach[ended],
            rise=state.rise[ended],
        )
        return state.map(lambda old, new: old.index_copy(0, ended, new), fresh)
