"""The windows of Square: of every size on a grid of places, their patterns, and random draws of them.

An example is `channels` x places, and a window a cube of places, seen by every channel. A pool holds windows of many
sizes at once, so the cells of all rows lie one after the other in one flat list, and sums run over stretches of it.
Sizes and patterns are those of Andriushchenko et al. (ECCV 2020, arXiv:1912.00049), section 3 and supplement B, as
AutoAttack runs them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.common.noise import Noise

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""After which of 10,000 queries the share of the places in a window is halved."""
BLOCK = 32
"""Proposals of a row that are drawn at once."""
HALF = 0xFFFFFFFF


def halvings(query: int, steps: int) -> int:
    """How often the share of places is halved by proposal `query` (from 0) of `steps`.

    >>> [halvings(query, 10_000) for query in (0, 10, 11, 50, 51, 8001)]
    [0, 0, 1, 1, 2, 9]
    """
    return bisect_left(HALVED_AFTER, query * 10_000 // steps)


@dataclass(frozen=True)
class Grid:
    """(*shape) as channels x places.

    One spatial dimension or two are one channel; with three or more the first is the channel.

    >>> Grid.of((3, 32, 32)), Grid.of((28, 28))
    (Grid(channels=3, sides=(32, 32)), Grid(channels=1, sides=(28, 28)))
    >>> Grid.of((5,)), Grid.of(())
    (Grid(channels=1, sides=(5,)), Grid(channels=1, sides=(1,)))
    """

    channels: int
    sides: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Grid:
        return cls(shape[0], shape[1:]) if len(shape) > 2 else cls(1, shape or (1,))

    @property
    def places(self) -> int:
        return math.prod(self.sides)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(math.prod(self.sides[axis + 1 :]) for axis in range(len(self.sides)))

    def side(self, share: float, *, centred: bool) -> int:
        """The side of a window over that share of the places; centred windows have an odd side of 3 or more.

        It is at most the shortest side of the grid. A centred window may be a single place, unlike AutoAttack's, where
        one of side 3 is more than a seventh of the grid: else L1 and L2 end far from the optimum in few dimensions.

        >>> [Grid(3, (32, 32)).side(0.8 / 2**k, centred=False) for k in range(10)]
        [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
        >>> [Grid(3, (32, 32)).side(0.8 / 2**k, centred=True) for k in range(10)]
        [29, 21, 15, 11, 7, 5, 5, 3, 3, 3]
        """
        shortest = min(self.sides)
        side = round((share * self.places) ** (1 / len(self.sides)))
        if centred:
            side = max(side, 3 if 7 * 3 ** len(self.sides) <= self.places else 1)
            side += 1 - side % 2
        return min(max(side, 1), shortest)


def rings(sides: tuple[int, ...], decay: int) -> Float[Tensor, "..."]:
    """The sum of 1 / j^decay over the cubes j = 1, 2, ... around the middle, of half side j, that hold the cell.

    >>> rings((3,), 2)
    tensor([0.2500, 1.2500, 0.2500], dtype=torch.float64)
    """
    most = max(sides) // 2 + 1
    far = torch.stack(torch.meshgrid(*(torch.arange(s) - s // 2 for s in sides), indexing="ij")).abs().amax(0)
    falling = torch.arange(1, most + 1, dtype=torch.float64).pow(-decay)
    return falling.flip(0).cumsum(0).flip(0)[far]


def eta(side: int, dimensions: int, power: int, decay: int) -> Float[Tensor, "..."]:
    """Two opposite hills, split along the first axis, each scaled to norm one, then both; power 2 is L2, 1 is L1.

    >>> eta(2, 1, 2, 2)
    tensor([ 0.7071, -0.7071], dtype=torch.float64)
    """
    halves = []
    for length, sign in ((side // 2, 1), (side - side // 2, -1)):
        hill = rings((length, *(side,) * (dimensions - 1)), decay) if length else torch.zeros(0).double()
        if length:
            halves.append(sign * hill / hill.pow(power).sum().pow(1 / power))
    whole = torch.cat(halves)
    return whole / whole.abs().pow(power).sum().pow(1 / power)


@dataclass(frozen=True, eq=False)
class Windows:
    """Everything about the windows of one attack on one grid that is not random.

    A kind is a size and the axis along which its pattern is split; `kind` (steps,) is the first kind of the size of
    each proposal, those of its other axes follow. The cells of kind k are the `count[k]` entries of `offset` (from the
    corner of the window) and `pattern` from `start[k]` on. `range` (kinds, axes) counts the corners along each axis.
    """

    grid: Grid
    axes: int
    kind: Int64[Tensor, " steps"]
    start: Int64[Tensor, " kinds"]
    count: Int64[Tensor, " kinds"]
    range: Int64[Tensor, "kinds axes"]
    offset: Int64[Tensor, " cells"]
    pattern: Float[Tensor, " cells"]
    strides: Int64[Tensor, " axes"]

    def draw(self, noise: Noise, t: Int64[Tensor, " n"], corners: int) -> Int64[Tensor, "n BLOCK columns"]:
        """The proposals t, t + 1, ... of each row: start, count, `corners` corners, and a random bit per channel.

        Each is keyed by its own number only. Many are drawn at once because a draw costs as much as a whole step.
        """
        n, dimensions, channels, device = len(t), len(self.grid.sides), self.grid.channels, t.device
        step = (t[:, None] + torch.arange(BLOCK, device=device)).flatten()
        each = noise.rows(torch.arange(n, device=device).repeat_interleave(BLOCK))
        signs = 1 + corners * dimensions
        words = each.bits((-(-(signs - (-channels // 32)) // 2),), step=step + 1)  # step 0 is the start's
        halves = torch.cat([words >> 32, words], 1) & HALF
        kind = self.kind[step.clamp_max(len(self.kind) - 1)] + below(halves[:, 0], self.axes)
        place = below(halves[:, 1:signs].reshape(-1, corners, dimensions), self.range[kind][:, None])
        which = torch.arange(channels, device=device)
        bits = halves[:, signs + which // 32] >> which % 32 & 1
        parts = [self.start[kind, None], self.count[kind, None], (place * self.strides).sum(2), bits]
        return torch.cat(parts, 1).reshape(n, BLOCK, -1)

    def cells(self, move: Int64[Tensor, "n columns"], corner: int) -> Cells:
        """The cells that each channel of each row has in its window number `corner`."""
        start, count, where = (owned(move[:, column], self.grid.channels) for column in (0, 1, 2 + corner))
        where = where + torch.arange(0, len(where) * self.grid.places, self.grid.places, device=where.device)
        least, most = (end.item() for end in count.aminmax())
        # With a small network every operation between two model calls costs half a per cent: the usual cases have few.
        if least < most:
            owner = torch.repeat_interleave(count)
            shift = start - count.cumsum(0) + count
            entry = torch.arange(len(owner), device=where.device) + shift.index_select(0, owner)
            index = self.offset.index_select(0, entry) + where.index_select(0, owner)
            return Cells(index, self.pattern.index_select(0, entry), count, owner)
        if self.axes == 1:
            entry = slice(first := int(start[0]), first + int(most))
            return Cells(self.offset[entry] + where[:, None], self.pattern[entry], count, None)
        entry = start[:, None] + torch.arange(most, device=where.device)
        offset, pattern = (part.index_select(0, entry.view(-1)).view_as(entry) for part in (self.offset, self.pattern))
        return Cells(offset + where[:, None], pattern, count, None)


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells of all rows, owner by owner; an owner is a channel of a row, number row * channels + channel.

    What belongs to cells is (cells,), with each cell's `owner`, or, where all owners have equally many, (owners, each)
    without one. `index` is the cell's in the flat batch, `pattern` the window's there, `count` how many each owner has.
    """

    index: Int64[Tensor, "..."]
    pattern: Float[Tensor, "..."]
    count: Int64[Tensor, " owners"]
    owner: Int64[Tensor, " cells"] | None

    def of(self, batch: Float[Tensor, " all"]) -> Float[Tensor, "..."]:
        """What the flat batch has at the cells."""
        return batch.index_select(0, self.index.view(-1)).view_as(self.index)

    def write(self, batch: Float[Tensor, " all"], value: Float[Tensor, "..."]) -> None:
        """Have the flat batch hold `value` at the cells, in place."""
        batch.scatter_(0, self.index.view(-1), value.view(-1))

    def sum(self, value: Float[Tensor, "..."]) -> Float[Tensor, " owners"]:
        """The sum over each owner's cells, in their order: the same bits in every batch."""
        return torch.segment_reduce(value.view(-1), "sum", lengths=self.count, unsafe=True)

    def all(self, flag: Bool[Tensor, "..."]) -> Bool[Tensor, " owners"]:
        """Whether all of each owner's cells have the flag."""
        return flag.all(1) if self.owner is None else self.sum(flag.float()) == self.count

    def spread(self, value: Tensor) -> Tensor:
        """What each owner has, (owners,), as a factor or condition for its cells."""
        return value[:, None] if self.owner is None else value.index_select(0, self.owner)


def owned(value: Tensor, channels: int) -> Tensor:
    """One number per row, at each of its channels."""
    return value if channels == 1 else value.repeat_interleave(channels)


def below(half: Int64[Tensor, "..."], limit: int | Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    """32 random bits as a whole number from 0 to limit - 1, limit at most 2^31."""
    return half * limit >> 32


@lru_cache(maxsize=64)
def windows(
    shape: tuple[int, ...], steps: int, share: float, centred: bool, power: int, decay: int, device: torch.device
) -> Windows:
    """The windows of `steps` proposals, of which the first covers `share` of the places; `power` as in `eta`."""
    grid = Grid.of(shape)
    dimensions = len(grid.sides)
    axes = dimensions if centred else 1
    strides = torch.tensor(grid.strides)
    times = [halvings(query, steps) for query in range(steps)]
    offsets, patterns, ranges = [], [], []
    for phase in range(max(times) + 1):
        side = grid.side(share / 2**phase, centred=centred)
        cell = torch.stack(torch.meshgrid(*[torch.arange(side)] * dimensions, indexing="ij"), -1)
        hills = eta(side, dimensions, power, decay).flatten()
        for axis in range(axes):
            offsets.append((cell.transpose(0, axis).flatten(0, -2) * strides).sum(1))
            patterns.append(hills)
            ranges.append([length - side + 1 for length in grid.sides])
    count = torch.tensor([len(part) for part in offsets])
    parts = {
        "kind": torch.tensor(times) * axes,
        "start": count.cumsum(0) - count,
        "count": count,
        "range": torch.tensor(ranges),
        "offset": torch.cat(offsets),
        "pattern": torch.cat(patterns),
        "strides": strides,
    }
    return Windows(grid, axes, **{name: part.to(device) for name, part in parts.items()})
