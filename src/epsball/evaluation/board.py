"""Where the workers of a run write how far they are. It needs no torch: the process that holds it stays small."""

from __future__ import annotations

from epsball.evaluation.counts import Counts


class Board:
    """The last report of each shard: its stage, and how many examples are broken, robust and proved so far.

    It is a Ray actor.
    """

    def __init__(self) -> None:
        self.reports: dict[int, tuple[str, Counts]] = {}

    def report(self, shard: int, stage: str, counts: Counts) -> None:
        """Take a report of a shard, which is the newest then."""
        self.reports.pop(shard, None)
        self.reports[shard] = stage, counts

    def read(self) -> dict[int, tuple[str, Counts]]:
        """The reports, the newest last."""
        return self.reports
