"""How many examples are broken, robust and proved so far: what a run says of its progress. It needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Examples that an attack has broken, that are `robust` so far, and those of the robust that are `proved` so."""

    robust: int = 0
    proved: int = 0
    broken: int = 0

    @property
    def undecided(self) -> int:
        """Examples that are neither broken nor proved robust."""
        return self.robust - self.proved

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.robust + other.robust, self.proved + other.proved, self.broken + other.broken)
