"""What has been read of a network so far: its nodes, and the constants of its trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from epsball.certify.activations import Activation
from epsball.certify.functionals import Shape
from epsball.certify.graph import Graph, Node
from epsball.certify.operators import Affine, Linear, Rearrangement, Reshape
from epsball.common.errors import BadInput

Value = Any
"""An argument of an operator: `Ref` for a value that depends on the input, else a constant."""


class Ref(int):
    """The number of a node that depends on the input."""


class Reading:
    """The graph so far, and the constants by the names of the trace."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.nodes: list[Node] = []
        self.known: dict[str, Ref] = {}
        self.constants: dict[str, Any] = {}
        self.layer = ""
        self.shape: Shape | None = None
        """Of the value that is being read, with its first dimension."""

    def begin(self, name: str, shape: Sequence[int] | None) -> None:
        """The input."""
        assert shape is not None
        self.rows = shape[0]
        self.known[name] = self.put(None, (), tuple(shape[1:]))

    def graph(self) -> Graph:
        """All that was read. Raises `BadInput` where the last value is no table of logits."""
        if not self.nodes or self.last != len(self.nodes) - 1:
            raise BadInput(
                "`model` must compute its logits from the input for a certificate, got an output that does not depend "
                "on it; look at what its forward returns"
            )
        shape = self.nodes[-1].shape
        if len(shape) == 0:
            self.put(Reshape((), (1,)), (self.last,), (1,))
        elif len(shape) != 1:
            raise BadInput(
                f"`model` must return logits (n, classes) for a certificate, got (n, {', '.join(map(str, shape))}); "
                "wrap it so that it returns one row an example"
            )
        return Graph(tuple(self.nodes), self.dtype)

    def put(self, operator: Affine | Activation | None, inputs: Sequence[int], shape: Shape) -> Ref:
        """Append a node."""
        self.nodes.append(Node(operator, tuple(inputs), shape, self.layer))
        self.last = len(self.nodes) - 1
        return Ref(self.last)

    def raw(self, name: str) -> Value:
        """What a name of the trace stands for; constants as the model has them."""
        return self.known[name] if name in self.known else self.constants[name]

    def value(self, name: str) -> Value:
        """The same; constants in the graph's precision."""
        constant = self.raw(name)
        return constant.to(self.dtype) if isinstance(constant, Tensor) and constant.is_floating_point() else constant

    def uncovered(self, what: str) -> BadInput:
        """The error for what certificates do not cover."""
        place = f" of layer {self.layer}" if self.layer else ""
        return BadInput(
            f"`model` must be made of layers that certificates cover, got `{what}`{place}; use "
            "method='smoothing:sigma=0.25', which needs no layers"
        )

    def shape_of(self, value: Ref) -> Shape:
        """Of one example."""
        return self.nodes[value].shape

    def result(self) -> Shape:
        """The shape of one example of what is being read. Raises `BadInput` where the first dimension is not kept."""
        if self.shape is None or not self.shape or self.shape[0] != self.rows:
            raise self.uncovered("an operator that mixes examples")
        return tuple(self.shape[1:])

    def activation(self, function: Activation, x: Ref) -> Ref:
        return self.put(function, (x,), self.shape_of(x))

    def linear(self, x: Ref, weight: Tensor, bias: Tensor | None = None) -> Ref:
        if isinstance(weight, Ref) or not isinstance(x, Ref):
            raise self.uncovered("a product of two values that depend on the input")
        return self.put(Linear(weight, bias), (x,), (*self.shape_of(x)[:-1], weight.shape[0]))

    def rearranged(self, function: Callable[..., Tensor], *inputs: Ref, terms: int = 0) -> Ref:
        return self.put(Rearrangement(function, [self.shape_of(x) for x in inputs], terms), inputs, self.result())
