"""Signs that rounding cannot change: a running bound on the error of double precision, and whole numbers for the rest.

A sum of n products of doubles, in any order, with fused multiplications or without, differs from the real number by at
most gamma(n) times the sum of the absolute products (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
section 3.1). A value further from zero than its bound has the sign of the real number. The few others are computed
again: every double is a whole number times a power of two, and sums and products of Python's integers are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

TINY = float(np.finfo(np.float64).tiny)
"""What a product loses at most where it underflows."""

SAFE_SQUARES = (1e-140, 1e140)
"""Between these, squares and their sums neither underflow nor overflow."""


@dataclass(frozen=True, eq=False)
class Bounded:
    """Doubles and bounds on their errors: each real number is within `error` of `value`."""

    value: Float[Tensor, "n k"]
    error: Float[Tensor, "n k"]

    def __sub__(self, other: Bounded) -> Bounded:
        """The difference; the errors have to be generous enough for its own rounding."""
        return Bounded(self.value - other.value, self.error + other.error)

    @property
    def sign_unknown(self) -> Bool[Tensor, "n k"]:
        """Where the real number may be on the other side of zero, or not on it."""
        return ~(self.value.abs() > self.error) & ~((self.value == 0) & (self.error == 0))

    @property
    def maybe_least(self) -> Bool[Tensor, "n k"]:
        """Where no other entry of the row is surely less."""
        return ~(self.value - self.error > (self.value + self.error).amin(1, keepdim=True))


def gamma(n: int) -> float:
    """A relative bound on the error of n roundings, n u / (1 - n u) with u = 2^-53.

    >>> gamma(1) >= 2.0**-53
    True
    """
    share = n * 2.0**-53
    return share / (1 - share)


def whole_numbers(*parts: Float[np.ndarray, "..."]) -> tuple[list[np.ndarray], int]:
    """Arrays of doubles as arrays of Python's integers in one unit of 2^-bits, exactly, and `bits`; infinities stay.

    >>> whole_numbers(np.array([0.5, -3.0]), np.array(0.25))[0]
    [array([9007199254740992, -54043195528445952], dtype=object), array(4503599627370496, dtype=object)]
    """
    split = [np.frexp(np.asarray(part, dtype=np.float64)) for part in parts]
    finite = [np.isfinite(mantissa) for mantissa, _ in split]
    least = min(int(power[known & (m != 0)].min(initial=53)) for (m, power), known in zip(split, finite, strict=True))
    wholes = []
    for (mantissa, power), known in zip(split, finite, strict=True):
        digits = np.where(known, mantissa * 2.0**53, 0).astype(np.int64).astype(object)
        whole = np.asarray(np.left_shift(digits, np.maximum(power - least, 0).astype(object)), dtype=object)
        wholes.append(np.where(known, whole, mantissa.astype(object)))
    return wholes, 53 - least


def difference_of_root(a: int, squared: int, bits: int) -> float:
    """a - sqrt(squared) in units of 2^-bits (`squared`: 2^-2bits), as a double with the sign of the real number.

    >>> difference_of_root(3, 9, 0), difference_of_root(2, 5, 0), difference_of_root(5, 0, 1)
    (0.0, -0.2360679774997897, 2.5)
    >>> difference_of_root(-(2**2000), 0, 9000), difference_of_root(2**2000, 1, 0)
    (-5e-324, inf)
    """
    if not squared:
        return _signed(Fraction(a), bits)
    root = math.isqrt(squared << 128)  # in units of 2^-64
    if a <= 0:
        return _signed(Fraction((a << 64) - root), bits + 64)
    return _signed(Fraction((a * a - squared) << 64, (a << 64) + root), bits)


def _signed(value: Fraction, bits: int) -> float:
    """value * 2^-bits as a double that is zero for zero only."""
    sign = (value > 0) - (value < 0)
    try:
        number = float(value / 2**bits)
    except OverflowError:
        return sign * math.inf
    return number or sign * math.ulp(0.0)
