"""ATen's pools, means and maxima, read as affine operators and rectifiers: max(a, b) = b + relu(a - b)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from epsball.certify.activations import Rectifier
from epsball.certify.functionals import Shape
from epsball.certify.operators import Convolution, Greater, Scale, Sum
from epsball.certify.reading import Reading, Ref, Value


def averaged(name: str) -> Callable[..., Ref]:
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


def average_pool(reading: Reading, x: Ref, kernel: Any, stride: Any = (), padding: Any = (0,), *rest: Any) -> Ref:
    _check_image(reading, x)
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


def adaptive_average_pool(reading: Reading, x: Ref, size: Any) -> Ref:
    _check_image(reading, x)
    before = reading.shape_of(x)
    return reading.rearranged(
        lambda value: F.adaptive_avg_pool2d(value, tuple(size)), x, terms=math.prod(before[1:]) + 1
    )


def max_pool(
    reading: Reading,
    x: Ref,
    kernel: Any,
    stride: Any = (),
    padding: Any = (0,),
    dilation: Any = (1,),
    ceil: bool = False,
) -> Ref:
    """The greatest of a window, two at a time: each cell of the window is a convolution with a kernel of one 1."""
    _check_image(reading, x)
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


def _check_image(reading: Reading, x: Ref) -> None:
    """Raise `BadInput` where the examples are not (C, H, W): torch would take the first dimension for channels."""
    if len(reading.shape_of(x)) != 3:
        raise reading.uncovered("a pooling of examples without channels")


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
        winners.append(reading.put(Greater(), (b, rest, a), shape))
    return _greatest(reading, winners, shape)


def maximum(reading: Reading, a: Value, b: Value) -> Ref:
    shape = reading.result()
    if not (isinstance(a, Ref) and isinstance(b, Ref)) or not reading.shape_of(a) == reading.shape_of(b) == shape:
        raise reading.uncovered("a maximum with a constant, or of different shapes")
    return _greatest(reading, [a, b], shape)


def minimum(reading: Reading, a: Value, b: Value) -> Ref:
    if not (isinstance(a, Ref) and isinstance(b, Ref)):
        raise reading.uncovered("a minimum with a constant")
    return negated(reading, maximum(reading, negated(reading, a), negated(reading, b)))


def absolute(reading: Reading, x: Ref) -> Ref:
    """|x| = max(x, -x)."""
    return _greatest(reading, [x, negated(reading, x)], reading.shape_of(x))


def negated(reading: Reading, x: Ref) -> Ref:
    """-x."""
    return reading.put(Scale(torch.tensor(-1.0, dtype=reading.dtype), None), (x,), reading.shape_of(x))


def _pair(size: Any) -> tuple[int, int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return (sizes[0], sizes[-1])
