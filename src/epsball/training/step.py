"""What the loop asks of an objective, and what it tells it about the step that it makes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float, Int64
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.noise import Noise
from epsball.data.examples import Examples


@dataclass(frozen=True, eq=False)
class Step:
    """Where training is.

    `noise` is that of the batch's rows, with the epoch as rank; `number` counts the optimiser's steps before this one,
    `over` is the share of the training that is over, in [0, 1); `replay` counts the steps already made on this very
    batch. What `memory` holds is there again at the next step and after a resume, so it must be tensors; a rollback
    empties it.
    """

    noise: Noise
    number: int = 0
    over: float = 0.0
    replay: int = 0
    memory: dict[str, Tensor] = field(default_factory=dict)


class TrainingObjective(ABC):
    """What a step of training minimises. It makes its backward passes itself: gradients are added to `.grad`.

    A function of the signature of `__call__` does as well. The loss is the mean over the rows, so that the loop can
    weigh the parts of a batch. `accelerates` says whether a network with cheaper input gradients makes the steps
    cheaper: not where there are none, or where they are differentiated again.
    """

    accelerates: ClassVar[bool] = True

    @property
    def replays(self) -> int:
        """Steps of the optimiser on each batch, one after the other; Free's m."""
        return 1

    def epoch(self, model: nn.Module, data: Examples, ball: Ball | None, number: int, seed: int) -> Examples:
        """The examples of epoch `number` (from 0), called before it begins; the model is in train mode."""
        return data

    @abstractmethod
    def __call__(
        self, model: nn.Module, x: Float[Tensor, "n *shape"], y: Int64[Tensor, " n"], ball: Ball | None, step: Step
    ) -> Mapping[str, Tensor | float]:
        """Go backwards through the loss of these rows, and return scalars to log: means over the rows.

        The model is in train mode, its parameters need gradients, `.grad` may hold those of other rows; all of it must
        be so afterwards. `ball` is bound to x.
        """


Objective = TrainingObjective | Callable[[nn.Module, Tensor, Tensor, Ball | None, Step], Mapping[str, Tensor | float]]
