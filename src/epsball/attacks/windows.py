"""How Square starts and fills its windows, by the trait of the ball.

Andriushchenko et al., "Square Attack" (ECCV 2020, arXiv:1912.00049), algorithms 2 and 3, with AutoAttack's details; the
L1 form is AutoAttack's (Croce and Hein, ICML 2021, arXiv:2103.01208). Here a window may lie at every place, the last
row and column among them, which the published code never reaches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.attacks.grid import HALF, Cells, Grid, Windows, below, eta, owned, windows
from epsball.balls.ball import Ball, Trait
from epsball.common.errors import BadInput
from epsball.common.shapes import Batch, column, flat
from epsball.problem.task import Task

SAFE_PART = 1 - 1e-6
"""The part of the radius that L2 and L1 use, as in AutoAttack: cells are rounded when they are written."""
TINY = 1e-12
PerRow = Float[Tensor, " n"]


class Filling(ABC):
    """How a ball's windows are filled. A proposal has `corners` windows."""

    corners: int

    @abstractmethod
    def windows(self, shape: tuple[int, ...], steps: int, p: float, device: torch.device) -> Windows:
        """The windows of a whole attack; computed once for the same arguments."""

    @abstractmethod
    def start(self, task: Task) -> Batch:
        """The first iterate."""

    @abstractmethod
    def budget(self, task: Task) -> PerRow:
        """What each row may spend: the radius to the power of the norm, in float64."""

    @abstractmethod
    def spent(self, z: Batch, x: Batch) -> PerRow:
        """What each row spends, in float64."""

    @abstractmethod
    def propose(
        self, at: Windows, move: Int64[Tensor, "n columns"], task: Task, best: Batch, spending: tuple[PerRow, PerRow]
    ) -> tuple[Batch, PerRow]:
        """A new point that differs from `best` in the windows of `move`, and what it spends.

        `spending` is the budget, and what `best` spends of it.
        """


class Ends(Filling):
    """Intervals: every cell is at an end of its interval; a window sends each channel to one of its two ends."""

    corners = 1

    def windows(self, shape: tuple[int, ...], steps: int, p: float, device: torch.device) -> Windows:
        return windows(shape, steps, p, False, 1, 0, device)

    def start(self, task: Task) -> Batch:
        """Stripes: the ends change along the last axis only."""
        task.ball.require_box()
        grid, (low, high) = Grid.of(tuple(task.x.shape[1:])), self._ends(task)
        stripes = task.noise.sign((grid.channels, *(1,) * (len(grid.sides) - 1), grid.sides[-1]))
        up = stripes.expand(-1, -1, *grid.sides).reshape(-1) > 0
        return torch.where(up, high, low).view(task.x.shape)

    def budget(self, task: Task) -> PerRow:
        return torch.zeros(len(task.x), dtype=torch.float64, device=task.x.device)

    def spent(self, z: Batch, x: Batch) -> PerRow:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def propose(
        self, at: Windows, move: Int64[Tensor, "n columns"], task: Task, best: Batch, spending: tuple[PerRow, PerRow]
    ) -> tuple[Batch, PerRow]:
        cells, z = at.cells(move, 0), best.clone()
        row, up = z.view(-1), (move[:, 3:] == 1).view(-1)
        low, high, old = (cells.of(part) for part in (*self._ends(task), row))
        # The paper draws again until the point changes (AutoAttack does not); here the other ends are taken.
        idle = cells.all(torch.where(cells.spread(up), high, low) == old)
        if at.grid.channels > 1:
            idle = owned(idle.view(len(move), -1).all(1), at.grid.channels)
        cells.write(row, torch.where(cells.spread(up ^ idle), high, low))
        return z, spending[1]

    def _ends(self, task: Task) -> tuple[Float[Tensor, " cells"], Float[Tensor, " cells"]]:
        """The ends of ball, box and mask, flat."""
        low, high = task.ball.intervals(task.x)
        return low.reshape(-1), high.reshape(-1)


@dataclass(frozen=True)
class Mass(Filling):
    """Norms that add up (L2: squares, L1: absolute values): a proposal moves mass from one window into another.

    The new pattern of the first window is its old one plus a pair of opposite hills, split along a random axis, with
    the mass of both windows and what `best` does not spend; the second window goes back to x. If it `overspends`, each
    channel gets as much as all together, and the ball's projection takes the smallest changes away again.
    """

    power: int
    decay: int
    overspends: bool
    corners = 2

    def windows(self, shape: tuple[int, ...], steps: int, p: float, device: torch.device) -> Windows:
        return windows(shape, steps, p, True, self.power, self.decay, device)

    def start(self, task: Task) -> Batch:
        """Tiles, five to the shortest side, each with the pattern of a window and a random sign per channel."""
        x, grid, noise = task.x, Grid.of(tuple(task.x.shape[1:])), task.noise
        dimensions, side = len(grid.sides), max(1, min(grid.sides) // 5)
        hills = eta(side, dimensions, self.power, self.decay)
        tile, pattern = torch.zeros(grid.sides, dtype=torch.long), torch.zeros(dimensions, *grid.sides).double()
        tiles = [length // side for length in grid.sides]
        inner = tuple(
            slice(start := (length - side * many) // 2, start + side * many)
            for length, many in zip(grid.sides, tiles, strict=True)
        )
        number = torch.arange(math.prod(tiles)).reshape(tiles)
        for axis in range(dimensions):
            pattern[(axis, *inner)] = hills.transpose(0, axis).repeat(tiles)
            number = number.repeat_interleave(side, axis)
        tile[inner] = number
        tile, pattern = tile.flatten().to(x.device), pattern.flatten(1).to(x.device)
        axis = below(noise.bits((math.prod(tiles),), draw=1) & HALF, dimensions)
        sign = noise.sign((grid.channels, math.prod(tiles)), dtype=torch.float64)
        hill = pattern[axis[:, tile], torch.arange(grid.places, device=x.device)]
        delta = (sign[:, :, tile] * hill[:, None]).reshape(x.shape)
        norm = self.spent(delta, torch.zeros_like(delta))
        # AutoAttack's L1 start has norm one in each tile and channel, whatever the radius; here at its radius of 12.
        excess = max(1.0, grid.channels * math.prod(tiles) / 12) if self.power == 1 else 1.0
        scale = excess * (self.budget(task) / norm).pow(1 / self.power)
        return task.ball.project((x + delta * column(scale, x.ndim)).to(x.dtype), x)

    def budget(self, task: Task) -> PerRow:
        x, ball = task.x, task.ball
        radius = (ball.radius_like(flat(x)[:, 0]) * SAFE_PART).pow(self.power).expand(len(x))
        if not ball.has_infinite_radius:
            return radius
        ball.require_box()
        return torch.where(radius.isinf(), self.spent(x + torch.maximum(ball.hi - x, x - ball.lo), x), radius)

    def spent(self, z: Batch, x: Batch) -> PerRow:
        size = (flat(z).double() - flat(x).double()).abs().pow(self.power)
        count = torch.full_like(size[:, 0], size.shape[1], dtype=torch.long)
        return torch.segment_reduce(size.flatten(), "sum", lengths=count, unsafe=True)

    def propose(
        self, at: Windows, move: Int64[Tensor, "n columns"], task: Task, best: Batch, spending: tuple[PerRow, PerRow]
    ) -> tuple[Batch, PerRow]:
        x, ball, channels, (budget, spent_by_best) = task.x, task.ball, at.grid.channels, spending
        z, centre = best.clone(), x.reshape(-1)
        row, cells = z.view(-1), at.cells(move, 0)
        base, old, first = self._clear(row, centre, cells)
        shift = owned(move[:, 3] - move[:, 2], channels)
        freed = first + self._clear(row, centre, replace(cells, index=cells.index + cells.spread(shift)))[2]
        mass = (freed + owned(budget - spent_by_best, channels) / channels).clamp_min_(0)
        sign = (2 * move[:, 4:] - 1).view(-1)
        new = old.div_(cells.spread(first.pow(1 / self.power).add_(TINY))).add_(cells.pattern * cells.spread(sign))
        scale = mass.div_(self._mass(cells, new).add_(TINY)).pow(1 / self.power)
        if self.overspends:
            scale *= channels
        cells.write(row, new.mul_(cells.spread(scale)).add_(base).to(z.dtype))
        z = ball.apply_mask(ball.clip_(z), x)
        if not (self.overspends and channels > 1):
            written = cells.of(z.view(-1)).double().sub_(base)
            spent = spent_by_best + per_row(self._mass(cells, written) - freed, channels)
            if not bool((spent * SAFE_PART**self.power > budget).any()):
                return z, spent
        z = ball.project(z, x)
        return z, self.spent(z, x)

    def _clear(self, row: Tensor, centre: Tensor, cells: Cells) -> tuple[Tensor, ...]:
        """Send the cells back to the centre, in place: the centre there, what was taken away, and its mass."""
        inner = cells.of(centre)
        base = inner.double()
        old = cells.of(row).double().sub_(base)
        cells.write(row, inner)
        return base, old, self._mass(cells, old)

    def _mass(self, cells: Cells, delta: Float[Tensor, "..."]) -> Float[Tensor, " owners"]:
        return cells.sum(delta.abs().pow_(self.power))


def per_row(value: Float[Tensor, " owners"], channels: int) -> PerRow:
    """The sum over the channels of each row, in their order."""
    if channels == 1:
        return value
    count = torch.full((len(value) // channels,), channels, device=value.device)
    return torch.segment_reduce(value, "sum", lengths=count, unsafe=True)


FILLINGS: dict[Trait, Filling] = {
    "intervals": Ends(),
    "euclidean": Mass(power=2, decay=2, overspends=False),
    "sparse": Mass(power=1, decay=4, overspends=True),
}


def filling_of(ball: Ball) -> Filling:
    """The way to fill windows in such balls. Raises `BadInput` where there is none."""
    filling = ball.choose(FILLINGS)
    if filling is None:
        raise BadInput(f"`ball` must be of a norm that Square is defined in, got {ball.name}; see Square.norms()")
    return filling
