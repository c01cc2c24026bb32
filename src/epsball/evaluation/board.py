"""Where the workers of a run write how far they are. It needs no torch: the process that holds it stays small."""

from __future__ import annotations


class Board:
    """The last report of each shard: its stage, and the examples that are robust so far. It is a Ray actor."""

    def __init__(self) -> None:
        self.reports: dict[int, tuple[str, int]] = {}

    def report(self, shard: int, stage: str, robust: int) -> None:
        """Take a report of a shard, which is the newest then."""
        self.reports.pop(shard, None)
        self.reports[shard] = stage, robust

    def read(self) -> dict[int, tuple[str, int]]:
        """The reports, the newest last."""
        return self.reports
