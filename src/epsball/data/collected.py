"""Examples out of whatever holds inputs and labels: (x, y), torch's `Dataset` and `DataLoader`, `datasets.Dataset`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, SequentialSampler, TensorDataset

from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.data.image_datasets import of_split
from epsball.data.lazy_examples import LazyExamples
from epsball.data.lazy_rows import lazy_rows
from epsball.data.pairs import class_names, is_batch, pair_of
from epsball.data.row_reading import RowReader
from epsball.data.spool import is_stream, of_hub, spooled
from epsball.data.tensors import tensor_of
from epsball.models.preparation import Preparation

KINDS = "Examples, (x, y), a data frame, a torch Dataset or DataLoader, or a datasets.Dataset"


def examples_of(data: Any, preparation: Preparation | None = None) -> Examples:
    """The examples that a caller hands over as `data`, in memory: the door of every function that takes some.

    Raises `BadInput` that names the rows that cannot be used, and for all that `lazy_examples_of` refuses.

    >>> examples_of(TensorDataset(torch.zeros(3, 2), torch.tensor([0, 1, 0]))).y
    tensor([0, 1, 0])
    """
    return lazy_examples_of(data, preparation).whole()


def lazy_examples_of(
    data: Any, preparation: Preparation | None = None, spool: Path | None = None
) -> Examples | LazyExamples:
    """The examples that a caller hands over as `data`; what is not in memory is read when it is asked for.

    - `Examples` and `LazyExamples`, as they are;
    - (x, y), or a mapping with x and y, as `from_arrays` takes them;
    - a `Dataset` of pairs (x, y), or of dictionaries with an input and a label; ids are row numbers, and where it has
      `classes` these are the names of the labels. Its labels are known at once where it has a list of them, as
      `targets`, `labels` or `tensors`;
    - a `DataLoader`: the rows that its sampler draws, in the order of its data set and with their row numbers as ids,
      so that shuffling changes nothing; `drop_last` drops nothing, and each row is put together by itself. With
      `num_workers` so many processes read the rows of a shard;
    - a `datasets.Dataset` with an image and a label column, or of a table; one with a transform gives rows. Images go
      through `preparation`, as in `load_data`;
    - a data frame (pandas, polars, pyarrow) with the labels in one of its columns, alone or as (frame, label column);
    - what can only be iterated over (an `IterableDataset` of torch or datasets, a `DataLoader` over one), where `spool`
      names a folder: its rows are written there once, and read from there.

    Raises `BadInput` for anything else, where no row can be used of those that are looked at, and where one of these is
    another row when it is read again.
    """
    if isinstance(data, Examples | LazyExamples):
        return data
    if is_stream(data):
        return _of_stream(data, preparation, spool)
    if isinstance(data, DataLoader):
        return _of_loader(data)
    library = sys.modules.get("datasets")
    if library is not None and isinstance(data, getattr(library, "Dataset", ())):
        if data.format["type"] == "custom":  # a transform makes the rows
            return lazy_rows(RowReader(data))
        return of_split(data, "a datasets.Dataset", lambda y: None, preparation=preparation)
    if isinstance(data, Dataset):
        return _of_dataset(data)
    if _is_frame(data):
        return _of_frame(data, None)
    if isinstance(data, tuple | list) and len(data) == 2 and _is_frame(data[0]) and isinstance(data[1], str):
        return _of_frame(data[0], data[1])
    if isinstance(data, Mapping):
        x, y = pair_of(data, "`data`")
        return from_arrays(x, y)
    if isinstance(data, tuple | list) and len(data) == 2 and not all(map(is_batch, data)):
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
        if len(data) and all(map(is_batch, data)):
            return f"{kind} batches; hand over the DataLoader itself"
        return f"{kind}; write (x, y)"
    kind = type(data).__name__
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        return f"{kind} alone; write (x, y), the examples and their labels as one argument"
    return f"{kind}; write (x, y)"


def _of_stream(data: Any, preparation: Preparation | None, spool: Path | None) -> Examples | LazyExamples:
    if spool is not None:
        return spooled(data, spool, preparation)
    dataset = data.dataset if isinstance(data, DataLoader) else data
    if not of_hub(dataset):
        kind, remedy = f"the iterable data set {type(dataset).__name__}", "tuple(zip(*itertools.islice(dataset, 1000)))"
    else:
        kind, remedy = "a datasets.IterableDataset", "datasets.Dataset.from_list(list(data.take(1000)))"
    raise BadInput(
        f"`data` must be {KINDS} with a known length, got {kind}; name a `run_dir` for `evaluate`, where it keeps "
        f"the rows, or write {remedy}"
    )


def _of_loader(loader: DataLoader) -> Examples | LazyExamples:
    """The rows that the loader's sampler draws."""
    if loader.batch_size is None and loader.batch_sampler is None:  # its data set gives whole batches
        with torch.random.fork_rng(devices=[]):  # it draws a seed for its workers
            parts = [pair_of(batch, "a batch of the DataLoader") for batch in loader]
        if not parts:
            raise BadInput("`data` must hold at least one example, got an empty DataLoader; look at its data set")
        x, y = ([tensor_of("data", pair[side]) for pair in parts] for side in (0, 1))
        return from_arrays(torch.cat(x), torch.cat(y), name="DataLoader")
    own = loader.batch_size is None  # a batch sampler of the caller's
    drawn: Any = loader.batch_sampler if own else loader.sampler
    if not own and isinstance(drawn, SequentialSampler):
        return lazy_rows(RowReader.of_loader(loader))
    with torch.random.fork_rng(devices=[]):  # a random sampler draws
        rows = sorted(row for batch in drawn for row in batch) if own else sorted(drawn)
    if len(set(rows)) < len(rows):
        raise BadInput(
            f"`data` must hold each example once, but the sampler {type(loader.sampler).__name__} of the DataLoader "
            "draws some twice; hand over loader.dataset"
        )
    return lazy_rows(RowReader.of_loader(loader), rows)


def _of_dataset(dataset: Any) -> Examples | LazyExamples:
    if not isinstance(dataset, TensorDataset) or len(dataset.tensors) != 2 or not len(dataset):
        return lazy_rows(RowReader(dataset))
    examples = from_arrays(*dataset.tensors, name=type(dataset).__name__)
    names = class_names(dataset)
    if names is None or len(names) < examples.classes:
        return examples
    return replace(examples, label_names=names, classes=len(names))
