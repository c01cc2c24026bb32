"""The affine operators of a network: forward on values, on intervals, and backward on linear functionals.

All tensors have a first dimension of examples or rows, and `shape` is that of one example. Intervals of a weighted
operator go by centre and radius, |W| on the radius (Gowal et al. 2018, arXiv:1810.12715, eq. 6).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from epsball.certify.functionals import Functional, Shape

Bounds = tuple[Tensor, Tensor]
MATRIX = 1 << 22
"""Entries up to which a transposed convolution of windows is kept as a matrix, whose product is sooner."""
FEW_CHANNELS = 4
"""Input channels up to which a transposed convolution is sooner as a matrix product whose columns are added up."""
FULL = 0.8
"""Share of an image from which on a window is written out over all of it."""


class Affine(ABC):
    """y = W x + b, for one or more inputs x. `terms` is how many products are summed for a number of y at most."""

    terms: int = 1

    @abstractmethod
    def forward(self, *values: Tensor) -> Tensor:
        """y, (n, *shape)."""

    @abstractmethod
    def interval(self, *bounds: Bounds) -> Bounds:
        """The least and greatest y, (n, *shape) each, where each x lies between its bounds."""

    @abstractmethod
    def transpose(self, rows: Functional) -> tuple[Functional | None, ...]:
        """The functionals of the inputs, without the constant; None for an input that is not used."""

    def constant(self, rows: Functional) -> Tensor | None:
        """What the rows (P,) have of b; None where there is none."""
        return None

    @abstractmethod
    def magnitude(self, *sizes: Tensor) -> Tensor:
        """|W| m + |b| for |x| <= m: what rounding errors are in proportion to."""


def weighted_interval(
    bounds: Bounds, forward: Callable[[Tensor], Tensor], spread: Callable[[Tensor], Tensor]
) -> Bounds:
    """The interval of an operator from its value at the centre and |W| times the radius."""
    lower, upper = bounds
    centre, radius = forward((lower + upper) / 2), spread((upper - lower) / 2)
    return centre - radius, centre + radius


def per_row(values: Tensor) -> Tensor:
    """The sum of each row, (P,)."""
    return values if values.ndim == 1 else values.flatten(1).sum(1)


class Linear(Affine):
    """x @ weight.T + bias over the last dimension; `weight` (out, in), `bias` (out,)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias, self.terms = weight, bias, weight.shape[1] + 1

    def forward(self, *values: Tensor) -> Tensor:
        return F.linear(values[0], self.weight, self.bias)

    def interval(self, *bounds: Bounds) -> Bounds:
        return weighted_interval(bounds[0], self.forward, lambda radius: F.linear(radius, self.weight.abs()))

    def transpose(self, rows: Functional) -> tuple[Functional, ...]:
        values = rows.values @ self.weight
        return (rows.moved(values, (*rows.shape[:-1], self.weight.shape[1])),)

    def constant(self, rows: Functional) -> Tensor | None:
        return None if self.bias is None else per_row(rows.values @ self.bias)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return F.linear(sizes[0], self.weight.abs(), None if self.bias is None else self.bias.abs())


class Convolution(Affine):
    """A convolution in one to three dimensions, `weight` (out, in / groups, *kernel); `shape` is that of its input."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        shape: Shape,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
    ) -> None:
        self.weight, self.bias, self.shape, self.groups = weight, bias, shape, groups
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.terms = weight[0].numel() + 1
        self._matrices: dict[Shape, tuple[Tensor, Shape]] = {}

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride, padding, dilation, none = self.stride, self.padding, self.dilation, [0] * len(self.stride)
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, none, self.groups)

    def _spread(self, values: Tensor, padding: Shape, extra: Shape) -> Tensor:
        stride, dilation = self.stride, self.dilation
        return torch.convolution(values, self.weight, None, stride, padding, dilation, True, extra, self.groups)

    def forward(self, *values: Tensor) -> Tensor:
        return self._convolve(values[0], self.weight, self.bias)

    def interval(self, *bounds: Bounds) -> Bounds:
        return weighted_interval(
            bounds[0], self.forward, lambda radius: self._convolve(radius, self.weight.abs(), None)
        )

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return self._convolve(sizes[0], self.weight.abs(), None if self.bias is None else self.bias.abs())

    def constant(self, rows: Functional) -> Tensor | None:
        if self.bias is None:
            return None
        return rows.without_padding().values.flatten(2).sum(2) @ self.bias

    def transpose(self, rows: Functional) -> tuple[Functional, ...]:
        if rows.windows is None:
            return (self._transpose_dense(rows),)
        rows = rows.without_padding()
        assert rows.windows is not None
        windows, (down, right), (above, left) = rows.windows, rows.windows.stride, rows.windows.offset
        values = self._transpose_windows(rows.values)
        moved = replace(
            windows,
            stride=(down * self.stride[0], right * self.stride[1]),
            offset=(above * self.stride[0] + self.padding[0], left * self.stride[1] + self.padding[1]),
        )
        wider = replace(rows, values=values, shape=self.shape, windows=moved, inside=False)
        large = math.prod(values.shape[2:]) > FULL * math.prod(self.shape[1:])
        return (wider.dense() if large else wider,)

    def _transpose_dense(self, rows: Functional) -> Functional:
        if len(self.shape) == 3 and self.groups == 1 and self.shape[0] <= FEW_CHANNELS:
            spread = self.weight.flatten(1).T @ rows.values.flatten(2)
            kernel, image = self.weight.shape[2:], self.shape[1:]
            values = F.fold(spread, image, kernel, self.dilation, self.padding, self.stride)
            return rows.moved(values, self.shape)
        extra = tuple(
            size - ((out - 1) * step - 2 * pad + reach * (kernel - 1) + 1)
            for size, out, step, pad, reach, kernel in zip(
                self.shape[1:], rows.shape[1:], self.stride, self.padding, self.dilation, self.weight.shape[2:],
                strict=True,
            )
        )  # fmt: skip
        return rows.moved(self._spread(rows.values, self.padding, extra), self.shape)

    def _transpose_windows(self, values: Tensor) -> Tensor:
        shape = tuple(values.shape[1:])
        if shape[1:] == (1, 1) and self.groups == 1 and max(self.dilation) == 1:
            return (values.flatten(1) @ self.weight.flatten(1)).reshape(-1, *self.weight.shape[1:])
        kernel, none = self.weight.shape[2:], (0, 0)
        wider = [
            (size - 1) * step + reach * (width - 1) + 1
            for size, step, reach, width in zip(shape[1:], self.stride, self.dilation, kernel, strict=True)
        ]
        if (
            math.prod(shape) * self.shape[0] * math.prod(wider) > MATRIX
            or len(values) < math.prod(shape)
            or self.weight.requires_grad
        ):
            return self._spread(values, none, none)
        if shape not in self._matrices:
            unit = torch.eye(math.prod(shape), dtype=values.dtype, device=values.device).reshape(-1, *shape)
            spread = self._spread(unit, none, none).detach()
            self._matrices[shape] = spread.flatten(1), tuple(spread.shape[1:])
        matrix, wide = self._matrices[shape]
        return (values.flatten(1) @ matrix).reshape(-1, *wide)


class Scale(Affine):
    """x * factor + shift, number by number: batch normalisation in eval mode, normalisation, a constant.

    `factor` and `shift` are of one example, and broadcast to its shape; None stands for 1 and 0.
    """

    terms = 8

    def __init__(self, factor: Tensor | None, shift: Tensor | None, size: Tensor | None = None) -> None:
        self.factor, self.shift = factor, shift
        self.size = shift.abs() if size is None and shift is not None else size
        """The greatest number that the network meets on its way to `shift`, such as a mean's."""

    def forward(self, *values: Tensor) -> Tensor:
        scaled = values[0] if self.factor is None else values[0] * self.factor
        return scaled if self.shift is None else scaled + self.shift

    def interval(self, *bounds: Bounds) -> Bounds:
        factor = self.factor
        if factor is None:
            return self.forward(bounds[0][0]), self.forward(bounds[0][1])
        return weighted_interval(bounds[0], self.forward, lambda radius: radius * factor.abs())

    def _like(self, part: Tensor, rows: Functional) -> Tensor:
        """`part` at the cells of the rows."""
        if rows.windows is None or part.numel() == 1 or (part.ndim == 3 and part.shape[1:] == (1, 1)):
            return part
        whole = part.expand(rows.shape)[None]
        here = replace(rows, example=torch.zeros_like(rows.example)).gather(whole)
        return here if rows.copies == 1 else here.repeat(rows.copies, 1, 1, 1)

    def transpose(self, rows: Functional) -> tuple[Functional, ...]:
        return (rows if self.factor is None else rows.with_values(rows.values * self._like(self.factor, rows)),)

    def constant(self, rows: Functional) -> Tensor | None:
        if self.shift is None:
            return None
        rows = rows.without_padding()
        return per_row(rows.values * self._like(self.shift, rows))

    def magnitude(self, *sizes: Tensor) -> Tensor:
        size = sizes[0] if self.factor is None else sizes[0] * self.factor.abs()
        return size if self.size is None else size + self.size


class Sum(Affine):
    """The inputs, each times its sign, added; an input may have dimensions of 1 where the others have more."""

    terms = 2

    def __init__(self, signs: Sequence[int], shapes: Sequence[Shape]) -> None:
        self.signs, self.shapes = tuple(signs), tuple(shapes)

    def forward(self, *values: Tensor) -> Tensor:
        total = values[0] if self.signs[0] > 0 else -values[0]
        for sign, value in zip(self.signs[1:], values[1:], strict=True):
            total = total + value if sign > 0 else total - value
        return total

    def interval(self, *bounds: Bounds) -> Bounds:
        low = self.forward(*(pair[0 if sign > 0 else 1] for sign, pair in zip(self.signs, bounds, strict=True)))
        high = self.forward(*(pair[1 if sign > 0 else 0] for sign, pair in zip(self.signs, bounds, strict=True)))
        return low, high

    def transpose(self, rows: Functional) -> tuple[Functional, ...]:
        return tuple(
            self._narrowed(rows if sign > 0 else rows.with_values(-rows.values), shape)
            for sign, shape in zip(self.signs, self.shapes, strict=True)
        )

    def _narrowed(self, rows: Functional, shape: Shape) -> Functional:
        if shape == rows.shape:
            return rows
        rows = rows.dense()
        return rows.moved(rows.values.sum_to_size(len(rows), *shape), shape)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return sum(sizes[1:], sizes[0])


class Greater(Affine):
    """max(a, b) as b + relu(a - b), of the inputs (b, relu(a - b), a); `a` only makes its intervals tight."""

    terms = 2

    def forward(self, *values: Tensor) -> Tensor:
        return values[0] + values[1]

    def interval(self, *bounds: Bounds) -> Bounds:
        (low, high), _, (other_low, other_high) = bounds
        return torch.maximum(low, other_low), torch.maximum(high, other_high)

    def transpose(self, rows: Functional) -> tuple[Functional | None, ...]:
        return rows, rows, None

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return sizes[0] + sizes[1]


class Reshape(Affine):
    """The same numbers in another `shape`, in the order of memory."""

    terms = 0

    def __init__(self, before: Shape, after: Shape) -> None:
        self.before, self.after = before, after

    def forward(self, *values: Tensor) -> Tensor:
        return values[0].reshape(-1, *self.after)

    def interval(self, *bounds: Bounds) -> Bounds:
        return self.forward(bounds[0][0]), self.forward(bounds[0][1])

    def transpose(self, rows: Functional) -> tuple[Functional, ...]:
        rows = rows.dense()
        return (rows.moved(rows.values.reshape(-1, *self.before), self.before),)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return self.forward(*sizes)


class Rearrangement(Affine):
    """Any affine function without negative weights: what selects, moves, joins, pads or averages numbers.

    `function` takes and gives batches, and is used as it is; its transpose is its own backward pass. `shapes` are those
    of its inputs, `terms` how many numbers it averages at most.
    """

    def __init__(self, function: Callable[..., Tensor], shapes: Sequence[Shape], terms: int = 0) -> None:
        self.function, self.shapes, self.terms = function, tuple(shapes), terms

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*values)

    def interval(self, *bounds: Bounds) -> Bounds:
        return self.function(*(low for low, _ in bounds)), self.function(*(high for _, high in bounds))

    def transpose(self, rows: Functional) -> tuple[Functional, ...]:
        rows = rows.dense()
        with torch.enable_grad():
            zeros = [rows.values.new_zeros(len(rows), *shape).requires_grad_() for shape in self.shapes]
            output = self.function(*zeros)
            found = torch.autograd.grad(output, zeros, rows.values, create_graph=rows.values.requires_grad)
        return tuple(rows.moved(part, shape) for part, shape in zip(found, self.shapes, strict=True))

    def constant(self, rows: Functional) -> Tensor | None:
        rows = rows.dense()
        shift = self.function(*(rows.values.new_zeros(1, *shape) for shape in self.shapes))
        return per_row(rows.values * shift)

    def magnitude(self, *sizes: Tensor) -> Tensor:
        zeros = self.function(*map(torch.zeros_like, sizes))
        return self.function(*sizes) - zeros + zeros.abs()
