"""What the active test found, as a frozen record; needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.common.json_files import read_json

ENOUGH = 0.95
"""The share of hidden adversarial examples that a strong enough protocol finds; below it the test is failed."""
ACTIVE = "binarization_test.json"
EASY = 0.5
"""Where random search finds as large a share, finding them says nothing about an attack."""


@dataclass(frozen=True)
class BinarizationTest:
    """What a protocol found of adversarial examples that were hidden in the balls of `n` examples (see `binarization_test`).

    `found` of them by the protocol, `random` by `draws` random points each; `skipped` examples could be given none.
    `missed` are the ids where the protocol failed, `caught` how many each of its attacks found, in order, each working
    on what still stood. `features` says what the hidden heads act on; `asked` examples were asked for. `forwards` and
    `backwards` are the protocol's passes, in rows.
    """

    n: int
    found: int
    random: int
    skipped: int
    missed: tuple[int, ...]
    caught: tuple[tuple[str, int], ...]
    features: str
    draws: int
    asked: int
    seed: int
    forwards: int
    backwards: int
    seconds: float = field(compare=False)

    @property
    def too_weak(self) -> bool:
        """Whether the protocol missed more than it may: what it calls robust need not be."""
        return self.found < ENOUGH * self.n

    @property
    def says_nothing(self) -> bool:
        """Whether there was nothing to find, or what the protocol found random search finds too."""
        return self.n == 0 or (not self.too_weak and self.random >= EASY * self.n)

    @property
    def passed(self) -> bool:
        """Whether the protocol found what was hidden, and that took more than luck."""
        return not self.too_weak and not self.says_nothing

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.n:
            return f"active test: nothing could be hidden in the balls of {self.skipped} examples, so it says nothing"
        found = f"{self.found} of {self.n} hidden adversarial examples found (random search: {self.random})"
        if self.too_weak:
            return f"active test: the protocol is too weak for this model: {found}"
        return f"active test: {found}" + (", too easy to say anything" if self.says_nothing else "")

    def summary(self) -> dict[str, Any]:
        """The result as JSON can hold it."""
        return {**vars(self), "passed": self.passed, "verdict": self.sentence}

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal result."""
        return json.dumps(vars(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> BinarizationTest:
        """The result that `to_json` wrote."""
        return cls._of(json.loads(text))

    @classmethod
    def _of(cls, record: dict[str, Any]) -> BinarizationTest:
        caught = tuple((name, count) for name, count in record.pop("caught"))
        return cls(missed=tuple(record.pop("missed")), caught=caught, **record)

    @classmethod
    def load(cls, path: Path) -> BinarizationTest | None:
        """The result that a run left in its directory, None where the test was not made."""
        kept, remedy = path / ACTIVE, "delete it and start the run again: only the active test is repeated"
        if not kept.exists():
            return None
        try:
            return cls._of(read_json(kept, remedy))
        except (KeyError, TypeError) as error:
            raise BadInput(f"{kept} is damaged: it holds no result of an active test; {remedy}") from error

    def save(self, path: Path) -> None:
        """Leave the result in a run's directory."""
        write_whole(path / ACTIVE, lambda draft: draft.write_text(self.to_json()))
