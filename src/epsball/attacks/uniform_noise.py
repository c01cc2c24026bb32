"""Uniform noise as a control: what a random point of the ball does."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from epsball.attacks.random_point import RandomPoint
from epsball.problem.task import Task


@dataclass(frozen=True, kw_only=True)
class UniformNoise(RandomPoint):
    """A uniform point of the ball."""

    def draw(self, task: Task) -> Float[Tensor, "n *shape"]:
        return task.ball.sample(task.x, task.noise)
