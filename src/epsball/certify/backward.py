"""CROWN: a lower bound of a linear functional of any node, carried back to the input (Zhang et al. 2018, 1811.00866).

On the way back an affine operator is transposed, and an activation is replaced by the line below or above it, by the
sign of the coefficient. What arrives is a linear form of the input, and the ball knows how small that can be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from epsball.certify.activations import Activation, Lines
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional
from epsball.certify.graph import Graph
from epsball.certify.operators import Bounds

Relax = Callable[[int, Functional], tuple[Functional | None, Tensor | None]]
"""From an activation's number and the rows at its value to rows at its input that are below, and their constants.

Rows of None mean that the constants are all there is.
"""
Watch = Callable[[int, Functional], None]
"""Called with the number of each node on the way and the rows there."""


@dataclass(frozen=True, eq=False)
class Shared:
    """Lines that all rows of an example share: tables with an entry per example, by the number of the activation."""

    lines: Mapping[int, Lines]

    def __call__(self, number: int, rows: Functional) -> tuple[Functional, Tensor | None]:
        return self.lines[number].at(rows).below(rows)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Goes back no further than to the values of the activations, each of which lies in its interval (`bounds`)."""

    bounds: Sequence[Bounds]

    def __call__(self, number: int, rows: Functional) -> tuple[None, Tensor]:
        low, high = self.bounds[number]
        centre, radius = rows.gather((low + high) / 2), rows.gather((high - low) / 2)
        return None, rows.dot(centre) - rows.with_values(rows.values.abs()).dot(radius)


def lower_bounds(
    graph: Graph, number: int, rows: Functional, relax: Relax, regions: Regions, watch: Watch | None = None
) -> Float[Tensor, " p"]:
    """A lower bound of each row, a functional of node `number`, over the region of its example."""
    at, constant = carried_back(graph, number, rows, relax, watch)
    bound = None if at is None else regions.least(at)
    parts = [part for part in (bound, constant) if part is not None]
    return sum(parts[1:], parts[0]) if parts else rows.values.new_zeros(len(rows))


def carried_back(
    graph: Graph, number: int, rows: Functional, relax: Relax, watch: Watch | None = None
) -> tuple[Functional | None, Tensor | None]:
    """The rows as functionals of the input that are nowhere above those of node `number`, and their constants (P,)."""
    waiting: dict[int, Functional] = {number: rows}
    constant: Tensor | None = None
    for place in range(number, 0, -1):
        if place not in waiting:
            continue
        node, at = graph.nodes[place], waiting.pop(place)
        if watch is not None:
            watch(place, at)
        if isinstance(node.operator, Activation):
            before, extra = relax(place, at)
            found: tuple[Functional | None, ...] = (before,)
        else:
            assert node.operator is not None
            extra, found = node.operator.constant(at), node.operator.transpose(at)
        if extra is not None:
            constant = extra if constant is None else constant + extra
        for i, part in zip(node.inputs, found, strict=True):
            if part is not None:
                waiting[i] = waiting[i] + part if i in waiting else part
    if watch is not None and 0 in waiting:
        watch(0, waiting[0])
    return waiting.get(0), constant
