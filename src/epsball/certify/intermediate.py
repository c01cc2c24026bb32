"""Bounds of what the activations read, and the lines that follow from them.

Every node has its interval (IBP). Where that leaves a neuron on both sides of a kink, it becomes two rows, its least
and its greatest value by CROWN, in the order of the network, and both bounds are intersected. Stable neurons need no
rows: their line is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from epsball.certify.activations import Activation, Lines
from epsball.certify.backward import Relax, Shared, lower_bounds
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional, units
from epsball.certify.graph import Graph
from epsball.certify.interval import intersected, step
from epsball.certify.operators import Bounds
from epsball.certify.rounding import Rounding, Slack

ROWS = 1 << 21
"""Numbers of the widest row, times rows, that are carried back at once."""


@dataclass(eq=False)
class Intermediate:
    """Bounds of every node, and lines of the activations, for a batch of examples; `rows` counts the rows it took."""

    bounds: list[Bounds]
    lines: dict[int, Lines] = field(default_factory=dict)
    rows: int = 0
    rounding: Rounding | None = None

    def bound(self, graph: Graph, number: int, rows: Functional, relax: Relax, regions: Regions) -> Tensor:
        """Lower bounds (P,) of rows at a node, less what rounding may take."""
        if self.rounding is None:
            return lower_bounds(graph, number, rows, relax, regions)
        slack = Slack(self.rounding)
        return lower_bounds(graph, number, rows, relax, regions, slack) - slack.total

    def take(self, index: Tensor) -> Intermediate:
        """The bounds of some examples."""
        bounds = [(low[index], high[index]) for low, high in self.bounds]
        return Intermediate(bounds, {number: lines.rows(index) for number, lines in self.lines.items()})


Tighten = Callable[[Graph, Regions, Intermediate, int, Bounds], Bounds]
"""From what is known before a node, its number and its bounds to tighter ones."""


def bounded(
    graph: Graph,
    regions: Regions,
    tighten: Tighten | None = None,
    rounding: Rounding | None = None,
    known: Mapping[int, Bounds] | None = None,
) -> Intermediate:
    """Bounds of every node: intervals, and what `tighten` makes of those that activations read.

    With `rounding`, whose tables are filled on the way, they hold in spite of it. Bounds of nodes that are `known`
    already are intersected with what is found.
    """
    found = Intermediate([regions.box], rounding=rounding)
    if rounding is not None:
        rounding.begin(regions.box)
    reads = {graph.before(number) for number in graph.activations}
    for number in range(1, len(graph.nodes)):
        bounds, node = step(graph, number, found.bounds), graph.nodes[number]
        if rounding is not None:
            bounds = rounding.widen(number, [found.bounds[i] for i in node.inputs], bounds)
        if known is not None and number in known:
            bounds = intersected(bounds, known[number])
        exact = regions.is_box and graph.weighings[number] <= 1
        if number in reads and tighten is not None and not exact:
            bounds = tighten(graph, regions, found, number, bounds)
        found.bounds.append(bounds)
        if isinstance(node.operator, Activation):
            found.lines[number] = node.operator.lines(*found.bounds[node.inputs[0]])
    return found


def open_neurons(graph: Graph, number: int, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Which neurons of a node are worth rows, as (example, neuron): those without an exact line."""
    need = torch.zeros_like(bounds[0], dtype=torch.bool)
    for activation in graph.activations:
        if graph.before(activation) == number:
            operator = graph.nodes[activation].operator
            assert isinstance(operator, Activation)
            need |= operator.unstable(*bounds)
    example, neuron = need.flatten(1).nonzero(as_tuple=True)
    return example, neuron


def crown(graph: Graph, regions: Regions, found: Intermediate, number: int, bounds: Bounds) -> Bounds:
    """The bounds of a node, intersected with CROWN's where a neuron is open."""
    example, neuron = open_neurons(graph, number, bounds)
    if not len(example):
        return bounds
    relax, low, high = Shared(found.lines), bounds[0].clone(), bounds[1].clone()
    shape = graph.nodes[number].shape
    for part in torch.arange(len(example), device=example.device).split(rows_at_once(graph, number)):
        rows = units(example[part], neuron[part], (1, -1), shape, graph.dtype)
        least, negated = found.bound(graph, number, rows, relax, regions).unflatten(0, (2, -1))
        low.flatten(1)[example[part], neuron[part]] = least
        high.flatten(1)[example[part], neuron[part]] = -negated
        found.rows += len(rows)
    return intersected(bounds, (low, high))


def rows_at_once(graph: Graph, number: int) -> int:
    """How many rows of a node are carried back together: by the widest node before it."""
    widest = max(torch.Size(node.shape).numel() for node in graph.nodes[:number])
    return max(1, ROWS // max(1, widest))
