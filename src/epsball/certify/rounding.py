"""What rounding can take from a bound, by an a-priori estimate (Higham 2002, section 3.1: gamma_n = n u / (1 - n u)).

A bound carries a functional A back, layer by layer. In floating point its transpose A W comes out as B = A W - E with
|E| <= gamma |A||W|. B is an exact set of numbers, so all that is lost at this layer is E h <= gamma |A| (|W| m), where
m is the greatest |h| that the bounds allow. A network that runs in floating point adds to each layer an error of at
most gamma' (|W| m + |b|), gamma' of its own precision, and the functional meets it as |A| gamma' (|W| m + |b|). So both
are one table per layer, gamma-weighted, which meets the absolute values of the rows. Sums may be taken in any order;
transforms that are no sums of products (Winograd's, Fourier's convolution) are outside this model.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from epsball.certify.functionals import Functional
from epsball.certify.graph import Graph
from epsball.certify.operators import Bounds

MARGIN = 2.0
"""On the estimate: it is itself computed in floating point, to first order."""
FIRST_ORDER = 1e-6
"""On that of the network as it runs, which is taken in float64."""
EXTRA = 16
"""Roundings beside those of sums: lines, signs, centres and radii."""
FLOAT64 = 2.0**-53


def gamma(terms: int, unit: float) -> float:
    """The relative error of a sum of so many products, where a rounding has a relative error of `unit` at most."""
    return terms * unit / (1 - terms * unit)


@dataclass(eq=False)
class Rounding:
    """Tables of errors, one per node, as the bounds of the nodes become known; bounds are computed in float64.

    `unit` is that of the network as it runs (2^-24 in float32), or 0 for the network in real arithmetic.
    """

    graph: Graph
    unit: float = 0.0
    errors: list[Tensor] = field(default_factory=list)

    def begin(self, box: Bounds) -> None:
        """The input, which is exact; only the last dot product rounds."""
        size = self._size(box)
        self.errors = [size * self._search(0, 1)]

    def widen(self, number: int, inputs: list[Bounds], bounds: Bounds) -> Bounds:
        """The interval of a node with the errors that its operator makes; `inputs` are the bounds of what it reads."""
        operator = self.graph.nodes[number].operator
        assert operator is not None
        share = self._search(number, operator.terms) + gamma(operator.terms, self.unit) * (1 + FIRST_ORDER)
        error = operator.magnitude(*map(self._size, inputs)) * share
        self.errors.append(error)
        return bounds[0] - error, bounds[1] + error

    def _search(self, number: int, terms: int) -> float:
        """The share for what the search does at a node: transposes, dot products over it, and sums over nodes."""
        cells = torch.Size(self.graph.nodes[number].shape).numel()
        return MARGIN * gamma(max(terms, cells) + len(self.graph.nodes) + EXTRA, FLOAT64)

    @staticmethod
    def _size(bounds: Bounds) -> Tensor:
        return torch.maximum(bounds[0].abs(), bounds[1].abs())


@dataclass(eq=False)
class Slack:
    """What rounding can take from some rows: a `watch` for `lower_bounds`, whose `total` (P,) is to be subtracted."""

    rounding: Rounding
    total: Tensor | float = 0.0

    def __call__(self, number: int, rows: Functional) -> None:
        size = rows.with_values(rows.values.abs())
        self.total = self.total + size.dot(rows.gather(self.rounding.errors[number]))
