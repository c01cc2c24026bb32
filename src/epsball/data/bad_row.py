"""A row of the data that cannot be used. Needs no torch: reports list such rows."""

from __future__ import annotations

from dataclasses import dataclass

from epsball.common.record import Record


@dataclass(frozen=True)
class BadRow(Record):
    """A row that cannot be used: its id, its file or "row 17 of NAME", and why."""

    id: int
    name: str
    reason: str
