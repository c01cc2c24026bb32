"""Neurons that can be split, and domains: parts of a region in which some of them are held on one side of 0.

All neurons of all rectifiers are numbered in one row, so that what a domain knows is a table (D, N): the interval of
each neuron's input, the sides that are held, the lower slopes, and the multipliers of the held sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor

from epsball.certify.graph import Graph
from epsball.certify.operators import Bounds


@dataclass(frozen=True, eq=False)
class Neurons:
    """The neurons of the rectifiers of a graph in one row, activation by activation."""

    graph: Graph

    @cached_property
    def starts(self) -> dict[int, int]:
        """By the number of the activation, where its neurons begin."""
        found, start = {}, 0
        for number in self.graph.activations:
            if self.graph.rectifies(number):
                found[number] = start
                start += self.size(number)
        return found

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return sum(self.size(number) for number in self.starts)

    @cached_property
    def least(self) -> Float[Tensor, " n"]:
        """The least slope of each, that below 0, in float64."""
        parts = [
            torch.full((self.size(number),), self.graph.least_slope(number), dtype=torch.float64)
            for number in self.starts
        ]
        return torch.cat(parts) if parts else torch.zeros(0)

    def size(self, number: int) -> int:
        """How many an activation has."""
        return torch.Size(self.graph.nodes[number].shape).numel()

    def part(self, table: Float[Tensor, "d n"], number: int) -> Float[Tensor, "d *shape"]:
        """The columns of one activation, in its shape."""
        start = self.starts[number]
        return table[:, start : start + self.size(number)].reshape(-1, *self.graph.nodes[number].shape)

    def joined(self, parts: Iterable[Tensor]) -> Float[Tensor, "d n"]:
        """Tables of the activations, (d, *shape) each in their order, side by side."""
        return torch.cat([part.flatten(1) for part in parts], 1)

    def intervals(self, bounds: Sequence[Bounds]) -> Bounds:
        """What the neurons read, from the bounds of every node."""
        reads = [bounds[self.graph.before(number)] for number in self.starts]
        return self.joined(low for low, _ in reads), self.joined(high for _, high in reads)


@dataclass(eq=False)
class Domains:
    """D parts of regions, in each of which the bound of a row is wanted.

    `low` and `high` are the interval of each neuron's input, cut at 0 where `side` (1 above, -1 below, 0 free) holds
    it. `slope` is the lower slope of neurons that are free and unstable, `multiplier` >= 0 the price of a held side.
    """

    bound: Float[Tensor, " d"]
    low: Float[Tensor, "d n"]
    high: Float[Tensor, "d n"]
    side: Int8[Tensor, "d n"]
    slope: Float[Tensor, "d n"]
    multiplier: Float[Tensor, "d n"]

    def __len__(self) -> int:
        return len(self.bound)

    def take(self, index: Tensor) -> Domains:
        """Some of the domains, as copies."""
        return Domains(**{name: part[index] for name, part in vars(self).items()})

    def split(self, index: Int64[Tensor, " p"], neuron: Int64[Tensor, " p"], side: int) -> Domains:
        """Domains cut at 0 of one of their neurons, and the part on `side`; bounds are not known yet."""
        child, count = self.take(index), torch.arange(len(index), device=index.device)
        child.side[count, neuron] = side
        (child.low if side > 0 else child.high)[count, neuron] = 0
        child.multiplier[count, neuron] = 0
        child.bound.fill_(-torch.inf)
        return child


@dataclass(frozen=True, eq=False)
class Leaf:
    """A domain as it waits and as it is stored.

    `splits` are the held sides from the root down, as +-(neuron + 1); `multipliers`, one for each, and `slopes` (N,)
    are float16, in which they were proved. The bounds of all neurons were computed anew where the first `tightened` of
    the splits are held.
    """

    splits: tuple[int, ...]
    slopes: Float[Tensor, " n"]
    multipliers: tuple[float, ...]
    tightened: int = 0

    @property
    def box(self) -> tuple[int, ...]:
        """The splits for which the bounds of its neurons were computed."""
        return self.splits[: self.tightened]


def cut(splits: Sequence[Sequence[int]], low: Float[Tensor, "d n"], high: Float[Tensor, "d n"]) -> Bounds:
    """The intervals of neurons, cut at 0 where the splits of each domain hold a side."""
    row, neuron, above = _places(splits)
    low, high = low.clone(), high.clone()
    low[row[above], neuron[above]] = low[row[above], neuron[above]].clamp_min(0)
    high[row[~above], neuron[~above]] = high[row[~above], neuron[~above]].clamp_max(0)
    return low, high


def _places(splits: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Of all splits in a row: their domain, their neuron, and whether they hold the side above 0."""
    row = torch.from_numpy(np.repeat(np.arange(len(splits)), [len(part) for part in splits]))
    split = torch.tensor([split for part in splits for split in part], dtype=torch.long)
    return row, split.abs() - 1, split > 0


def domains_of(leaves: Sequence[Leaf], bound: Tensor, low: Tensor, high: Tensor) -> Domains:
    """The tables of leaves, whose neurons read `low` to `high` (L, N) where no side is held, in the dtype of those."""
    splits = [leaf.splits for leaf in leaves]
    row, neuron, above = _places(splits)
    low, high = cut(splits, low, high)
    side, multiplier = torch.zeros_like(low, dtype=torch.int8), torch.zeros_like(low)
    side[row, neuron] = torch.where(above, 1, -1).to(torch.int8)
    multiplier[row, neuron] = torch.tensor([price for leaf in leaves for price in leaf.multipliers], dtype=low.dtype)
    slope = torch.stack([leaf.slopes for leaf in leaves]).to(low)
    return Domains(bound, low, high, side, slope, multiplier)


def covers(leaves: Iterable[Sequence[int]]) -> bool:
    """Whether the splits of leaves, from the root down, are those of a full binary tree: no part is missing.

    >>> covers([(3,), (-3, 1), (-3, -1)]), covers([(3,), (-3, 1)]), covers([(3,), (-4,)])
    (True, False, False)
    """
    waiting: list[list[tuple[int, ...]]] = [[tuple(leaf) for leaf in leaves]]
    while waiting:
        group = waiting.pop()
        if len(group) == 1 and not group[0]:
            continue
        if not group or any(not leaf or not leaf[0] for leaf in group):
            return False
        neuron = abs(group[0][0])
        if any(abs(leaf[0]) != neuron for leaf in group):
            return False
        waiting += [[leaf[1:] for leaf in group if leaf[0] == side] for side in (neuron, -neuron)]
    return True
