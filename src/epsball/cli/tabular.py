"""What the commands on tables share: which table, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.markup import escape

if TYPE_CHECKING:
    from epsball.data.tables import Table

Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")]


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
        Take only the first rows.
    """

    data: Path
    target: str | None = None
    drop: Names = ()
    limit: int | None = None

    def read(self, features: tuple[str, ...] | None = None) -> Table:
        """The table; only the columns `features`, where they are known."""
        from epsball.data.tables import read_table

        return read_table(self.data, self.target, features=features, drop=self.drop, limit=self.limit)


def described(table: Table) -> str:
    """The table in a line."""
    return escape(
        f"{table.name}: {len(table):,} rows, {len(table.features):,} feature{'s' * (len(table.features) > 1)}, "
        f"target {table.target!r}"
    )
