"""FAB, fast adaptive boundary: a walk along the decision border to the point of it that is nearest to the example.

Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack" (ICML 2020), algorithm
1: the border is linearised at z, both z and x are projected onto it within the box (exactly, `Ball.project_onto_hyperplane`), and the next
point is a mixture of the two, a little beyond, in which x's part is at most `alpha_max`: so the walk is drawn towards
x. Where it has crossed the border it steps back, and is projected from there onto the plane found beyond: the paper
spends a pass on the plane at the point behind, and reaches no nearer for it (docs/benchmarks.md). There is no step
size; the radius only says when to stop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import Attack, State
from epsball.attacks.early_stopping import check_early_stop, looked, no_progress
from epsball.attacks.planes import hyperplanes, nearest_plane, rise, too_far
from epsball.balls.ball import Ball
from epsball.common.checks import check_at_least, check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import column, flat
from epsball.problem.losses import Loss
from epsball.problem.objective import Point
from epsball.problem.task import Task

PATIENCE = 8
"""The passes that no job is given up before."""


@dataclass(frozen=True, eq=False)
class Crossing(State):
    """With the nearest fooling point seen (x before there is one), its distance, infinite until then, and the progress."""

    near: Float[Tensor, "n *shape"]
    distance: Float[Tensor, " n"]
    progress: Float[Tensor, "n ..."]


@dataclass(frozen=True, kw_only=True)
class FAB(Attack[Crossing]):
    """A walk along the decision border towards its nearest point; `n_targets` = 9 is targeted FAB, one border at a time.

    A job ends with its first fooling point inside the ball, or after `steps` passes; untargeted, a pass costs a
    backward for each class but one. A job without success hands over its last point if that is inside the ball, else
    the nearest fooling point that it saw, projected into it. With `minimise` it goes on to the end, looks at the last
    point too, and hands over the nearest fooling point: in a ball of infinite radius, the paper's minimum-norm attack.
    (Further starts of a direct call run on the rows that still stand, so they do not bring the others nearer.)

    `eta` says how far beyond the border the walk goes (1: onto it), `alpha_max` is the greatest weight of x's
    projection, `beta` the share of the way from x that a step back keeps; the values are the paper's. The first start
    is x, later ones are drawn from the ball of half the radius. `early_stop` < inf gives jobs up whose nearest fooling point
    comes nearer too slowly to reach the ball (`early_stopping.py`); one that has found none goes on.

    On linear models of up to ten classes, in boxes, it fooled within 1.02 times the least possible radius in ten steps.

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
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"`{name}` must be from 0 to 1, got {getattr(self, name)}; it is a share")
        check_early_stop("early_stop", self.early_stop)
        if self.minimise and self.early_stop < math.inf:
            raise BadInput(
                f"`early_stop` must be left out with `minimise`, got {self.early_stop}: the nearest point is no matter of a radius"
            )

    @property
    def loss(self) -> Loss:
        """The gaps to the linearised decision boundaries, a column for each other class."""
        return hyperplanes

    @property
    def minimises(self) -> bool:
        return self.minimise

    def init(self, task: Task) -> Crossing:
        z, first = task.x, task.noise.restart < max(self.n_targets, 1)
        if not bool(first.all()):
            drawn = torch.lerp(z, task.ball.sample(z, task.noise), 0.5)
            z = torch.where(column(first, z.ndim), z, drawn)
        far = torch.full_like(task.y, math.inf, dtype=z.dtype)
        return replace(
            Crossing.at(z, near=task.x, distance=far, progress=no_progress(far, self.early_stop)), best=task.x
        )

    def step(self, state: Crossing, point: Point, task: Task) -> Crossing:
        state, succeeded = self.looked(state, point, task)
        z, gap, grad, crossed = state.z, point.loss, point.grad, point.fooled.nonzero().squeeze(1)
        if len(crossed):  # back towards x, with the plane that is known already
            back = torch.lerp(task.x[crossed], z[crossed], self.beta)
            columns = (grad,) if gap.ndim == 1 else grad.unbind(1)
            rises = [rise(normal[crossed], z[crossed], back) for normal in columns]
            risen = rises[0] if gap.ndim == 1 else torch.stack(rises, 1)
            z, gap = z.index_copy(0, crossed, back), gap.index_copy(0, crossed, gap[crossed] + risen.to(gap))
        z, t = self.ahead(z, task.x, gap, grad, task.ball), state.t + 1
        # A last point that nobody looked at is handed over where it may succeed; the minimum norm needs a look at it.
        best, done = state.best, succeeded | ((state.t if self.minimise else t) >= self.steps)
        progress = state.progress
        if self.early_stop < math.inf:
            spare = _radius(task.ball, state.distance) - state.distance
            progress, lost = looked(progress, spare, state.t, self.steps, self.early_stop, first=PATIENCE)
            done = done | lost
        ended = (done & ~succeeded & ~state.done).nonzero().squeeze(1)
        if len(ended):
            best = best.index_copy(
                0, ended, self.handed(replace(state, z=z).map(lambda part: part[ended]), task, ended)
            )
        return replace(state, z=z, best=best, t=t, done=done | state.done, progress=progress)

    def looked(self, state: Crossing, point: Point, task: Task) -> tuple[Crossing, Bool[Tensor, " n"]]:
        """The state with the fooling points that are nearer than any before, and where the job has succeeded."""
        distance = task.ball.distance(state.z, task.x)
        closer = point.fooled & (distance < state.distance)
        succeeded = torch.zeros_like(closer)
        rows = closer.nonzero().squeeze(1)
        if not len(rows):
            return state, succeeded
        found = state.z[rows]
        inside = distance[rows] == 0 if self.minimise else _inside(task.ball.rows(rows), found, task.x[rows])
        best, hits = state.best, rows[inside]
        if len(hits):
            succeeded[hits] = True
            best = best.index_copy(0, hits, found[inside])
        near = state.near.index_copy(0, rows, found)
        return replace(state, best=best, near=near, distance=torch.where(closer, distance, state.distance)), succeeded

    def ahead(
        self,
        z: Float[Tensor, "n *shape"],
        x: Float[Tensor, "n *shape"],
        gap: Float[Tensor, "n *k"],
        grad: Float[Tensor, "n ..."],
        ball: Ball,
    ) -> Float[Tensor, "n *shape"]:
        """The next point: equations 9 and 10 of the paper, for the nearest of the linearised borders."""
        if gap.ndim == 1:
            from_z = ball.project_onto_hyperplane(-gap, grad, z)
        else:
            nearest, from_z = nearest_plane(z, gap, grad, ball)
            rows = torch.arange(len(z), device=z.device)
            gap, grad = gap[rows, nearest], grad[rows, nearest]
        from_x = ball.project_onto_hyperplane(rise(grad, x, z) - gap, grad, x)
        here, there = ball.distance(from_z, z), ball.distance(from_x, x)
        alpha = (here / (here + there)).nan_to_num_(nan=self.alpha_max).clamp_max_(self.alpha_max)
        # Coordinates at which z and x agree and both projections stay keep their bits: masks hold exactly.
        mixed = torch.lerp(z, from_z, self.eta).lerp_(torch.lerp(x, from_x, self.eta), column(alpha, z.ndim))
        ahead = ball.clip(mixed)
        lost = too_far(ahead, x)
        return ahead.index_copy(0, lost, torch.lerp(x, z, self.beta)[lost]) if len(lost) else ahead

    def handed(self, state: Crossing, task: Task, rows: Tensor) -> Float[Tensor, "n *shape"]:
        """What rows hand over that have ended without success, in the ball."""
        x, ball = task.x[rows], task.ball.rows(rows)
        seen = state.distance < math.inf
        if not self.minimise:
            seen &= ~_inside(ball, state.z, x)
        return ball.project(torch.where(column(seen, x.ndim), state.near, state.z), x)


def _inside(ball: Ball, z: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> Bool[Tensor, " n"]:
    """Where z is in the ball as it stands, without the slack of `contains`, which in bfloat16 may be twice the radius.

    A walk ends at the border of the classes, not of the ball: what lies a little beyond the ball is projected into it
    when the job ends, and looked at there.
    """
    return flat(ball.project(z, x) == z).all(1)


def _radius(ball: Ball, like: Float[Tensor, " n"]) -> Tensor:
    """The radius in the units of `Ball.distance`, () or (n,)."""
    eps = torch.as_tensor(ball.eps).to(like)
    return eps if eps.ndim <= 1 else torch.ones_like(like)
