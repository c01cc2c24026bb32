"""Elementwise functions, and the two lines between which each lies on an interval.

A line is a slope with the intercept that touches the function: the extreme of f(x) - slope * x on [l, u], which is at
an end, at a kink, or where f' equals the slope. So any slope gives a sound line, and only slopes have to be chosen:
ReLU's as CROWN does (Zhang et al. 2018, arXiv:1811.00866, section 3.2); for other functions the line that is nearest in
the middle of the interval, which is a tangent of the convex or concave hull there.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from epsball.certify.functionals import Functional

HALVINGS = 30
"""Rounds of bisection for the point where f' has a given value: an error of 1e-9 of the interval in x, and of its
square in f(x) - slope * x, which is flat there; that is below what `rounding` subtracts."""
PARTS = 16
"""Parts of an interval between which chords are drawn, to choose a slope."""


@dataclass(frozen=True, eq=False)
class Lines:
    """lower_slope * x + lower_offset <= f(x) <= upper_slope * x + upper_offset; offsets of None are 0.

    Tables (n, *shape), one entry per example and neuron, or (P, ...), one per row and cell. `unstable` (bool) is where
    the function is not affine on the interval: only there a slope can be chosen.
    """

    unstable: Tensor
    lower_slope: Tensor
    upper_slope: Tensor
    lower_offset: Tensor | None
    upper_offset: Tensor | None

    def at(self, rows: Functional) -> Lines:
        """The entries at the cells of rows; in the padding all are 0. `unstable` is left as it is."""
        slopes = rows.gather(self.lower_slope), rows.gather(self.upper_slope)
        offsets = (None if part is None else rows.gather(part) for part in (self.lower_offset, self.upper_offset))
        return Lines(self.unstable, *slopes, *offsets)

    def rows(self, index: Tensor) -> Lines:
        """Some of the rows."""
        offsets = (None if part is None else part[index] for part in (self.lower_offset, self.upper_offset))
        return Lines(self.unstable[index], self.lower_slope[index], self.upper_slope[index], *offsets)

    def with_lower(self, slope: Tensor) -> Lines:
        """Another lower slope where there is a choice, of a function whose lines go through 0."""
        return replace(self, lower_slope=torch.where(self.unstable, slope, self.lower_slope))

    def below(self, rows: Functional) -> tuple[Functional, Tensor | None]:
        """The functional of x that is below that of f(x), and its constant (P,); the entries are those of the rows."""
        positive, negative = rows.values.clamp_min(0), rows.values.clamp_max(0)
        constant = None
        if self.upper_offset is not None:
            constant = rows.with_values(negative).dot(self.upper_offset)
        if self.lower_offset is not None:
            extra = rows.with_values(positive).dot(self.lower_offset)
            constant = extra if constant is None else constant + extra
        below = rows.by_copy(positive) * self.lower_slope
        below = torch.addcmul(below, rows.by_copy(negative), self.upper_slope)
        return replace(rows, values=below.flatten(0, 1), inside=True), constant


class Activation(ABC):
    """An elementwise function f."""

    kinks: tuple[float, ...] = ()
    """Where f bends, of a piecewise linear f."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """f(x)."""

    @abstractmethod
    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        """The least and greatest f on [lower, upper]."""

    @abstractmethod
    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        """Where f is not affine on [lower, upper]."""

    @abstractmethod
    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        """The lines around f on [lower, upper]."""

    terms: int = 8
    """Roundings of a value, in units of the last place of `magnitude`: torch's functions are within some of them."""

    def magnitude(self, *sizes: Tensor) -> Tensor:
        """A bound of |f|, and of both lines, for |x| up to `sizes[0]`."""
        return 3 * sizes[0] + 1

    rectifies: bool = False
    """Whether it is affine on either side of 0, so that a neuron can be split there, and its lines pass through 0."""


class Rectifier(Activation):
    """max(x, slope * x): ReLU (slope 0) and leaky ReLU; 0 <= slope <= 1."""

    rectifies = True
    kinks = (0.0,)

    def __init__(self, slope: float = 0.0) -> None:
        self.slope, self.terms = slope, int(slope not in (0.0, 1.0))

    def magnitude(self, *sizes: Tensor) -> Tensor:
        return 2 * sizes[0]

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope) if self.slope else F.relu(x)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(lower), self.forward(upper)

    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        return (lower < 0) & (upper > 0)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        unstable = self.unstable(lower, upper)
        one, slope = lower.new_ones(()), lower.new_tensor(self.slope)  # two plain numbers would be float32 in `where`
        stable = (lower >= 0).to(lower) if not self.slope else torch.where(lower >= 0, one, slope)
        width = (upper - lower).clamp_min(torch.finfo(lower.dtype).tiny)
        share = upper / width  # of the interval that is above 0
        upper_slope = torch.where(unstable, self.slope + (1 - self.slope) * share if self.slope else share, stable)
        offset = torch.where(unstable, -(1 - self.slope) * lower * share, 0)
        lower_slope = torch.where(unstable, torch.where(upper > -lower, one, slope), stable)
        return Lines(unstable, lower_slope, upper_slope, None, offset)


@dataclass(frozen=True)
class Facts:
    """What is known of a function of one number.

    `bends` are where f' turns from rising to falling or back; between them, f' is monotone. At `kinks` f' jumps.
    """

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    bends: tuple[float, ...] = ()
    kinks: tuple[float, ...] = ()
    turns: tuple[float, ...] = ()
    """Where f itself turns, so that its extremes on an interval are at its ends or there."""


class Curve(Activation):
    """A function that is smooth, or made of pieces: sigmoid, tanh, GELU, SiLU, clamp."""

    def __init__(self, shape: Facts) -> None:
        self.shape = shape
        self.kinks = shape.kinks

    def forward(self, x: Tensor) -> Tensor:
        return self.shape.function(x)

    def interval(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        ends = [self.forward(lower), self.forward(upper)]
        ends += [self.forward(_brought_into(at, lower, upper)) for at in self.shape.turns]
        stacked = torch.stack(ends)
        return stacked.amin(0), stacked.amax(0)

    def unstable(self, lower: Tensor, upper: Tensor) -> Tensor:
        if not self.shape.kinks:
            return upper > lower
        inside = [(lower < kink) & (upper > kink) for kink in self.shape.kinks]
        return torch.stack(inside).any(0)

    def lines(self, lower: Tensor, upper: Tensor) -> Lines:
        upper_slope = self._nearest(lower, upper, 1)
        lower_slope = self._nearest(lower, upper, -1)
        return Lines(
            self.unstable(lower, upper),
            lower_slope,
            upper_slope,
            self.offset(lower_slope, lower, upper, -1),
            self.offset(upper_slope, lower, upper, 1),
        )

    def offset(self, slope: Tensor, lower: Tensor, upper: Tensor, side: int) -> Tensor:
        """The intercept of the line of this slope that touches f on [lower, upper] from above (`side` 1) or below."""
        return self._touching(slope, lower, upper, side)[1]

    def _touching(self, slope: Tensor, lower: Tensor, upper: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Where f(x) - slope * x is greatest (`side` 1) or least on [lower, upper], and its value there."""
        best, value = lower, self.forward(lower) - slope * lower
        for x in (upper, *self._inside(slope, lower, upper)):
            new = self.forward(x) - slope * x
            better = side * (new - value) > 0
            best, value = torch.where(better, x, best), torch.where(better, new, value)
        return best, value

    def _inside(self, slope: Tensor, lower: Tensor, upper: Tensor) -> list[Tensor]:
        """The places within [lower, upper] where f(x) - slope * x may be extreme; between bends by bisection."""
        places = [_brought_into(kink, lower, upper) for kink in self.shape.kinks]
        if not self.shape.kinks:
            marks = [lower, *(_brought_into(bend, lower, upper) for bend in self.shape.bends), upper]
            for start, end in pairwise(marks):
                rising = self.shape.derivative(end) > self.shape.derivative(start)
                low, high = start, end
                for _ in range(HALVINGS):
                    middle = (low + high) / 2
                    before = (self.shape.derivative(middle) < slope) == rising  # the place is beyond the middle
                    low, high = torch.where(before, middle, low), torch.where(before, high, middle)
                places += [low, high]
        return places

    def _nearest(self, lower: Tensor, upper: Tensor, side: int) -> Tensor:
        """The slope of a line above (`side` 1) or below f that is near to it in the middle of the interval.

        Of chords between points on either side of the middle, that which is highest there (`side` -1: lowest), or the
        tangent where no chord is beyond f. On a grid, which costs some nearness, and no soundness.
        """
        half = PARTS // 2
        points = [self.forward(torch.lerp(lower, upper, part / PARTS)) for part in range(PARTS + 1)]
        width = (upper - lower).clamp_min(torch.finfo(lower.dtype).tiny)
        best, slope = points[half], self.shape.derivative((lower + upper) / 2)
        for i in range(half):
            for j in range(half + 1, PARTS + 1):
                rise = (points[j] - points[i]) / (j - i)
                height = points[i] + rise * (half - i)
                beyond = side * (height - best) > 0
                best, slope = torch.where(beyond, height, best), torch.where(beyond, rise * (PARTS / width), slope)
        return slope


def _brought_into(x: float, lower: Tensor, upper: Tensor) -> Tensor:
    """The number of [lower, upper] nearest to x."""
    return torch.minimum(torch.maximum(torch.full_like(lower, x), lower), upper)


def sigmoid() -> Curve:
    """1 / (1 + exp(-x))."""
    return Curve(Facts(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), bends=(0.0,)))


def tanh() -> Curve:
    """The hyperbolic tangent."""
    return Curve(Facts(torch.tanh, lambda x: 1 / torch.cosh(x.clamp(-300, 300)).square(), bends=(0.0,)))


def gelu() -> Curve:
    """x * Phi(x), the exact form; f'' = (2 - x^2) phi(x), and f is least at -.7518."""

    def derivative(x: Tensor) -> Tensor:
        return torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    root = math.sqrt(2)
    return Curve(Facts(F.gelu, derivative, bends=(-root, root), turns=_zeros(derivative)))


def silu() -> Curve:
    """x * sigmoid(x); f'' is zero at +-2.3994, where x * tanh(x / 2) = 2, and f is least at -1.2785."""

    def derivative(x: Tensor) -> Tensor:
        share = torch.sigmoid(x)
        return share * (1 + x * torch.sigmoid(-x))

    bend = _root(lambda x: x * torch.tanh(x / 2) - 2, 0.0, 8.0)
    return Curve(Facts(F.silu, derivative, bends=(-bend, bend), turns=_zeros(derivative)))


def clamp(least: float, greatest: float) -> Curve:
    """x, brought into [least, greatest]; either may be infinite."""
    kinks = tuple(end for end in (least, greatest) if math.isfinite(end))
    return Curve(Facts(lambda x: x.clamp(least, greatest), lambda x: ((x > least) & (x < greatest)).to(x), kinks=kinks))


def _root(function: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """Where a rising function is zero, by bisection in double precision."""
    for _ in range(200):
        middle = (low + high) / 2
        negative = bool(function(torch.tensor(middle, dtype=torch.float64)) < 0)
        low, high = (middle, high) if negative else (low, middle)
    return high


def _zeros(derivative: Callable[[Tensor], Tensor]) -> tuple[float, ...]:
    """The one place at which GELU and SiLU turn: their derivative rises through zero between -1.4 (-2.3) and 0."""
    return (_root(derivative, -1.4, 0.0),)
