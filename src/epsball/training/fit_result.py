"""What a training reports: after each step, and at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from epsball.common.record import Record
from epsball.training.validation import Check


class Diverged(ArithmeticError):
    """A gradient or a logged scalar is not finite. The model keeps the weights before that step."""


@dataclass(frozen=True)
class Progress(Record):
    """Where a training is after a step: `step` of `steps`, `epoch` of `epochs`, all counted from 1.

    `logged` are the scalars that the objective logged about this batch, `seconds` is the time since the start, `lr` the
    learning rate, `check` the last check on held-out examples.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    logged: dict[str, float]
    seconds: float
    lr: float = math.nan
    check: Check | None = None

    @property
    def loss(self) -> float:
        """The logged "loss", NaN where the objective logs none."""
        return self.logged.get("loss", math.nan)


@dataclass(frozen=True)
class FitResult(Record):
    """How a training was configured, and how it went.

    `config` holds the `TrainingConfig`, objective, ball, data and model in words, and the versions; `epochs` the means
    over each epoch's examples of the scalars that the objective logged; `checks` those on the held-out examples; `best`
    the check whose weights the model has now, None where it has the last ones; `seconds` the wall time over all
    resumes. `finished` is False in the record of a training that was stopped.
    """

    config: dict[str, Any]
    epochs: tuple[dict[str, float], ...]
    seconds: float
    checks: tuple[Check, ...] = ()
    best: Check | None = None
    finished: bool = True
