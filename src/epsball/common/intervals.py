"""Intervals of figures that were measured on a sample."""

from __future__ import annotations

import math


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
