"""FMN, fast minimum norm: ascent in a ball whose radius shrinks after a success and grows after a failure.

Pintor, Roli, Brendel and Biggio, "Fast minimum-norm adversarial attacks through adaptive norm constraints" (NeurIPS
2021, arXiv:2102.12827), algorithm 1. Radius and step follow cosine schedules. Where this departs from the paper:

- A step is the ball's own (signed in Linf, see `Ball.step`), as long as a share of the row's present radius, and is
  projected exactly onto ball and box together. The paper's steps are L2-normalised gradients of a length in the units
  of the data, projected and then clipped.
- Before the first success the radius at least doubles. The paper's grows by the linearised distance to the decision
  boundary, which on a flat network is close to nothing, again and again.
- In L1 the first steps move few coordinates; the last ones start from the best point and move many. In L0 a step moves
  as many coordinates as the radius allows.
- The loss is a soft margin. Where several decision boundaries are about equally near, the gradient of the margin leads
  to the class with the largest logit, which need not be the nearest.
- The last iterate is the point nearest to x beyond the decision boundary, linearised at the iterate before, if that is
  nearer than the best one: on a linear model it is the minimum-norm point, in L0 too.

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
from epsball.common.checks import check_between, check_positive
from epsball.common.errors import BadInput
from epsball.common.shapes import column, finite, flat
from epsball.problem.losses import Loss, margin
from epsball.problem.objective import Point
from epsball.problem.task import Task

SOFT = 0.3
"""The temperature of `soft_margin`, in units of the margin."""
LAST_STEP = 0.01
"""The last step as a share of the first."""
LAST_GAMMA = 0.001
"""The share by which the radius changes in the last step."""
DOUBLING = 2.0
"""The factor by which the radius grows at least before the first success."""
BEYOND = 0.001
"""How far beyond the linearised boundary the last iterate is, as a share of the gain that leads onto it."""
FARTHEST = 1e6
"""Without a box no radius is larger than this times 1 + |x|."""


def soft_margin(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """The margin, but with T log sum exp(. / T) for the maximum over the other classes; T = `SOFT` * |margin|.

    Far from the decision boundary the gradient leads to several classes at once, at the boundary to the nearest one. It
    scales with the logits.

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
    # The maximum is subtracted, so that no quotient overflows.
    top = others.detach().amax(1)
    rival = ((others - top[:, None]) / scale[:, None]).logsumexp(1) * scale + top
    return task.signed(rival - own)


@dataclass(frozen=True, eq=False)
class RadiusState(MinimumNormState):
    """With the radius of the row's present ball, infinite before its first step."""

    eps: Float[Tensor, " n"]


@dataclass(frozen=True)
class Walk:
    """How steps are made and how the radius changes, in the ball of a norm with no further trait."""

    def step(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], progress: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        """The point after a step of length `size` times the radius; `progress` is the share of the steps made."""
        return ball.step(grad, z, x, size)

    def narrower(self, eps: Float[Tensor, " n"], gamma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The radius after a success."""
        return eps * (1 - gamma)

    def wider(self, eps: Float[Tensor, " n"], gamma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The radius after a failure."""
        return eps * (1 + gamma)

    def restarts_from_best(self, t: Tensor, steps: int) -> Tensor | None:
        """The rows that go on from their best point after step `t`; None for none."""
        return None


@dataclass(frozen=True)
class CountingWalk(Walk):
    """For a radius that counts coordinates, which changes by one at least: algorithm 1, lines 8 and 10.

    A step moves the steepest coordinates, as many as the radius allows, by the same share of the box and the others by
    less; the projection keeps those that moved farthest. (The paper's gradient steps of a fixed length
    move one or two coordinates only where a few gradients are much larger than all others.)
    """

    SHARE = 0.1  # of the box, for a step as long as the radius

    def step(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], progress: Float[Tensor, " n"]
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
class SparseWalk(Walk):
    """First signed steps of as many coordinates as have moved already, the steepest; then gradient steps from the best.

    A gradient step in L1 spreads over all coordinates with a large gradient, and on a network that masks its gradients
    misses the few that matter; steps of few coordinates do not converge.
    """

    SHARE = 0.01  # the least share of the coordinates that a sparse step moves
    SPARSE_PART = 0.6  # the share of the steps that are sparse
    DENSE = 0.3  # the length of the other steps, as a share of that of sparse ones

    def step(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], progress: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        early = progress < self.SPARSE_PART
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

    def restarts_from_best(self, t: Tensor, steps: int) -> Tensor | None:
        return t == math.ceil(self.SPARSE_PART * steps)


WALKS: dict[Trait, Walk] = {"count": CountingWalk(), "sparse": SparseWalk()}
"""By the trait of the ball; balls with none of them take `Walk`."""


def walk_in(ball: Ball) -> Walk:
    """How steps are made in such balls."""
    return ball.choose(WALKS) or Walk()


@dataclass(frozen=True, kw_only=True)
class FMN(MinimumNorm[RadiusState]):
    """Ascent on a soft margin in a ball per example, whose radius follows the distance to the decision boundary.

    With more than two classes it reaches the boundary of one; `n_targets` = k seeks those of the k likeliest classes,
    one by one. `steps` forward and backward passes. `step_size` > 0 is the first step in units of the radius, `gamma`
    in (0, 1) the share by which the radius first changes; both fall on a half cosine, to a hundredth and to .001.
    """

    step_size: float = 2.0
    gamma: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("step_size", self.step_size, "it is in units of the radius")
        check_between("gamma", self.gamma, 0, 1, "it is a share of the radius", ends="()")

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

    def init(self, task: Task) -> RadiusState:
        infinite = torch.full_like(task.y, math.inf, dtype=torch.promote_types(task.x.dtype, torch.float32))
        return RadiusState.start(task.x, task, eps=infinite)

    def step(self, state: RadiusState, point: Point, task: Task) -> RadiusState:
        state = self.keep_nearest(state, point, task)
        best, distance = state.best, state.distance
        x, walk, ndim = task.x, walk_in(task.ball), task.x.ndim
        progress = (state.t.to(distance) / self.steps).clamp_max(1)  # rows that only pad a batch go on
        cosine = (1 + torch.cos(math.pi * progress)) / 2
        eps = self.radius(state, point, task, distance, walk, LAST_GAMMA + (self.gamma - LAST_GAMMA) * cosine)
        ball = replace(task.ball, eps=eps)
        size = self.step_size * (LAST_STEP + (1 - LAST_STEP) * cosine)
        z = self.next_iterate(ball, point.grad, state.z, x, size, progress)
        t = state.t + 1
        if bool((t == self.steps - 1).any()):
            z = self.last_iterate(z, state.z, point, task, t == self.steps - 1, distance)
        back = walk.restarts_from_best(state.t, self.steps)
        if back is not None and bool(back.any()):
            z = torch.where(column(back & (distance < math.inf), ndim), best, z)
        done = state.done | (t >= self.steps) | (distance == 0)
        untried = done & (distance == math.inf)  # without success the next iterate is returned: it may be one
        if bool(untried.any()):
            best = torch.where(column(untried, ndim), task.ball.project(z, x), best)
        return RadiusState(z=z, best=best, distance=distance, eps=eps, t=t, done=done)

    def next_iterate(
        self, ball: Ball, grad: Tensor, z: Tensor, x: Tensor, size: Float[Tensor, " n"], progress: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        """The next point, in the row's ball."""
        return walk_in(ball).step(ball, grad, z, x, size, progress)

    @staticmethod
    def last_iterate(
        default: Tensor, z: Tensor, point: Point, task: Task, wanted: Tensor, distance: Float[Tensor, " n"]
    ) -> Float[Tensor, "n *shape"]:
        """In the `wanted` rows the point nearest to x beyond the boundary linearised at z, elsewhere `default`.

        Only where that is nearer than the best point so far.
        """
        rows = wanted.nonzero().squeeze(1)
        x, grad, ball = task.x[rows], point.grad[rows], task.ball.rows(rows)
        gain = linear_change(grad, x, z[rows]) - margin(point.logits, task)[rows]
        gain = gain + BEYOND * gain.abs()
        eps = ball.min_eps(gain, grad, x).to(distance)
        better = (eps > 0) & (eps < distance[rows]) & (eps <= torch.as_tensor(ball.eps).to(eps))
        rows = rows[better]
        nearest = replace(ball.rows(better.nonzero().squeeze(1)), eps=eps[better]).argmax(grad[better], x[better])
        return default.index_copy(0, rows, nearest)

    def radius(
        self, state: RadiusState, point: Point, task: Task, distance: Float[Tensor, " n"], walk: Walk, gamma: Tensor
    ) -> Float[Tensor, " n"]:
        """The row's next radius: at most the task's, and no larger than the box needs."""
        eps, ball, found = state.eps, task.ball, distance < math.inf
        wider = walk.wider(eps, gamma)
        if not bool(found.all()):
            gap = margin(point.logits, task)[:, None]
            to_boundary = ball.min_eps_lower_bound(gap, point.grad.unsqueeze(1)).squeeze(1).to(eps)
            needed = ball.distance(state.z, task.x).to(eps) + to_boundary
            needed = torch.maximum(needed, torch.where(eps < math.inf, DOUBLING * eps, 0))
            wider = torch.where(found, wider, walk.wider(needed, 0 * gamma))
        eps = torch.where(point.fooled, torch.minimum(walk.narrower(eps, gamma), distance), wider)
        return torch.minimum(eps, largest_radius(task, eps))


def largest_radius(task: Task, like: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The largest radius that makes sense: that of the ball, or the distance to the farthest corner of the box."""
    x, ball = task.x, task.ball
    if finite(ball.lo) and finite(ball.hi):
        corner = torch.where(ball.hi - x > x - ball.lo, torch.as_tensor(ball.hi).to(x), torch.as_tensor(ball.lo).to(x))
        limit = ball.distance(corner.expand_as(x), x).to(like)
    else:
        limit = FARTHEST * (1 + flat(x).abs().amax(1).to(like))
    return torch.minimum(limit, torch.as_tensor(ball.eps).to(like))
