"""A model of ONNX as a list of operators of one opset: the part that leads to the scores, folded, without libraries.

`onnx.version_converter` brings every opset to one, `onnx.inliner` opens functions, and onnxscript folds constants and
the branches of `If`. They see the graph without its weights, so that their cost is that of the nodes; what could grow
is left for `onnx_module.py`, which bounds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.models.onnx_operators import OPERATORS
from epsball.models.onnx_reading import tensor_of
from epsball.models.onnx_shapes import DTYPES

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

OLDEST, OPSET = 7, 23
"""The opsets that are read, and the one that all are brought to."""
MOST_NODES = 50_000
SMALL = 256
"""Numbers of a constant that the libraries see; larger ones are weights."""
MOST_SHAPES = 1024
"""Numbers of an input of what onnxscript folds."""
REMOVED = ("CastLike", "Constant", "If", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt")
REMOVED += ("SequenceConstruct", "SplitToSequence", "ConcatFromSequence")
"""Operators that are read where folding takes them away."""
FOLDED = {"Abs", "Add", "And", "Cast", "Ceil", "Concat", "Div", "Equal", "Floor", "Gather", "Greater", "Identity"}
FOLDED |= {"Less", "LessOrEqual", "GreaterOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "Or"}
FOLDED |= {"ReduceProd", "ReduceSum", "Reshape", "Shape", "Size", "Slice", "Sqrt", "Squeeze", "Sub", "Transpose"}
FOLDED |= {"Unsqueeze", "Where", "Xor"}
"""Operators that onnxscript may evaluate: on small inputs their outputs are small."""
OLD_RESIZE = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
WAY_OUT = "write --black-box (in Python black_box=True) to attack it by its outputs alone"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operator: the names of its inputs ("" where one is left out) and outputs, and its attributes."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def __str__(self) -> str:
        return f"the node {self.name[:80]!r} ({self.op[:40]})"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Operators in their order, from one input to one output, and the constants by name."""

    input: str
    output: str
    steps: tuple[Step, ...]
    constants: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The one input of a model: its name, its shape with the batch (None where a side is free) and its type."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: torch.dtype


def declared_input(model: ModelProto) -> Declared:
    """The input of a model that is no constant. Raises `BadInput` where there are several, or it is no float."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(value.name[:40] for value in inputs[:8])
        raise BadInput(f"it must have one input, the examples, got {len(inputs)} ({names})")
    kind = inputs[0].type.tensor_type
    dtype = DTYPES.get(kind.elem_type)
    if dtype is None or not dtype.is_floating_point:
        raise BadInput(f"its input must be of a floating-point type, got {dtype or kind.elem_type}")
    if not kind.HasField("shape"):
        return Declared(name=inputs[0].name, shape=None, dtype=dtype)
    sides = tuple(side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim)
    if any(side is not None and side < 0 for side in sides):
        raise BadInput(f"its input must have sides >= 0, got {sides}")
    # skl2onnx and others write 0 where a side is free.
    return Declared(name=inputs[0].name, shape=tuple(side or None for side in sides), dtype=dtype)


# The part of a model that is read


def check_operators(nodes: Iterable[NodeProto], *, removed: bool) -> None:
    """Raise `BadInput` at the first operator that is not in the table; with `removed`, folding may take some away."""
    for node in nodes:
        known = node.domain in ("", "ai.onnx") and (node.op_type in OPERATORS or (removed and node.op_type in REMOVED))
        if not known:
            domain = f"{node.domain[:40]}." if node.domain else ""
            raise BadInput(
                f"the node {node.name[:80] or ', '.join(node.output)[:80]!r} is the operator {domain}"
                f"{node.op_type[:40]}, which has no gradient here; {WAY_OUT}"
            )
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                check_operators(graph.node, removed=removed)


def pruned(model: ModelProto, output: str) -> ModelProto:
    """A copy with only what leads to the value `output`, which becomes its one output."""
    from onnx import ModelProto, helper

    wanted, nodes = {output}, []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            wanted.update(_outer_names(node))
            nodes.append(node)
    if output not in {name for node in nodes for name in node.output}:
        raise BadInput(f"its output {output[:80]!r} must be computed by a node, and is not")
    copy = ModelProto(ir_version=max(model.ir_version, 8))
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.name = "model"
    copy.graph.node.extend(reversed(nodes))
    copy.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in wanted)
    copy.graph.input.append(next(value for value in model.graph.input if value.name == declared_input(model).name))
    known = next((value for value in model.graph.output if value.name == output), None)
    kind = copy.graph.input[0].type.tensor_type.elem_type
    copy.graph.output.append(known or helper.make_tensor_value_info(output, kind, None))
    return copy


def _outer_names(node: NodeProto) -> set[str]:
    """The names that the graphs inside a node take, from wherever."""
    inside = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    names = {name for graph in inside for one in graph.node for name in (*one.input, *_outer_names(one))}
    return names | {value.name for graph in inside for value in graph.output}


def opset_of(model: ModelProto) -> int:
    """The opset of a model. Raises `BadInput` outside of those that are read."""
    found = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(set(found)) != 1 or not OLDEST <= found[0] <= OPSET:
        raise BadInput(
            f"its opset must be one from {OLDEST} to {OPSET}, got {', '.join(map(str, found[:4])) or 'none'}; "
            f"export it with opset_version={OPSET - 3}"
        )
    return found[0]


# One opset


def graph_of(model: ModelProto) -> tuple[Graph, bool]:
    """A pruned model as a graph of the table's operators, and whether the converter could bring it to one opset."""
    from onnx import inliner

    check_sizes(model)
    light, weights = _without_weights(model)
    _check_standard(light)
    if light.functions:
        light = inliner.inline_local_functions(light)
    check_operators(light.graph.node, removed=True)
    light, converted = _of_one_opset(light)
    light = _folded(light)
    check_operators((node for node in light.graph.node if node.op_type != "Constant"), removed=False)
    return _graph(light, weights, declared_input(model).name), converted


def _check_standard(model: ModelProto) -> None:
    """Raise `BadInput` where a model breaks the standard: unknown inputs, circles, wrong attributes."""
    from onnx import ModelProto, TensorProto, checker, helper

    # The checker wants to know the shape of an output, which many files leave out: it is given the shape's own.
    known, output = ModelProto.FromString(model.SerializeToString()), model.graph.output[0].name
    del known.graph.output[:]
    known.graph.node.append(helper.make_node("Shape", [output], [f"{output}/shape"]))
    known.graph.output.append(helper.make_tensor_value_info(f"{output}/shape", TensorProto.INT64, [None]))
    try:
        checker.check_model(known)
    except (checker.ValidationError, RuntimeError) as error:
        raise BadInput(f"it must follow the standard, but {first_line(error)}") from error


def check_sizes(model: ModelProto) -> None:
    """Raise `BadInput` where a model has too many nodes, or will have once its functions are opened."""
    functions = {(function.domain, function.name): function for function in model.functions}
    known: dict[tuple[str, str], int] = {}
    total = sum(_opened(node, functions, known, ()) for node in model.graph.node)
    if total > MOST_NODES:
        raise BadInput(f"it must have at most {MOST_NODES:,} nodes, got {total:,}")


def _opened(
    node: NodeProto,
    functions: dict[tuple[str, str], FunctionProto],
    known: dict[tuple[str, str], int],
    within: tuple[tuple[str, str], ...],
) -> int:
    """The number of nodes that a node stands for."""
    inside: list[GraphProto] = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    total = 1 + sum(_opened(one, functions, known, within) for graph in inside for one in graph.node)
    name = (node.domain, node.op_type)
    if name in functions:
        if name in within or len(within) > 20:
            raise BadInput(f"its function {node.op_type[:80]!r} must not call itself, nor others 20 deep")
        if name not in known:
            known[name] = sum(_opened(one, functions, known, (*within, name)) for one in functions[name].node)
        total += known[name]
    return total


def _without_weights(model: ModelProto) -> tuple[ModelProto, dict[str, Tensor]]:
    """The model with its large constants as inputs, and these; constants of nodes become initialisers before."""
    from onnx import ModelProto, helper, numpy_helper

    light = ModelProto(ir_version=max(model.ir_version, 10))
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = model.graph.name
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    weights: dict[str, Tensor] = {}
    for tensor in model.graph.initializer:
        value = tensor_of(tensor)
        if value.numel() <= SMALL:
            light.graph.initializer.append(tensor)
        else:
            weights[tensor.name] = value
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    for node in model.graph.node:
        held = next((one.t for one in node.attribute if node.op_type == "Constant" and one.name == "value"), None)
        if held is None:
            light.graph.node.append(node)
            continue
        value = tensor_of(held)
        if value.numel() > SMALL:
            weights[node.output[0]] = value
            value_info = helper.make_tensor_value_info(node.output[0], held.data_type, list(held.dims))
            light.graph.input.append(value_info)
        else:
            light.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(held), node.output[0]))
    return light, weights


def _of_one_opset(model: ModelProto) -> tuple[ModelProto, bool]:
    """The model in `OPSET`; or as it is where the converter fails, for the table reads the older forms too."""
    from onnx import helper, version_converter

    older = opset_of(model) < 11
    if opset_of(model) == OPSET:
        return model, True
    try:
        model = version_converter.convert_version(model, OPSET)
    except Exception:  # the converter raises whatever its adapters meet
        return model, False
    for node in model.graph.node:
        if older and node.op_type == "Resize":  # the converter leaves out where places lay before opset 11
            named = {attribute.name for attribute in node.attribute}
            for name, value in OLD_RESIZE.items():
                if name not in named:
                    node.attribute.append(helper.make_attribute(name, value))
    return model, True


def _folded(model: ModelProto) -> ModelProto:
    """The model without constant expressions, as far as onnxscript can tell them."""
    import logging

    from onnxscript import ir, optimizer

    def small(node: ir.Node) -> bool:
        sizes = [one.const_value.size for one in node.inputs if one is not None and one.const_value is not None]
        return node.domain in ("", "ai.onnx") and node.op_type in FOLDED and max(sizes, default=0) <= MOST_SHAPES

    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        graph = ir.serde.deserialize_model(model)
        optimizer.fold_constants(graph, onnx_shape_inference=True, should_fold=small)
        optimizer.remove_unused_nodes(graph)
        return ir.serde.serialize_model(graph)
    except Exception:  # what folding does not take away is refused afterwards, by name
        return model


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _graph(model: ModelProto, weights: dict[str, Tensor], given: str) -> Graph:
    from onnx import AttributeProto, helper

    constants = weights | {tensor.name: tensor_of(tensor) for tensor in model.graph.initializer}
    steps: list[Step] = []
    for number, node in enumerate(model.graph.node):
        attributes: dict[str, Any] = {}
        for attribute in node.attribute:
            value = helper.get_attribute_value(attribute)
            if attribute.type == AttributeProto.TENSOR:
                value = tensor_of(attribute.t)
            elif isinstance(value, bytes):
                value = value.decode(errors="replace")
            elif attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
                value = list(value)
            elif attribute.type not in (AttributeProto.INT, AttributeProto.FLOAT):
                raise BadInput(f"the node {node.name[:80]!r} must have plain attributes, got {attribute.name[:80]!r}")
            attributes[attribute.name] = value
        if node.op_type == "Constant":
            value = next(iter(attributes.values()))
            constants[node.output[0]] = value if isinstance(value, Tensor) else torch.tensor(value)
            continue
        name = node.name or f"{node.op_type}_{number}"
        inputs, outputs = tuple(node.input), tuple(node.output)
        if node.op_type == "Split":
            attributes["outputs"] = len(outputs)
        steps.append(Step(op=node.op_type, name=name, inputs=inputs, outputs=outputs, attributes=attributes))
    output = model.graph.output[0].name
    return Graph(input=given, output=output, steps=tuple(steps), constants=constants)
