"""Goal against distance: the squared distance of the output to a goal, plus a weight times that to the example.

The first loss that tutorials write down for a picture that looks like one thing and is called another: minimise
|f(z) - e_t|^2 + weight * |z - x|^2, where f(z) are the probabilities, or the outputs as they are, and e_t is one at the
goal class and zero elsewhere. It may start from x or from noise, and the distance may be that to another picture. The
box-constrained form with a logarithm in the place of the square is that of Szegedy et al. (2014), `lbfgs.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from epsball.attacks.penalty import anywhere
from epsball.attacks.rounds import Penalty, Weighing
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.shapes import column
from epsball.problem.losses import Loss, margin
from epsball.problem.objective import Point
from epsball.problem.task import AWAY, Task


def goal_probability(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """-|p - e_t|^2 of the probabilities p, from -2 to 0: the Brier score, turned round. The goal t is the target.

    Without one, t is the likeliest other class at the point itself. Towards an aim, where any wrong class is a success,
    p are the probabilities of t and y alone.
    """
    loss = _square(logits.softmax(1), goal_of(logits, task))
    if not task.some_aimed:
        return loss
    pair = 2 * torch.sigmoid(-_pair(logits, task)).square().neg()
    return torch.where(task.aimed & (task.target == AWAY), pair, loss)


def goal_logits(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """-|logits - e_t|^2 for the goal t: for networks that were trained to put out 0 and 1."""
    return _square(logits, goal_of(logits, task))


def goal_of(logits: Float[Tensor, "n classes"], task: Task) -> Int64[Tensor, " n"]:
    """The class that is wanted: the target or aim, else the likeliest class that is not the label."""
    if task.aimed.all():
        return task.aim
    likeliest = logits.detach().scatter(1, task.y[:, None], -torch.inf).argmax(1)
    return torch.where(task.aimed, task.aim, likeliest)


def _pair(logits: Tensor, task: Task) -> Tensor:
    """By how much the aim is ahead of the label."""
    return (logits.gather(1, task.goal[:, None]) - logits.gather(1, task.y[:, None])).squeeze(1)


def _square(output: Tensor, goal: Tensor) -> Tensor:
    return (output - F.one_hot(goal, output.shape[1]).to(output)).square().sum(1).neg()


OUTPUTS: dict[str, Loss] = {"probability": goal_probability, "logits": goal_logits}


@dataclass(frozen=True, kw_only=True)
class GoalDistance(Penalty):
    """The goal-against-distance loss in L2, towards a target or, without one, the likeliest other class.

    With `weight` = 0 it is an attack of least distance: rounds of `steps` passes, each with a weight of its own, which
    falls where a round found no fooling point and rises where it did, and the nearest fooling point is handed over.

    With `weight` > 0 the loss is taken at its word: one round, inside the ball, at whose end it hands over the fooling
    point with the least loss, and where none fools the point with the least loss; so the goal may lose against the
    distance, and then a smaller weight is the answer. Only then `reference` may be given: points (1, *shape) or
    (*shape,) for all examples, or (k, *shape) with that of the example with id i in row i; the distance is that to
    them. The answer is in the ball around x: take one with eps = inf to go to wherever the reference is.

    `output` says what is compared with the goal, "probability" (softmax) or "logits"; `noise` starts from a uniform
    draw of the box (of the ball, where there is no box); `lr`, `c` and `early` are those of CW.

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
        if not 0 <= self.weight < math.inf:
            raise BadInput(f"`weight` must be >= 0 and finite, got {self.weight}; 0 searches for the least distance")
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

    def start(self, task: Task) -> Float[Tensor, "n *shape"]:
        return anywhere(task) if self.noise else super().start(task)

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

    def first_c(self, reach: Float[Tensor, " n"], slope: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return slope / (2 * reach * self.weight) if self.weight else super().first_c(reach, slope)

    def travel(self, reach: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        # The output can move by sqrt(2) at most, so that no one goes beyond sqrt(2 / weight) for it.
        return reach.clamp_min(0.25 / math.sqrt(self.weight)) if self.weight else reach

    def wanted(self, point: Point, task: Task) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
        return point.fooled, -point.loss

    def border(self, point: Point, task: Task) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        if self.output == "logits":
            return point.loss, torch.ones_like(point.loss)
        # Far from the border a softmax is flat: the margin is in sight, and the slope of the square follows from it.
        logits = point.logits.to(torch.promote_types(point.logits.dtype, torch.float32))
        lead = margin(logits, task)
        if task.some_aimed:
            lead = torch.where(task.aimed & (task.target == AWAY), _pair(logits, task), lead)
        # Of two classes the loss is -2 / (1 + exp(lead))^2, whose slope this is.
        slope = 4 * torch.sigmoid(lead) * torch.sigmoid(-lead).square()
        return lead, 1 / slope.clamp_min(torch.finfo(lead.dtype).tiny)

    def kept(
        self, state: Weighing, point: Point, task: Task, value: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, " n"]]:
        if not self.weight:
            return super().kept(state, point, task, value)
        better = torch.where(point.fooled, value < state.distance, ~state.hit & (value < state.least))
        best = torch.where(column(better, task.x.ndim), state.z, state.best)
        return best, torch.where(point.fooled & better, value.clamp_min(TINIEST), state.distance)

    def inside(self, z: Float[Tensor, "n *shape"], task: Task) -> Float[Tensor, "n *shape"]:
        return task.ball.project(z, task.x.to(z.dtype)) if self.weight else super().inside(z, task)


TINIEST = 1e-30
"""What `distance` is at least with a weight, since a distance of zero would end the job."""
