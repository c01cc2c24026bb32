"""Interval bound propagation: an interval for each number of a network (Gowal et al. 2018, arXiv:1810.12715)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.certify.activations import Activation
from epsball.certify.graph import Graph
from epsball.certify.operators import Bounds


def interval_bounds(
    graph: Graph,
    lower: Float[Tensor, "n *shape"],
    upper: Float[Tensor, "n *shape"],
    known: Mapping[int, Bounds] | None = None,
) -> list[Bounds]:
    """The least and greatest value of every node, (n, *shape) each, where the input lies in [lower, upper].

    `known` bounds of nodes are intersected with the intervals there. Differentiable in the network's parameters.
    """
    bounds: list[Bounds] = [(lower, upper)]
    for number in range(1, len(graph.nodes)):
        bounds.append(step(graph, number, bounds))
        if known is not None and number in known:
            bounds[-1] = intersected(bounds[-1], known[number])
    return bounds


def step(graph: Graph, number: int, bounds: list[Bounds]) -> Bounds:
    """The interval of a node from those of the nodes before it."""
    node = graph.nodes[number]
    inputs = [bounds[i] for i in node.inputs]
    if isinstance(node.operator, Activation):
        return node.operator.interval(*inputs[0])
    assert node.operator is not None
    return node.operator.interval(*inputs)


def intersected(one: Bounds, other: Bounds) -> Bounds:
    """The intersection of two intervals that hold the same number."""
    return torch.maximum(one[0], other[0]), torch.minimum(one[1], other[1])
