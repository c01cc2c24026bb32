"""Noise as a control: a random point of the ball, which an attack that follows gradients has to beat."""

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
    """One random point per restart, and one forward pass at it."""

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
