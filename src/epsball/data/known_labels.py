"""The labels of a source, known without reading its rows; those that cannot be used are told by their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64, Shaped

from epsball.data.labels import class_indices


@dataclass(frozen=True, eq=False)
class KnownLabels:
    """The class of each row, -1 where it has none that can be used; `bad` says by row number why not."""

    y: Int64[np.ndarray, " n"]
    names: tuple[str, ...] | None = None
    bad: Mapping[int, str] = field(default_factory=dict)

    def of_rows(self, rows: Int64[np.ndarray, " m"]) -> dict[str, Any]:
        """What lazy examples are told of the labels of some rows; the classes are those of all."""
        y = self.y[rows]
        return {
            "y": torch.from_numpy(y),
            "classes": int(self.y.max(initial=-1)) + 1 if self.names is None else len(self.names),
            "label_names": self.names,
            "bad_labels": {id: self.bad[id] for id in rows[y < 0].tolist()},
        }


def known_labels(
    values: Shaped[np.ndarray, " n"],
    column: str,
    missing: Bool[np.ndarray, " n"] | None = None,
    names: Sequence[str] | None = None,
) -> KnownLabels:
    """The labels in a column, numbered as `class_indices` does it, or by the `names` of the classes.

    Rows where they are `missing`, below 0, or none of the `names` are bad ones. Raises `BadInput` where all are, and
    for fractions.

    >>> known_labels(np.array([1, -1, 7, 0]), "y", names=["cat", "dog"]).y
    array([ 1, -1, -1,  0])
    """
    missing = np.zeros(len(values), bool) if missing is None else missing
    negative = np.zeros(len(values), bool)
    if values.dtype.kind in "iuf":
        usual = values[~missing]
        negative[~missing] = usual < 0
        if np.array_equal(np.unique(usual), [-1, 1]):
            negative[:] = False  # two classes
    usual = ~missing & ~negative
    if not usual.any():
        class_indices(values[negative], column)  # which says so
    y, own = class_indices(np.where(usual, values, values[usual][0]), column)  # rows keep their numbers in its errors
    y = np.where(usual, y, -1)
    names = tuple(names) if names is not None else own
    beyond = y >= (len(names) if names is not None else np.inf)
    what = f"its label in {column!r}"
    bad = dict.fromkeys(np.flatnonzero(missing).tolist(), f"{what} is missing")
    bad |= {row: f"{what} is {values[row]:g}, below 0: not labelled?" for row in np.flatnonzero(negative).tolist()}
    bad |= {row: f"{what} is {y[row]}, none of {len(names or ())} classes" for row in np.flatnonzero(beyond).tolist()}
    y[beyond] = -1
    return KnownLabels(y, names, bad)
