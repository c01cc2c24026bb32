"""A network as certificates see it: affine operators and elementwise functions, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.certify.activations import Activation
from epsball.certify.functionals import Shape
from epsball.certify.operators import Affine, Convolution, Linear, Reshape, Scale


@dataclass(frozen=True, eq=False)
class Node:
    """An operator, the numbers of the nodes that it reads, the shape of one example of its value, and its layer.

    The input of the network has no operator.
    """

    operator: Affine | Activation | None
    inputs: tuple[int, ...]
    shape: Shape
    name: str


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in topological order: the first is the input, the last the logits (classes,), or one logit (1,)."""

    nodes: tuple[Node, ...]
    dtype: torch.dtype

    def __call__(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n k"]:
        """The logits."""
        values: list[Tensor] = [x]
        for node in self.nodes[1:]:
            assert node.operator is not None
            values.append(node.operator.forward(*(values[i] for i in node.inputs)))
        return values[-1]

    @property
    def output(self) -> int:
        """The number of the last node."""
        return len(self.nodes) - 1

    @cached_property
    def activations(self) -> tuple[int, ...]:
        """The numbers of the nodes with an elementwise function."""
        return tuple(i for i, node in enumerate(self.nodes) if isinstance(node.operator, Activation))

    def before(self, activation: int) -> int:
        """The number of the node that an activation reads."""
        return self.nodes[activation].inputs[0]

    def rectifies(self, activation: int) -> bool:
        """Whether it is affine on either side of 0, so that its neurons can be split there."""
        operator = self.nodes[activation].operator
        return isinstance(operator, Activation) and operator.rectifies

    def least_slope(self, activation: int) -> float:
        """The slope of a rectifier below 0."""
        return getattr(self.nodes[activation].operator, "slope", 0.0)

    @cached_property
    def weighings(self) -> tuple[int, ...]:
        """For each node, how often numbers were mixed on the way from the input; 2 stands for more than once.

        Up to 1, intervals of a box are exact: each value is one linear form of the input.
        """
        found = [0]
        for node in self.nodes[1:]:
            before = max(found[i] for i in node.inputs)
            if isinstance(node.operator, Linear | Convolution):
                found.append(1 if before == 0 else 2)
            elif isinstance(node.operator, Scale | Reshape):
                found.append(before)
            else:
                found.append(2)
        return tuple(found)
