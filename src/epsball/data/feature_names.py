"""Features by the names of their columns, where data and model both hold names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.data.lazy_examples import LazyExamples

log = logging.getLogger(__name__)

Data = TypeVar("Data", bound=Examples | LazyExamples)


def columns_of(x: Any) -> tuple[str, ...] | None:
    """The names of a data frame's columns, where all of them are texts."""
    names = getattr(x, "column_names", getattr(x, "columns", None)) if getattr(x, "ndim", 2) == 2 else None
    try:
        found = tuple(names) if names is not None else ()
    except TypeError:
        return None
    return found if found and all(isinstance(one, str) for one in found) else None


def ordered_like(data: Data, names: Sequence[str] | None) -> Data:
    """The data with its features in the order of `names`, those of the columns that a model was fitted to.

    Data and models without names stay as they are: nothing can be compared then. Raises `BadInput` where a column is
    missing, or there is one more.

    >>> from epsball.data.arrays import from_arrays
    >>> data = replace(from_arrays([[1.0, 2.0]], [0]), feature_names=("b", "a"))
    >>> ordered_like(data, ["a", "b"]).x
    tensor([[2., 1.]])
    """
    own = data.feature_names
    if names is None or own is None or own == tuple(names) or isinstance(data, LazyExamples):
        return data  # tables, whose columns have names, are in memory
    if sorted(own) != sorted(names):
        missing, more = ([one for one in part if one not in other] for part, other in ((names, own), (own, names)))
        told = [f"without {_listed(missing)}"] * bool(missing) + [f"with {_listed(more)}"] * bool(more)
        raise BadInput(
            f"`data` must have the {len(names)} columns that the model was fitted to, got {len(own)}, "
            f"{' and '.join(told) or 'some of them twice'}; give it these and no others: {_listed(names)}"
        )
    log.info("features are put in the order of the model's, by name: %s", _listed(names))
    place = {name: at for at, name in enumerate(own)}
    return replace(data, x=data.x[:, [place[name] for name in names]], feature_names=tuple(names))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
