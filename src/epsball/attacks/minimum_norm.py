"""The base of minimum-norm attacks: they run to their end and return the nearest adversarial example that they saw."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.state import State
from epsball.common.checks import check_whole
from epsball.common.shapes import column
from epsball.problem.objective import Point
from epsball.problem.task import Task


@dataclass(frozen=True, eq=False)
class MinimumNormState(State):
    """With the distance of `best`, the nearest adversarial example so far, from the example in the ball's norm.

    Before one was seen `best` is the example itself and `distance` is infinite.
    """

    distance: Float[Tensor, " n"]

    @classmethod
    def start(cls, z: Float[Tensor, "n *shape"], task: Task, **more: Any) -> Self:
        """Rows that start at z and have seen no adversarial example; distances have single precision at least."""
        distance = torch.full_like(task.y, math.inf, dtype=torch.promote_types(z.dtype, torch.float32))
        return replace(cls.at(z, distance=distance, **more), best=task.x)


S = TypeVar("S", bound=MinimumNormState)


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(Attack[S], Generic[S]):
    """An attack that seeks the adversarial example nearest to the input, in `steps` steps at most.

    In a ball of infinite radius that is the minimum-norm problem. In one of finite radius the nearest adversarial
    example is projected into the ball, so that the attack can stand among others.
    """

    until = "done"

    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("steps", self.steps, 1)

    @property
    def minimises(self) -> bool:
        return True

    def keep_nearest(self, state: S, point: Point, task: Task) -> S:
        """The state with `state.z`, which is in the box, as `best` where it is adversarial and nearer than `best`."""
        distance = task.ball.distance(state.z, task.x).to(state.distance)
        nearer = point.fooled & (distance < state.distance)
        rows = nearer.nonzero().squeeze(1)
        if not len(rows):
            return state
        best = state.best.index_copy(0, rows, task.ball.rows(rows).project(state.z[rows], task.x[rows]))
        return replace(state, best=best, distance=torch.where(nearer, distance, state.distance))

    def last_point(self, state: S, done: Tensor, z: Float[Tensor, "n *shape"], task: Task) -> S:
        """The state with z as `best` of rows that end without an adversarial example: z is unseen, and may be one."""
        last = done & (state.distance == math.inf)
        if not bool(last.any()):
            return state
        return replace(state, best=torch.where(column(last, z.ndim), task.ball.project(z, task.x), state.best))


def start_points(task: Task, n_targets: int, share: float) -> Float[Tensor, "n *shape"]:
    """Where jobs start: the first restart at the example, later ones `share` of the way to a random point of the ball.

    A restart has max(`n_targets`, 1) jobs, one for each target class.
    """
    first = task.noise.restart < max(n_targets, 1)
    if bool(first.all()):
        return task.x
    drawn = torch.lerp(task.x, task.ball.sample(task.x, task.noise), share)
    return torch.where(column(first, task.x.ndim), task.x, drawn)
