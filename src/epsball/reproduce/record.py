"""What a reproduced experiment hands back: figures beside the paper's, a picture, and all of it as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from epsball.reproduce.nets import Nets


@dataclass(frozen=True)
class Line:
    """One line of an experiment's table: `values` in percent under the experiment's `heads`, None where none is known.

    `said` says what was trained; `published` whether the figures are the paper's or ours.
    """

    said: str
    values: tuple[float | None, ...]
    published: bool


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
        """The table: the paper's lines first."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know to compare, one sentence or more each."""
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


class Experiment(Protocol):
    """What a table of experiments holds. `nets` holds the examples, and what was trained for the experiments before.

    `on_progress` is called with what is done, of how many, and what is next.
    """

    def __call__(self, nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Reproduction: ...
