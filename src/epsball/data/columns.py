"""Columns of a table as numbers, and its target as labels, for every reader of tables.

What is no number is refused with its column, its first value and the way out; nothing is guessed, filled in or encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Shaped

from epsball.common.errors import BadInput

EXACT = 1 << 53
"""Beyond it float64 does not hold every whole number."""
SHOWN = 12
"""So many names of columns are in an error."""
LeavingOut = Callable[[Iterable[str]], str]
"""From the names of columns to how one leaves them out, for an error: "leave them out with --drop a b"."""


def numbers(columns: pa.Table, name: str, leaving_out: LeavingOut) -> Float[np.ndarray, "n d"]:
    """The columns of the table `name` as float64, or one error for all of a kind."""
    plain = {column: _decoded(columns[column]) for column in columns.column_names}
    odd = {column: values for column, values in plain.items() if not _numeric(values.type)}
    if odd:
        found = ", ".join(f"{column!r} (first: {_offending(values)})" for column, values in list(odd.items())[:SHOWN])
        raise BadInput(
            f"`data` must have numeric columns, but these of {name} are not: {found}{_more(odd)}; encode them, "
            f"or {leaving_out(odd)}"
        )
    x = np.empty((len(columns), len(plain)))
    absent, endless, vast = {}, [], []
    for place, (column, values) in enumerate(plain.items()):
        if pa.types.is_integer(values.type) and values.null_count < len(values):
            whole = values.drop_null().to_numpy()
            if max(-int(whole.min()), int(whole.max())) > EXACT:
                vast.append(column)
                continue
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.uint8())
        x[:, place] = values.cast(pa.float64(), safe=False).to_numpy()
        missing = np.flatnonzero(np.isnan(x[:, place]))
        if len(missing):
            absent[column] = f"{column!r} lacks {len(missing)} (first: row {missing[0]})"
        elif not np.isfinite(x[:, place]).all():
            endless.append(column)
    if vast:
        raise BadInput(
            f"`data` must have numbers that float64 holds, but {listed(vast)} of {name} has whole numbers beyond "
            f"2^53: an identifier? {leaving_out(vast)}"
        )
    if absent:
        found = ", ".join(list(absent.values())[:SHOWN])
        raise BadInput(
            f"`data` must have every value, but of {len(columns)} rows of {name} {found}{_more(absent)}; fill them in, "
            f"drop the rows, or {leaving_out(absent)}"
        )
    if endless:
        raise BadInput(
            f"`data` must be finite, but {listed(endless)} of {name} holds infinity; replace it, or "
            f"{leaving_out(endless)}"
        )
    return x


def targets(columns: pa.Table, column: str, argument: str = "target") -> Shaped[np.ndarray, " n"]:
    """The column that `argument` names, as text, int64, bool or float64: a value in every row."""
    values = _decoded(columns[column])
    kind = values.type
    rows = np.flatnonzero(values.is_null(nan_is_null=True).to_numpy())
    if len(rows):
        raise BadInput(
            f"`{argument}` must have every value, but {column!r} lacks {len(rows)} of {len(values)} (first: row "
            f"{rows[0]}); drop those rows"
        )
    if pa.types.is_boolean(kind):
        return values.to_numpy()
    if _is_text(kind):
        return np.array(values.to_pylist(), dtype=str)
    if not _numeric(kind):
        raise BadInput(f"`{argument}` must be text, numbers or booleans, but {column!r} is {kind}; encode it")
    try:
        found = values.cast(pa.int64() if pa.types.is_integer(kind) else pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise BadInput(f"`{argument}` must fit into 64 bits, but {column!r} does not: {error}") from error
    if not np.isfinite(found).all():
        raise BadInput(f"`{argument}` must be finite, but {column!r} holds infinity; drop those rows")
    return found


def labels_of(columns: pa.Table, column: str) -> tuple[Shaped[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """As `targets`, for a column of labels that may lack some: the values, those of other rows where they are missing.

    Raises `BadInput` where all are.
    """
    values = _decoded(columns[column])
    missing = values.is_null(nan_is_null=True).to_numpy()
    if not missing.all():
        values = values.filter(pa.array(~missing)).take(pa.array(np.maximum(np.cumsum(~missing) - 1, 0)))
    return targets(pa.table({column: values}), column, "label_column"), missing


def is_numeric(column: pa.ChunkedArray) -> bool:
    """Whether it holds numbers or booleans, also as categories."""
    return _numeric(_decoded(column).type)


def listed(names: Sequence[str]) -> str:
    """Names for an error, the first of many."""
    return ", ".join(map(repr, names[:SHOWN])) + _more(names)


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without a dictionary (what pandas calls a category), and halves as floats."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column


def _numeric(kind: pa.DataType) -> bool:
    # A column of nothing is numeric: its values are missing.
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_boolean, pa.types.is_null)
    return any(test(kind) for test in tests)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _offending(column: pa.ChunkedArray) -> str:
    """The first value that is no number, with its row."""
    first = None
    for row, value in enumerate(column):
        said = value.as_py()
        if said is None:
            continue
        shown = repr(said) if isinstance(said, str) else str(said)
        shown = f"{shown if len(shown) <= 40 else shown[:37] + '...'} in row {row}"
        if not (isinstance(said, str) and _reads(said)):
            return shown
        first = first or f"{shown}, as text"
    return first or "missing"


def _reads(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _more(names: Any) -> str:
    return f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
