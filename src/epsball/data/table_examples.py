"""Examples from tables: the numeric columns are the features, one column holds the labels.

The door of tables in files, of data frames, and of data sets without images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.columns import is_numeric, listed, numbers, targets
from epsball.data.examples import Examples
from epsball.data.labels import class_indices
from epsball.data.sampling import Take
from epsball.data.tables import INDEX_NAMES, check_names

LABELS = ("label", "labels", "y", "target", "class")
"""What columns of labels are called, in small letters."""


def examples_of_frame(frame: Any, label_column: str | None = None) -> Examples:
    """The rows of a data frame (pandas, polars, pyarrow), whose index plays no part."""
    kind = type(frame).__name__
    try:
        columns = pa.Table.from_pandas(frame, preserve_index=False) if hasattr(frame, "iloc") else pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise BadInput(
            f"`data` must have columns of one type each, but this {kind} has not: {error}; convert them"
        ) from error
    return examples_of_table(columns, f"a {kind}", lambda y: None, label_column)


def examples_of_table(
    columns: pa.Table,
    name: str,
    take: Take,
    label_column: str | None = None,
    class_names: Mapping[str, Sequence[str]] | None = None,
) -> Examples:
    """The rows of a table that `take` takes: float64 `x` (n, d) in no box, labels by number or by name.

    The label is `label_column`, or else the only column of those with `class_names`, or with a usual name, or that is
    not numeric. Names of classes are numbered as they are sorted. All other columns are features: numbers, or one
    column of lists of one shape, which is x as it is.

    Raises `BadInput` where that leaves a doubt, and for features that are not numeric, missing or infinite.
    """
    check_names(columns.column_names, name)
    class_names = class_names or {}
    if not len(columns):
        raise BadInput(f"`data` must have at least one row, but {name} has none; take another file or split")
    label = _label(columns, label_column, class_names)
    y, names = class_indices(targets(columns, label, "label_column"), label)
    names = class_names.get(label, names)
    rows = take(y)
    features = columns.drop_columns(label)
    x = _features(features, name)
    x, y = (x, y) if rows is None else (x[rows], y[rows])
    found = from_arrays(x, y, ids=rows, name=name, label_names=names)
    named = found.shape == (len(features.column_names),) and not _is_list(features[0].type)
    return replace(found, feature_names=tuple(features.column_names)) if named else found


def _label(columns: pa.Table, label_column: str | None, class_names: Mapping[str, Any]) -> str:
    """The column of the labels."""
    names = columns.column_names
    if label_column is not None:
        return check_one_of("label_column", label_column, names)
    usual = [name for name in names if name.lower() in LABELS]
    others = [name for name in names if not is_numeric(columns[name]) and not _is_list(columns[name].type)]
    for found in (list(class_names), usual, others):
        if len(found) == 1:
            return found[0]
    what = f"is one of {', '.join(usual)}" if usual else "was not found"
    raise BadInput(f"`label_column` {what} among the columns {listed(names)}; name it with --label-column")


def _features(columns: pa.Table, name: str) -> np.ndarray:
    names = columns.column_names
    if not names:
        raise BadInput(f"`data` must have a column beside the labels, but {name} has none; add the features")
    if len(names) == 1 and _is_list(columns[0].type):
        return _array(columns[0], names[0])
    index = [one for one in names if one in INDEX_NAMES]
    if index:
        raise BadInput(
            f"`data` must name its columns, but {name} has one called {index[0]!r}: row numbers, as pandas writes "
            "them? leave it out of the data, as to_csv(index=False) does"
        )
    return numbers(columns, name, _leaving_out)


def _leaving_out(names: Iterable[str]) -> str:
    return f"leave {'it' if len(list(names)) == 1 else 'them'} out of the data"


def _array(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column of lists of one shape as an array (n, *shape), in the dtype of the numbers."""
    shape, values = [len(column)], column
    while _is_list(values.type):
        if isinstance(values.type, pa.BaseExtensionType):
            values = pa.chunked_array([chunk.storage for chunk in values.chunks])
        sizes = pc.call_function("list_value_length", [values]).unique().to_pylist()
        if len(sizes) != 1 or sizes[0] is None:
            raise BadInput(
                f"`data` must have lists of one length, but those of {name!r} have {listed(list(map(str, sizes)))}; "
                "pad them, or drop those rows"
            )
        shape.append(sizes[0])
        values = pc.call_function("list_flatten", [values])
    if not is_numeric(values) or values.null_count:
        raise BadInput(
            f"`data` must hold numbers, but the lists of {name!r} hold {values.type} or nothing; encode them"
        )
    return values.to_numpy().reshape(shape)


def _is_list(kind: pa.DataType) -> bool:
    storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(storage) for test in tests)


def holds_bytes(schema: pa.Schema) -> bool:
    """Whether a column may hold images: their bytes, alone or beside a path."""
    tests = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for kind in schema.types for test in tests)
