"""What the training loop asks of an objective, and what it tells it about each step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Int64
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.noise import Noise
from epsball.common.shapes import Batch
from epsball.data.examples import Examples

Labels = Int64[Tensor, " n"]
Logged = Mapping[str, Tensor | float]
"""Scalars by name, each the mean over the rows of the batch."""


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """Where a training is, as its objective is told.

    `noise` are the random numbers of the batch's rows, with the epoch as restart index; `number` counts the optimiser's
    steps before this one, `replay` those already made on this very batch; `fraction` of the training is done, in
    [0, 1); `radius` is the share of the ball's radius that is trained on, below 1 while it grows. `memory` holds
    tensors that the objective finds again at its next step, also after a resume; a rollback empties it. `cache` holds
    what the objective made once and can make again; no checkpoint has it.
    """

    noise: Noise
    number: int = 0
    fraction: float = 0.0
    replay: int = 0
    radius: float = 1.0
    memory: dict[str, Tensor] = field(default_factory=dict)
    cache: dict[str, Any] = field(default_factory=dict)


class TrainingObjective(ABC):
    """What a step of training minimises. It calls `backward` itself: gradients are added to `.grad`.

    A function of the signature of `__call__` does as well. The loss is the mean over the rows, so that the loop can
    weight the parts of a batch. `accelerates` says whether a network with cheaper input gradients makes the steps
    cheaper: not where there are none, or where they are differentiated again.
    """

    accelerates: ClassVar[bool] = True
    cost: ClassVar[str] = ""
    """Forward and backward passes of a step, for the docs; a number counts pairs."""
    source: ClassVar[str] = ""
    """Where it was published, for the docs."""
    ramp: ClassVar[float] = 0.0
    """The fraction of the training over which the radius grows, where the configuration says nothing."""

    @property
    def replays(self) -> int:
        """Steps of the optimiser on each batch, one after the other; Free's m."""
        return 1

    def epoch(self, model: nn.Module, data: Examples, ball: Ball | None, number: int, seed: int) -> Examples:
        """The examples of epoch `number` (from 0), called before it begins; the model is in train mode."""
        return data

    @abstractmethod
    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        """Backpropagate the loss of these rows, and return scalars to log, means over the rows.

        The model is in train mode and its parameters need gradients, before and after the call; `.grad` may hold those
        of other rows. `ball` is bound to x.
        """


ObjectiveLike = TrainingObjective | Callable[[nn.Module, Tensor, Tensor, Ball | None, TrainingStep], Logged]
"""An objective, or a function of its signature."""
