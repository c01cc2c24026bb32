"""What the commands on tables share: which table, and how results are printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from epsball.linear.table_config import Names

if TYPE_CHECKING:
    from epsball.data.tables import Table


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Rows:
    """The table.

    Parameters
    ----------
    data
        A .csv (with a header), .tsv, .parquet, or .npz file (arrays x and y). Features must be numeric.
    target
        The column to predict: text, whole numbers or booleans are classes, fractions are for regression.
    drop
        Columns to leave out.
    limit
        Take a sample of so many rows, with each class's share; the same ones whatever the seed.
    first
        Take the first rows instead.
    config
        A TOML file with the values of options left out.
    """

    data: Path
    target: str | None = None
    drop: Names = ()
    limit: int | None = None
    first: int | None = None
    config: Path | None = None

    def read(self, features: tuple[str, ...] | None = None) -> Table:
        """The table; only the columns `features`, where they are known."""
        from epsball.data.tables import read_table

        takes = {"features": features, "drop": self.drop, "limit": self.limit, "first": self.first}
        return read_table(self.data, self.target, **takes)

    def described(self, table: Table) -> tuple[str, str]:
        """The table as a line for `print_lines`."""
        features = f"{len(table.features):,} feature{'s' * (len(table.features) > 1)}"
        return "data", escape(f"{table.name}: {len(table):,} rows, {features}, target {table.target!r}")


def print_lines(console: Console, *lines: tuple[str, str]) -> None:
    """Print a name and a line of markup each."""
    for name, line in lines:
        console.print(f"[dim]{name:<6}[/] {line}", soft_wrap=True)


def print_json(record: dict[str, Any]) -> None:
    """Print a record on stdout."""
    print(json.dumps(record, indent=2, default=str))


def grid(*heads: str, **column: Any) -> Grid:
    """A table without lines, its columns formatted alike."""
    table = Grid(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, **column)
    return table
