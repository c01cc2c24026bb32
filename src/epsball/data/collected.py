"""Examples out of whatever holds inputs and labels: (x, y), torch's `Dataset` and `DataLoader`, `datasets.Dataset`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset

from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.data.image_datasets import of_split
from epsball.data.tensors import tensor_of
from epsball.models.preparation import Preparation

INPUTS = ("x", "image", "img", "pixel_values", "input", "inputs")
LABELS = ("y", "label", "labels", "fine_label", "target")
"""The names of the two parts where a data set gives its rows as dictionaries."""
ROWS = 256
"""Rows that are put together at a time."""
KINDS = "Examples, (x, y), a data frame, a torch Dataset or DataLoader, or a datasets.Dataset"


def examples_of(data: Any, preparation: Preparation | None = None) -> Examples:
    """The examples that a caller hands over as `data`: this is the door of every function that takes some.

    - `Examples`, as they are;
    - (x, y), or a mapping with x and y, as `from_arrays` takes them;
    - a `Dataset` of pairs (x, y), or of dictionaries with an input and a label; ids are row numbers, and where it has
      `classes` these are the names of the labels;
    - a `DataLoader`: the rows that its sampler draws, in the order of its data set and with their row numbers as ids,
      so that shuffling changes nothing; `drop_last` drops nothing;
    - a `datasets.Dataset` with an image and a label column, or of a table; one with a transform gives rows. Images go
      through `preparation`, as in `load_data`;
    - a data frame (pandas, polars, pyarrow) with the labels in one of its columns, alone or as (frame, label column).

    Everything is held in memory. Raises `BadInput` for anything else, and where rows do not fit together.

    >>> examples_of(TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 0]))).y
    tensor([0, 1, 0])
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, DataLoader):
        return _of_loader(data)
    library = sys.modules.get("datasets")
    if library is not None and isinstance(data, getattr(library, "Dataset", ())):
        if data.format["type"] == "custom":  # a transform makes the rows
            return _of_dataset(data, None, None)
        return of_split(data, "a datasets.Dataset", lambda y: None, preparation=preparation).whole()
    if library is not None and isinstance(data, getattr(library, "IterableDataset", ())):
        raise BadInput(
            f"`data` must be {KINDS} with a known length, got a datasets.IterableDataset; write "
            "datasets.Dataset.from_list(list(data.take(1000)))"
        )
    if isinstance(data, Dataset):
        return _of_dataset(data, None, None)
    if _is_frame(data):
        return _of_frame(data, None)
    if isinstance(data, tuple | list) and len(data) == 2 and _is_frame(data[0]) and isinstance(data[1], str):
        return _of_frame(data[0], data[1])
    if isinstance(data, Mapping):
        x, y = _pair(data, "`data`")
        return from_arrays(x, y)
    if isinstance(data, tuple | list) and len(data) == 2 and not all(map(_is_batch, data)):
        return from_arrays(*data)
    raise BadInput(f"`data` must be {KINDS}, got {_described(data)}")


def _is_frame(data: Any) -> bool:
    """Whether it is a table in memory: pandas, polars, pyarrow."""
    return hasattr(data, "columns") and hasattr(data, "__arrow_c_stream__")


def _of_frame(frame: Any, label_column: str | None) -> Examples:
    from epsball.data.table_examples import examples_of_frame

    return examples_of_frame(frame, label_column)


def _described(data: Any) -> str:
    """What was handed over, and what to write instead."""
    if isinstance(data, tuple | list):
        kind = f"a {type(data).__name__} of {len(data)}"
        if len(data) and all(map(_is_batch, data)):
            return f"{kind} batches; hand over the DataLoader itself"
        return f"{kind}; write (x, y)"
    kind = type(data).__name__
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        return f"{kind} alone; write (x, y), the examples and their labels as one argument"
    return f"{kind}; write (x, y)"


def _batch(collate: Any, rows: list[Any]) -> Any:
    """The rows as a batch, as the loader puts them together."""
    try:
        return collate(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"`data` must have rows that its DataLoader can put together, but its collate_fn says: {error}; make the "
            "rows tensors of one shape"
        ) from error


def _is_batch(one: Any) -> bool:
    """Whether it looks like a batch of a loader: inputs, and one label for each."""
    return (
        isinstance(one, tuple | list) and len(one) == 2 and all(isinstance(part, Tensor) for part in one)
        and one[0].ndim > 1 and one[1].ndim == 1 and len(one[0]) == len(one[1])
    )  # fmt: skip


def _of_loader(loader: DataLoader) -> Examples:
    """The rows that the loader's sampler draws."""
    if isinstance(loader.dataset, IterableDataset):
        raise BadInput(_no_length(loader.dataset))
    if loader.batch_size is None and loader.batch_sampler is None:  # its data set gives whole batches
        with torch.random.fork_rng(devices=[]):  # it draws a seed for its workers
            parts = [_pair(batch, "a batch of the DataLoader") for batch in loader]
        if not parts:
            raise BadInput("`data` must hold at least one example, got an empty DataLoader; look at its data set")
        x, y = ([tensor_of("data", pair[side]) for pair in parts] for side in (0, 1))
        return from_arrays(torch.cat(x), torch.cat(y), name="DataLoader")
    own = loader.batch_size is None  # a batch sampler of the caller's
    drawn: Any = loader.batch_sampler if own else loader.sampler
    if not own and isinstance(drawn, SequentialSampler):
        return _of_dataset(loader.dataset, None, loader.collate_fn)
    with torch.random.fork_rng(devices=[]):  # a random sampler draws
        rows = sorted(row for batch in drawn for row in batch) if own else sorted(drawn)
    if len(set(rows)) < len(rows):
        raise BadInput(
            f"`data` must hold each example once, but the sampler {type(loader.sampler).__name__} of the DataLoader "
            "draws some twice; hand over loader.dataset"
        )
    return _of_dataset(loader.dataset, rows, loader.collate_fn)


def _no_length(dataset: Any) -> str:
    return (
        f"`data` must be {KINDS} with a known length, got the iterable data set {type(dataset).__name__}; write "
        "`tuple(zip(*itertools.islice(dataset, 1000)))`"
    )


def _of_dataset(dataset: Any, rows: Sequence[int] | None, collate: Any) -> Examples:
    """The rows of a data set (None: all), put together by a loader's `collate`, or one by one."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise BadInput(_no_length(dataset))
    names = _class_names(dataset)
    everything = rows is None
    rows = range(len(dataset)) if rows is None else rows
    if not len(rows):
        raise BadInput("`data` must hold at least one example, got an empty data set; look at its split and limit")
    if everything and collate is None and isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        x, y = dataset.tensors
    else:
        x, y = _gathered(dataset, rows, collate)
    examples = from_arrays(x, y, ids=torch.tensor(list(rows)), name=type(dataset).__name__)
    if names is None or len(names) < examples.classes:
        return examples
    return replace(examples, label_names=names, classes=len(names))


def _gathered(dataset: Any, rows: Sequence[int], collate: Any) -> tuple[Any, Any]:
    x: list[Any] = []
    y: list[Any] = []
    for start in range(0, len(rows), ROWS):
        part = [dataset[row] for row in rows[start : start + ROWS]]
        if collate is None:
            pairs = [_pair(one, f"a row of {type(dataset).__name__}") for one in part]
            x += [tensor_of("x", one[0]) if isinstance(one[0], list | tuple) else one[0] for one in pairs]
            y += [one[1] for one in pairs]
        else:
            inputs, labels = _pair(_batch(collate, part), "a batch of the DataLoader")
            x.append(tensor_of("x", inputs))
            y.append(tensor_of("y", labels))
    return (x, y) if collate is None else (torch.cat(x), torch.cat(y))


def _pair(row: Any, what: str) -> tuple[Any, Any]:
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


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    """The names of the classes, where the data set (or what it is a subset of) has a list `classes` of texts."""
    while True:
        found = getattr(dataset, "classes", None)
        if isinstance(found, list | tuple) and found and all(isinstance(one, str) for one in found):
            return tuple(found)
        inner = getattr(dataset, "dataset", None)
        if not isinstance(inner, Dataset):
            return None
        dataset = inner
