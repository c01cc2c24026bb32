"""The rows of a torch `Dataset`, read when they are asked for: by one thread at a time, or the workers of a loader."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from epsball.common.errors import BadInput
from epsball.data.bad_row import BadRow
from epsball.data.lazy_examples import Block, LazyExamples, block_of, digest, label_reason, listed
from epsball.data.pairs import class_names
from epsball.data.row_reading import Row, RowReader

LOOKED_AT = 32
"""So many rows say what all of them look like."""


class OneAtATime:
    """A lock that can be pickled; it is open where it is unpickled."""

    def __init__(self) -> None:
        self.lock = Lock()

    def __reduce__(self) -> tuple[type[OneAtATime], tuple[()]]:
        return OneAtATime, ()


@dataclass(frozen=True, eq=False, kw_only=True)
class LazyRows(LazyExamples):
    """The rows of a data set, as `reader` reads them. `seen` is a digest of some."""

    reader: RowReader
    seen: str
    one_at_a_time: OneAtATime = field(default_factory=OneAtATime)

    def fetch(self, ids: Sequence[int]) -> Block:
        """The rows, each of which the data set makes anew."""
        with self.one_at_a_time.lock:
            found = zip(ids, self.reader.rows(ids), strict=True)
            return block_of((self._usable(id, row) for id, row in found), self.shape, self.dtype)

    def _usable(self, id: int, row: Row | BadInput) -> tuple[Tensor, int] | BadRow:
        if isinstance(row, BadInput):
            return BadRow(id, self.name_of(id), str(row))
        x, scale, label = row
        if (tuple(x.shape), x.dtype, scale) != (self.shape, self.dtype, self.scale):
            found, wanted = _form(tuple(x.shape), x.dtype, scale), _form(self.shape, self.dtype, self.scale)
            return BadRow(id, self.name_of(id), f"it is {found}, and not {wanted} as the others")
        return x, label

    def name_of(self, id: int) -> str:
        """The number of a row."""
        return f"row {id} of {self.name}"

    def identity(self) -> str:
        """A digest of the kind of the data set, its length and labels, and some rows as they were at first."""
        return digest(self.name, len(self.reader.dataset), self.ids, self.y, self.label_names, self.seen)

    def available(self) -> bool:
        """Whether a row can be read."""
        with self.one_at_a_time.lock:
            rows = self.reader.rows(_spread(self.ids.tolist()))
            try:
                return any(not isinstance(row, BadInput) for row in rows)
            except BadInput:  # the system could not read one
                return False


def lazy_rows(reader: RowReader, rows: Sequence[int] | None = None) -> LazyRows:
    """The rows of a data set (None: all). Raises `BadInput` where none of those that are looked at can be used, and
    where one of these is another row when it is read again.

    Labels are known at once where the data set has a list of them, and it is right about the rows looked at.
    """
    dataset = reader.dataset
    rows = range(len(dataset)) if rows is None else rows
    if not len(rows):
        raise BadInput("`data` must hold at least one example, got an empty data set; look at its split and limit")
    name, ids = type(dataset).__name__, np.asarray(rows)
    looked_at = _spread(ids.tolist())
    answers = dict(zip(looked_at, reader.rows(looked_at), strict=True))
    found = {id: row for id, row in answers.items() if not isinstance(row, BadInput)}
    if not found:
        bad = [BadRow(id, f"row {id} of {name}", str(answer)) for id, answer in answers.items()]
        raise BadInput(_none_usable(bad))
    _check_same_again(reader, found, name)
    x, scale, _ = next(iter(found.values()))
    seen = digest(*(part for id, row in found.items() for part in (id, row[0], row[2])))
    lazy = LazyRows(
        name=name, shape=tuple(x.shape), dtype=x.dtype, ids=torch.from_numpy(ids), scale=scale, reader=reader,
        seen=seen, lo=0.0 if scale != 1 else -math.inf, hi=1.0 if scale != 1 else math.inf,
    )  # fmt: skip
    labels = _labels_of(dataset)
    known = labels is not None and all(labels[id] == label for id, (_, _, label) in found.items())
    highest = int(labels.max()) if labels is not None and known else max(label for _, _, label in found.values())
    names = class_names(dataset)
    names = names if names is not None and highest < len(names) else None
    lazy = replace(lazy, label_names=names, classes=0 if names is None else len(names))
    return _with_labels(lazy, labels) if labels is not None and known else lazy


def _check_same_again(reader: RowReader, found: Mapping[int, Row], name: str) -> None:
    """Raise `BadInput` where a row is another one when it is read again: no result on such rows could be verified.

    They are read from the last to the first, as a generator that is copied into new workers repeats itself in order.
    """
    order = list(found)[::-1]
    for id, row in zip(order, reader.rows(order), strict=True):
        if not isinstance(row, BadInput) and digest(*row) != digest(*found[id]):
            raise BadInput(
                f"`data` must give the same row each time, but row {id} of {name} is another one when it is read "
                "again; fix the seed in its __getitem__, or take the random transform out of the test set"
            )


def _spread(ids: Sequence[int]) -> list[int]:
    """Some rows of the whole range, the first among them."""
    return [ids[place] for place in sorted({round(place) for place in np.linspace(0, len(ids) - 1, LOOKED_AT)})]


def _with_labels(lazy: LazyRows, labels: np.ndarray) -> LazyRows:
    y = torch.from_numpy(labels)[lazy.ids]
    bad = {int(id): label_reason(int(label), 0) for id, label in zip(lazy.ids[y < 0], y[y < 0], strict=True)}
    classes = lazy.classes or max(int(labels.max()), 0) + 1
    return replace(lazy, y=y.clamp(min=-1), classes=classes, bad_labels=bad)


def _none_usable(bad: Sequence[BadRow]) -> str:
    reasons = {row.reason for row in bad}
    if len(reasons) == 1 and bad[0].reason.startswith("`"):  # of the data set, then, and not of its rows
        return bad[0].reason
    return f"`data` must hold rows that can be used, but none could of those looked at: {listed(bad)}; mend them"


def _form(shape: Sequence[int], dtype: torch.dtype, scale: float) -> str:
    return f"{'uint8' if scale != 1 else str(dtype).removeprefix('torch.')} ({', '.join(map(str, shape))})"


def _labels_of(dataset: Any) -> np.ndarray | None:
    """The labels that a data set has a list of, one for each row."""
    if isinstance(dataset, Subset):
        inner = _labels_of(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [part for part in map(_labels_of, dataset.datasets) if part is not None]
        return np.concatenate(parts) if len(parts) == len(dataset.datasets) else None
    tensors = getattr(dataset, "tensors", ())
    for found in (getattr(dataset, "targets", None), getattr(dataset, "labels", None), *tensors[1:2]):
        if found is None:
            continue
        try:
            values = np.asarray(found)
        except Exception:  # whatever that attribute is
            continue
        if values.shape == (len(dataset),) and values.dtype.kind in "iu":
            return values.astype(np.int64)
    return None
