"""What an evaluation understood of data, ball, labels and model before its attacks, and what is likely to be wrong.

It needs no torch. A warning is a `Finding`: the likely cause first, then the figures that speak for it, and the remedy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from epsball.balls.written import radius_text
from epsball.common.record import Record
from epsball.diagnosis.run_record import RunRecord


class SetupWarning(UserWarning):
    """Something about an evaluation's set-up is likely to be wrong; the message says what, why, and what to do."""


@dataclass(frozen=True)
class Finding(Record):
    """One thing that is likely to be wrong: a stable `name`, the likely `cause`, the `figures`, and a `remedy`."""

    name: str
    cause: str
    figures: str
    remedy: str

    @property
    def text(self) -> str:
        """In a sentence or three, the cause first."""
        return f"{self.cause}: {self.figures}. Remedy: {self.remedy} [{self.name}]"


@dataclass(frozen=True)
class DataFacts(Record):
    """The examples: `shape` of one, `dtype`, the range [`low`, `high`] of all values.

    `levels` counts the equally spaced values that a sample is on (8-bit images: at most 256), and `step` is their
    distance; None where values are not on such a grid. `image` says whether the examples are plainly images. Of lazy
    data `seen` examples were looked at for it, None where all `n` were.
    """

    n: int
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    step: float | None
    levels: int | None
    image: bool
    seen: int | None = None


@dataclass(frozen=True)
class BallFacts(Record):
    """The ball: its norm's `symbol`, the box from `lo` to `hi`, the radii from `eps` to `largest`.

    Where a part differs between examples or features these are its extremes, and `varies` names it. `share` is the
    largest radius as a share of the box's size in this norm (of a count: of all coordinates), None where there is
    none. `whole` is the norm of a change by 1 in all coordinates, `speck` in one of a hundred. `counts` says whether
    the radius counts coordinates.
    """

    symbol: str
    lo: float
    hi: float
    eps: float
    largest: float
    share: float | None
    whole: float
    speck: float
    counts: bool
    varies: tuple[str, ...]

    @property
    def boxed(self) -> bool:
        """Whether the box is finite."""
        return math.isfinite(self.lo) and math.isfinite(self.hi)


@dataclass(frozen=True)
class LabelFacts(Record):
    """The labels: `present` of `classes` known classes; `majority` is the share of the most frequent one."""

    present: int
    classes: int
    majority: float


@dataclass(frozen=True)
class ModelFacts(Record):
    """The model, from a clean pass over `sampled` examples.

    `clean_accuracy` stands beside `chance`: the accuracy of predictions that are as frequent as the model's and do not
    depend on the example. `mode` is the mode the model came in, "eval" or "train" (it is evaluated in eval mode), or
    "function" where it is no torch module. `deterministic` and `independent` (a row's output does not depend on the
    other rows of its batch) are None where that was not looked at.
    """

    sampled: int
    clean_accuracy: float
    chance: float
    mode: str
    deterministic: bool | None
    independent: bool | None


@dataclass(frozen=True)
class Setup(RunRecord):
    """What an evaluation understood before its attacks. `warnings` are what is likely to be wrong; none: `sound`.

    `forwards` are the forward passes that it took beside the clean predictions, in rows.
    """

    file_name = "setup.json"
    repeats = "the look at the set-up"

    data: DataFacts
    ball: BallFacts
    labels: LabelFacts
    model: ModelFacts
    warnings: tuple[Finding, ...]
    forwards: int
    seconds: float = field(compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the warnings, the gravest first."""
        return tuple(one.name for one in self.warnings)

    @property
    def sound(self) -> bool:
        """Whether nothing seems to be wrong."""
        return not self.warnings

    @property
    def lines(self) -> tuple[str, str, str, str]:
        """What was understood: of data and box, of the radius, of the labels, of the model."""
        return self._of_data(), self._of_radius(), self._of_labels(), self._of_model()

    @property
    def text(self) -> str:
        """What was understood, and a line for each warning."""
        return "\n".join([*self.lines, *(one.text for one in self.warnings)])

    def summary(self) -> dict[str, Any]:
        """The fields as JSON can hold them, with the names of the warnings, their texts and the lines."""
        return self.to_record() | {
            "names": list(self.names),
            "texts": [one.text for one in self.warnings],
            "lines": list(self.lines),
        }

    def _of_data(self) -> str:
        data, ball = self.data, self.ball
        levels = f", {data.levels} levels" if data.levels is not None else ""
        box = f"box [{ball.lo:.4g}, {ball.hi:.4g}]"
        if ball.lo == -ball.hi == -math.inf:
            box = "no box"
        elif {"lo", "hi"} & set(ball.varies):
            box = f"boxes in [{ball.lo:.4g}, {ball.hi:.4g}]"
        seen = "" if data.seen is None else f" in {data.seen:,} of {data.n:,} examples"
        return f"x {data.dtype} in [{data.low:.4g}, {data.high:.4g}]{levels}{seen}; {box}"

    def _of_radius(self) -> str:
        ball = self.ball
        if math.isinf(ball.largest):
            return f"{ball.symbol}, minimum norm"
        ends = " to ".join(radius_text(eps, ball.lo, ball.hi) for eps in dict.fromkeys((ball.eps, ball.largest)))
        if ball.share is None:
            return f"{ball.symbol}, ε = {ends}"
        return (
            f"{ball.symbol}, ε = {ends}: {_percent(ball.share)} of {'the numbers of x' if ball.counts else 'the box'}"
        )

    def _of_labels(self) -> str:
        labels, model = self.labels, self.model
        return (
            f"{labels.present:,} of {labels.classes:,} classes; clean accuracy {_percent(model.clean_accuracy)} "
            f"(chance {_percent(model.chance)}, largest class {_percent(labels.majority)})"
        )

    def _of_model(self) -> str:
        model = self.model
        parts = [{"eval": "eval mode", "train": "eval mode (was train)"}.get(model.mode, "a function")]
        if model.deterministic is not None:
            parts.append("deterministic" if model.deterministic else "stochastic")
        if model.independent is not None:
            parts.append("rows independent" if model.independent else "rows depend on their batch")
        sample = "" if model.sampled == self.data.n else f"; from {model.sampled:,} of {self.data.n:,} examples"
        return f"model: {', '.join(parts)}{sample}"


def _percent(share: float) -> str:
    """A share for people, to two digits.

    >>> _percent(0.9722), _percent(0.0314)
    ('97 %', '3.1 %')
    """
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"
