"""Uniform noise as a control: a random point of the ball.

Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples" (ICLR 2015), section 7.
"""

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
