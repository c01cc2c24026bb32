"""Noise as a control: what a random direction of the same size does, against which a gradient has to prove itself.

Goodfellow et al. (ICLR 2015), section 7, use both kinds. More draws per example: `restarts`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import Attack, State
from epsball.problem.objective import Point
from epsball.problem.task import Task


@dataclass(frozen=True, kw_only=True)
class RandomPoint(Attack[State]):
    """One draw per start, looked at once."""

    needs = "logits"

    @property
    def max_steps(self) -> int:
        return 1

    @abstractmethod
    def draw(self, task: Task) -> Float[Tensor, "n *shape"]:
        """A point of the ball for each row."""

    def init(self, task: Task) -> State:
        return State.at(self.draw(task))

    def step(self, state: State, point: Point, task: Task) -> State:
        return state
