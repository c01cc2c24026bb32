"""Projected gradient descent (on the attacker's side: ascent), from a random point of the ball.

Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018), section 2.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from epsball.attacks.iterated import Iterated
from epsball.problem.task import Task


@dataclass(frozen=True, kw_only=True)
class PGD(Iterated):
    """Iterated ascent from a random start; `restarts` > 1 gives restarts, each example its own."""

    def start(self, task: Task) -> Float[Tensor, "n *shape"]:
        return task.ball.sample(task.x, task.noise)
