"""What a training says of itself: after each step, and at its end."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from epsball.training.validation import Check


class Diverged(ArithmeticError):
    """A gradient, or what the objective logged, is not finite; the model keeps the weights before that batch."""


@dataclass(frozen=True)
class Progress:
    """Where training is after a step: `step` of `steps`, `epoch` of `epochs`, all counted from 1.

    `logged` is what the objective logged about this batch, `rate` the learning rate, `check` the last look at the
    held-out examples, `seconds` the time since the start.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    logged: dict[str, float]
    seconds: float
    rate: float = math.nan
    check: Check | None = None

    @property
    def loss(self) -> float:
        """The logged "loss", NaN where the objective logs none."""
        return self.logged.get("loss", math.nan)


@dataclass(frozen=True)
class FitResult:
    """What a training was and what it logged.

    `config` holds the settings, the objective, ball, data and model in words, and the versions; `epochs` the means
    over each epoch's examples of what the objective logged; `checks` the looks at the held-out examples; `best` the
    check whose weights the model has now, None where they are the last; `seconds` the wall time, over all resumes.
    """

    config: dict[str, Any]
    epochs: tuple[dict[str, float], ...]
    seconds: float
    checks: tuple[Check, ...] = ()
    best: Check | None = None
    finished: bool = True

    def to_record(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return json.loads(self.to_json())

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal result."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> FitResult:
        """The result that `to_json` wrote."""
        record = json.loads(text)
        best, checks = record["best"], tuple(Check(**one) for one in record["checks"])
        best = None if best is None else Check(**best)
        return cls(**record | {"epochs": tuple(record["epochs"]), "checks": checks, "best": best})
