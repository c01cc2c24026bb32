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
    def unreliable(self) -> bool:
        """Whether a check failed that the attacks were not adapted to."""
        return any(name not in self.mitigated for name in self.failed_names)

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
        measured = sum(one.value is not None for one in self.indicators)
        open_failures = [name for name in self.failed_names if name not in self.mitigated]
        mitigated = [name for name in self.failed_names if name in self.mitigated]
        adapted = f"; the attacks were adapted to {', '.join(mitigated)}" if mitigated else ""
        if open_failures:
            failures = f"{len(open_failures)} of {measured} failed: {', '.join(open_failures)}"
            return f"Reliability checks: {failures} ({sample}){adapted}."
        return f"Reliability checks: {measured - len(mitigated)} of {measured} passed ({sample}){adapted}."

    @property
    def text(self) -> str:
        """The result with a line for each check that failed."""
        return "\n".join([self.sentence, *(f"  {one.text}" for one in self.failed)])

    def summary(self) -> dict[str, Any]:
        """The fields as JSON can hold them, with the names of the failed checks and the sentence."""
        return self.to_record() | {"failed": list(self.failed_names), "sentence": self.sentence}
