"""Any number of rows, also where a file was written for one or for a few.

Exporters write the number of rows into the shapes of reshapes and expansions. Where the rows lie is found by running
the graph with the declared number of rows and with one more: there the shape is left free. A graph that mixes its one
row with other sides (or that has no rows at all) is mapped over the examples by `torch.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.models.onnx_bounds import Bounded
from epsball.models.onnx_graph import WAY_OUT, Graph, Step
from epsball.models.onnx_module import OnnxModule, call
from epsball.models.onnx_operators import OPERATORS

Shape = tuple[int, ...]
MOST_TRIES, MOST_WAYS = 200, 8
"""Runs that look for a way to free the shapes, and ways that are compared with the file."""
LAST = {"Softmax": lambda z: torch.softmax(z, -1), "Sigmoid": torch.sigmoid}


class PerExample(nn.Module):
    """A graph for one example, mapped over the rows. `leading` is whether it has the one row as a dimension."""

    def __init__(self, graph: Graph, dtype: torch.dtype, *, leading: bool) -> None:
        super().__init__()
        end = graph.steps[-1]
        # What the package takes off the end of a model has to be outside of the map, where it is seen.
        self.last = end.op if end.op in LAST and graph.output in end.outputs else ""
        inner = replace(graph, steps=graph.steps[:-1], output=end.inputs[0]) if self.last else graph
        self.single, self.leading = OnnxModule(inner, dtype), leading
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        rows = x if len(x) else x.new_zeros(1, *x.shape[1:])
        out = torch.vmap(self._one)(rows)[: len(x)]
        return LAST[self.last](out) if self.last else out

    def _one(self, x: Tensor) -> Tensor:
        return self.single(x[None] if self.leading else x).reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a graph is with the number of rows that it is written for: the shapes of its values, its constants."""

    shapes: dict[str, Shape]
    constants: dict[str, Tensor]

    def call(self, step: Step, values: Sequence[Any]) -> tuple[Any, ...]:
        """The outputs of a step on the meta device; constants that are shapes and axes keep their numbers."""
        whole = OPERATORS[step.op].numbers
        places = enumerate(zip(step.inputs, values, strict=False))
        return call(step, [self.constants.get(name, one) if place in whole else one for place, (name, one) in places])


@torch.no_grad()
def for_any_rows(graph: Graph, dtype: torch.dtype, shape: Shape, rows: int) -> Iterator[Graph]:
    """The graph with its shapes free of the declared number of rows, in the ways in which the shapes fit.

    `shape` is that of an example. Where a reshape leaves more than one way, all are tried, the likeliest first; what
    comes out still has to be compared with the original.
    """
    graph = _with_repeats_as_one(graph, rows)
    module = OnnxModule(graph, dtype).to("meta")
    shapes = {name: tuple(value.shape) for name, value in graph.constants.items()}
    written = Written(shapes=shapes | {graph.input: (rows, *shape)}, constants=graph.constants)

    def note(step: Step, values: Sequence[Any]) -> tuple[Any, ...]:
        found = written.call(step, values)
        written.shapes.update((name, tuple(one.shape)) for name, one in zip(step.outputs, found, strict=False))
        return found

    try:
        before = module.values(torch.zeros(rows, *shape, dtype=dtype, device="meta"), note)[graph.output]
    except Exception:  # a shape that follows from the numbers of the input
        return
    choice: list[int] = []
    for _ in range(MOST_TRIES):
        attempt = _Attempt(written, choice)
        after = attempt.output(module, torch.zeros(rows + 1, *shape, dtype=dtype, device="meta"))
        if after is not None and after.shape == (rows + 1, *before.shape[1:]):
            yield replace(graph, steps=tuple(attempt.steps))
        choice = [*choice, *[0] * len(attempt.ways)][: len(attempt.ways)]
        while choice and choice[-1] + 1 >= attempt.ways[len(choice) - 1]:
            choice.pop()
        if not choice:
            return
        choice[-1] += 1


class _Attempt:
    """The steps with one choice of ways: the n-th number of `choice` is the way of the n-th step that has several."""

    def __init__(self, written: Written, choice: list[int]) -> None:
        self.written, self.choice = written, choice
        self.steps: list[Step] = []
        self.ways: list[int] = []

    def output(self, module: OnnxModule, x: Tensor) -> Tensor | None:
        """The output at x, or None where the shapes do not fit."""
        try:
            return module.values(x, self._call)[module.output]
        except Exception:  # torch says in many ways that shapes do not fit
            return None

    def _call(self, step: Step, values: Sequence[Any]) -> tuple[Any, ...]:
        found = _ways(step, values, self.written)
        place = 0
        if len(found) > 1:
            place = self.choice[len(self.ways)] if len(self.ways) < len(self.choice) else 0
            self.ways.append(len(found))
        self.steps.append(found[place])
        return self.written.call(found[place], values[: len(found[place].inputs)])


def _with_repeats_as_one(graph: Graph, rows: int) -> Graph:
    """The graph with constants that a concatenation joins to the rows, such as a class token, as one row."""
    constants, steps = dict(graph.constants), []
    for step in graph.steps:
        for place, name in enumerate(step.inputs if step.op == "Concat" and rows > 1 else ()):
            axis = _repeated_axis(graph.constants.get(name), rows, step.attributes["axis"])
            if axis is not None:
                constants[f"{name}/row"] = graph.constants[name].narrow(axis, 0, 1)
                inputs = (*step.inputs[:place], f"{name}/row", *step.inputs[place + 1 :])
                step = replace(step, inputs=inputs, attributes=step.attributes | {"batch_axis": axis})
        steps.append(step)
    return replace(graph, steps=tuple(steps), constants=constants)


def _repeated_axis(value: Tensor | None, rows: int, along: int) -> int | None:
    """The axis, other than `along`, in which a constant is one row, `rows` times."""
    if value is None:
        return None
    axes = [axis for axis in range(value.ndim) if axis != along % value.ndim and value.shape[axis] == rows]
    return next((axis for axis in axes if bool((value == value.narrow(axis, 0, 1)).all())), None)


def _ways(step: Step, values: Sequence[Any], written: Written) -> list[Step]:
    """A step with a shape that leaves the rows free, in each way that the shapes allow."""
    if step.op == "Concat" and "batch_axis" not in step.attributes:
        mixed = _mixed_axis([value.shape for value in values], step.attributes["axis"])
        return [step if mixed is None else replace(step, attributes=step.attributes | {"batch_axis": mixed})]
    if step.op not in ("Reshape", "Expand") or len(step.inputs) != 2 or step.inputs[1] not in written.constants:
        return [step]
    then, now = written.shapes[step.inputs[0]], tuple(values[0].shape)
    moved = [axis for axis, (one, other) in enumerate(zip(then, now, strict=True)) if one != other]
    out = written.shapes[step.outputs[0]]
    if len(moved) != 1:
        return [step]
    if step.op == "Expand":
        axes = [moved[0] + len(out) - len(then)]
    else:
        axes = _axes_of_rows(out, math.prod(then[: moved[0]]), then[moved[0]], now[moved[0]])
    free = 1 if step.op == "Expand" else -1
    shapes = [[free if place == axis else side for place, side in enumerate(out)] for axis in axes]
    return [replace(step, inputs=step.inputs[:1], attributes={"shape": sides}) for sides in shapes] or [step]


def _axes_of_rows(sides: Shape, before: int, then: int, now: int) -> list[int]:
    """The axes of a reshape's result in which the rows may be, the likeliest first.

    `before` is the product of the sides in front of the axis that had `then` places and now has `now`.
    """
    found = []
    for axis, side in enumerate(sides):
        front = math.prod(sides[:axis])
        if side * now % then == 0 and front <= before * then and before <= front * side:
            found.append((front != before, axis))
    return [axis for _, axis in sorted(found)]


def _mixed_axis(shapes: list[torch.Size], along: int) -> int | None:
    """The axis, other than `along`, in which parts have one row and others more."""
    rank = len(shapes[0])
    for axis in range(rank):
        sides = {shape[axis] for shape in shapes}
        if axis != along % rank and len(sides) == 2 and min(sides) == 1:
            return axis
    return None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A module for any number of rows of `shape`; the file itself takes `rows` of them (None: any, 0: one, alone)."""

    model: nn.Module
    shape: Shape
    rows: int | None
    notes: tuple[str, ...] = ()


def candidates(graph: Graph, dtype: torch.dtype, shape: Shape, rows: int | None) -> Iterator[Candidate]:
    """A graph for any number of rows: as it is, with its shapes freed, or mapped over the examples.

    The first that agrees with the file is the model. `rows` is the number that the file is written for.
    """
    if rows is None:
        with suppress(BadInput):
            out = outputs(graph, dtype, (2, *shape))
            if out.ndim and len(out) == 2:
                yield Candidate(model=OnnxModule(with_columns(graph, out.shape[1:]), dtype), shape=shape, rows=None)
        rows = 1
    if not rows:
        out = outputs(graph, dtype, shape)
        yield _mapped(graph, dtype, shape, leading=False, out=out)
        return
    out = outputs(graph, dtype, (rows, *shape))
    if out.ndim and len(out) == rows:
        note = f"It is written for {rows} row{'s' if rows > 1 else ''}; its shapes were freed for any number."
        for free in islice(for_any_rows(with_columns(graph, out.shape[1:]), dtype, shape, rows), MOST_WAYS):
            yield Candidate(model=OnnxModule(free, dtype), shape=shape, rows=rows, notes=(note,))
    if rows == 1:
        yield _mapped(graph, dtype, shape, leading=True, out=out)
    elif not out.ndim or len(out) != rows:
        yield _mapped(graph, dtype, (rows, *shape), leading=False, out=out)


def outputs(graph: Graph, dtype: torch.dtype, shape: Shape) -> Tensor:
    """The output of a graph at zeros of a shape. Raises `BadInput` where a step fails or takes too much."""
    with torch.no_grad():
        return OnnxModule(graph, dtype).values(torch.zeros(shape, dtype=dtype), Bounded())[graph.output]


def with_columns(graph: Graph, sides: Sequence[int]) -> Graph:
    """The graph with outputs (n, classes), where those of an example have the shape `sides`."""
    if math.prod(sides) != max(sides, default=1):
        raise BadInput(f"its scores must be one number per class, got {tuple(sides)} per example; {WAY_OUT}")
    if len(sides) < 2:
        return graph
    name = f"{graph.output}/columns"
    end = Step(op="Flatten", name=name, inputs=(graph.output,), outputs=(name,), attributes={"axis": 1})
    return replace(graph, steps=(*graph.steps, end), output=name)


def _mapped(graph: Graph, dtype: torch.dtype, shape: Shape, *, leading: bool, out: Tensor) -> Candidate:
    with_columns(graph, out.shape)
    note = "It takes one example at a time, and is mapped over the rows by torch.vmap."
    model = PerExample(graph, dtype, leading=leading)
    return Candidate(model=model, shape=shape, rows=int(leading), notes=(note,))
