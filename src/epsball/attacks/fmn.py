"""FMN, fast minimum norm: climb inside a ball whose radius shrinks while the point fools and grows while it does not.

Pintor, Roli, Brendel and Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints" (NeurIPS
2021, arXiv:2102.12827), algorithm 1. Radius and step follow cosine schedules. Where this departs from the paper:

- A step is the ball's own (signed in Linf, see `Ball.step`), as long as a share of the row's present radius, and is
  projected exactly onto ball and box together. The paper's steps are L2-normalised gradients of a length in the units
  of the data, projected and then clipped.
- Before a fooling point was seen the radius at least doubles. The paper's grows by the linearised distance that is
  left, which on a flat network is next to nothing, over and over.
- In L1 the first steps move few coordinates and the last ones, from the best point on, many; in L0 a step moves as many
  as the radius allows.
- What is climbed is a soft margin: where several classes are about as near, the margin's own gradient leads to the one
  whose logit is greatest, which need not be the nearest.
- The last look is at the point nearest to x beyond the border as it was linearised at the point before it, if that is
  nearer than what was found: on a linear model the least distance, in L0 too.

On a network trained for robustness these are the difference between failing and not (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.boundary import linear_change
from epsball.attacks.l1_apgd import sparse_sign
from epsball.attacks.minimum_norm import MinimumNorm, MinimumNormState
from epsball.balls.ball import Ball, Trait
from epsball.common.errors import BadInput
from epsball.common.shapes import column, finite, flat
from epsball.problem.losses import Loss, margin
from epsball.problem.objective import Point
from epsball.problem.task import Task

SOFT = 0.3
"""The temperature of `soft_margin`, in units of the margin."""
LEAST_SIZE = 0.01
"""The last step as a share of the first, and thereby of the schedule."""
LEAST_GAMMA = 0.001
"""The share by which the radius changes at the end."""
DOUBLING = 2.0
"""How fast the radius grows before a fooling point was seen, at least."""
BEYOND = 0.001
"""How far beyond the plane the last look goes, as a share of the gain that leads onto it."""
FARTHEST = 1e6
"""Without a box no radius is greater than this times 1 + |x|."""


def soft_margin(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """The margin, but with T log sum exp(. / T) for the maximum over the other classes; T = `SOFT` * |margin|.

    Far from the border the gradient leads to several classes at once, at the border to the nearest. No scale of the
    logits changes it.

    >>> from epsball.balls.linf import Linf
    >>> from epsball.problem.task import task_of
    >>> logits = torch.tensor([[5.0, 1.0, 2.0]], requires_grad=True)
    >>> torch.autograd.grad(soft_margin(logits, task_of(torch.zeros(1, 1), 0, Linf(eps=1.0))).sum(), logits)[0]
    tensor([[-1.0000,  0.2477,  0.7523]])
    """
    goal = task.goal[:, None]
    others, own = logits.scatter(1, goal, -torch.inf), logits.gather(1, goal).squeeze(1)
    with torch.no_grad():
        scale = (SOFT * (others.amax(1) - own).abs()).clamp_min(torch.finfo(logits.dtype).eps)
    # Less its greatest, so that no quotient overflows.
    top = others.detach().amax(1)
    rival = ((others - top[:, None]) / scale[:, None]).logsumexp(1) * scale + top
    return task.signed(rival - own)


@dataclass(frozen=True, eq=False)
class Walking(MinimumNormState):
    """With the radius that the row climbs in, infinite before its first pass."""

    eps: Float[Tensor, " n"]


@dataclass(frozen=True)
class Walk:
    """How a row of a norm moves: the steps and the radii."""

    def ahead(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], late: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        """The point after a step of length `size` times the ball's radii; `late` is the share of the passes made."""
        return ball.step(grad, z, x, size)

    def narrower(self, eps: Float[Tensor, " n"], gamma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The radius after a fooling point was seen."""
        return eps * (1 - gamma)

    def wider(self, eps: Float[Tensor, " n"], gamma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The radius after a point that does not fool."""
        return eps * (1 + gamma)

    def starts_over(self, t: Tensor, steps: int) -> Tensor | None:
        """Where a row goes back to its best point before it goes on; None for nowhere."""
        return None


@dataclass(frozen=True)
class Counted(Walk):
    """A radius that counts changes by one at least: algorithm 1, lines 8 and 10.

    A step moves as many coordinates as the radius allows by the same share of the box, the steepest, and the others by
    less; the projection keeps those that have gone farthest in the end. (The paper's gradient steps of a fixed length
    move one or two coordinates only where a few gradients are much larger than all others.)
    """

    SHARE = 0.1  # of the box, for a step as long as the radius

    def ahead(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], late: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        width = torch.as_tensor(ball.hi - ball.lo, dtype=z.dtype, device=z.device)
        worth = grad * width if ball.mask is None else grad * width * ball.mask
        rows = flat(worth).abs()
        place = torch.as_tensor(ball.eps, device=z.device).long().clamp(1, rows.shape[1]).expand(len(z))[:, None] - 1
        last = rows.topk(int(place.max()) + 1, dim=1).values.gather(1, place)
        unit = (worth / column(last.squeeze(1).clamp_min(torch.finfo(rows.dtype).tiny), z.ndim)).clamp_(-1, 1)
        return ball.project(z + unit * width * column((self.SHARE * size).to(z), z.ndim), x)

    def narrower(self, eps: Float[Tensor, " n"], gamma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.minimum(eps - 1, (eps * (1 - gamma)).floor()).clamp_min(1)

    def wider(self, eps: Float[Tensor, " n"], gamma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.maximum(eps + 1, (eps * (1 + gamma)).floor())


@dataclass(frozen=True)
class Sparse(Walk):
    """First the signs of as many coordinates as are moved already, the steepest; then gradient steps, from the best.

    A gradient step in L1 spreads over all coordinates whose gradient is large, and on a network that hides its
    gradients misses the few that matter; steps of few coordinates do not settle.
    """

    SHARE = 0.01  # the least share of the coordinates that a sparse step moves
    TURN = 0.6  # the share of the passes that are made with sparse steps
    DENSE = 0.3  # the length of the other steps, as a share of that of sparse ones

    def ahead(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], late: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        early = late < self.TURN
        if not bool(early.any()):
            return ball.step(grad, z, x, self.DENSE * size)
        sparse = self._sparse(ball, grad, z, x, size)
        if bool(early.all()):
            return sparse
        return torch.where(column(early, z.ndim), sparse, ball.step(grad, z, x, self.DENSE * size))

    def _sparse(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        d = flat(z)[0].numel()
        eps = torch.as_tensor(ball.eps, device=z.device)
        moved = (flat(z - x).abs() > 1e-3 * column(eps, 2)).sum(1)
        step = sparse_sign(ball.free_gradient(grad, z), moved.clamp(max(1, round(self.SHARE * d)), d))
        length = (size * eps).to(z) / (flat(step) != 0).sum(1).clamp_min(1)
        return ball.project(step.mul_(column(length, z.ndim)).add_(z), x)

    def starts_over(self, t: Tensor, steps: int) -> Tensor | None:
        return t == math.ceil(self.TURN * steps)


WALKS: dict[Trait, Walk] = {"count": Counted(), "sparse": Sparse()}
"""How a row moves where the ball has such a trait; as `Walk` where it has none."""


def walk_in(ball: Ball) -> Walk:
    return ball.choose(WALKS) or Walk()


@dataclass(frozen=True, kw_only=True)
class FMN(MinimumNorm[Walking]):
    """Climbs a soft margin in a ball of its own for each row, whose radius follows the border.

    With more than two classes it comes to the border of one; `n_targets` = k seeks those of the k likeliest one by one.
    `steps` passes, one backward each. `step_size` > 0 is the first step in units of the radius, `gamma` in (0, 1) the
    share by which the radius first changes; both fall on a half cosine, to a hundredth and to .001.
    """

    step_size: float = 2.0
    gamma: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step_size < math.inf:
            raise BadInput(f"`step_size` must be > 0 and finite, got {self.step_size}; it is in units of the radius")
        if not 0 < self.gamma < 1:
            raise BadInput(f"`gamma` must be > 0 and < 1, got {self.gamma}; it is a share of the radius")

    @property
    def loss(self) -> Loss:
        """The soft margin."""
        return soft_margin

    def check_ball(self, ball: Ball) -> None:
        super().check_ball(ball)
        if isinstance(ball.eps, Tensor) and ball.eps.ndim > 1:
            raise BadInput(
                f"`eps` must be one radius per example for {type(self).__name__}, got shape {tuple(ball.eps.shape)}: "
                "it looks for the radius; FAB and DeepFool take one per feature"
            )

    def init(self, task: Task) -> Walking:
        far = torch.full_like(task.y, math.inf, dtype=torch.promote_types(task.x.dtype, torch.float32))
        return Walking.start(task.x, task, eps=far)

    def step(self, state: Walking, point: Point, task: Task) -> Walking:
        state = self.keep_nearest(state, point, task)
        best, distance = state.best, state.distance
        x, walk, ndim = task.x, walk_in(task.ball), task.x.ndim
        late = (state.t.to(distance) / self.steps).clamp_max(1)  # rows that only fill a pool go on
        falling = (1 + torch.cos(math.pi * late)) / 2
        eps = self.radius(state, point, task, distance, walk, LEAST_GAMMA + (self.gamma - LEAST_GAMMA) * falling)
        ball = replace(task.ball, eps=eps)
        z = self.ahead(ball, point.grad, state.z, x, self.step_size * (LEAST_SIZE + (1 - LEAST_SIZE) * falling), late)
        t = state.t + 1
        if bool((t == self.steps - 1).any()):
            z = self.last_look(z, state.z, point, task, t == self.steps - 1, distance)
        over = walk.starts_over(state.t, self.steps)
        if over is not None and bool(over.any()):
            z = torch.where(column(over & (distance < math.inf), ndim), best, z)
        done = state.done | (t >= self.steps) | (distance == 0)
        last = done & (distance == math.inf)  # a point that nobody looked at is handed over where it may succeed
        if bool(last.any()):
            best = torch.where(column(last, ndim), task.ball.project(z, x), best)
        return Walking(z=z, best=best, distance=distance, eps=eps, t=t, done=done)

    def ahead(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], late: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        """The next point, in the row's ball."""
        return walk_in(ball).ahead(ball, grad, z, x, size, late)

    @staticmethod
    def last_look(
        ahead: Tensor, z: Tensor, point: Point, task: Task, wanted: Tensor, distance: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        """`ahead`, but in the rows that are `wanted` the point nearest to x beyond the border as it is linearised at z.

        Only where that is nearer than any fooling point so far.
        """
        rows = wanted.nonzero().squeeze(1)
        x, grad, ball = task.x[rows], point.grad[rows], task.ball.rows(rows)
        gain = linear_change(grad, x, z[rows]) - margin(point.logits, task)[rows]
        gain = gain + BEYOND * gain.abs()
        eps = ball.min_eps(gain, grad, x).to(distance)
        better = (eps > 0) & (eps < distance[rows]) & (eps <= torch.as_tensor(ball.eps).to(eps))
        rows = rows[better]
        there = replace(ball.rows(better.nonzero().squeeze(1)), eps=eps[better]).argmax(grad[better], x[better])
        return ahead.index_copy(0, rows, there)

    def radius(
        self, state: Walking, point: Point, task: Task, distance: Float[Tensor, " n"], walk: Walk, gamma: Tensor
    ) -> Float[Tensor, " n"]:
        """The row's next radius: at most the task's, and no farther than the box goes."""
        eps, ball, found = state.eps, task.ball, distance < math.inf
        wider = walk.wider(eps, gamma)
        if not bool(found.all()):
            left = (
                ball.min_eps_lower_bound(margin(point.logits, task)[:, None], point.grad.unsqueeze(1))
                .squeeze(1)
                .to(eps)
            )
            reach = ball.distance(state.z, task.x).to(eps) + left
            reach = torch.maximum(reach, torch.where(eps < math.inf, DOUBLING * eps, 0))
            wider = torch.where(found, wider, walk.wider(reach, 0 * gamma))
        eps = torch.where(point.fooled, torch.minimum(walk.narrower(eps, gamma), distance), wider)
        return torch.minimum(eps, most(task, eps))


def most(task: Task, like: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The greatest radius that makes sense: that of the ball, or the distance to the farthest corner of the box."""
    x, ball = task.x, task.ball
    if finite(ball.lo) and finite(ball.hi):
        corner = torch.where(ball.hi - x > x - ball.lo, torch.as_tensor(ball.hi).to(x), torch.as_tensor(ball.lo).to(x))
        far = ball.distance(corner.expand_as(x), x).to(like)
    else:
        far = FARTHEST * (1 + flat(x).abs().amax(1).to(like))
    return torch.minimum(far, torch.as_tensor(ball.eps).to(like))
