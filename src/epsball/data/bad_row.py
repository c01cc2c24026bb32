"""A row of the data that cannot be used. Needs no torch: reports list such rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epsball.common.record import Record


@dataclass(frozen=True)
class BadRow(Record):
    """A row that cannot be used: its id, its file or "row 17 of NAME", and why."""

    id: int
    name: str
    reason: str


def counted_bad_rows(rows: Sequence[BadRow]) -> str:
    """How many rows could not be used, in words; empty for none.

    >>> counted_bad_rows([BadRow(3, "a/3.png", "cut off")])
    '1 row could not be used'
    """
    return f"{len(rows):,} row{'s' if len(rows) > 1 else ''} could not be used" if rows else ""


def are_many(rows: Sequence[BadRow], usable: int) -> bool:
    """Whether rows that could not be used, beside so many that could, are more than a tenth of the data.

    >>> are_many([BadRow(3, "a/3.png", "cut off")], 9)
    False
    """
    return 9 * len(rows) > usable
