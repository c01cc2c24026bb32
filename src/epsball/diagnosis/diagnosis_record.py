"""The result of a diagnosis: which reliability checks passed, and which failed; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from epsball.diagnosis.indicators import Indicator
from epsball.diagnosis.run_record import RunRecord


@dataclass(frozen=True)
class Diagnosis(RunRecord):
    """Whether an evaluation is reliable: its `indicators`, in the order of `indicators.INDICATORS`.

    `examples` were sampled, `correct` of them are classified correctly; all shares are of these. `attacks` are the
    names of those that were traced, `mitigated` the indicators that the attacks were adapted to. `forwards` and
    `backwards` are the model calls of the diagnosis, in rows.
    """

    file_name = "diagnosis.json"
    repeats = "the diagnosis"

    indicators: tuple[Indicator, ...]
    attacks: tuple[str, ...]
    examples: int
    correct: int
    seed: int
    forwards: int
    backwards: int
    seconds: float = field(compare=False)
    mitigated: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Indicator, ...]:
        """The checks that failed."""
        return tuple(one for one in self.indicators if one.failed)

    @property
    def failed_names(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(one.name for one in self.failed)

    @property
    def open_failures(self) -> tuple[str, ...]:
        """The names of the checks that failed and that the attacks were not adapted to."""
        return tuple(name for name in self.failed_names if name not in self.mitigated)

    @property
    def unreliable(self) -> bool:
        """Whether a check failed that the attacks were not adapted to."""
        return bool(self.open_failures)

    def __getitem__(self, name: str) -> Indicator:
        """The indicator of that name; `KeyError` where there is none."""
        for one in self.indicators:
            if one.name == name:
                return one
        raise KeyError(name)

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.correct:
            return f"Reliability checks: none of {self.examples} sampled examples is classified correctly."
        sample = f"on {self.correct} correctly classified of {self.examples} sampled examples"
        checks = len(self.indicators)
        absent = sum(one.value is None for one in self.indicators)
        mitigated = [name for name in self.failed_names if name in self.mitigated]
        rest = f", {absent} not measured" if absent else ""
        rest += f" ({sample})" + (f"; the attacks were adapted to {', '.join(mitigated)}" if mitigated else "")
        if failures := self.open_failures:
            return f"Reliability checks: {len(failures)} of {checks} failed: {', '.join(failures)}{rest}."
        return f"Reliability checks: {checks - absent - len(mitigated)} of {checks} passed{rest}."

    @property
    def text(self) -> str:
        """The result with a line for each check that failed."""
        return "\n".join([self.sentence, *(f"  {one.text}" for one in self.failed)])

    def summary(self) -> dict[str, Any]:
        """The fields as JSON can hold them, with the names of the failed checks and the sentence."""
        return self.to_record() | {"failed": list(self.failed_names), "sentence": self.sentence}
