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
from epsball.certify.graph import Graph, Node
from epsball.certify.operators import Affine, Convolution, Greater, Linear, Rearrangement, Reshape, Scale, Sum
from epsball.common.errors import BadInput

SAME = {"clone", "detach", "contiguous", "alias", "lift_fresh_copy", "dropout", "native_dropout"}
"""Operators that give back what they got, in eval mode."""
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
                "`model` must compute its logits from the input for a certificate, got an output that does not depend on "
                "it; look at what its forward returns"
            )
        shape = self.nodes[-1].shape
        if len(shape) == 0:
            self.put(Reshape((), (1,)), (self.last,), (1,))
        elif len(shape) != 1:
            raise BadInput(
                f"`model` must return logits (n, classes) for a certificate, got (n, {', '.join(map(str, shape))}); wrap "
                "it so that it returns one row an example"
            )
        return Graph(tuple(self.nodes), self.dtype)

    def put(self, operator: Affine | Activation | None, inputs: Sequence[int], shape: Shape) -> Ref:
        """Append a node."""
        self.nodes.append(Node(operator, tuple(inputs), shape, self.layer))
        self.last = len(self.nodes) - 1
        return Ref(self.last)

    def add(self, name: str, target: Any, args: Any, kwargs: Any, layer: str, shape: Shape | None) -> None:
        """Read one call of the trace. Raises `BadInput` where it is not covered."""
        self.layer, self.shape = layer, shape
        args, kwargs = fx.map_arg((args, kwargs), lambda node: self.value(node.name))
        flat = [*args, *kwargs.values()]
        if not any(
            isinstance(value, Ref) for part in flat for value in (part if isinstance(part, list | tuple) else [part])
        ):
            self.constants[name] = target(*args, **kwargs)
            return
        schema = getattr(target, "_schema", None)
        kind = schema.name.partition("::")[2] if schema is not None else target.__name__
        if kind in SAME:
            self.known[name] = args[0]
            return
        if kind == "getitem":
            if args[1] != 0:
                raise self.uncovered(f"output {args[1]} of an operator")
            self.known[name] = args[0]
            return
        read = READERS.get(kind)
        if read is None:
            raise self.uncovered(kind)
        self.known[name] = read(self, *args, **kwargs)

    def value(self, name: str) -> Value:
        """What a name of the trace stands for; constants in the graph's precision."""
        if name in self.known:
            return self.known[name]
        constant = self.constants[name]
        return constant.to(self.dtype) if isinstance(constant, Tensor) and constant.is_floating_point() else constant

    def uncovered(self, what: str) -> BadInput:
        """The error for what certificates do not cover."""
        place = f" of layer {self.layer}" if self.layer else ""
        return BadInput(
            f"`model` must be made of layers that certificates cover, got `{what}`{place}; use method='smoothing', which "
            "needs no layers"
        )

    def shape_of(self, value: Ref) -> Shape:
        """Of one example."""
        return self.nodes[value].shape

    def result(self) -> Shape:
        """The shape of one example of what is being read. Raises `BadInput` where the first dimension is not kept."""
        if self.shape is None or not self.shape or self.shape[0] != self.rows:
            raise self.uncovered("an operator that mixes examples")
        return tuple(self.shape[1:])

    # Below, one method a kind of operator; arguments as ATen has them.

    def activation(self, function: Activation, x: Ref) -> Ref:
        return self.put(function, (x,), self.shape_of(x))

    def linear(self, x: Ref, weight: Tensor, bias: Tensor | None = None) -> Ref:
        if isinstance(weight, Ref) or not isinstance(x, Ref):
            raise self.uncovered("a product of two values that depend on the input")
        return self.put(Linear(weight, bias), (x,), (*self.shape_of(x)[:-1], weight.shape[0]))

    def rearranged(self, function: Callable[..., Tensor], *inputs: Ref, terms: int = 0) -> Ref:
        return self.put(Rearrangement(function, [self.shape_of(x) for x in inputs], terms), inputs, self.result())


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


def _neg(reading: Reading, x: Ref) -> Ref:
    return _scaled(reading, x, -1.0, None)


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
    return reading.put(Scale(factor.reshape(column), shift.reshape(column)), (x,), reading.shape_of(x))


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


def _averaged(name: str) -> Callable[..., Ref]:
    """A reader of a mean or a sum over dimensions."""

    def read(reading: Reading, x: Ref, dims: Any = None, keepdim: bool = False, **_dtype: Any) -> Ref:
        before = reading.shape_of(x)
        dims = [dim % (len(before) + 1) for dim in (dims or range(len(before) + 1))]
        if 0 in dims:
            raise reading.uncovered(f"a {name} over examples")
        terms = math.prod(before[dim - 1] for dim in dims) + 1
        function = torch.mean if name == "mean" else torch.sum
        return reading.rearranged(lambda value: function(value, dim=dims, keepdim=keepdim), x, terms=terms)

    return read


def _average_pool(reading: Reading, x: Ref, kernel: Any, stride: Any = (), padding: Any = (0,), *rest: Any) -> Ref:
    ceil, counts_padding, divisor = (*rest, *(False, True, None)[len(rest) :])
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride) if stride else kernel
    if ceil or divisor is not None or (not counts_padding and any(padding)):
        terms = math.prod(kernel) + 1
        return reading.rearranged(
            lambda value: F.avg_pool2d(value, kernel, stride, padding, bool(ceil), bool(counts_padding), divisor),
            x,
            terms=terms,
        )
    channels = reading.shape_of(x)[0]
    weight = torch.full((channels, 1, *kernel), 1 / math.prod(kernel), dtype=reading.dtype)
    made = Convolution(
        weight, None, reading.shape_of(x), stride=stride, padding=padding, dilation=(1, 1), groups=channels
    )
    return reading.put(made, (x,), reading.result())


def _adaptive_average_pool(reading: Reading, x: Ref, size: Any) -> Ref:
    before = reading.shape_of(x)
    return reading.rearranged(
        lambda value: F.adaptive_avg_pool2d(value, tuple(size)), x, terms=math.prod(before[1:]) + 1
    )


def _max_pool(
    reading: Reading,
    x: Ref,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0,),
    dilation: Any = (1,),
    ceil: bool = False,
) -> Ref:
    """The greatest of a window, two at a time: each cell of the window is a convolution with a kernel of one 1."""
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = _pair(stride) if stride else kernel
    channels, shape = reading.shape_of(x)[0], reading.result()
    if (
        ceil
        and tuple(F.max_pool2d(torch.zeros(1, *reading.shape_of(x)), kernel, stride, padding, dilation).shape[1:])
        != shape
    ):
        raise reading.uncovered("a max pooling with ceil_mode=True whose last windows are cut")
    if any(padding) and not _is_nonnegative(reading, x):
        raise reading.uncovered("a max pooling with padding over values that may be negative")
    parts = []
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            weight = torch.zeros(channels, 1, *kernel, dtype=reading.dtype)
            weight[:, :, row, column] = 1
            made = Convolution(
                weight, None, reading.shape_of(x), stride=stride, padding=padding, dilation=dilation, groups=channels
            )
            parts.append(reading.put(made, (x,), shape))
    return _greatest(reading, parts, shape)


def _is_nonnegative(reading: Reading, x: Ref) -> bool:
    """Whether a value is at least 0, so that zeros around it change no maximum."""
    operator = reading.nodes[x].operator
    return isinstance(operator, Rectifier) and operator.slope == 0


def _greatest(reading: Reading, parts: Sequence[Ref], shape: Shape) -> Ref:
    """The maximum of nodes of one shape, as a tree of max(a, b) = b + relu(a - b)."""
    if len(parts) == 1:
        return parts[0]
    winners = [parts[-1]] if len(parts) % 2 else []
    for a, b in zip(parts[::2], parts[1::2], strict=False):
        excess = reading.put(Sum((1, -1), (shape, shape)), (a, b), shape)
        rest = reading.put(Rectifier(), (excess,), shape)
        winners.append(reading.put(Greater(shape), (b, rest, a), shape))
    return _greatest(reading, winners, shape)


def _maximum(reading: Reading, a: Value, b: Value) -> Ref:
    shape = reading.result()
    if not (isinstance(a, Ref) and isinstance(b, Ref)) or not reading.shape_of(a) == reading.shape_of(b) == shape:
        raise reading.uncovered("a maximum with a constant, or of different shapes")
    return _greatest(reading, [a, b], shape)


def _minimum(reading: Reading, a: Value, b: Value) -> Ref:
    if not (isinstance(a, Ref) and isinstance(b, Ref)):
        raise reading.uncovered("a minimum with a constant")
    return _neg(reading, _maximum(reading, _neg(reading, a), _neg(reading, b)))


def _abs(reading: Reading, x: Ref) -> Ref:
    """|x| = max(x, -x)."""
    return _greatest(reading, [x, _neg(reading, x)], reading.shape_of(x))


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


def _pair(size: Any) -> tuple[int, int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return (sizes[0], sizes[-1])


READERS: dict[str, Callable[..., Ref]] = {
    "linear": _linear, "addmm": _addmm, "mm": _mm, "matmul": _mm, "convolution": _convolution,
    "native_batch_norm": _batch_norm, "_native_batch_norm_legit_no_training": _batch_norm,
    "cudnn_batch_norm": _batch_norm, "add": _add, "sub": _sub, "rsub": _rsub, "mul": _mul, "div": _div, "neg": _neg,
    "view": _view, "_unsafe_view": _view, "reshape": _view, "flatten": _flatten, "unsqueeze": _view, "squeeze": _view,
    "_reshape_alias": _view, "constant_pad_nd": _pad, "cat": _cat, "stack": _stack, "mean": _averaged("mean"),
    "sum": _averaged("sum"), "avg_pool2d": _average_pool, "_adaptive_avg_pool2d": _adaptive_average_pool,
    "max_pool2d_with_indices": _max_pool, "max_pool2d": _max_pool, "maximum": _maximum, "minimum": _minimum,
    "abs": _abs, "relu": _elementwise(Rectifier), "leaky_relu": _leaky, "sigmoid": _elementwise(activations.sigmoid),
    "tanh": _elementwise(activations.tanh), "gelu": _gelu, "silu": _elementwise(activations.silu), "clamp": _clamp,
    "hardtanh": lambda reading, x, least=-1.0, greatest=1.0: _clamp(reading, x, least, greatest),
    "clamp_min": _clamp, "clamp_max": lambda reading, x, greatest: _clamp(reading, x, None, greatest),
    **{name: _moved(name) for name in ("permute", "transpose", "slice", "select", "index_select", "expand", "repeat", "flip", "t")},
}  # fmt: skip
"""ATen operators by name. What is not here is not covered, and the error says so."""


def check_same(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raise `BadInput` where two answers of one network differ in more than rounding, whatever constant they share."""
    centred = [
        answer.double() - answer.double().mean(1, keepdim=True) * (answer.shape[1] > 1) for answer in (found, expected)
    ]
    scale = centred[1].abs().amax().clamp_min(1e-6)
    gap = float((centred[0] - centred[1]).abs().amax() / scale)
    if not gap <= tolerance:
        raise BadInput(
            f"`model` must compute what its trace computes for a certificate, got answers that differ by {gap:.2g} of "
            "their scale: it may choose by values, or change from call to call; use method='smoothing'"
        )
