"""FAB, fast adaptive boundary: a walk along the decision boundary to its point that is nearest to the example.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (ICML 2020,
arXiv:1907.02044), algorithm 1. In each step the boundaries are linearised at z, the nearest is chosen (section 3.3), z
and x are both projected onto it within the box (exactly, section 3.2), and the next point is a mixture of the two
projections, a little beyond, in which the weight of x's is at most `alpha_max`: so the walk is drawn towards x. There
is no step size; the radius only says when to stop.

Departures from the paper: where the walk has crossed the boundary it steps back towards x, and is projected from there
onto the hyperplane found beyond; the paper spends a step on linearising behind, and comes no nearer for it
(docs/benchmarks.md). The nearest hyperplane is that within the box (`nearest_hyperplane`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.boundary import linear_change, logit_gaps, nearest_hyperplane, runaway_rows
from epsball.attacks.early_stopping import EarlyStopProgress, check_early_stop, no_progress, updated_progress
from epsball.attacks.minimum_norm import start_points
from epsball.attacks.state import State
from epsball.balls.ball import Ball
from epsball.common.checks import check_at_least, check_between, check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import column, flat
from epsball.problem.losses import Loss
from epsball.problem.objective import Point
from epsball.problem.task import Task

PATIENCE = 8
"""The number of steps before which early stopping ends no job."""


@dataclass(frozen=True, eq=False)
class FABState(State):
    """With the nearest adversarial example so far (x before there is one), its distance, and early stopping's progress.

    The distance is infinite before there is one.
    """

    nearest: Float[Tensor, "n *shape"]
    distance: Float[Tensor, " n"]
    progress: EarlyStopProgress | None


@dataclass(frozen=True, kw_only=True)
class FAB(Attack[FABState]):
    """A walk along the decision boundary towards its nearest point; `n_targets` = 9 is targeted FAB, class by class.

    A job ends with its first adversarial example inside the ball, or after `steps` steps; untargeted, a step costs
    a backward pass for each class but one. A job without success returns its last point if that is inside the ball,
    else the nearest adversarial example that it saw, projected into it. With `minimise` it continues to the end,
    evaluates the last point too, and returns the nearest adversarial example: in a ball of infinite radius, the
    paper's minimum-norm attack. (Further restarts of a direct call run on the rows that are still robust, so they
    do not bring the others nearer.)

    `eta` says how far beyond the boundary the walk goes (1: onto it), `alpha_max` is the greatest weight of x's
    projection, `beta` the share of the way from x that a step back keeps; the values are the paper's. The first restart
    starts at x, later ones at random in the ball of half the radius. With `early_stop` < inf a job ends whose nearest
    adversarial example comes nearer too slowly to reach the ball (`early_stopping.py`); one that has none continues.

    On linear models of up to ten classes, in boxes, it succeeded within 1.02 times the least radius in ten steps.

    >>> x, y = torch.tensor([[0.2, 0.9]]), torch.tensor([0])
    >>> from epsball.balls.l2 import L2
    >>> FAB(steps=5)(lambda x: x @ torch.tensor([3.0, 4.0]) - 5, x, y, L2(eps=0.2, lo=0, hi=1))
    tensor([[0.3400, 1.0000]])
    """

    until = "done"
    takes = ("dual norm",)

    steps: int = 100
    eta: float = 1.05
    alpha_max: float = 0.1
    beta: float = 0.9
    minimise: bool = False
    early_stop: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("steps", self.steps, 1)
        check_at_least("eta", self.eta, 1)
        for name in ("alpha_max", "beta"):
            check_between(name, getattr(self, name), 0, 1, "it is a share")
        check_early_stop("early_stop", self.early_stop)
        if self.minimise and self.early_stop < math.inf:
            raise BadInput(
                f"`early_stop` must be left out with `minimise`, got {self.early_stop}: it extrapolates to the radius, "
                "and the least distance has none"
            )

    @property
    def loss(self) -> Loss:
        """The gaps to the decision boundaries, a column for each other class."""
        return logit_gaps

    @property
    def minimises(self) -> bool:
        return self.minimise

    def init(self, task: Task) -> FABState:
        z, far = start_points(task, self.n_targets, 0.5), torch.full_like(task.y, math.inf, dtype=task.x.dtype)
        state = FABState.at(z, nearest=task.x, distance=far, progress=no_progress(far, self.early_stop))
        return replace(state, best=task.x)

    def step(self, state: FABState, point: Point, task: Task) -> FABState:
        state, succeeded = self._keep_nearest(state, point, task)
        z = self._next_point(*self._step_back(state.z, point, task), point.grad, task)
        t = state.t + 1
        # The last point is unevaluated, unless the minimum norm is sought: then there is one more step.
        done = succeeded | ((state.t if self.minimise else t) >= self.steps)
        progress = state.progress
        if self.early_stop < math.inf:
            left = _radius(task.ball, state.distance) - state.distance
            progress, stopped = updated_progress(progress, left, state.t, self.steps, self.early_stop, first=PATIENCE)
            done = done | stopped
        failed = done & ~succeeded & ~state.done
        state = replace(state, z=z, t=t, done=done | state.done, progress=progress)
        return self._last_points(state, failed, task) if bool(failed.any()) else state

    def _keep_nearest(self, state: FABState, point: Point, task: Task) -> tuple[FABState, Bool[Tensor, " n"]]:
        """The state with the adversarial examples that are nearer than any before, and where the job has succeeded."""
        distance = task.ball.distance(state.z, task.x)
        nearer = point.fooled & (distance < state.distance)
        succeeded = torch.zeros_like(nearer)
        rows = nearer.nonzero().squeeze(1)
        if not len(rows):
            return state, succeeded
        found = state.z[rows]
        inside = distance[rows] == 0 if self.minimise else _inside(task.ball.rows(rows), found, task.x[rows])
        succeeded[rows] = inside
        return replace(
            state,
            best=state.best.index_copy(0, rows[inside], found[inside]),
            nearest=state.nearest.index_copy(0, rows, found),
            distance=torch.where(nearer, distance, state.distance),
        ), succeeded

    def _step_back(
        self, z: Float[Tensor, "n *shape"], point: Point, task: Task
    ) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, "n *k"]]:
        """z, and the gaps to the hyperplanes there; adversarial examples go back to x + beta (z - x)."""
        gap, rows = point.loss, point.fooled.nonzero().squeeze(1)
        if not len(rows):
            return z, gap
        back = torch.lerp(task.x[rows], z[rows], self.beta)
        if gap.ndim == 1:
            change = linear_change(point.grad[rows], z[rows], back)
        else:
            change = torch.stack([linear_change(grad[rows], z[rows], back) for grad in point.grad.unbind(1)], 1)
        return z.index_copy(0, rows, back), gap.index_copy(0, rows, gap[rows] + change.to(gap))

    def _next_point(
        self, z: Float[Tensor, "n *shape"], gap: Float[Tensor, "n *k"], grad: Float[Tensor, "n ..."], task: Task
    ) -> Float[Tensor, "n *shape"]:
        """The mixture of both projections onto the nearest hyperplane."""
        x, ball = task.x, task.ball
        if gap.ndim == 1:
            z_projected = ball.project_onto_hyperplane(-gap, grad, z)
        else:
            nearest, z_projected = nearest_hyperplane(z, gap, grad, ball)
            rows = torch.arange(len(z), device=z.device)
            gap, grad = gap[rows, nearest], grad[rows, nearest]
        x_projected = ball.project_onto_hyperplane(linear_change(grad, x, z) - gap, grad, x)
        from_z, from_x = ball.distance(z_projected, z), ball.distance(x_projected, x)
        alpha = (from_z / (from_z + from_x)).nan_to_num_(nan=self.alpha_max).clamp_max_(self.alpha_max)
        # Coordinates at which z and x agree and both projections stay keep their bits: masks hold exactly.
        beyond = torch.lerp(z, z_projected, self.eta)
        ahead = ball.clip(beyond.lerp_(torch.lerp(x, x_projected, self.eta), column(alpha, z.ndim)))
        lost = runaway_rows(ahead, x)
        return ahead.index_copy(0, lost, torch.lerp(x, z, self.beta)[lost]) if len(lost) else ahead

    def _last_points(self, state: FABState, failed: Bool[Tensor, " n"], task: Task) -> FABState:
        """The state with `best`, in the ball, for the rows that have ended without success."""
        rows = failed.nonzero().squeeze(1)
        x, ball, z = task.x[rows], task.ball.rows(rows), state.z[rows]
        use_nearest = state.distance[rows] < math.inf
        if not self.minimise:
            use_nearest &= ~_inside(ball, z, x)
        last = ball.project(torch.where(column(use_nearest, x.ndim), state.nearest[rows], z), x)
        return replace(state, best=state.best.index_copy(0, rows, last))


def _inside(ball: Ball, z: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> Bool[Tensor, " n"]:
    """Where z is in the ball exactly, without the slack of `contains`, which in bfloat16 may be twice the radius.

    A walk ends at the decision boundary, not at that of the ball: what lies a little beyond the ball is projected into
    it when the job ends, and evaluated there.
    """
    return flat(ball.project(z, x) == z).all(1)


def _radius(ball: Ball, like: Float[Tensor, " n"]) -> Tensor:
    """The radius in the units of `Ball.distance`, () or (n,)."""
    eps = torch.as_tensor(ball.eps).to(like)
    return eps if eps.ndim <= 1 else torch.ones_like(like)
