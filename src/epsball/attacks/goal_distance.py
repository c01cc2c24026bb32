"""Goal against distance: the squared distance of the output to a goal, plus a weight times that to the example.

The first loss that tutorials write down for an image that looks like one thing and is classified as another: minimise
|f(z) - e_t|^2 + weight * |z - x|^2, where f(z) are the probabilities, or the outputs as they are, and e_t is one at the
goal class t and zero elsewhere. It may start from x or from noise, and the distance may be that to another image. The
algorithm is that of `penalty.py`; the box-constrained form with a logarithm in the place of the square is that of
Szegedy et al. (ICLR 2014, section 4.1), `lbfgs.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from epsball.attacks.penalty import PenaltyAttack, PenaltyState, Units
from epsball.common.checks import check_at_least, check_one_of
from epsball.common.errors import BadInput
from epsball.common.shapes import column, finite
from epsball.problem.losses import Loss, margin
from epsball.problem.objective import Point
from epsball.problem.task import AWAY, Task

TINIEST = 1e-30
"""What `distance` is at least with a weight, since a distance of zero would end the job."""


def goal_probability(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """-|p - e_t|^2 of the probabilities p, from -2 to 0: the negative Brier score. The goal t is the target.

    Without one, t is the likeliest other class at z itself. Towards an aim, where any wrong class is a success, p are
    the probabilities of t and y alone.
    """
    loss = _negative_square(logits.softmax(1), _goal(logits, task))
    if not task.some_aimed:
        return loss
    pair = 2 * torch.sigmoid(-_aim_margin(logits, task)).square().neg()
    return torch.where(task.aimed & (task.target == AWAY), pair, loss)


def goal_logits(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """-|logits - e_t|^2 for the goal t: for networks that were trained to put out 0 and 1."""
    return _negative_square(logits, _goal(logits, task))


def _goal(logits: Float[Tensor, "n classes"], task: Task) -> Int64[Tensor, " n"]:
    """The class that is wanted: the target or aim, else the likeliest class that is not the label."""
    if task.aimed.all():
        return task.aim
    likeliest = logits.detach().scatter(1, task.y[:, None], -torch.inf).argmax(1)
    return torch.where(task.aimed, task.aim, likeliest)


def _aim_margin(logits: Tensor, task: Task) -> Tensor:
    """The logit of the aim less that of the label."""
    return (logits.gather(1, task.goal[:, None]) - logits.gather(1, task.y[:, None])).squeeze(1)


def _negative_square(output: Tensor, goal: Tensor) -> Tensor:
    return (output - F.one_hot(goal, output.shape[1]).to(output)).square().sum(1).neg()


OUTPUTS: dict[str, Loss] = {"probability": goal_probability, "logits": goal_logits}


@dataclass(frozen=True, kw_only=True)
class GoalDistance(PenaltyAttack):
    """The goal-against-distance loss in L2, towards a target or, without one, the likeliest other class.

    With `weight` = 0 it is a minimum-norm attack: rounds of `steps` steps, each with a weight of its own, which falls
    after a round without an adversarial example and rises after one with.

    With `weight` > 0 the loss is minimised as it stands: one round, inside the ball, which returns the adversarial
    example with the least loss, and where there is none the point with the least loss; so the goal may lose against
    the distance, and then a smaller weight is the remedy. Only then `reference` may be given: points (1, *shape) or
    (*shape,) for all examples, or (k, *shape) with that of the example with id i in row i; the distance is that to
    them. The result is in the ball around x: take one with eps = inf to go to wherever the reference is.

    `output` says what is compared with the goal, "probability" (softmax) or "logits"; `noise` starts from a uniform
    draw from the box (from the ball, where there is no box); `lr`, `c` and `early` are those of CW.

    >>> from epsball.balls.l2 import L2
    >>> x, y, t = torch.tensor([[0.0, 1.0]]), torch.tensor([0]), torch.tensor([1])
    >>> model = lambda x: 2 * x @ torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    >>> ball = L2(eps=math.inf, lo=0, hi=1)
    >>> faint, firm = (GoalDistance(weight=w, steps=200)(model, x, y, ball, target=t) for w in (0.1, 10.0))
    >>> model(faint).argmax(1), model(firm).argmax(1)  # a weight of 10 leaves it near x
    (tensor([1]), tensor([0]))
    """

    steps: int = 100
    lr: float = 1.0
    weight: float = 0.0
    output: Literal["probability", "logits"] = "probability"
    noise: bool = False
    reference: Float[Tensor, "k *shape"] | None = None

    def __post_init__(self) -> None:
        check_one_of("output", self.output, OUTPUTS)
        super().__post_init__()
        check_at_least("weight", self.weight, 0, "0 searches for the nearest adversarial example")
        if self.reference is not None and not self.weight:
            raise BadInput("`weight` must be > 0 with a `reference`, got 0: the least distance is that to the example")

    @property
    def loss(self) -> Loss:
        """What `output` compares with the goal."""
        return OUTPUTS[self.output]

    @property
    def minimises(self) -> bool:
        return not self.weight

    @property
    def rounds(self) -> int:
        return 1 if self.weight else self.binary_steps

    def shortfall(self, point: Point, task: Task) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
        return point.fooled, -point.loss

    def boundary(self, point: Point, task: Task) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        if self.output == "logits":
            return point.loss, torch.ones_like(point.loss)
        # Far from the boundary a softmax is flat: the margin is used, and the slope of the square follows from it.
        logits = point.logits.to(torch.promote_types(point.logits.dtype, torch.float32))
        gap = margin(logits, task)
        if task.some_aimed:
            gap = torch.where(task.aimed & (task.target == AWAY), _aim_margin(logits, task), gap)
        # Of two classes the loss is -2 / (1 + exp(gap))^2, whose slope this is.
        slope = 4 * torch.sigmoid(gap) * torch.sigmoid(-gap).square()
        return gap, 1 / slope.clamp_min(torch.finfo(gap.dtype).tiny)

    def keep_best(self, state: PenaltyState, point: Point, task: Task, objective: Float[Tensor, " n"]) -> PenaltyState:
        if not self.weight:
            return self.keep_nearest(state, point, task)
        first_or_less = ~state.round.success & (objective < state.round.least)
        better = torch.where(point.fooled, objective < state.distance, first_or_less)
        return replace(
            state,
            best=torch.where(column(better, task.x.ndim), state.z, state.best),
            distance=torch.where(point.fooled & better, objective.clamp_min(TINIEST), state.distance),
        )

    def round_start(self, task: Task) -> Float[Tensor, "n *shape"]:
        if not self.noise:
            return super().round_start(task)
        boxed = finite(task.ball.lo) and finite(task.ball.hi)
        return (task.ball.with_eps(math.inf) if boxed else task.ball).sample(task.x, task.noise)

    def centre(self, task: Task) -> Float[Tensor, "n *shape"]:
        if self.reference is None:
            return task.x
        given, x = self.reference, task.x
        shared = given[None] if given.ndim == x.ndim - 1 else given
        if shared.shape[1:] != x.shape[1:] or not (len(shared) == 1 or int(task.noise.ids.max()) < len(shared)):
            raise BadInput(
                f"`reference` must be one point {tuple(x.shape[1:])}, or a row for every id, got {tuple(given.shape)}"
            )
        rows = shared.to(x)
        return rows.expand(x.shape) if len(rows) == 1 else rows[task.noise.ids]

    def clip(self, z: Float[Tensor, "n *shape"], task: Task) -> Float[Tensor, "n *shape"]:
        return task.ball.project(z, task.x.to(z.dtype)) if self.weight else super().clip(z, task)

    def first_length(self, units: Units) -> Float[Tensor, " n"]:
        # The output can move by sqrt(2) at most, so that no one goes beyond sqrt(2 / weight) for it.
        return units.distance.clamp_min(0.25 / math.sqrt(self.weight)) if self.weight else units.distance

    def first_c(self, units: Units) -> Float[Tensor, " n"]:
        return units.slope / (2 * units.distance * self.weight) if self.weight else super().first_c(units)
