"""The first runs of a graph: each operator is tried on shapes before it may take memory, and constants are folded.

A file of a kilobyte can ask for a tensor of a terabyte. torch's meta device computes shapes without numbers, also those
of what an operator needs on its way.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from epsball.common.errors import BadInput
from epsball.models.onnx_graph import WAY_OUT, Graph, Step, first_line
from epsball.models.onnx_module import call
from epsball.models.onnx_operators import OPERATORS

MOST_LIVE = 256 << 20
"""Bytes of the tensors that a run holds at a time, beside the weights of the file."""
MOST_FLOPS, MOST_FOLDED = 10**12, 10**10
"""Operations of the products and convolutions of a run, and of those of constants."""


class _Costs(TorchDispatchMode):
    """Counts operations, and raises where torch would make a tensor of more than `MOST_LIVE` bytes."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        for part in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(part, Tensor) and part.numel() * part.itemsize > MOST_LIVE:
                raise ValueError(f"makes a tensor of {part.numel():,} numbers")
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=output)
        return output


class Bounded:
    """A caller of operators (see `OnnxModule.values`) that names the node where one fails or takes too much."""

    def __init__(self, most_flops: int = MOST_FLOPS) -> None:
        self.flops, self.most_flops = 0, most_flops
        self.held: dict[int, list[int]] = {}
        """By the place of a storage, how many tensors have it, and its bytes."""

    def __call__(self, step: Step, values: Sequence[Any]) -> tuple[Any, ...]:
        whole = OPERATORS[step.op].numbers
        sketches = [
            value.to("meta") if isinstance(value, Tensor) and place not in whole else value
            for place, value in enumerate(values)
        ]
        try:
            with _Costs() as costs:
                call(step, sketches)
            self.flops += costs.flops
            if self.flops > self.most_flops:
                raise ValueError(f"is where more than {self.most_flops:.0e} operations are reached")
            found = call(step, values)
        except Exception as error:  # torch raises whatever an operator meets
            raise BadInput(f"{step} {first_line(error)}; {WAY_OUT}") from error
        for value in found:
            self._hold(step, value)
        return found

    def _hold(self, step: Step, value: Tensor) -> None:
        storage = value.untyped_storage()
        place = storage.data_ptr()
        self.held.setdefault(place, [0, storage.nbytes()])[0] += 1
        weakref.finalize(value, self._free, place)
        if sum(size for _, size in self.held.values()) > MOST_LIVE:
            raise BadInput(f"{step} is where its tensors exceed {MOST_LIVE:,} bytes; {WAY_OUT}")

    def _free(self, place: int) -> None:
        self.held[place][0] -= 1
        if not self.held[place][0]:
            del self.held[place]


@torch.no_grad()
def folded(graph: Graph) -> Graph:
    """The graph without the steps whose inputs are all constants."""
    caller = Bounded(MOST_FOLDED)
    constants, steps, size = dict(graph.constants), [], 0
    for step in graph.steps:
        if not all(name in constants or not name for name in step.inputs):
            steps.append(step)
            continue
        found = caller(step, [constants[name] if name else None for name in step.inputs])
        size += sum(value.numel() * value.itemsize for value in found)
        if size > MOST_LIVE:
            raise BadInput(f"{step} is where its constants exceed {MOST_LIVE:,} bytes; {WAY_OUT}")
        pairs = zip(step.outputs, found, strict=False)
        constants.update((name, value.contiguous()) for name, value in pairs if name)
    return replace(graph, steps=tuple(steps), constants=constants)
