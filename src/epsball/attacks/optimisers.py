"""Parts of a state that several attacks share: Adam's moments, and the binary search for a constant.

Each row has its own. Nothing here depends on the scale of the data or of the logits, if gradients are given in units in
which they are about 1 and constants in units in which the answer is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.common.shapes import column

BETA_1, BETA_2, TINY = 0.9, 0.999, 1e-8
"""The defaults of Kingma and Ba (2015)."""

GROWTH = 10.0
"""The factor of the constant while no success, or no failure, bounds it from the other side (Carlini and Wagner's)."""

LARGEST = 1e10
"""The largest constant (Carlini and Wagner's)."""


@dataclass(frozen=True, eq=False)
class Adam:
    """Adam (Kingma and Ba, ICLR 2015, algorithm 1): the first and second moments, and the number of steps made."""

    first: Float[Tensor, "n *shape"]
    second: Float[Tensor, "n *shape"]
    steps: Int64[Tensor, " n"]

    @classmethod
    def start(cls, z: Float[Tensor, "n *shape"]) -> Self:
        none = torch.zeros_like(z)
        return cls(none, none, torch.zeros(len(z), dtype=torch.long, device=z.device))

    def step(
        self, z: Float[Tensor, "n *shape"], grad: Float[Tensor, "n *shape"], size: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n *shape"], Adam]:
        """z after a step of `size` (n,) against `grad`, and Adam after it."""
        # Fetching memory is most of what this costs: one new tensor for each result, one for the root.
        first = torch.lerp(self.first, grad, 1 - BETA_1)
        second = (self.second * BETA_2).addcmul_(grad, grad, value=1 - BETA_2)
        steps = self.steps + 1
        count = steps.to(first.dtype)
        share = size.to(first.dtype) * (1 - BETA_2**count).sqrt_() / (1 - BETA_1**count)
        root = second.sqrt().add_(TINY).div_(column(share, z.ndim))
        return torch.addcdiv(z, first, root, value=-1), Adam(first, second, steps)


@dataclass(frozen=True, eq=False)
class ConstantSearch:
    """The binary search for the least constant c of the loss with which minimisation ends at an adversarial example.

    Carlini and Wagner (S&P 2017), section VI; the middle of the bracket from `low` to `high` is that of the logarithms,
    since nothing is known of the scale.
    """

    c: Float[Tensor, " n"]
    low: Float[Tensor, " n"]
    high: Float[Tensor, " n"]

    @classmethod
    def start(cls, c: Float[Tensor, " n"]) -> Self:
        return cls(c, torch.zeros_like(c), torch.full_like(c, math.inf))

    def next(self, success: Bool[Tensor, " n"]) -> Self:
        """The search after a minimisation with `c`.

        >>> search = ConstantSearch(torch.tensor([4.0]), torch.tensor([1.0]), torch.tensor([math.inf]))
        >>> search.next(torch.tensor([True]))
        ConstantSearch(c=tensor([2.]), low=tensor([1.]), high=tensor([4.]))
        """
        low = torch.where(success, self.low, torch.maximum(self.low, self.c))
        high = torch.where(success, torch.minimum(self.high, self.c), self.high)
        bounded = torch.where(low > 0, (low * high).sqrt(), self.c / GROWTH)
        return type(self)(torch.where(high.isinf(), (self.c * GROWTH).clamp_max(LARGEST), bounded), low, high)

    def closed(self, ratio: float) -> Bool[Tensor, " n"]:
        """Whether the ends of the bracket are within `ratio` of each other."""
        return self.high <= ratio * self.low
