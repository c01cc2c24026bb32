"""The rows of data sets as torch has them: pairs, or dictionaries with an input and a label, alone or put together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from epsball.common.errors import BadInput
from epsball.data.labels import labels
from epsball.data.tensors import is_image, tensor_of

INPUTS = ("x", "image", "img", "pixel_values", "input", "inputs")
LABELS = ("y", "label", "labels", "fine_label", "target")
"""The names of the two parts where a data set gives its rows as dictionaries."""


def input_and_label(row: Any, what: str) -> tuple[Tensor, int]:
    """The input of a row as a tensor, and its label, -1 where that is missing. `what` is the row, for an error.

    Raises `BadInput` for what is no such pair, and for labels that are no class.
    """
    x, y = pair_of(row, what)
    x = tensor_of("x", [x])[0] if is_image(x) else tensor_of("x", x)
    return x, label_of(y)


def label_of(y: Any) -> int:
    """A label of whatever kind as the number of a class, -1 where there is none."""
    if y is None:
        return -1
    array = isinstance(y, Tensor | np.ndarray | np.generic)
    if isinstance(y, int | float) or (array and math.prod(y.shape) == 1):
        value = float(y)
        if math.isnan(value):
            return -1
        if value.is_integer():
            return int(value)
    return int(labels("y", tensor_of("y", y)[None] if array else [y], torch.empty(1))[0])


def batch_of(collate: Any, rows: list[Any]) -> Any:
    """The rows as a batch, as the loader puts them together."""
    try:
        return collate(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"`data` must have rows that its DataLoader can put together, but its collate_fn says: {error}; make the "
            "rows tensors of one shape"
        ) from error


def pair_of(row: Any, what: str) -> tuple[Any, Any]:
    """The input and the label of a row, or of a batch."""
    if isinstance(row, tuple | list) and len(row) == 2:
        return row[0], row[1]
    if isinstance(row, Mapping):
        x, y = (next((key for key in keys if key in row), None) for keys in (INPUTS, LABELS))
        if x is not None and y is not None:
            return row[x], row[y]
        got = f"keys {', '.join(map(str, row))}"
        split = next((key for key in ("test", "validation", "train") if key in row), None)
        remedy = "name them 'x' and 'y'" if split is None else f"one split is data[{split!r}]"
        raise BadInput(f"`data` must give (x, y) or the keys x and y, but {what} has the {got}; {remedy}")
    got = f"{len(row)} parts" if isinstance(row, tuple | list) else type(row).__name__
    raise BadInput(f"`data` must give pairs of an input and a label, but {what} has {got}; write (x, y)")


def is_batch(one: Any) -> bool:
    """Whether it looks like a batch of a loader: inputs, and one label for each."""
    return (
        isinstance(one, tuple | list) and len(one) == 2 and all(isinstance(part, Tensor) for part in one)
        and one[0].ndim > 1 and one[1].ndim == 1 and len(one[0]) == len(one[1])
    )  # fmt: skip


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """The names of the classes, where the data set (or what it is a subset of) has a list `classes` of texts."""
    while True:
        found = getattr(dataset, "classes", None)
        if isinstance(found, list | tuple) and found and all(isinstance(one, str) for one in found):
            return tuple(found)
        inner = getattr(dataset, "dataset", None)
        if not isinstance(inner, Dataset):
            return None
        dataset = inner
