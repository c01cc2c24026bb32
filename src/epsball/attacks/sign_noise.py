"""Sign noise as a control: the farthest point of the ball in a direction of random signs.

Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples" (ICLR 2015), section 7.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from epsball.attacks.random_point import RandomPoint
from epsball.problem.task import Task


@dataclass(frozen=True, kw_only=True)
class SignNoise(RandomPoint):
    """The farthest point in a direction of random signs: in the max norm x +- eps, a coin flip per coordinate."""

    def draw(self, task: Task) -> Float[Tensor, "n *shape"]:
        return task.ball.argmax(task.noise.sign(task.x.shape[1:], dtype=task.x.dtype), task.x)
