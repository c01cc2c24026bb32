"""A table with a target column, from CSV, parquet or npz, becomes numbers; and numbers become a table again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from jaxtyping import Float, Shaped

from epsball.common.atomic_files import write_whole
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.limits import check_arrays, check_columns, check_file
from epsball.data.arrow_files import read_arrow
from epsball.data.columns import SHOWN, listed, numbers, targets
from epsball.data.sampling import check_limits, taken_rows

KINDS = (".csv", ".tsv", ".parquet", ".npz")
MOST_HEADER = 1 << 20
"""Bytes of the first line of a table."""
INDEX_NAMES = ("", "__index_level_0__")
"""What pandas calls row numbers that it writes beside the columns."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of finite numbers `x` (n, d) with their target `y` (n,): text, whole numbers, booleans or float64.

    `features` are the d column names, `target` the name of the target's column, `name` the file.
    """

    x: Float[np.ndarray, "n d"]
    y: Shaped[np.ndarray, " n"]
    features: tuple[str, ...]
    target: str
    name: str

    def __len__(self) -> int:
        return len(self.y)


def read_table(
    path: str | Path,
    target: str | None = None,
    *,
    features: Sequence[str] | None = None,
    drop: Sequence[str] = (),
    limit: int | None = None,
    first: int | None = None,
) -> Table:
    """The table in a file, its rows in order.

    `limit` >= 1 takes a sample of so many rows, in which each class of the target has its share (where the target holds
    fractions, any rows): always the same ones. `first` >= 1 takes the first rows instead.

    - `.csv` or `.tsv`: UTF-8 with a header; comma, semicolon or tab, whichever the header has most of. Empty cells and
      NA, NaN, null and the like are missing values.
    - `.parquet`
    - `.npz`: arrays `x` (n, ...), flattened to (n, d), with columns x0, x1, ..., and `y` (n,); uint8 is divided by 255.

    `target` names the column to predict (npz: the array, default "y"). The features are all other columns but those in
    `drop`; or just `features`, in that order, whatever else there is. Booleans count as 0 and 1.

    Raises `BadInput` for files and columns that are not there, columns that are not numeric, values that are missing,
    infinite, or whole numbers that float64 cannot tell apart (> 2^53), and tables without rows.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "t.csv"
    ...     _ = path.write_text("size;ripe;fruit\\n7.5;true;apple\\n2;false;plum\\n")
    ...     table = read_table(path, "fruit")
    >>> table.features, table.x.tolist(), table.y.tolist()
    (('size', 'ripe'), [[7.5, 1.0], [2.0, 0.0]], ['apple', 'plum'])
    """
    check_limits(limit, first)
    path = Path(path).expanduser()
    check_one_of("data", path.suffix, KINDS)
    if not path.is_file():
        near = get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], 1, 0.75)
        raise BadInput(f"`data` must be a file, got {str(path)!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    columns, target = _npz(path, target) if path.suffix == ".npz" else (read_columns(path), target)
    names = columns.column_names
    check_names(names, str(path))
    if target is None:
        raise BadInput(f"`target` must name the column to predict; {path} has {listed(names)}")
    for argument, wanted in (("target", [target]), ("drop", drop), ("data", features or ())):
        _there(argument, wanted, names, path)
    if features is None:
        features = [name for name in names if name != target and name not in drop]
        index = [name for name in features if name in INDEX_NAMES]
        if index:
            raise BadInput(
                f"`data` must name its columns, but {path} has one called {index[0]!r}: row numbers, as pandas writes "
                f"them? leave it out with --drop {index[0] or repr('')}"
            )
    if not features:
        raise BadInput(f"`data` must have a column beside the target {target!r}, got none; name fewer in --drop")
    if not len(columns):
        raise BadInput(f"`data` must have at least one row, but {path} has none")
    columns = columns.select([*features, target]).slice(0, first)
    x, y = numbers(columns.select(list(features)), str(path), _dropping), targets(columns, target)
    rows = taken_rows(np.zeros(len(y)) if y.dtype.kind == "f" else y, limit)
    x, y = (x, y) if rows is None else (x[rows], y[rows])
    return Table(x, y, tuple(features), target, str(path))


def write_table(path: str | Path, columns: Mapping[str, Any]) -> None:
    """Write columns of one length, arrays or lists, as `.csv` or `.parquet`: the whole file or none."""
    path, table = Path(path), pa.table(dict(columns))
    write = pyarrow.csv.write_csv if output_kind(path, (".csv", ".parquet")) == ".csv" else pyarrow.parquet.write_table
    write_whole(path, lambda draft: write(table, draft))


def output_kind(path: Path, known: Iterable[str]) -> str:
    """The ending of a file to write, if it is among `known`: said before the work is done."""
    return check_one_of("out", path.suffix, known)


def read_columns(path: Path) -> pa.Table:
    """All columns of a `.csv`, `.tsv`, `.parquet` or `.arrow` file, as they are."""
    with _refusing(path):
        if path.suffix == ".parquet":
            with _parquet(path) as table:
                return table.read()
        if path.suffix == ".arrow":
            return read_arrow(path)
        check_file(path)
        with open(path, "rb") as file:
            header = file.readline(MOST_HEADER)
        if len(header) == MOST_HEADER:
            raise BadInput(f"`data` must begin with the names of its columns, but {str(path)!r} has no end of a line")
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=max(",;\t", key=lambda mark: header.count(mark.encode())), newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(strings_can_be_null=True),
        )


def parquet_schema(path: Path) -> pa.Schema:
    """The names and types of the columns of a `.parquet` file, none of which is read."""
    with _refusing(path), _parquet(path) as table:
        return table.schema_arrow


@contextmanager
def _parquet(path: Path) -> Iterator[pyarrow.parquet.ParquetFile]:
    with pyarrow.parquet.ParquetFile(path) as table:
        check_columns(path, table.metadata)
        yield table


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """With `BadInput` for what a reader raises."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        raise BadInput(f"`data` must be a {path.suffix[1:]} table, but {str(path)!r} cannot be read: {why}") from error


def check_names(names: Sequence[str], table: str) -> None:
    """Raise `BadInput` where two columns of a table have one name."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(
            f"`data` must have one column of each name, but {table} has several {listed(twice)}; rename them"
        )


def _npz(path: Path, target: str | None) -> tuple[pa.Table, str]:
    target = target or "y"
    try:
        check_arrays(path)
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays[check_one_of("target", target, [name for name in arrays if name != "x"])]
    except BadInput:
        raise
    except Exception as error:  # whatever numpy's reader stumbles over in a broken file
        raise BadInput(f"`data` must hold plain arrays x and y, but {str(path)!r} does not: {error}") from error
    if not isinstance(x, np.ndarray) or not isinstance(y, np.ndarray):
        raise BadInput(f"`data` must hold plain arrays x and {target}, but {str(path)!r} holds other files")
    if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
        raise BadInput(f"`data` must hold x (n, d) and {target} (n,), got {x.shape} and {y.shape}; one row per example")
    x = x.reshape(len(x), -1)
    if x.dtype == np.uint8:
        x = x / 255
    names = [f"x{place}" for place in range(x.shape[1])]
    try:
        return pa.table([pa.array(column) for column in [*x.T, y]], names=[*names, target]), target
    except pa.ArrowException as error:
        raise BadInput(
            f"`data` must hold numbers, but x is {x.dtype} and {target} {y.dtype} in {str(path)!r}; convert them"
        ) from error


def _there(argument: str, wanted: Sequence[str], names: Sequence[str], path: Path) -> None:
    missing = [name for name in wanted if name not in names]
    if not missing:
        return
    near = get_close_matches(missing[0], names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    asked = "`data` must have the columns of the model" if argument == "data" else f"`{argument}` must name a column"
    raise BadInput(f"{asked}, but {path} lacks {listed(missing)}{hint} It has {listed(names)}")


def _dropping(names: Iterable[str]) -> str:
    """How to leave columns out, for an error."""
    names = list(names)
    quoted = [name if name.replace("_", "").isalnum() else f'"{name}"' for name in names[:SHOWN]]
    which = "it" if len(names) == 1 else "them"
    return f"leave {which} out with --drop {' '.join(quoted)}" + (" ..." if len(names) > SHOWN else "")
