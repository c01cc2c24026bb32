"""Which combinations of a test's parameters run every day: each value of each parameter; all of them run nightly.

Most tests of attacks, balls and linear models are run over a grid, such as attack x norm x dtype. A fault shows with
one value, or, seldom, with a pair. So each day's grid has every value at least once, with others by turns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from zlib import crc32

import pytest

PAIR = {"attack", "norm"}
"""Parameters that make one: every attack runs in each of its norms."""
FEW = 8
"""A grid of up to so many combinations runs in full."""


def mark(items: Sequence[pytest.Item]) -> None:
    """Mark as nightly what of the grids does not run every day."""
    grids: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and not item.get_closest_marker("nightly"):
            grids[item.nodeid.partition("[")[0]].append(item)
    for grid in grids.values():
        if len(grid) > FEW:
            daily = set(covering(grid_points(grid)))
            for number, item in enumerate(grid):
                if number not in daily:
                    item.add_marker("nightly")


def grid_points(grid: Sequence[pytest.Function]) -> list[dict[str, int]]:
    """Of each test its parameters, their values numbered as they come; an attack and its norm are one parameter."""
    numbers: dict[str, dict[object, int]] = defaultdict(dict)
    points = []
    for item in grid:
        values: dict[str, object] = {name: _key(value) for name, value in item.callspec.params.items()}
        if values.keys() >= PAIR:
            values["pair"] = tuple(values.pop(name) for name in sorted(PAIR))
        points.append({name: numbers[name].setdefault(key, len(numbers[name])) for name, key in values.items()})
    return points


def _key(value: object) -> object:
    """What tells values apart: themselves where they can be keys, else their identity."""
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def covering(points: Sequence[dict[str, int]]) -> Iterator[int]:
    """The numbers of points that together have every value of every parameter, picked greedily.

    >>> list(covering([{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 0}, {"a": 1, "b": 1}]))
    [1, 2]
    """
    missing = {value for point in points for value in point.items()}
    order = sorted(range(len(points)), key=lambda number: crc32(repr(sorted(points[number].items())).encode()))
    while missing:
        best = max(order, key=lambda number: len(missing.intersection(points[number].items())))
        missing.difference_update(points[best].items())
        yield best
