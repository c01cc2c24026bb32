"""Gaussian noise that is sound in floating point: input and noise are whole numbers of one step, and so is their sum.

The theorem of randomised smoothing is about x + N(0, sigma^2 I) in real numbers. In floating point the sum is rounded,
and which numbers x + noise can be at all depends on the low bits of x: a classifier that reads them has a large
certified radius around x and another class next to it (Voracek and Hein, "Sound randomized smoothing in floating-point
arithmetics", ICLR 2023, arXiv:2207.07209, section 3). So nothing is added in floating point here.

Let h be the step, Q(u) the multiple of h nearest to u, coordinate by coordinate, and f the classifier. The classifier
that is smoothed is g(u) = f(Q(u)), a function of a real vector like any other, so the theorem holds for it. For x on
the grid Q(x + N) = x + Q(N): the noise is a Gaussian rounded to whole steps. x is brought to the grid first, and the
sum is made in whole numbers; whatever follows (a product with h, a rounding to the model's dtype, f) is a function of
that sum, and thereby part of f. So the classifier that is certified is x -> smoothed g at Q(x), for every real x, and
it is the one that runs. What it costs, with d coordinates:

- |Q(x') - Q(x)| <= |x' - x| + |Q(x) - x| + sqrt(d) h / 2, so a radius around Q(x) is shorter around x by the last two;
- the sampler is a table of the distribution of |Q(N)| / h in multiples of 2^-62, which random words are compared with.
  Its total variation from the exact one is below `TOTAL_VARIATION` a coordinate (the tests add it up), so every
  probability is within d * TOTAL_VARIATION of the exact one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.shapes import Batch, PerExample, flat

STEPS_LOG2 = 14
"""A standard deviation has 2^13 to 2^14 steps."""
TOTAL_VARIATION = 2.0**-36
"""A bound on the total variation between the sampler's distribution of a coordinate and the exact one."""
DIGITS = 62
"""Binary digits of the table; one of the other two of a random word is the sign."""
GUIDE = 17
"""The first digits of a word say where in the table it is, but for few."""
FARTHEST = 9.3
"""Standard deviations beyond which less than 2^-DIGITS of the distribution is left."""
MOST_STEPS = 2.0**50
"""x in steps is exact in double precision up to here."""


@dataclass(frozen=True)
class GridGaussian:
    """N(0, sigma^2) rounded to multiples of a power of two, `step`.

    >>> GridGaussian(0.25).step == 2.0**-15
    True
    """

    sigma: float

    @property
    def step(self) -> float:
        """h, a power of two: sigma is 2^13 to 2^14 steps."""
        return math.ldexp(1.0, math.frexp(self.sigma)[1] - STEPS_LOG2)

    def to_grid(self, x: Batch) -> Int64[Tensor, "n *shape"]:
        """Q(x) / h. Raises `BadInput` where x is so large that double precision does not resolve steps."""
        steps = x.detach().double() / self.step
        if steps.numel() and not bool(steps.abs().amax() < MOST_STEPS):
            raise BadInput(
                f"`sigma` must be at least 1e-10 of the largest number in x, got {self.sigma:g} for "
                f"{float(x.abs().amax()):g}; sigma is in the units of x"
            )
        return steps.round_().long()

    def moved(self, x: Batch) -> PerExample:
        """|Q(x) - x| of each example in L2, float64."""
        steps = flat(x.detach().double() / self.step)
        return torch.linalg.vector_norm(steps.round() - steps, dim=1) * self.step

    def from_grid(self, whole: Int64[Tensor, "n *shape"], dtype: torch.dtype) -> Batch:
        """Whole numbers of steps in the model's dtype: a function of these numbers alone."""
        wide = torch.promote_types(dtype, torch.float32)
        return whole.to(wide).mul_(self.step).to(dtype)

    def draw(self, noise: Noise, shape: Sequence[int], step: Int64[Tensor, " n"]) -> Int64[Tensor, "n *shape"]:
        """Q(N) / h for each coordinate of each row, keyed by the row and its `step`."""
        table = _table(self.sigma / self.step).to(noise.ids.device)
        words = noise.bits(shape, step)
        sign = (words & 1).mul_(-2).add_(1)
        return table(words.bitwise_right_shift_(2).bitwise_and_((1 << DIGITS) - 1)).mul_(sign)


@dataclass(frozen=True, eq=False)
class _Table:
    """|Q(N)| / h of a word of `DIGITS` random digits is the number of `thresholds` that it reaches.

    `guide` has that number for the first word with each of the first `GUIDE` digits. For digits below `single` no more
    than one threshold lies between that word and the next.
    """

    thresholds: Int64[Tensor, " k"]
    guide: Int64[Tensor, " g"]
    single: int

    def to(self, device: torch.device) -> _Table:
        return _Table(self.thresholds.to(device), self.guide.to(device), self.single)

    def __call__(self, words: Int64[Tensor, "n *shape"]) -> Int64[Tensor, "n *shape"]:
        place = words >> (DIGITS - GUIDE)
        steps = self.guide[place]
        steps += words >= self.thresholds[steps]
        far = place >= self.single
        steps[far] = torch.searchsorted(self.thresholds, words[far], right=True)
        return steps


@cache
def _table(ratio: float) -> _Table:
    """The table for sigma / h = `ratio`: thresholds 2^DIGITS P(|Q(N)| / h <= j) for j = 0, 1, ..., the last 2^DIGITS.

    The tails, and not their complements, are computed, which have all digits where they are small.
    """
    from scipy.special import ndtr  # a second to import

    tails = 2 * ndtr(-(np.arange(math.ceil(FARTHEST * ratio)) + 0.5) / ratio)
    thresholds = torch.from_numpy((1 << DIGITS) - np.rint(np.ldexp(tails, DIGITS)).astype(np.int64))
    first = torch.arange(1 << GUIDE) << (DIGITS - GUIDE)
    guide = torch.searchsorted(thresholds, first, right=True)
    last = torch.searchsorted(thresholds, first + ((1 << (DIGITS - GUIDE)) - 1), right=True)
    return _Table(thresholds, guide, int((last > guide + 1).nonzero()[0]))


def radius_of(p: Float[np.ndarray, " n"], sigma: float, shape: Sequence[int]) -> Float[np.ndarray, " n"]:
    """The radius around a point of the grid, less what other points lose by rounding to it; p bounds P(class) below.

    sigma (Phi^-1(p - v) - Phi^-1(1/2 + v)) - sqrt(d) h / 2 with v = d * TOTAL_VARIATION: Cohen et al. (2019), theorem
    1 with p_B = 1 - p_A, for probabilities of the sampler. It may be negative; the last digits are rounded down.
    """
    from scipy.special import ndtri

    d = math.prod(shape)
    lost = d * TOTAL_VARIATION + 1e-12  # and the rounding of p itself
    rise = ndtri(np.clip(p - lost, 0, 1)) - ndtri(0.5 + lost)
    return sigma * (rise - 1e-9 * np.abs(rise)) - math.sqrt(d) * GridGaussian(sigma).step / 2
