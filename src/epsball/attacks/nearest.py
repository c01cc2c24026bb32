"""What minimum-norm attacks share: they go on to their end and hand over the nearest fooling point that they saw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import Attack, State
from epsball.common.checks import check_whole
from epsball.common.shapes import column
from epsball.problem.objective import Point
from epsball.problem.task import Task


@dataclass(frozen=True, eq=False)
class Nearest(State):
    """With the distance of `best` from the example in the ball's norm, infinite before a fooling point was seen.

    Until then `best` is the example itself.
    """

    distance: Float[Tensor, " n"]


N = TypeVar("N", bound=Nearest)


def unseen(task: Task) -> Float[Tensor, " n"]:
    """The distances of rows that have seen no fooling point."""
    return torch.full_like(task.y, math.inf, dtype=torch.promote_types(task.x.dtype, torch.float32))


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(Attack[N], Generic[N]):
    """An attack that seeks the fooling point nearest to the example, in `steps` passes at most.

    In a ball of infinite radius that is the minimum-norm problem; in one of finite radius the nearest point is handed
    over projected into it, so that the attack is one among others there.
    """

    until = "done"

    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("steps", self.steps, 1)

    @property
    def minimises(self) -> bool:
        return True

    def seen(self, state: N, point: Point, task: Task) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, " n"]]:
        """`best` and `distance` after the look at `state.z`, which is in the box."""
        distance = task.ball.distance(state.z, task.x).to(state.distance)
        closer = point.fooled & (distance < state.distance)
        if not bool(closer.any()):
            return state.best, state.distance
        z = task.ball.project(state.z, task.x)
        return torch.where(column(closer, z.ndim), z, state.best), torch.where(closer, distance, state.distance)
