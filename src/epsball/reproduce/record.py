"""What a reproduced experiment hands back: figures beside the paper's, a picture, and all of it as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from epsball.common.errors import BadInput

if TYPE_CHECKING:
    from epsball.reproduce.nets import Nets

Figures = tuple[float | None, ...]
"""In percent, one under each head; None where there is none."""


@dataclass(frozen=True)
class Line:
    """One line of an experiment's table: `said` is what was done, `ours` what came of it, `paper` what is published.

    `source` says whose published figures they are.
    """

    said: str
    ours: Figures | None
    paper: Figures | None = None
    source: str = "the paper"


class Missing(BadInput):
    """An experiment's data are not there: it is left out where it was not asked for by name."""


class Reproduction(Protocol):
    """What every experiment returns; its record is frozen, with seed and versions in `config`."""

    @property
    def title(self) -> str:
        """What was done, in at most 80 characters."""
        ...

    @property
    def heads(self) -> tuple[str, ...]:
        """What the columns of the table are."""
        ...

    @property
    def lines(self) -> tuple[Line, ...]:
        """The table."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know to compare, one sentence or more each."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """On what, with what, of which versions."""
        ...

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them."""
        ...

    def to_json(self) -> str:
        """All of it as JSON."""
        ...

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG."""
        ...


def shared_notes(found: Iterable[Reproduction]) -> tuple[str, ...]:
    """The notes that more than one experiment has, which need not be read twice."""
    counts = Counter(note for record in found for note in record.notes)
    return tuple(note for note, count in counts.items() if count > 1)


class Experiment(Protocol):
    """What a table of experiments holds. `nets` holds the examples, and what was trained for the experiments before.

    `on_progress` is called with what is done, of how many, and what is next. Raises `Missing`.
    """

    def __call__(self, nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Reproduction: ...


@dataclass(frozen=True)
class Tile:
    """A small picture: its pixels flat, rounded to 4 digits; what is said below it; whether that is a mistake."""

    pixels: tuple[float, ...]
    said: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Strip:
    """A row of small pictures of one kind, of `shape` (c, h, w), with the values that are black and white.

    `signed` is drawn with red for the positive and blue for the negative values.
    """

    said: str
    shape: tuple[int, ...]
    low: float
    high: float
    tiles: tuple[Tile, ...]
    signed: bool = False


@dataclass(frozen=True, kw_only=True)
class Measured:
    """An experiment whose record is its table, and pictures."""

    title: str
    heads: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    strips: tuple[Strip, ...]
    config: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """The figures without the pixels, as JSON can hold them."""
        lines = [asdict(line) for line in self.lines]
        return {"heads": list(self.heads), "lines": lines, "config": self.config}

    def to_json(self) -> str:
        """As JSON, with the pixels; `from_json` gives an equal record."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        strips = tuple(
            Strip(
                **strip
                | {
                    "shape": tuple(strip["shape"]),
                    "tiles": tuple(Tile(**tile | {"pixels": tuple(tile["pixels"])}) for tile in strip["tiles"]),
                }
            )
            for strip in record["strips"]
        )
        lines = tuple(
            Line(**line | {who: None if line[who] is None else tuple(line[who]) for who in ("ours", "paper")})
            for line in record["lines"]
        )
        heads, notes = tuple(record["heads"]), tuple(record["notes"])
        return cls(**record | {"heads": heads, "notes": notes, "lines": lines, "strips": strips})

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: bars of our figures and the paper's, and below them the pictures."""
        from epsball.reproduce.measured_pictures import draw_measured

        draw_measured(self, path, self.strips)
