"""DeepFool: from plane to plane, each time to the nearest border as it is linearised there, until one is crossed.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks" (CVPR 2016),
algorithm 2, and section 3.3 for other norms; a step is a projection onto a hyperplane within the box (`Ball.project_onto_hyperplane`).

The paper's steps go all the way to the plane. Along that way the logits of a network bend, and the point lands far
beyond the border; its first crossing is never improved. Here a step goes half of the way until the plane is near: on a
plain small CNN the distances are a tenth to a fifth shorter, for twice the passes (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.nearest import MinimumNorm, Nearest, unseen
from epsball.attacks.planes import hyperplanes, nearest_plane, too_far
from epsball.common.checks import check_at_least, check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import column, flat
from epsball.problem.losses import Loss
from epsball.problem.objective import Point
from epsball.problem.task import Task

NEAR = 0.25
"""A plane within this share of the distance that the point would then have from x is gone to at once."""

ROUNDINGS = 4
"""A gap of fewer roundings of its logits is taken for so many: a step over it would leave the point where it is."""


@dataclass(frozen=True)
class Candidates:
    """The `most` greatest of the differences of logits that are zero on the borders, (n, most); see `hyperplanes`.

    >>> from epsball.balls.l2 import L2
    >>> from epsball.problem.task import task_of
    >>> logits, task = torch.tensor([[1.0, 5.0, 2.0, 4.0]]), task_of(torch.zeros(1, 1), [1], L2(eps=1.0))
    >>> Candidates(2)(logits, task)
    tensor([[-1., -3.]])
    """

    most: int

    def __call__(self, logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, "n *k"]:
        gaps = hyperplanes(logits, task)
        if gaps.ndim == 1 or gaps.shape[1] <= self.most:
            return gaps
        return gaps.topk(self.most, dim=1).values if self.most > 1 else gaps.amax(1)


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumNorm[Nearest]):
    """Steps onto the nearest linearised border until the point fools; ends with its first fooling point.

    At most `steps` passes, each with a backward for every one of the `candidates` classes whose logits are greatest
    besides the label's; one with a target, with an aim or with two classes. Away from the border a step goes the share
    `step_size` of the way to it; from nearby it goes all the way and `overshoot` of it farther. With `step_size=1`
    every step does, as in the paper.
    """

    takes = ("dual norm",)

    steps: int = 50
    step_size: float = 0.5
    overshoot: float = 0.02
    candidates: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.step_size <= 1:
            raise BadInput(f"`step_size` must be > 0 and <= 1, got {self.step_size}; it is a share of the way")
        check_at_least("overshoot", self.overshoot, 0)
        check_whole("candidates", self.candidates, 1)

    @property
    def loss(self) -> Loss:
        """The gaps to the decision boundaries of the likeliest classes."""
        return Candidates(self.candidates)

    def init(self, task: Task) -> Nearest:
        return Nearest.at(task.x, distance=unseen(task))

    def step(self, state: Nearest, point: Point, task: Task) -> Nearest:
        best, distance = self.seen(state, point, task)
        z = self.ahead(state.z, point, task)
        t = state.t + 1
        still = (flat(z) == flat(state.z)).all(1)  # no border within reach: every further look would be the same
        done = point.fooled | still | (t >= self.steps) | state.done
        last = done & (distance == math.inf)  # a point that nobody looked at is handed over where it may succeed
        if bool(last.any()):
            best = torch.where(column(last, z.ndim), task.ball.project(z, task.x), best)
        return replace(state, z=z, best=best, distance=distance, t=t, done=done)

    def ahead(self, z: Float[Tensor, "n *shape"], point: Point, task: Task) -> Float[Tensor, "n *shape"]:
        """The next point: z moved onto the nearest plane, and a little beyond."""
        logits, gap, grad = point.logits, point.loss, point.grad
        tiny = ROUNDINGS * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
        gap = torch.minimum(gap, -tiny if gap.ndim == 1 else -tiny[:, None])  # at z itself nothing fools
        ball = task.ball
        onto = ball.project_onto_hyperplane(-gap, grad, z) if gap.ndim == 1 else nearest_plane(z, gap, grad, ball)[1]
        last = 1 + self.overshoot
        left = ball.distance(onto, z)
        share = torch.full_like(left, last if self.step_size == 1 else self.step_size)
        share[left <= NEAR * ball.distance(onto, task.x)] = last
        ahead = ball.clip(torch.lerp(z, onto, column(share.to(z), z.ndim)))
        lost = too_far(ahead, task.x)
        return ahead.index_copy(0, lost, z[lost]) if len(lost) else ahead
