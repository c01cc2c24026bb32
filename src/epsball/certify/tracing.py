"""From a model to its graph: the ATen operators that it runs on real examples, read as affine or elementwise ones.

Tracing sees what is computed, whatever Python computes it, so any module or callable will do whose operators are known;
`torch.export` and `torch.fx` ask for more (a module, no loops over shapes). What the trace cannot see is a choice that
depends on values: `Traced.check` compares the graph with the model. A softmax, log-softmax or sigmoid at the end is
left out, as it does not change which class is greatest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from epsball.certify import aten
from epsball.certify.graph import Graph
from epsball.common.errors import BadInput
from epsball.models.frozen import frozen, held_modules

ROWS = 3
"""Examples that are traced: dimensions of this size are told from the first by their place."""
TOLERANCE = 1e-3
"""Of the logits' scale, up to which graph and model may differ in float32; in float64 a millionth of it."""
LAST = {"_softmax", "_log_softmax", "sigmoid"}
"""Operators that leave the order of logits as it is."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A model's operators: `trace` makes one, `graph` reads it with the parameters as they are at that time."""

    model: Callable[[Tensor], Tensor]
    module: fx.GraphModule
    nodes: tuple[fx.Node, ...]
    layers: dict[str, str]

    def graph(self, dtype: torch.dtype) -> Graph:
        """The graph in `dtype`, differentiable in the parameters.

        Raises `BadInput` that names the layer for an operator that certificates do not cover.
        """
        reading = aten.Reading(dtype)
        for node in self.nodes:
            if node.op == "placeholder":
                reading.begin(node.name, _shape(node))
            elif node.op == "get_attr":
                reading.constants[node.name] = _attribute(self.module, str(node.target))
            elif node.op == "call_function":
                reading.add(
                    node.name, node.target, node.args, node.kwargs, self.layers.get(node.name, ""), _shape(node)
                )
        return reading.graph()

    def check(self, graph: Graph, x: Float[Tensor, "n *shape"]) -> None:
        """Raise `BadInput` where the graph and the model answer differently at `x`."""
        with torch.no_grad(), frozen(self.model):
            expected = self.model(x)
            if isinstance(self.nodes[-1], fx.Node) and expected.ndim == 1:
                expected = expected[:, None]
        found = graph(x.to(graph.dtype))
        aten.check_same(found, expected, TOLERANCE)


def trace(model: Callable[[Tensor], Tensor], x: Float[Tensor, "n *shape"]) -> Traced:
    """The operators that `model` runs on examples like `x`, in eval mode; the model comes back as it was.

    Raises `BadInput` where the model cannot be traced: it looks at values, or leaves torch.
    """
    x = x.detach()[:1].expand(ROWS, *x.shape[1:]).clone()
    layers: dict[str, str] = {}
    with frozen(model), torch.no_grad(), _naming(model, layers):
        try:
            module = make_fx(model)(x)
        except Exception as error:  # whatever the user's code, or torch on its behalf, raises on proxies
            raise BadInput(
                f"`model` must be a network of torch's operators for a certificate, got one that cannot be traced "
                f"({type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}); use method='smoothing'"
            ) from error
    return Traced(model, module, tuple(_without_last(module)), layers)


def _without_last(module: fx.GraphModule) -> Iterator[fx.Node]:
    """The nodes that the output needs, in their order, without a softmax or sigmoid at the end."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    last = output.args[0]
    if not isinstance(last, fx.Node):
        raise BadInput(
            f"`model` must return one tensor of logits for a certificate, got {type(last).__name__}; wrap it so that it "
            "returns the logits alone"
        )
    while _name(last) in LAST | aten.SAME and _is_last_dimension(last):
        last = last.args[0]  # type: ignore[assignment]
        assert isinstance(last, fx.Node)
    needed, waiting = {last}, [last]
    while waiting:
        new = [node for node in waiting.pop().all_input_nodes if node not in needed]
        needed |= set(new)
        waiting += new
    yield from (node for node in module.graph.nodes if node in needed)


def _is_last_dimension(node: fx.Node) -> bool:
    return _name(node) not in ("_softmax", "_log_softmax") or node.args[1] in (1, -1)


def _name(node: fx.Node) -> str:
    return (getattr(node.target, "_schema", None) and node.target._schema.name.partition("::")[2]) or str(node.target)  # type: ignore[union-attr]


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a node's value, or of the first of several, with its first dimension."""
    firsts = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    meta = (firsts[0] if firsts else node).meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else None


def _attribute(module: nn.Module, path: str) -> Tensor:
    return operator.attrgetter(path)(module)


@contextmanager
def _naming(model: object, layers: dict[str, str]) -> Iterator[None]:
    """Enter in `layers` for each node of the trace the innermost module in which it was made, by its path and class."""
    named: dict[nn.Module, str] = {}
    for module in held_modules(model):
        for name, part in module.named_modules():
            named.setdefault(part, f"{name} ({type(part).__name__})" if name else type(part).__name__)
    with ExitStack() as stack:
        for module, name in named.items():
            stack.enter_context(_noting(module, name, layers))
        yield


@contextmanager
def _noting(module: nn.Module, name: str, layers: dict[str, str]) -> Iterator[None]:
    starts: list[int] = []

    def nodes() -> list[Any]:
        mode: Any = get_proxy_mode()
        return [] if mode is None else list(mode.tracer.graph.nodes)

    def before(_module: nn.Module, _inputs: Any) -> None:
        starts.append(len(nodes()))

    def after(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        for node in nodes()[starts.pop() :]:
            layers.setdefault(node.name, name)

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
