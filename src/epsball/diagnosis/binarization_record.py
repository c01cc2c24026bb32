"""The result of a binarization test; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from epsball.diagnosis.run_record import RunRecord

ENOUGH = 0.95
"""The share of planted adversarial examples that strong enough attacks find; below it the test is failed."""
EASY = 0.5
"""If random search finds this share too, finding them says nothing about an attack."""


@dataclass(frozen=True)
class BinarizationTest(RunRecord):
    """How many of the adversarial examples that were planted in the balls of `n` examples the attacks found.

    `found` of them by the attacks, `random` by `draws` random points each; in the balls of `skipped` examples none
    could be planted. `missed` are the ids where the attacks failed, `found_by` how many each attack found, in order,
    each working on those that the attacks before it had not found. `features` says which features the planted heads
    use; `requested` examples were asked for. `forwards` and `backwards` are the model calls of the attacks, in rows.
    """

    file_name = "binarization_test.json"
    repeats = "the binarization test"
    derived = ("passed", "sentence")

    n: int
    found: int
    random: int
    skipped: int
    missed: tuple[int, ...]
    found_by: tuple[tuple[str, int], ...]
    features: str
    draws: int
    requested: int
    seed: int
    forwards: int
    backwards: int
    seconds: float = field(compare=False)

    @property
    def too_weak(self) -> bool:
        """Whether the attacks missed more than they may: examples that they call robust need not be."""
        return self.found < ENOUGH * self.n

    @property
    def inconclusive(self) -> bool:
        """Whether nothing could be planted, or random search finds what the attacks found."""
        return self.n == 0 or (not self.too_weak and self.random >= EASY * self.n)

    @property
    def passed(self) -> bool:
        """Whether the attacks found what was planted, and random search did not."""
        return not self.too_weak and not self.inconclusive

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.n:
            return f"Binarization test: inconclusive, nothing could be planted in the balls of {self.skipped} examples."
        found = f"{self.found} of {self.n} planted adversarial examples found (random search: {self.random})"
        if self.too_weak:
            return f"Binarization test: failed, the attacks are too weak for this model: {found}."
        return f"Binarization test: {'inconclusive, too easy' if self.inconclusive else 'passed'}: {found}."
