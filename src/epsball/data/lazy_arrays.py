"""Rows of an array that lies in a file as it is: an uncompressed `.npz`, or what was spooled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epsball.common.errors import BadInput
from epsball.common.limits import check_arrays
from epsball.data.arrays import inputs_of, read_npz
from epsball.data.examples import Examples
from epsball.data.known_labels import KnownLabels, known_labels
from epsball.data.labels import are_signs, labels
from epsball.data.lazy_examples import Block, LazyExamples, digest
from epsball.data.prepared import check_prepared
from epsball.data.row_file import RowFile, stored_array
from epsball.data.sampling import Take
from epsball.models.preparation import Preparation


@dataclass(frozen=True, eq=False, kw_only=True)
class LazyArrays(LazyExamples):
    """The rows of a file; uint8 ones are divided by 255."""

    file: RowFile

    def fetch(self, ids: Sequence[int]) -> Block:
        """The rows as they are in the file."""
        x, _ = inputs_of(self.file.rows(ids))
        return Block(x=x, kept=torch.arange(len(ids)))

    def name_of(self, id: int) -> str:
        """The number of a row."""
        return f"row {id} of {self.name}"

    def identity(self) -> str:
        """A digest of the checksum of the array, its form, the labels and the box."""
        form = self.file.crc, self.file.dtype, self.file.shape
        return digest(form, self.ids, self.y, self.label_names, self.lo, self.hi)

    def available(self) -> bool:
        """Whether the file is there."""
        return self.file.available()

    def whole(self) -> Examples:
        """All rows, in memory. Raises `BadInput` for rows that cannot be used, and where the file is damaged."""
        self.file.check_whole()
        return super().whole()


def open_npz(path: Path, take: Take, preparation: Preparation | None) -> Examples | LazyArrays:
    """The rows of a `.npz` file that `take` takes: read when they are asked for, where x is not compressed."""
    found = _stored(path)
    if found is None:
        examples = read_npz(path)
        _check(examples.shape, preparation)
        rows = take(examples.y.numpy())
        return examples if rows is None else examples.rows(torch.from_numpy(rows))
    file, box, known = found
    _check(file.shape[1:], preparation)
    return lazy_arrays(file, known, str(path), take(known.y), **box)


def lazy_arrays(
    file: RowFile, known: KnownLabels, name: str, rows: np.ndarray | None = None, **box: float
) -> LazyArrays:
    """The rows of a file with these numbers (None: all), in a box; that of uint8 is [0, 1]."""
    ids = np.arange(len(known.y)) if rows is None else rows
    x, scale = inputs_of(np.empty((0, 1), file.dtype))
    return LazyArrays(
        name=name, shape=file.shape[1:], ids=torch.from_numpy(ids), dtype=x.dtype, file=file, scale=scale,
        **({"lo": 0.0, "hi": 1.0} if scale != 1 else box), **known.of_rows(ids),
    )  # fmt: skip


def _check(shape: Sequence[int], preparation: Preparation | None) -> None:
    if preparation is not None:
        check_prepared(shape, preparation)


def _stored(path: Path) -> tuple[RowFile, dict[str, float], KnownLabels] | None:
    """The array x in the file, its box and its labels; None where it is not simple.

    The reader of the whole (`read_npz`) says what is wrong with a file.
    """
    try:
        check_arrays(path)
        file = stored_array(path, "x")
        with np.load(path, allow_pickle=False) as arrays:
            y = arrays["y"]
            box = {side: float(arrays[side]) for side in ("lo", "hi") if side in arrays}
            names = arrays["label_names"].astype(str).tolist() if "label_names" in arrays else None
    except Exception:  # whatever numpy's reader meets in a damaged file
        return None
    if file is None or np.dtype(file.dtype).kind not in "fu" or (file.dtype[1] == "u" and file.dtype != "|u1"):
        return None
    if file.dtype == "|u1" and (box.get("lo", 0) > 0 or box.get("hi", 1) not in (1, math.inf)):
        return None
    known = _labels(y, file.shape[0], names)
    return None if known is None else (file, box, known)


def _labels(y: Any, count: int, names: Sequence[str] | None) -> KnownLabels | None:
    """The labels, with those that cannot be used; None where they have to be refused as a whole."""
    column = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if names is not None and len(set(names)) < len(names):
        return None
    try:
        if column.shape == (count,) and (column.dtype.kind in "iuf" or (column.dtype.kind == "U" and names is None)):
            missing = np.isnan(column) if column.dtype.kind == "f" else np.zeros(count, bool)
            signs = names is not None and are_signs(column)
            if signs or (column.dtype.kind == "f" and not np.array_equal(column[~missing], np.round(column[~missing]))):
                return None
            return known_labels(column, "y", missing, names)
        found = labels("y", y, torch.empty(count), names)
    except BadInput:
        return None
    return KnownLabels(found.numpy(), None if names is None else tuple(names))
