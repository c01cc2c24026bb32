"""ATen operators read as affine operators and elementwise functions: what certificates cover, a function each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from epsball.certify import activations
from epsball.certify.activations import Activation, Rectifier
from epsball.certify.functionals import Shape
from epsball.certify.operators import Convolution, Linear, Reshape, Scale, Sum
from epsball.certify.pooling import (
    absolute,
    adaptive_average_pool,
    average_pool,
    averaged,
    max_pool,
    maximum,
    minimum,
    negated,
)
from epsball.certify.reading import Reading, Ref, Value

SAME = {"clone", "detach", "contiguous", "alias", "lift_fresh_copy", "dropout", "native_dropout"}
"""Operators that give back what they got, in eval mode."""


def _per_example(reading: Reading, constant: Tensor | float) -> Tensor:
    """A constant without its first dimension, which must be 1 or absent."""
    tensor = torch.as_tensor(constant, dtype=reading.dtype)
    if tensor.ndim and tensor.ndim == len(reading.shape or ()):
        if tensor.shape[0] != 1:
            raise reading.uncovered("a constant with an entry per example")
        tensor = tensor[0]
    return tensor


def _scaled(reading: Reading, x: Ref, factor: Tensor | float | None, shift: Tensor | float | None) -> Ref:
    shape = reading.result()
    if shape != reading.shape_of(x):
        x = reading.rearranged(lambda value: value.expand(len(value), *shape), x)
    parts = [None if part is None else _per_example(reading, part) for part in (factor, shift)]
    return reading.put(Scale(*parts), (x,), shape)


def _add(reading: Reading, a: Value, b: Value, alpha: float = 1) -> Ref:
    if isinstance(a, Ref) and isinstance(b, Ref):
        if abs(alpha) != 1:
            b = reading.put(Scale(torch.tensor(alpha, dtype=reading.dtype), None), (b,), reading.shape_of(b))
            alpha = 1
        shapes = [reading.shape_of(a), reading.shape_of(b)]
        return reading.put(Sum((1, int(alpha)), shapes), (a, b), reading.result())
    if isinstance(a, Ref):
        return _scaled(reading, a, None, torch.as_tensor(b, dtype=reading.dtype) * alpha)
    factor = None if alpha == 1 else float(alpha)
    return _scaled(reading, b, factor, a)


def _sub(reading: Reading, a: Value, b: Value, alpha: float = 1) -> Ref:
    return _add(reading, a, b, -alpha)


def _rsub(reading: Reading, a: Value, b: Value, alpha: float = 1) -> Ref:
    return _add(reading, b, a, -alpha)


def _mul(reading: Reading, a: Value, b: Value) -> Ref:
    if isinstance(a, Ref) and isinstance(b, Ref):
        raise reading.uncovered("a product of two values that depend on the input")
    return _scaled(reading, a, b, None) if isinstance(a, Ref) else _scaled(reading, b, a, None)


def _div(reading: Reading, a: Value, b: Value, rounding_mode: str | None = None) -> Ref:
    if isinstance(b, Ref) or rounding_mode is not None:
        raise reading.uncovered("a division by a value that depends on the input, or one that rounds")
    return _scaled(reading, a, 1 / torch.as_tensor(b, dtype=reading.dtype), None)


def _addmm(reading: Reading, bias: Value, x: Value, weight: Value, beta: float = 1, alpha: float = 1) -> Ref:
    if isinstance(bias, Ref) or isinstance(weight, Ref) or beta != 1 or alpha != 1:
        raise reading.uncovered("addmm with factors, or of values that depend on the input")
    if bias.ndim == 2 and len(bias) == 1:
        bias = bias[0]
    if bias.ndim > 1:
        raise reading.uncovered("a constant with an entry per example")
    return reading.linear(x, weight.T, bias.expand(weight.shape[1]))


def _mm(reading: Reading, x: Value, weight: Value) -> Ref:
    if isinstance(weight, Ref) or getattr(weight, "ndim", 0) != 2:
        raise reading.uncovered("a product of two values that depend on the input")
    return reading.linear(x, weight.T)


def _linear(reading: Reading, x: Value, weight: Value, bias: Value = None) -> Ref:
    return reading.linear(x, weight, bias)


def _convolution(
    reading: Reading, x: Value, weight: Value, bias: Value, stride: Any, padding: Any, dilation: Any,
    transposed: bool, extra: Any, groups: int,
) -> Ref:  # fmt: skip
    if isinstance(weight, Ref):
        raise reading.uncovered("a convolution whose kernel depends on the input")
    ndim, shape = weight.ndim - 2, reading.result()
    stride, padding, dilation = (tuple(part) * (ndim if len(part) == 1 else 1) for part in (stride, padding, dilation))
    if transposed:
        return _transposed_convolution(reading, x, weight, bias, (stride, padding, extra, groups, dilation))
    made = Convolution(
        weight, bias, reading.shape_of(x), stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return reading.put(made, (x,), shape)


def _transposed_convolution(reading: Reading, x: Ref, weight: Tensor, bias: Any, how: tuple[Any, ...]) -> Ref:
    """As a matrix, from its values at the unit vectors, where that is small."""
    shape, before = reading.result(), reading.shape_of(x)
    if math.prod(shape) * math.prod(before) > 1 << 24:
        raise reading.uncovered("a large transposed convolution")
    stride, padding, extra, groups, dilation = how
    unit = torch.eye(math.prod(before), dtype=reading.dtype).reshape(-1, *before)
    spread = torch.convolution(unit, weight, None, stride, padding, dilation, True, extra, groups)
    x = reading.put(Reshape(before, (math.prod(before),)), (x,), (math.prod(before),))
    shift = None if bias is None else bias.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).reshape(-1)
    x = reading.put(Linear(spread.flatten(1).T, shift), (x,), (math.prod(shape),))
    return reading.put(Reshape((math.prod(shape),), shape), (x,), shape)


def _batch_norm(reading: Reading, x: Ref, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any) -> Ref:
    training, eps = (rest[0], rest[-1]) if len(rest) == 3 else (False, rest[-1])
    if training or not isinstance(mean, Tensor):
        raise reading.uncovered("a batch normalisation that uses the batch's own statistics")
    factor = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * factor
    column = [-1] + [1] * (len(reading.shape_of(x)) - 1)
    size = (mean * factor).abs() + (0 if bias is None else bias.abs())
    parts = (part.reshape(column) for part in (factor, shift, size))
    return reading.put(Scale(*parts), (x,), reading.shape_of(x))


def _view(reading: Reading, x: Ref, *_size: Any) -> Ref:
    shape = reading.result()
    return x if shape == reading.shape_of(x) else reading.put(Reshape(reading.shape_of(x), shape), (x,), shape)


def _flatten(reading: Reading, x: Ref, *_dims: Any) -> Ref:
    return _view(reading, x)


def _moved(name: str) -> Callable[..., Ref]:
    """A reader of an operator that only moves or selects numbers; it must leave the first dimension alone."""
    function = getattr(torch.ops.aten, name)

    def read(reading: Reading, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        shape = reading.result()
        if name in ("expand", "repeat"):
            sizes = args[0]
            return reading.rearranged(
                lambda value: function(value, [len(value), *sizes[1:]] if name == "expand" else sizes), x
            )
        moved = reading.rearranged(lambda value: function(value, *args, **kwargs), x)
        probe = torch.arange(2.0, dtype=reading.dtype).reshape(2, *[1] * len(reading.shape_of(x)))
        found = function(probe.expand(2, *reading.shape_of(x)), *args, **kwargs)
        if found.shape != (2, *shape) or not bool((found[0] == 0).all()) or not bool((found[1] == 1).all()):
            raise reading.uncovered(f"{name}, which mixes examples here")
        return moved

    return read


def _pad(reading: Reading, x: Ref, pad: Any, value: float = 0.0) -> Ref:
    if len(pad) // 2 > len(reading.shape_of(x)):
        raise reading.uncovered("a padding of examples")
    return reading.rearranged(lambda inner: F.pad(inner, list(pad), value=float(value or 0)), x)


def _cat(reading: Reading, parts: Sequence[Value], dim: int = 0) -> Ref:
    shape = reading.result()
    dim = dim % (len(shape) + 1)
    if dim == 0:
        raise reading.uncovered("a concatenation of examples")
    inputs = [part for part in parts if isinstance(part, Ref)]

    def joined(*values: Tensor) -> Tensor:
        left = iter(values)
        return torch.cat(
            [
                next(left) if isinstance(part, Ref) else part[:1].expand(len(values[0]), *part.shape[1:]).to(values[0])
                for part in parts
            ],
            dim,
        )

    return reading.rearranged(joined, *inputs)


def _stack(reading: Reading, parts: Sequence[Value], dim: int = 0) -> Ref:
    shape = reading.result()
    dim = dim % (len(shape) + 1)
    if dim == 0 or not all(isinstance(part, Ref) for part in parts):
        raise reading.uncovered("a stack of examples, or of constants")
    return reading.rearranged(lambda *values: torch.stack(values, dim), *parts)


def _leaky(reading: Reading, x: Ref, slope: float = 0.01) -> Ref:
    if not 0 <= slope <= 1:
        raise reading.uncovered(f"a leaky ReLU with slope {slope}")
    return reading.activation(Rectifier(float(slope)), x)


def _clamp(reading: Reading, x: Ref, least: Any = None, greatest: Any = None) -> Ref:
    if isinstance(least, Tensor | Ref) or isinstance(greatest, Tensor | Ref):
        raise reading.uncovered("a clamp to tensors")
    low, high = (-math.inf if least is None else float(least)), (math.inf if greatest is None else float(greatest))
    if low == 0 and high == math.inf:
        return reading.activation(Rectifier(), x)
    return reading.activation(activations.clamp(low, high), x)


def _gelu(reading: Reading, x: Ref, approximate: str = "none") -> Ref:
    if approximate != "none":
        raise reading.uncovered("a GELU by tanh")
    return reading.activation(activations.gelu(), x)


def _elementwise(make: Callable[[], Activation]) -> Callable[[Reading, Ref], Ref]:
    return lambda reading, x: reading.activation(make(), x)


MOVES = ("permute", "transpose", "slice", "select", "index_select", "expand", "repeat", "flip", "t")
"""Operators that move, select or repeat numbers."""
FILLS = ("zeros_like", "ones_like", "full_like")
"""Operators that read the shape of a value alone."""
READERS: dict[str, Callable[..., Ref]] = {
    "linear": _linear, "addmm": _addmm, "mm": _mm, "matmul": _mm, "convolution": _convolution,
    "native_batch_norm": _batch_norm, "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm, "add": _add, "sub": _sub, "rsub": _rsub, "mul": _mul, "div": _div, "neg": negated,
    "view": _view, "_unsafe_view": _view, "reshape": _view, "flatten": _flatten, "unsqueeze": _view, "squeeze": _view,
    "_reshape_alias": _view, "constant_pad_nd": _pad, "cat": _cat, "stack": _stack, "mean": averaged("mean"),
    "sum": averaged("sum"), "avg_pool2d": average_pool, "_adaptive_avg_pool2d": adaptive_average_pool,
    "max_pool2d_with_indices": max_pool, "max_pool2d": max_pool, "maximum": maximum, "minimum": minimum,
    "abs": absolute, "relu": _elementwise(Rectifier),
    "leaky_relu": _leaky, "sigmoid": _elementwise(activations.sigmoid),
    "tanh": _elementwise(activations.tanh), "gelu": _gelu, "silu": _elementwise(activations.silu), "clamp": _clamp,
    "hardtanh": lambda reading, x, least=-1.0, greatest=1.0: _clamp(reading, x, least, greatest),
    "clamp_min": _clamp, "clamp_max": lambda reading, x, greatest: _clamp(reading, x, None, greatest),
    **{name: _moved(name) for name in MOVES},
}  # fmt: skip
"""ATen operators by name. What is not here is not covered, and the error says so."""


def read(reading: Reading, call: fx.Node, layer: str, shape: Shape | None) -> None:
    """Read one call of the trace, whose value has `shape` with its first dimension; `layer` is where it was made.

    Raises `BadInput` where it is not covered.
    """
    reading.layer, reading.shape = layer, shape
    target: Any = call.target
    found: Any = fx.map_arg((call.args, call.kwargs), lambda node: reading.raw(node.name))
    args, kwargs = found
    if not any(isinstance(value, Ref) for value in _flat([*args, *kwargs.values()])):
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise reading.uncovered(kind_of(call))
        reading.constants[call.name] = target(*args, **kwargs)  # as the model computes it, in its own precision
        return
    found = fx.map_arg((call.args, call.kwargs), lambda node: reading.value(node.name))
    args, kwargs = found
    kind = kind_of(call).removesuffix("_")  # in place: the trace knows the new value by the old tensor
    if kind in FILLS:
        reading.constants[call.name] = target(
            torch.zeros(1, *reading.shape_of(args[0]), dtype=reading.dtype), *args[1:]
        )
    elif kind in SAME or (kind == "getitem" and args[1] == 0):
        reading.known[call.name] = args[0]
    elif kind in READERS:
        reading.known[call.name] = READERS[kind](reading, *args, **kwargs)
    else:
        raise reading.uncovered(kind)


def kind_of(call: fx.Node) -> str:
    """The name of the operator that a call of the trace calls, as in "convolution"."""
    schema = getattr(call.target, "_schema", None)
    return schema.name.partition("::")[2] if schema is not None else getattr(call.target, "__name__", str(call.target))


def _flat(values: Sequence[Any]) -> list[Any]:
    return [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
