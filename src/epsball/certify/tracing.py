"""From a model to its graph: the ATen operators that it runs on real examples, read as affine or elementwise ones.

Tracing sees what is computed, whatever Python computes it, so any module or callable will do whose operators are known;
`torch.export` and `torch.fx` ask for more (a module, no loops over shapes). What the trace cannot see is a choice that
depends on values: `Traced.check` compares the graph with the model. A softmax, log-softmax or sigmoid at the end is
left out, as it does not change which class is greatest; of one logit, the class is the sign before the sigmoid, as it
is for attacks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx

from epsball.certify.aten import SAME, kind_of, read
from epsball.certify.graph import Graph
from epsball.certify.reading import Reading
from epsball.common.errors import BadInput
from epsball.models.frozen import frozen, held_modules
from epsball.models.given import logits_in
from epsball.models.last_activation import check_no_probability

ROWS = 3
"""Examples that are traced: dimensions of this size are told from the first by their place."""
TOLERANCE = 1e-3
"""Of the logits' scale, up to which graph and model may differ."""
ONE_NUMBER = {"view", "_unsafe_view", "reshape", "flatten", "squeeze", "unsqueeze", "select", "slice"}
"""Operators after a sigmoid that leave one number an example as it is, in another shape."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A model's operators: `trace` makes one, `graph` reads it with the parameters as they are at that time."""

    model: Callable[[Tensor], Tensor]
    module: fx.GraphModule
    nodes: tuple[fx.Node, ...]
    """What the logits need, in its order."""
    last: tuple[fx.Node, ...]
    """What comes after the logits, and is left out."""
    layers: dict[str, str]

    def graph(self, dtype: torch.dtype) -> Graph:
        """The graph in `dtype`, differentiable in the parameters.

        Raises `BadInput` that names the layer for an operator that certificates do not cover.
        """
        reading = Reading(dtype)
        for node in self.nodes:
            if node.op == "placeholder":
                reading.begin(node.name, _shape(node))
            elif node.op == "get_attr":
                reading.constants[node.name] = _attribute(self.module, str(node.target))
            elif node.op == "call_function":
                read(reading, node, self.layers.get(node.name, ""), _shape(node))
        return reading.graph()

    def check(self, graph: Graph, x: Float[Tensor, "n *shape"]) -> None:
        """Raise `BadInput` where graph and model answer differently at `x`, or the one logit is a probability."""
        with torch.no_grad(), frozen(self.model):
            expected = logits_in(self.model(x.clone()))
            if not self.last:
                check_no_probability(lambda rows: logits_in(self.model(rows)), x, expected)
            found = graph(x.to(graph.dtype))
            for node in self.last:
                last: Any = node.target
                found = last(found, *node.args[1:])
        _check_same(found, expected.reshape(found.shape), TOLERANCE)


def trace(model: Callable[[Tensor], Tensor], x: Float[Tensor, "n *shape"]) -> Traced:
    """The operators that `model` runs on examples like `x`, in eval mode; the model comes back as it was.

    Raises `BadInput` where the model cannot be traced: it looks at values, or leaves torch.
    """
    x = x.detach()[:1].expand(ROWS, *x.shape[1:]).clone()
    layers: dict[str, str] = {}
    with frozen(model), torch.no_grad(), _naming(model, layers):
        try:
            module = make_fx(lambda rows: logits_in(model(rows)))(x)
        except Exception as error:  # whatever the user's code, or torch on its behalf, raises on proxies
            raise BadInput(
                "`model` must be a network of torch's operators for a certificate, got one that cannot be traced "
                f"({type(error).__name__}: {str(error)[:120]}); use method='smoothing:sigma=0.25'"
            ) from error
    _check_in_place(module, layers)
    nodes, last = _without_last(module)
    return Traced(model, module, nodes, last, layers)


def _without_last(module: fx.GraphModule) -> tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]:
    """The nodes that the logits need, in their order, and the softmax or sigmoid that comes after them."""
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    last = output.args[0]
    if not isinstance(last, fx.Node):
        raise BadInput(
            f"`model` must return one tensor of logits for a certificate, got {type(last).__name__}; wrap it so that "
            "it returns the logits alone"
        )
    cut: list[fx.Node] = []
    while isinstance(last.args[0] if last.args else None, fx.Node):
        if _keeps_order(last):
            cut.insert(0, last)
        elif not _is_one_number(last):
            break
        last = last.all_input_nodes[0]
    needed, waiting = {last}, [last]
    while waiting:
        new = [node for node in waiting.pop().all_input_nodes if node not in needed]
        needed |= set(new)
        waiting += new
    return tuple(node for node in module.graph.nodes if node in needed), tuple(cut)


def _keeps_order(node: fx.Node) -> bool:
    """Whether an operator on logits leaves their order as it is; a sigmoid of one stands for its logit."""
    kind, shape = kind_of(node), _shape(node)
    if kind in ("_softmax", "_log_softmax"):
        return node.args[1] in (1, -1) and shape is not None and len(shape) == 2 and shape[1] > 1
    return kind in SAME or (kind == "sigmoid" and shape is not None and len(shape) in (1, 2))


def _is_one_number(node: fx.Node) -> bool:
    """Whether an operator shows the one number of each example in another shape."""
    shapes = [_shape(node), _shape(node.all_input_nodes[0])]
    return kind_of(node) in ONE_NUMBER and all(
        shape is not None and len(shape) in (1, 2) and shape[0] == ROWS and math.prod(shape) == ROWS for shape in shapes
    )


def _check_in_place(module: fx.GraphModule, layers: dict[str, str]) -> None:
    """Raise `BadInput` where a tensor is changed in place and read again by another name, which the trace misses."""
    place = {node: i for i, node in enumerate(module.graph.nodes)}
    roots: dict[fx.Node, fx.Node] = {}
    for node in place:
        source = node.args[0] if node.args and _is_alias(node) else None
        roots[node] = roots[source] if isinstance(source, fx.Node) else node
    for node in place:
        if not getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            continue
        others = [other for other in place if roots[other] is roots[node] and place[other] < place[node]]
        stale = any(place[user] > place[node] for other in others for user in other.users)
        if stale or roots[node].op == "get_attr":
            where = f" of layer {layers[node.name]}" if node.name in layers else ""
            raise BadInput(
                "`model` must not change in place what it reads by another name, or what it keeps, for a certificate, "
                f"got `{kind_of(node)}`{where}; use method='smoothing:sigma=0.25'"
            )


def _is_alias(node: fx.Node) -> bool:
    """Whether an operator gives back the memory of its first argument, or a part of it."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.target is operator.getitem
    return bool(schema.returns) and schema.returns[0].alias_info is not None


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    """The shape of a node's value, or of the first of several, with its first dimension."""
    firsts = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    meta: Any = (firsts[0] if firsts else node).meta.get("tensor_meta")
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


def _check_same(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise `BadInput` where two answers of one network differ in more than rounding, whatever constant they share."""
    centred = [
        answer.double() - answer.double().mean(1, keepdim=True) * (answer.shape[1] > 1) for answer in (found, expected)
    ]
    scale = centred[1].abs().amax().clamp_min(1e-6)
    gap = float((centred[0] - centred[1]).abs().amax() / scale)
    if not gap <= tolerance:
        raise BadInput(
            f"`model` must compute what its trace computes for a certificate, got answers that differ by {gap:.2g} of "
            "their scale: it may choose by values, or change from call to call; use method='smoothing:sigma=0.25'"
        )
