"""Which value of an ONNX model is the scores of the classes, and what the classes are called."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from epsball.common.errors import BadInput
from epsball.common.limits import parse_json
from epsball.models.onnx_graph import WAY_OUT, Graph, Step
from epsball.models.onnx_shapes import DTYPES

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

PREFERRED = ("logits", "scores", "probabilities", "probs", "output")
"""Names of outputs, the likeliest scores first."""
PASSED = ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "ArrayFeatureExtractor", "Gather")
"""Operators between an ArgMax and the labels that a file returns."""
NAMES = ("names", "labels", "classes", "class_names", "label_names", "id2label")
"""Entries of the metadata that may name classes."""
MOST_TEXT = 1 << 20
"""Characters of such an entry."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The value `name` is the scores; `names` of the classes, and `notes` on how it was chosen."""

    name: str
    names: tuple[str, ...] | None
    notes: tuple[str, ...]


def scores_of(model: ModelProto) -> Scores:
    """The scores of a model: its output of floating-point numbers, or what its labels are the largest of."""
    from onnx import TensorProto

    makers = {name: node for node in model.graph.node for name in node.output}
    names = _names_in(model, makers)
    found: dict[str, str] = {}
    for value in model.graph.output:
        maker = makers.get(value.name)
        kind, tensor = value.type.WhichOneof("value"), value.type.tensor_type
        if maker is not None and maker.op_type == "ZipMap":
            found[maker.input[0]] = value.name
        elif kind in (None, "tensor_type"):
            dtype = DTYPES.get(tensor.elem_type)
            if tensor.elem_type == TensorProto.UNDEFINED or (dtype is not None and dtype.is_floating_point):
                found[value.name] = value.name
    if not found:
        return _behind_labels(model, makers, names)
    chosen = next((one for wish in PREFERRED for one in found if one.lower() == wish), next(iter(found)))
    others = [value.name for value in model.graph.output if value.name != found[chosen]]
    if chosen != found[chosen]:
        note = f"Of its outputs, {chosen!r}, which {found[chosen]!r} lists by class, is taken for the scores"
    else:
        note = f"Of its outputs, {chosen!r} is taken for the scores"
    left = f", and {', '.join(map(repr, others[:6]))} {'is' if len(others) == 1 else 'are'} left out" if others else ""
    notes = (f"{note[:300]}{left[:300]}.",) if others or chosen != found[chosen] else ()
    return Scores(name=chosen, names=names, notes=notes)


def _behind_labels(model: ModelProto, makers: dict[str, NodeProto], names: tuple[str, ...] | None) -> Scores:
    """The scores whose largest a model's labels are."""
    for value in model.graph.output:
        name, node = value.name, makers.get(value.name)
        for _ in range(20):
            if node is None or node.op_type not in PASSED:
                break
            node = makers.get(node.input[-1 if node.op_type in ("ArrayFeatureExtractor", "Gather") else 0])
        if node is not None and node.op_type == "ArgMax" and node.input[0] in makers:
            note = f"Its output {name!r} is a label: {node.input[0]!r}, whose largest it is, is taken for the scores."
            return Scores(name=node.input[0], names=names, notes=(note,))
    outputs = ", ".join(value.name[:40] for value in model.graph.output[:8]) or "none"
    raise BadInput(f"one of its outputs must be scores in floating-point numbers, got {outputs}; {WAY_OUT}")


# Names of the classes


def _names_in(model: ModelProto, makers: dict[str, NodeProto]) -> tuple[str, ...] | None:
    """The names of the classes, as a node lists them (scikit-learn's), or the metadata."""
    from onnx import helper

    for node in makers.values():
        if node.op_type == "ZipMap":
            for attribute in node.attribute:
                if attribute.name.startswith("classlabels_"):
                    return _named(helper.get_attribute_value(attribute))
        if node.op_type == "ArrayFeatureExtractor":
            for tensor in model.graph.initializer:
                if tensor.name == node.input[0] and (tensor.string_data or tensor.int64_data or tensor.int32_data):
                    return _named([*tensor.string_data, *tensor.int64_data, *tensor.int32_data])
    for entry in model.metadata_props:
        if entry.key in NAMES and len(entry.value) <= MOST_TEXT:
            with suppress(ValueError):
                return _listed(parse_json(entry.value))
    return None


def _named(values: Iterable[Any]) -> tuple[str, ...] | None:
    """Names of classes as text; None for the numbers from 0, which say nothing."""
    names = tuple(value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in values)
    return None if names == tuple(map(str, range(len(names)))) else names


def _listed(found: Any) -> tuple[str, ...] | None:
    """A JSON list of names, or an object from numbers to names."""
    if isinstance(found, dict):
        found = [found.get(str(place)) for place in range(len(found))]
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        return tuple(found)
    return None


# The end of a graph


def with_softmax(graph: Graph) -> Graph:
    """The graph, with the columns 1 - s and s of a sigmoid s of z as the softmax of 0 and z, the same numbers.

    scikit-learn's binary classifiers end so; a softmax at the end is taken off elsewhere, and leaves the logits.
    """
    makers = {name: step for step in graph.steps for name in step.outputs}
    joined = makers.get(graph.output)
    if joined is None or joined.op != "Concat" or len(joined.inputs) != 2 or joined.attributes["axis"] not in (1, -1):
        return graph
    less, sigmoid = (makers.get(name) for name in joined.inputs)
    if less is None or sigmoid is None or (less.op, sigmoid.op) != ("Sub", "Sigmoid"):
        return graph
    one = graph.constants.get(less.inputs[0])
    if one is None or less.inputs[1] != joined.inputs[1] or not bool((one == 1).all()):
        return graph
    zero, zeros, logits = (f"{graph.output}/{part}" for part in ("zero", "zeros", "logits"))
    z = sigmoid.inputs[0]
    steps = (
        Step(op="Mul", name=zeros, inputs=(z, zero), outputs=(zeros,), attributes={}),
        replace(joined, inputs=(zeros, z), outputs=(logits,)),
        Step(op="Softmax", name=graph.output, inputs=(logits,), outputs=(graph.output,), attributes={"axis": 1}),
    )
    kept = tuple(step for step in graph.steps if step not in (less, sigmoid, joined))
    used = {name for step in kept for name in step.inputs}
    if sigmoid.outputs[0] in used:
        return graph
    constants = graph.constants | {zero: torch.zeros((), dtype=one.dtype)}
    return replace(graph, steps=kept + steps, constants=constants)
