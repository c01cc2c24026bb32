"""ONNX files: `model.onnx` becomes a torch module with gradients, compared with onnxruntime before it is used.

A model that has an operator without a line in `onnx_operators.py` can still be attacked by its outputs alone: with
`black_box`, onnxruntime answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from epsball.common.errors import BadInput
from epsball.models.door import Asked, Loaded, missing_library

if TYPE_CHECKING:
    from onnx import ModelProto

    from epsball.models.onnx_graph import Declared
    from epsball.models.onnx_outputs import Scores


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A file that was read: the part of it that leads to the scores, and what its input is.

    `rows` is the number of rows that the file is written for: None for any, 0 where it has no dimension for them.
    `shape` is that of an example, and `fixed` whether the file takes no other.
    """

    model: ModelProto
    declared: Declared
    scores: Scores
    rows: int | None
    shape: tuple[int, ...]
    fixed: bool


def open_onnx(asked: Asked) -> Loaded:
    """The classifier in the ONNX file `asked.spec`, in the dtype of the file; or a black box of it.

    Raises `BadInput` for a file that is damaged, too large, does not follow the standard, has an operator without a
    gradient here, or gives other outputs than onnxruntime.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing_library("onnx and onnxscript", "onnx", error) from error
    path = Path(asked.spec).expanduser()
    if asked.weights is not None:
        raise BadInput(f"`weights` must be left out with an ONNX file, which has its own, got {asked.weights}")
    if not path.exists():
        similar = get_close_matches(path.name, [entry.name for entry in path.parent.glob("*.onnx")], n=1)
        hint = "".join(f"; did you mean {str(path.parent / name)!r}?" for name in similar)
        raise BadInput(f"`model` must be an existing file, got {asked.spec!r}{hint}")
    try:
        source = _read(path, asked.shape)
        return _black_box(source) if asked.black_box else _module(source)
    except BadInput as error:
        raise BadInput(f"`model` must be an ONNX file that can be read, got {asked.spec!r}: {error}") from error


def _read(path: Path, shape: tuple[int, ...] | None) -> _Source:
    from epsball.models.onnx_bounds import MOST_LIVE
    from epsball.models.onnx_graph import check_sizes, declared_input, opset_of, pruned
    from epsball.models.onnx_outputs import scores_of
    from epsball.models.onnx_reading import read_onnx

    model = read_onnx(path)
    opset_of(model)
    check_sizes(model)
    declared, scores = declared_input(model), scores_of(model)
    rows, example, fixed = _shapes(declared, shape)
    size = math.prod(example) * (rows or 1) * declared.dtype.itemsize
    if size > MOST_LIVE:
        raise BadInput(f"its input must have at most {MOST_LIVE:,} bytes, got {size:,}")
    return _Source(
        model=pruned(model, scores.name), declared=declared, scores=scores, rows=rows, shape=example, fixed=fixed
    )


def _shapes(declared: Declared, shape: tuple[int, ...] | None) -> tuple[int | None, tuple[int, ...], bool]:
    """`rows`, `shape` and `fixed` of a `_Source`."""
    if declared.shape is None:
        sides: tuple[int | None, ...] = (None,) * (len(shape or ()) + 1)
    else:
        sides = declared.shape
    if len(sides) == 1 and sides[0] is not None:  # a vector, without rows
        return 0, (sides[0],), True
    rows, rest = sides[0] if sides else 1, sides[1:]
    fixed = tuple(side for side in rest if side is not None)
    if len(fixed) == len(rest) and declared.shape is not None:
        return rows, fixed, True
    fits = shape is not None and len(shape) == len(rest)
    if not fits or any(side not in (None, given) for side, given in zip(rest, shape or (), strict=True)):
        free = "x".join("?" if side is None else str(side) for side in rest)
        raise BadInput(f"its examples have the shape {free or 'of the data'}, got `shape` {shape}; give one that fits")
    return rows, tuple(shape or ()), False


def _module(source: _Source) -> Loaded:
    """The file as a torch module."""
    from epsball.models.onnx_bounds import folded
    from epsball.models.onnx_compare import compare
    from epsball.models.onnx_graph import graph_of, opset_of
    from epsball.models.onnx_outputs import with_softmax
    from epsball.models.onnx_rows import candidates
    from epsball.models.onnx_runtime import Runtime

    declared, model = source.declared, source.model
    graph, converted = graph_of(model)
    graph = folded(with_softmax(graph))
    notes = [
        f"{len(graph.steps)} operators of opset {opset_of(model)} became a torch module in {str(declared.dtype)[6:]}.",
        *source.scores.notes,
    ]
    if not converted:
        notes.append("onnx.version_converter could not bring them to another opset: they were read as they are.")
    reason = "its number of rows must be free; export it with a free batch dimension, or for one row"
    for candidate in candidates(graph, declared.dtype, source.shape, source.rows):
        runtime = Runtime(model, declared, candidate.rows)
        found = compare(candidate.model, runtime, candidate.shape, declared.dtype)
        if found.agrees:
            return Loaded(
                model=candidate.model,
                notes=(*notes, *candidate.notes, found.note),
                label_names=source.scores.names,
                shape=candidate.shape if source.fixed else None,
            )
        reason = found.note
    raise BadInput(reason)


def _black_box(source: _Source) -> Loaded:
    """The file as onnxruntime runs it, without gradients."""
    from epsball.models.onnx_runtime import black_box

    try:
        model, shape = black_box(source.model, source.declared, source.shape, source.rows)
    except ImportError as error:
        raise missing_library("onnxruntime", "onnx", error) from error
    return Loaded(
        model=model,
        notes=("onnxruntime answers, without gradients: attacks that need none can be run.", *source.scores.notes),
        label_names=source.scores.names,
        shape=shape if source.fixed else None,
    )
