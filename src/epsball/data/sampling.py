"""Which rows a limit takes: a seeded sample, stratified by class, or the first ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.noise import Noise

Take = Callable[[np.ndarray], np.ndarray | None]
"""From the classes of all rows (n,) to the row numbers that are taken; None for all."""


def check_limits(limit: int | None, first: int | None) -> None:
    """Raise `BadInput` unless at most one of them is given, and is >= 1."""
    if limit is not None and first is not None:
        raise BadInput("`limit` must be left out with `first`: `limit` takes a sample, `first` the rows in their order")
    for name, value in (("limit", limit), ("first", first)):
        if value is not None:
            check_whole(name, value, 1, "leave it out for all rows")


def taken_rows(classes: Any, limit: int | None, first: int | None = None, seed: int = 0) -> np.ndarray | None:
    """The row numbers that `limit` or `first` takes, ascending, of rows with `classes` (n,); None for all rows.

    The k-th row of a class of s rows, in a random order keyed by `seed` and the row numbers, is given the number
    (k + u) / s, u uniform in [0, 1); the `limit` smallest are taken. So each class has its share of them, but for
    rounding, and a smaller limit takes a part of the same rows.

    >>> taken_rows(np.repeat([0, 1, 2], [60, 30, 10]), 10)
    array([ 7,  8, 11, 13, 41, 57, 64, 73, 85, 97])
    """
    check_limits(limit, first)
    n = len(classes)
    if first is not None:
        return np.arange(min(first, n))
    if limit is None:
        return None
    if limit >= n:
        return np.arange(n)
    ids = torch.arange(n)
    noise = Noise(seed, ids, torch.zeros_like(ids))
    order_key, u = noise.uniform((2,), dtype=torch.float64).numpy().T
    _, of_class, sizes = np.unique(np.asarray(classes), return_inverse=True, return_counts=True)
    order = np.lexsort((order_key, of_class))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    rank = np.empty(n)
    rank[order] = np.arange(n) - starts[of_class[order]]
    place = (rank + u) / sizes[of_class]
    return np.sort(np.argsort(place, kind="stable")[:limit])
