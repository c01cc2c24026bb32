"""Box-constrained L-BFGS: the oldest minimum-norm attack, the distance against the likelihood of another class.

Szegedy et al., "Intriguing properties of neural networks" (ICLR 2014, arXiv:1312.6199), section 4.1: minimise |z - x|^2
- c * log p_t(z) in the box, and search for the least c that succeeds. The paper leaves the minimiser to a library; here
each row has its own history of steps, line search and c: the two-loop recursion (Nocedal, Math. Comp. 1980) on the
coordinates that the box leaves free (Bertsekas 1982), with steps that are clipped to the box and halved until the
objective falls enough (Armijo 1966). Lengths and c are in units of the linearised problem, as in `penalty.py`.
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
from epsball.attacks.boundary import boundary_distance, clip_to_range, on_mask
from epsball.attacks.minimum_norm import MinimumNorm, MinimumNormState, start_points
from epsball.attacks.optimisers import ConstantSearch
from epsball.attacks.penalty import Units
from epsball.attacks.state import map_tensors
from epsball.common.checks import check_positive, check_whole
from epsball.common.shapes import column, flat
from epsball.problem.losses import Loss, margin
from epsball.problem.objective import Point
from epsball.problem.task import AWAY, Task

CLOSED = 1.002
"""The ratio of the ends of c's bracket at which a job ends: their minimisers are about that alike."""
ENOUGH = 1e-4
"""The share of the decrease which the gradient predicts that a step must bring (Armijo's constant)."""
HALVINGS = 8
"""The number of halvings of a step after which a round ends."""
FLAT = 1e-3
"""The share of its largest possible value below which the gradient of the objective counts as zero: the round ends."""
CURVED = 1e-8
"""The least curvature along a step, relative to the change of the gradient, for which the step is remembered."""


def log_probability(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """log p_t of the target t; away from y it is log(1 - p_y), the probability of all other classes together.

    Towards an aim, where any wrong class is a success, it is log p_t of the two classes t and y alone: then the
    minimiser for some c is the nearest point of the boundary between these two, if the logits are linear.
    """
    goal = task.goal[:, None]
    own = logits.gather(1, goal).squeeze(1)
    others = logits.scatter(1, goal, -torch.inf).logsumexp(1)
    gap = task.signed(others - own)
    if task.some_aimed:
        pair = own - logits.gather(1, task.y[:, None]).squeeze(1)
        gap = torch.where(task.aimed & (task.target == AWAY), pair, gap)
    return -F.softplus(-gap)


@dataclass(frozen=True, eq=False)
class History:
    """The last m steps (n, m, d) and the changes of the gradient along them; zero where there are fewer."""

    steps: Float[Tensor, "n m d"]
    changes: Float[Tensor, "n m d"]

    @classmethod
    def start(cls, z: Float[Tensor, "n *shape"], memory: int) -> Self:
        none = flat(z).new_zeros(len(z), memory, flat(z).shape[1])
        return cls(none, none)

    def push(self, rows: Int64[Tensor, " k"], step: Float[Tensor, "n d"], change: Float[Tensor, "n d"]) -> History:
        """The history with a step of `rows` in the place of their oldest."""
        if not len(rows):
            return self
        pairs = ((self.steps, step), (self.changes, change))
        return History(*(old.index_copy(0, rows, torch.cat([old[rows, 1:], new[rows, None]], 1)) for old, new in pairs))

    def direction(
        self, rows: Int64[Tensor, " k"], grad: Float[Tensor, "k d"], free: Bool[Tensor, "k d"]
    ) -> Float[Tensor, "k d"]:
        """The two-loop recursion on the coordinates that are free: a descent direction, the steepest if need be."""
        descent = grad * free
        steps, changes = self.steps[rows] * free[:, None], self.changes[rows] * free[:, None]
        curvature = (steps * changes).sum(2)
        rho = torch.where(curvature > 0, 1 / curvature, 0)
        memory = range(steps.shape[1])
        ahead, alpha = descent, {}
        for i in reversed(memory):
            alpha[i] = rho[:, i] * (steps[:, i] * ahead).sum(1)
            ahead = ahead - alpha[i][:, None] * changes[:, i]
        newest, square = curvature[:, -1], changes[:, -1].square().sum(1)
        ahead = ahead * torch.where((newest > 0) & (square > 0), newest / square, 1)[:, None]
        for i in memory:
            beta = rho[:, i] * (changes[:, i] * ahead).sum(1)
            ahead = ahead + (alpha[i] - beta)[:, None] * steps[:, i]
        sound = ((ahead * descent).sum(1) > 0)[:, None]
        return torch.where(sound, -ahead, -descent)


@dataclass(frozen=True, eq=False)
class LineSearch:
    """The point `base` that the last step led to, the objective `value` there, its gradient, whether it is adversarial.

    The step that is tried is `length` times `direction`, halved `halvings` times so far.
    """

    base: Float[Tensor, "n *shape"]
    value: Float[Tensor, " n"]
    grad: Float[Tensor, "n *shape"]
    fooled: Bool[Tensor, " n"]
    direction: Float[Tensor, "n *shape"]
    length: Float[Tensor, " n"]
    halvings: Int64[Tensor, " n"]

    @classmethod
    def start(cls, z: Float[Tensor, "n *shape"]) -> Self:
        still, zero = torch.zeros_like(z), torch.zeros(len(z), dtype=torch.long, device=z.device)
        none = zero.to(z)
        return cls(z, none + math.inf, still, zero != 0, still, none, zero)

    def trial(self, task: Task) -> Float[Tensor, "n *shape"]:
        """The point that is tried."""
        return clip_to_range(self.base + self.direction * column(self.length, self.base.ndim), task)


@dataclass(frozen=True, eq=False)
class LBFGSState(MinimumNormState):
    """With the history and line search of the round, the search for c, the steps of this round, the rounds before."""

    history: History
    line: LineSearch
    search: ConstantSearch
    units: Units
    steps: Int64[Tensor, " n"]
    round: Int64[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class BoxLBFGS(LossAttack[LBFGSState], MinimumNorm[LBFGSState]):
    """Box-constrained L-BFGS in L2: `binary_steps` rounds of at most `steps` steps, each with its own constant.

    `memory` steps are remembered; `c` is the first constant, in units of the linearised problem as in CW. Any loss
    will do that rises towards success; the paper's is the logarithm of the target's probability, and away from the
    label, where the paper has none, that of all other classes together.

    >>> from epsball.balls.l2 import L2
    >>> x, y = torch.tensor([[0.0, 1.0]]), torch.tensor([0])
    >>> model = lambda x: x @ torch.tensor([4.0, -3.0]) - 0.5  # the boundary is 3.5 / 5 away
    >>> z = BoxLBFGS()(model, x, y, L2(eps=math.inf, lo=0, hi=1))
    >>> bool(model(z) > 0), round(torch.linalg.vector_norm(z - x).item(), 2)
    (True, 0.7)
    """

    takes = ("euclidean",)

    loss: Loss = log_probability  # pyright: ignore[reportIncompatibleMethodOverride] - a field is a property, too
    steps: int = 50
    binary_steps: int = 12
    c: float = 4.0
    memory: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("binary_steps", self.binary_steps, 1)
        check_whole("memory", self.memory, 1)
        check_positive("c", self.c, "the default suits any scale")

    def init(self, task: Task) -> LBFGSState:
        z, zero = start_points(task, self.n_targets, 0.1), torch.zeros_like(task.y)
        base = z.to(torch.promote_types(z.dtype, torch.float32))
        none = zero.to(base)
        return LBFGSState.start(
            z,
            task,
            history=History.start(base, self.memory),
            line=LineSearch.start(base),
            search=ConstantSearch.start(none),
            units=Units(none, none),
            steps=zero,
            round=zero,
        )

    def step(self, state: LBFGSState, point: Point, task: Task) -> LBFGSState:
        state = self.keep_nearest(state, point, task)
        loss, loss_grad = point.loss.to(state.distance), on_mask(point.grad, task.ball).to(state.line.base)
        state = self._with_units(state, point, loss_grad, task)
        # The objective |z - x|^2 / 2 - c * loss at the point that was tried, and its gradient.
        z, ndim = state.line.trial(task), task.x.ndim
        delta, pull = z - task.x, state.search.c * state.units.distance
        value = flat(delta).square().sum(1) / 2 - pull * (loss / state.units.slope)
        grad = on_mask(delta, task.ball).sub(column(pull, ndim) * (loss_grad / column(state.units.slope, ndim)))
        # The step is made if the objective falls enough, and remembered if it curves upwards.
        move, change = flat(z - state.line.base), flat(grad - state.line.grad)
        predicted = (move * flat(state.line.grad)).sum(1)
        first = state.steps == 0
        made = first | (value <= state.line.value + ENOUGH * predicted)
        curved = made & ~first & ((move * change).sum(1) > CURVED * change.square().sum(1))
        history = state.history.push(curved.nonzero().squeeze(1), move, change)
        wide = column(made, ndim)
        line = LineSearch(
            base=torch.where(wide, z, state.line.base),
            value=torch.where(made, value, state.line.value),
            grad=torch.where(wide, grad, state.line.grad),
            fooled=torch.where(made, point.fooled, state.line.fooled),
            direction=state.line.direction,
            length=torch.where(made, torch.where(first, 1 / state.search.c.clamp_min(1), 1.0), state.line.length / 2),
            halvings=torch.where(made, 0, state.line.halvings + 1),
        )
        rows = made.nonzero().squeeze(1)
        if len(rows):
            base, grad, ball = line.base[rows], line.grad[rows], task.ball.rows(rows)
            free = flat(torch.where(grad > 0, base > ball.lo, base < ball.hi))
            direction = history.direction(rows, flat(grad), free).reshape(base.shape)
            line = replace(line, direction=line.direction.index_copy(0, rows, direction))
        largest = flat(task.ball.clip(line.base - line.grad) - line.base).abs().amax(1)
        converged = made & (largest <= FLAT * state.units.distance / math.sqrt(flat(task.x).shape[1]))
        steps = state.steps + 1
        state = replace(
            state,
            z=line.trial(task).to(task.x.dtype),
            t=state.t + 1,
            done=state.done | (state.distance == 0),
            history=history,
            line=line,
            steps=steps,
        )
        ended = ((steps >= self.steps) | (line.halvings > HALVINGS) | converged).nonzero().squeeze(1)
        return self._next_round(state, task, ended) if len(ended) else state

    def _with_units(self, state: LBFGSState, point: Point, grad: Float[Tensor, "n *shape"], task: Task) -> LBFGSState:
        """The state with units for the rows at their first step; done where the gradient is zero, so nothing moves."""
        new = state.t == 0
        if not bool(new.any()):
            return state
        distance, slope, _ = boundary_distance(margin(point.logits, task).to(state.distance), grad, task)
        stuck = slope == 0
        units = Units(distance.to(state.distance), torch.where(stuck, 1, slope).to(state.distance))
        return replace(
            state,
            done=state.done | (new & stuck),
            search=replace(state.search, c=torch.where(new, self.c, state.search.c)),
            units=map_tensors(lambda fresh, old: torch.where(new, fresh, old), units, state.units),
        )

    def _next_round(self, state: LBFGSState, task: Task, ended: Int64[Tensor, " k"]) -> LBFGSState:
        """The state in which the rows `ended` begin another round, or are done."""
        old, zero = state.map(lambda part: part[ended]), torch.zeros_like(ended)
        search, round_ = old.search.next(old.line.fooled), old.round + 1
        z = start_points(task.rows(ended), self.n_targets, 0.1)
        base = z.to(old.line.base)
        fresh = replace(
            old,
            z=z,
            done=old.done | (round_ >= self.binary_steps) | search.closed(CLOSED),
            history=History.start(base, self.memory),
            line=LineSearch.start(base),
            search=search,
            steps=zero,
            round=round_,
        )
        return state.map(lambda before, after: before.index_copy(0, ended, after), fresh)
