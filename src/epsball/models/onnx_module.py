"""A graph of ONNX as a torch module: its operators in their order, its weights as parameters, in eval mode."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from epsball.models.onnx_graph import Graph, Step
from epsball.models.onnx_operators import OPERATORS
from epsball.models.onnx_shapes import DTYPES

Caller = Callable[[Step, Sequence[Any]], tuple[Any, ...]]
STATISTICS = (3, 4)
"""The inputs of a batch normalisation that are no parameters."""


def call(step: Step, values: Sequence[Any]) -> tuple[Any, ...]:
    """The outputs of an operator; of its inputs, those that are shapes or axes become numbers."""
    operator = OPERATORS[step.op]
    given = [
        numbers(value) if place in operator.numbers and isinstance(value, Tensor) else value
        for place, value in enumerate(values)
    ]
    output = operator.function(*given, **step.attributes)
    return output if isinstance(output, tuple) else (output,)


def numbers(value: Tensor) -> list[Any]:
    """A tensor as a flat list."""
    return value.reshape(-1).tolist()


class OnnxModule(nn.Module):
    """The function of a graph, (n, *shape) -> its output; it computes in the dtype of its weights.

    Floating-point constants are parameters (numbers alone and the statistics of batch normalisations are buffers), by
    their names in the file; whole numbers stay on the CPU, where they become shapes.
    """

    dtype_of_file: Tensor

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        super().__init__()
        self.input, self.output = graph.input, graph.output
        # `dtype_of_file` has no number, and the dtype that the module is brought to.
        self.register_buffer("dtype_of_file", torch.zeros(0, dtype=dtype), persistent=False)
        self.steps = tuple(_to_own_dtype(step, dtype) for step in graph.steps)
        self.names: dict[str, str] = {"": "dtype_of_file"}
        self.whole: dict[str, Tensor] = {}
        used = dict.fromkeys([*(name for step in self.steps for name in step.inputs), self.output])
        norms = [step for step in self.steps if step.op == "BatchNormalization"]
        statistics = {step.inputs[place] for step in norms for place in STATISTICS if place < len(step.inputs)}
        for name in used:
            value = graph.constants.get(name)
            if value is None:
                continue
            if not value.is_floating_point():
                self.whole[name] = value
                continue
            self.names[name] = own = self._free_name(name)
            if name in statistics or not value.ndim:
                self.register_buffer(own, value)
            else:
                self.register_parameter(own, nn.Parameter(value))
        self.last_uses = _last_uses(self.steps, self.output)
        self.eval()

    def _free_name(self, name: str) -> str:
        own = re.sub(r"\W", "_", name)[:80]
        while not own.isidentifier() or hasattr(self, own):
            own = f"_{own}"
        return own

    def forward(self, x: Tensor) -> Tensor:
        return self.values(x, call)[self.output].to(x.dtype)

    def values(self, x: Tensor, caller: Caller) -> dict[str, Tensor]:
        """What is left when each step was called by `caller`: the output, all else being freed at its last use."""
        known: dict[str, Any] = {self.input: x.to(self.dtype_of_file.dtype)}
        for step, last in zip(self.steps, self.last_uses, strict=True):
            found = caller(step, self._inputs(step, known, x.device))
            known.update((name, value) for name, value in zip(step.outputs, found, strict=False) if name)
            for name in last:
                known.pop(name, None)
        if self.output not in known:
            known[self.output] = self._constant(self.output)
        return known

    def _inputs(self, step: Step, known: dict[str, Any], device: torch.device) -> list[Any]:
        values = []
        for place, name in enumerate(step.inputs):
            value = known[name] if name in known else self._constant(name) if name or step.op == "CastLike" else None
            if value is not None and value.device != device and place not in OPERATORS[step.op].numbers:
                on_device = any(name in known and known[name].device == device for name in step.inputs)
                value = value.to(device) if on_device or name in self.names else value
            values.append(value)
        return values

    def _constant(self, name: str) -> Tensor:
        return self.whole[name] if name in self.whole else getattr(self, self.names[name])

    def extra_repr(self) -> str:
        return f"{len(self.steps)} operators: {', '.join(dict.fromkeys(step.op for step in self.steps))}"


def _to_own_dtype(step: Step, dtype: torch.dtype) -> Step:
    """A cast to the dtype of the file as one to the dtype of the module, which `double()` changes."""
    if step.op != "Cast" or DTYPES.get(step.attributes.get("to", 0)) != dtype:
        return step
    return Step(op="CastLike", name=step.name, inputs=(*step.inputs, ""), outputs=step.outputs, attributes={})


def _last_uses(steps: Sequence[Step], output: str) -> tuple[tuple[str, ...], ...]:
    """The names that no step after this one reads, step by step."""
    seen, uses = {output}, []
    for step in reversed(steps):
        done = {name for name in (*step.inputs, *step.outputs) if name} - seen
        seen |= done
        uses.append(tuple(done))
    return tuple(reversed(uses))
