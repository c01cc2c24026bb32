"""The record of a reproduced experiment: a table of our figures beside the paper's, small pictures, notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from epsball.common.errors import BadInput
from epsball.common.record import Record

Figures = tuple[float | None, ...]
"""In percent, one for each column of the table; None where there is none."""


class Missing(BadInput):
    """The data of an experiment are not there: it is left out, unless it was asked for by name."""


@dataclass(frozen=True)
class Line(Record):
    """One line of an experiment's table: a label, our figures, the published ones, and whose those are."""

    label: str
    ours: Figures | None
    paper: Figures | None = None
    source: str = "the paper"


@dataclass(frozen=True)
class Tile(Record):
    """A small picture: its pixels, flat and rounded to 4 digits; its caption; whether the prediction is wrong."""

    pixels: tuple[float, ...]
    caption: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Strip(Record):
    """A row of small pictures of `shape` (c, h, w), with the values that are black and white.

    `signed` pictures are drawn with red for positive and blue for negative values.
    """

    label: str
    shape: tuple[int, ...]
    low: float
    high: float
    tiles: tuple[Tile, ...]
    signed: bool = False


@dataclass(frozen=True, kw_only=True)
class Reproduction(Record):
    """The record of an experiment. Experiments with more to keep add fields.

    `title` has at most 80 characters; `columns` are those of the table `lines`, in percent; `notes` are sentences that
    a reader needs in order to compare; `config` says on what data, with what budget, of which versions.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    config: dict[str, Any]
    strips: tuple[Strip, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The figures without pixels and weights, as JSON can hold them."""
        record = self.to_record()
        return {name: record[name] for name in ("columns", "lines", "config")}


def shared_notes(found: Iterable[Reproduction]) -> tuple[str, ...]:
    """The notes of more than one experiment, which need not be read twice."""
    counts = Counter(note for record in found for note in record.notes)
    return tuple(note for note, count in counts.items() if count > 1)
