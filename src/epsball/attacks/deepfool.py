"""DeepFool: step by step onto the nearest decision boundary, as it is linearised there, until one is crossed.

Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool: a simple and accurate method to fool deep neural networks" (CVPR 2016,
arXiv:1511.04599), algorithm 2, and section 3.3 for other norms; a step is a projection onto a hyperplane within the box
(`Ball.project_onto_hyperplane`), which the paper does not have.

The paper's steps go all the way to the hyperplane. Along that way the logits of a network bend, and the point lands far
beyond the boundary; its first crossing is never improved. Here a step goes half of the way until the hyperplane is
close: on a plain small CNN the distances are a tenth to a fifth shorter, for twice the cost (docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.boundary import logit_gaps, nearest_hyperplane, runaway_rows
from epsball.attacks.minimum_norm import MinimumNorm, MinimumNormState
from epsball.common.checks import check_at_least, check_between, check_whole
from epsball.common.shapes import column, flat
from epsball.problem.losses import Loss
from epsball.problem.objective import Point
from epsball.problem.task import Task

CLOSE = 0.25
"""A hyperplane within this share of the distance that the point would then have from x is stepped onto at once."""

ROUNDINGS = 4
"""The least gap, in roundings of its logits: a step over less would leave the point where it is."""


@dataclass(frozen=True)
class LargestGaps:
    """The `most` largest of the differences of logits that are zero on the boundaries, (n, most); see `logit_gaps`.

    >>> from epsball.balls.l2 import L2
    >>> from epsball.problem.task import task_of
    >>> logits, task = torch.tensor([[1.0, 5.0, 2.0, 4.0]]), task_of(torch.zeros(1, 1), [1], L2(eps=1.0))
    >>> LargestGaps(2)(logits, task)
    tensor([[-1., -3.]])
    """

    most: int

    def __call__(self, logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, "n *k"]:
        gaps = logit_gaps(logits, task)
        if gaps.ndim == 1 or gaps.shape[1] <= self.most:
            return gaps
        return gaps.topk(self.most, dim=1).values if self.most > 1 else gaps.amax(1)


@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumNorm[MinimumNormState]):
    """Steps onto the nearest linearised boundary until the point is adversarial; ends with the first that is.

    At most `steps` steps, each with a backward pass for every one of the `candidates` classes whose logits are greatest
    besides the label's; one with a target, with `n_targets` or with two classes. Away from the boundary a step goes the
    share `step_size` of the way to it; close to it it goes all the way and `overshoot` of it farther. With
    `step_size=1` every step does, as in the paper.
    """

    takes = ("dual norm",)

    steps: int = 50
    step_size: float = 0.5
    overshoot: float = 0.02
    candidates: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between("step_size", self.step_size, 0, 1, "it is a share of the way", ends="(]")
        check_at_least("overshoot", self.overshoot, 0)
        check_whole("candidates", self.candidates, 1)

    @property
    def loss(self) -> Loss:
        """The gaps to the decision boundaries of the likeliest classes."""
        return LargestGaps(self.candidates)

    def init(self, task: Task) -> MinimumNormState:
        return MinimumNormState.start(task.x, task)

    def step(self, state: MinimumNormState, point: Point, task: Task) -> MinimumNormState:
        state, z = self.keep_nearest(state, point, task), self._next_point(state.z, point, task)
        still = (flat(z) == flat(state.z)).all(1)  # no boundary within reach: every further step would be the same
        t = state.t + 1
        done = point.fooled | still | (t >= self.steps) | state.done
        return replace(self.last_point(state, done, z, task), z=z, t=t, done=done)

    def _next_point(self, z: Float[Tensor, "n *shape"], point: Point, task: Task) -> Float[Tensor, "n *shape"]:
        """z, moved towards its projection onto the nearest hyperplane, or a little beyond."""
        logits, gap, grad, ball = point.logits, point.loss, point.grad, task.ball
        tiny = ROUNDINGS * torch.finfo(logits.dtype).eps * logits.abs().amax(1)
        gap = torch.minimum(gap, -tiny if gap.ndim == 1 else -tiny[:, None])  # at z itself the gap is not closed
        if gap.ndim == 1:
            projection = ball.project_onto_hyperplane(-gap, grad, z)
        else:
            projection = nearest_hyperplane(z, gap, grad, ball)[1]
        way, beyond = ball.distance(projection, z), 1 + self.overshoot
        share = torch.full_like(way, beyond if self.step_size == 1 else self.step_size)
        share[way <= CLOSE * ball.distance(projection, task.x)] = beyond
        ahead = ball.clip(torch.lerp(z, projection, column(share.to(z), z.ndim)))
        lost = runaway_rows(ahead, task.x)
        return ahead.index_copy(0, lost, z[lost]) if len(lost) else ahead
