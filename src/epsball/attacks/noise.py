"""Noise as a control: what a random direction of the same size does, against which a gradient has to prove itself.

Goodfellow et al. (ICLR 2015), section 7, use both kinds. More draws per example: `starts`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import Attack, State
from epsball.objective import Point
from epsball.task import Task


@dataclass(frozen=True, kw_only=True)
class RandomPoint(Attack[State]):
    """One draw per start, looked at once."""

    needs = "logits"

    @property
    def passes(self) -> int:
        return 1

    @abstractmethod
    def draw(self, task: Task) -> Float[Tensor, "n *shape"]:
        """A point of the ball for each row."""

    def init(self, task: Task) -> State:
        return State.at(self.draw(task))

    def step(self, state: State, point: Point, task: Task) -> State:
        return state


@dataclass(frozen=True, kw_only=True)
class UniformNoise(RandomPoint):
    """A uniform point of the ball."""

    def draw(self, task: Task) -> Float[Tensor, "n *shape"]:
        return task.ball.sample(task.x, task.noise)


@dataclass(frozen=True, kw_only=True)
class SignNoise(RandomPoint):
    """The ball's end in a direction of random signs: in the max norm x +- eps, a coin-flip per coordinate."""

    def draw(self, task: Task) -> Float[Tensor, "n *shape"]:
        return task.ball.argmax(task.noise.sign(task.x.shape[1:], dtype=task.x.dtype), task.x)
