"""Rows, the unit of work of all bounds: an example and a linear functional of one node of the network.

A functional of a node whose values are images (C, H, W), begun at one of its places, stays small on the way back to the
input: convolutions widen it, but only to its receptive field. Such a functional is stored as a window, (C, h, w), with
the place where it lies. Cells of a window that are outside the image belong to the padding, whose values are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Shape = tuple[int, ...]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Windows:
    """Where the windows of P rows lie: the first cell of a row's is (row, column) * stride - offset.

    `row` and `column` (P,) are the place at which each row began, on a grid of `grid` places.
    """

    row: Int64[Tensor, " p"]
    column: Int64[Tensor, " p"]
    grid: Pair
    stride: Pair = (1, 1)
    offset: Pair = (0, 0)

    @property
    def places(self) -> int:
        """Of the grid."""
        return self.grid[0] * self.grid[1]

    def place(self, example: Int64[Tensor, " p"]) -> Int64[Tensor, " p"]:
        """The number of each row's place among all places of all examples."""
        return (example * self.grid[0] + self.row) * self.grid[1] + self.column

    def take(self, index: Tensor) -> Windows:
        """The windows of some rows."""
        return replace(self, row=self.row[index], column=self.column[index])

    def paddings(self, window: Pair, image: Pair) -> list[int]:
        """How far an image (H, W) must be padded, as `F.pad` wants it, to hold the window of every place."""
        (rows, columns), (down, right), (above, left) = self.grid, self.stride, self.offset
        below = max(0, (rows - 1) * down - above + window[0] - image[0])
        beyond = max(0, (columns - 1) * right - left + window[1] - image[1])
        return [left, beyond, above, below]


@dataclass(frozen=True, eq=False)
class Functional:
    """P rows at a node of `shape`: `values` (P, *shape), or (P, C, h, w) with `windows`; `example` (P,) owns each.

    `inside` says that cells of a window outside the image are zero. With c `copies`, `values` are c runs of P rows with
    the same examples and windows, such as a neuron's least and greatest value: tables are gathered once for all.
    """

    values: Float[Tensor, "p ..."]
    example: Int64[Tensor, " p"]
    shape: Shape
    windows: Windows | None = None
    inside: bool = True
    copies: int = 1

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> Functional:
        """Some of the rows, as one copy."""
        base = index % len(self.example)
        windows = None if self.windows is None else self.windows.take(base)
        return replace(self, values=self.values[index], example=self.example[base], windows=windows, copies=1)

    def single(self) -> Functional:
        """The same rows as one copy."""
        return self if self.copies == 1 else self.rows(torch.arange(len(self), device=self.values.device))

    def by_copy(self, values: Tensor) -> Tensor:
        """(copies * P, ...) as (copies, P, ...), to meet a table (P, ...)."""
        return values.unflatten(0, (self.copies, -1))

    def with_values(self, values: Tensor) -> Functional:
        """Other coefficients at the same places."""
        return replace(self, values=values)

    def moved(self, values: Tensor, shape: Shape) -> Functional:
        """The same rows, written out over a node of `shape`."""
        return Functional(values, self.example, shape, copies=self.copies)

    def gather(self, table: Float[Tensor, "n *shape"]) -> Float[Tensor, "p ..."]:
        """For each row, what a table with one entry per example and cell holds at the row's cells; 0 in the padding."""
        if self.windows is None:
            return table.index_select(0, self.example)
        if not len(self.example):
            return table.new_zeros(0, table.shape[1], *self.values.shape[2:])
        windows, (height, width), (first, last) = self.windows, self.values.shape[2:], self.span
        table = table[first : last + 1]
        padded = F.pad(table, windows.paddings((height, width), (table.shape[2], table.shape[3])))
        views = padded.unfold(2, height, windows.stride[0]).unfold(3, width, windows.stride[1])
        views = views[:, :, : windows.grid[0], : windows.grid[1]].permute(0, 2, 3, 1, 4, 5)
        if len(self.example) < len(views) * windows.places:
            return views[self.example - first, windows.row, windows.column]
        return views.flatten(0, 2).index_select(0, windows.place(self.example - first))

    @cached_property
    def span(self) -> tuple[int, int]:
        """The first and the last example that has a row."""
        first, last = self.example.aminmax()
        return int(first), int(last)

    def without_padding(self) -> Functional:
        """The same, with the cells outside the image set to zero."""
        if self.inside:
            return self
        image = torch.ones(1, 1, *self.shape[1:], dtype=self.values.dtype, device=self.values.device)
        here = replace(self, example=torch.zeros_like(self.example), values=self.values[:, :1]).gather(image)
        return replace(self, values=(self.by_copy(self.values) * here).flatten(0, 1), inside=True)

    def dense(self) -> Functional:
        """The same, written out over the whole node."""
        windows = self.windows
        if windows is None:
            return self
        (count, channels, height, width), (_, rows, columns) = self.values.shape, self.shape
        left, beyond, above, below = windows.paddings((height, width), (rows, columns))
        high, wide = rows + above + below, columns + left + beyond
        device = self.values.device
        row = windows.row[:, None] * windows.stride[0] + torch.arange(height, device=device)
        column = windows.column[:, None] * windows.stride[1] + torch.arange(width, device=device)
        cell = (row[:, :, None] * wide + column[:, None, :]).flatten(1).repeat(self.copies, 1)
        cell = cell[:, None].expand(-1, channels, -1)
        flat = self.values.new_zeros(count, channels, high * wide).scatter(2, cell, self.values.flatten(2))
        image = flat.reshape(count, channels, high, wide)[:, :, above : above + rows, left : left + columns]
        return Functional(image, self.example, self.shape, copies=self.copies)

    def __add__(self, other: Functional) -> Functional:
        """The sum of two functionals of the same rows, in the union of their windows."""
        mine, its = self.windows, other.windows
        if mine is None or its is None or mine.stride != its.stride:
            return self.dense().with_values(self.dense().values + other.dense().values)
        offset = (max(mine.offset[0], its.offset[0]), max(mine.offset[1], its.offset[1]))
        ends = [
            max(part.values.shape[axis + 2] - windows.offset[axis] for part, windows in ((self, mine), (other, its)))
            for axis in (0, 1)
        ]
        values = sum(
            F.pad(
                part.values,
                [
                    offset[1] - windows.offset[1], ends[1] - (part.values.shape[3] - windows.offset[1]),
                    offset[0] - windows.offset[0], ends[0] - (part.values.shape[2] - windows.offset[0]),
                ],
            )
            for part, windows in ((self, mine), (other, its))
        )  # fmt: skip
        assert isinstance(values, Tensor)
        inside = self.inside and other.inside
        windows = replace(mine, offset=offset)
        return Functional(values, self.example, self.shape, windows, inside, self.copies)

    def dot(self, table: Float[Tensor, "p ..."]) -> Float[Tensor, " p"]:
        """The sum over the cells of the coefficients times `table`, which has an entry per row and cell."""
        values, table = self.by_copy(self.values)[..., None], table[..., None]  # a node may be one number, of shape ()
        return torch.linalg.vecdot(values.flatten(2), table.flatten(1)).flatten()

    @cached_property
    def cells(self) -> int:
        """How many numbers a row has."""
        return self.values[:1].numel() if len(self.values) else 0


def units(example: Tensor, neuron: Tensor, signs: Sequence[int], shape: Shape, dtype: torch.dtype) -> Functional:
    """Rows that are one neuron each, times a sign, one copy for each of `signs`.

    `neuron` (P,) counts the cells of a node of `shape`.
    """
    count, copies = torch.arange(len(example), device=example.device), len(signs)
    windows, cell, single = None, neuron, shape
    if len(shape) == 3:
        place = neuron % (shape[1] * shape[2])
        windows = Windows(place // shape[2], place % shape[2], (shape[1], shape[2]))
        cell, single = neuron // (shape[1] * shape[2]), (shape[0], 1, 1)
    values = torch.zeros(copies, len(example), *single, dtype=dtype, device=example.device)
    values.flatten(2)[:, count, cell] = torch.tensor(signs, dtype=dtype, device=example.device)[:, None]
    return Functional(values.flatten(0, 1), example, shape, windows, copies=copies)
