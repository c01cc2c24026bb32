"""Intervals of figures that were measured on a sample."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int


def wilson(count: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, count of n, by Wilson's score test (1927); not a number for n = 0.

    >>> [round(end, 4) for end in wilson(128, 360)]
    [0.3079, 0.4063]
    """
    if n == 0:
        return math.nan, math.nan
    from scipy.stats import binomtest  # a second to import

    low, high = binomtest(count, n).proportion_ci(method="wilson")
    return float(low), float(high)


def clopper_pearson_lower(count: Int[np.ndarray, " k"], n: int, alpha: float) -> Float[np.ndarray, " k"]:
    """The exact lower confidence bounds of probabilities, from counts of n: one-sided, at level alpha.

    Whatever p is, the bound is above it with a probability of alpha at most. Clopper and Pearson, "The use of
    confidence or fiducial limits" (Biometrika 1934): the p at which so many or more have the probability alpha.

    >>> clopper_pearson_lower(np.array([0, 5, 10]), 10, 0.05).round(4)
    array([0.    , 0.2224, 0.7411])
    """
    from scipy.special import betaincinv

    return np.where(count > 0, betaincinv(np.maximum(count, 1), n - count + 1, alpha), 0.0)
