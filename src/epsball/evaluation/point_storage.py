"""How the adversarial examples of a run are stored: as floating-point numbers, or in the 8 bits of an image file.

An image that is written to a file has 256 levels from lo to hi. A point between them must be rounded, and rounding may
carry it out of the ball or back to the right class (Carlini and Wagner 2017, section VII; Athalye et al. 2018). So each
number is rounded towards the example, what the bytes decode to is judged, and only that counts. Where the example
itself is on the levels, as every image that was read from a file is, no coordinate moves away from it: what was in the
ball stays in it, in every norm. Elsewhere a coordinate may have to move by up to half a level to be kept at all.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.evaluation import run_directory

Kind = Literal["float", "8bit"]
KINDS: tuple[Kind, ...] = ("float", "8bit")
LAST = 255
CHUNK = 1 << 20


def levels(lo: float, hi: float, dtype: str) -> np.ndarray:
    """What the bytes 0 to 255 stand for: lo + (hi - lo) k / 255 in double precision, rounded once to `dtype`.

    float64 (256,) for "float64", else float32 (256,), whose values are numbers of `dtype` ("float32", "float16",
    "bfloat16"). For the box [0, 1] they are what reading an image gives, k / 255, bit by bit.

    >>> levels(-1.0, 1.0, "float32")[[0, 51, 255]]
    array([-1. , -0.6,  1. ], dtype=float32)
    """
    exact = (lo + (hi - lo) * np.arange(LAST + 1) / LAST).clip(max=hi)
    exact[LAST] = hi
    if dtype == "float64":
        return exact
    single = exact.astype(np.float32)
    if dtype == "float16":
        return exact.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":  # the upper half of the bits of a float32, rounded to the nearest, to even on ties
        bits = single.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return single


def towards(z: np.ndarray, x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The levels, uint8, that keep z (any shape): the nearest between x and z if there is one, else the nearest to x.

    >>> z, x = np.array([0.5, 0.5, 0.5, 0.5]), np.array([0.0, 1.0, 0.5, 0.5001])
    >>> towards(z, x, levels(0.0, 1.0, "float64"))
    array([127, 128, 127, 128], dtype=uint8)
    """
    below = (np.searchsorted(table, z, side="right") - 1).clip(0, LAST)
    above = np.searchsorted(table, z, side="left").clip(0, LAST)
    up, down = (z > x) & (table[below] >= x), (z < x) & (table[above] <= x)
    return np.where(up, below, np.where(down, above, _nearest(x, table))).astype(np.uint8)


def _nearest(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The level nearest to x, the lower one on ties."""
    above = np.searchsorted(table, x).clip(1, LAST)
    wide = x.astype(np.float64)
    return above - (wide - table[above - 1] <= table[above] - wide)


@dataclass(frozen=True)
class Storage:
    """How a run stores its adversarial examples (`x_adv`) and the examples beside them (`x`).

    `lo` and `hi` are the ends of the levels, None where nothing is stored in 8 bits; `dtype` is the data's.
    """

    dtype: str
    x_adv: Kind = "float"
    x: Kind = "float"
    lo: float | None = None
    hi: float | None = None

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """The storage that a run's configuration names; single precision for one that is older than the choice."""
        return cls(**config.get("storage", {"dtype": config["data"]["dtype"]}))

    @classmethod
    def chosen(cls, kind: str, dtype: str, lo: float | None, hi: float | None, x: Iterable[np.ndarray]) -> Self:
        """The storage for examples `x` (in parts of any shape) in the box [lo, hi], None where that is no number.

        The examples are stored in 8 bits where that is exact. Raises `BadInput` for an unknown name, and for "8bit"
        without a box of two finite numbers.
        """
        check_one_of("storage", kind, KINDS)
        box = lo is not None and hi is not None and math.isfinite(hi - lo)
        if kind == "8bit" and not box:
            raise BadInput(
                "`storage` '8bit' must have a box of two finite numbers, lo and hi of the ball, for its 256 levels "
                f"from lo to hi, got {lo} and {hi}; give them, as in Linf(eps=8/255, lo=0, hi=1), or store as 'float'"
            )
        fine = cls(dtype, "8bit" if kind == "8bit" else "float", "8bit", lo, hi) if box else cls(dtype)
        if not box or all(map(fine.exact, x)):
            return fine
        return replace(fine, x="float") if kind == "8bit" else cls(dtype)

    @cached_property
    def table(self) -> np.ndarray:
        """The levels, (256,)."""
        if self.lo is None or self.hi is None:
            raise BadInput(
                "`storage` must name the box of its levels, lo and hi, got none; the run's config is damaged"
            )
        return levels(self.lo, self.hi, self.dtype)

    def exact(self, x: np.ndarray) -> bool:
        """Whether every number of x is a level.

        >>> storage = Storage("float32", lo=0.0, hi=1.0)
        >>> storage.exact(np.float32([3, 255]) / np.float32(255)), storage.exact(np.float32([0.5]))
        (True, False)
        """
        if self.lo is None or self.hi is None:
            return False
        parts = np.array_split(x.reshape(-1), -(-x.size // CHUNK) or 1)
        return all(np.array_equal(self.table[self._rounded(part)], part) for part in parts)

    def _rounded(self, x: np.ndarray) -> np.ndarray:
        """The level that x is where it is one, uint8; some level elsewhere."""
        assert self.lo is not None, "a box comes with the levels"
        assert self.hi is not None, "a box comes with the levels"
        near = (x - x.dtype.type(self.lo)) * x.dtype.type(LAST / ((self.hi - self.lo) or 1.0))
        return np.rint(near, out=near).clip(0, LAST, out=near).astype(np.uint8)

    def keep(self, z: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Adversarial examples z (n, *shape) of the examples x as they are stored: unchanged, or uint8."""
        return towards(z, x, self.table) if self.x_adv == "8bit" else z

    def keep_x(self, x: np.ndarray) -> np.ndarray:
        """Examples as they are stored, without loss: those of lazy data may turn out to be off the levels."""
        return self._rounded(x) if self.x == "8bit" and self.exact(x) else x

    def read(self, stored: np.ndarray) -> np.ndarray:
        """The points that stored numbers stand for: the one place where bytes are decoded."""
        return self.table[stored] if stored.dtype == np.uint8 else stored

    def points(self, column: pa.ChunkedArray | pa.Array, shape: tuple[int, ...]) -> np.ndarray:
        """The points of a column of a stage's file that are there, (m, *shape)."""
        return self.read(run_directory.points(column, shape))


def checksums(*parts: np.ndarray) -> np.ndarray:
    """A CRC-32 of each row over all the parts (n, ...), as they are stored: a flipped bit changes that of its row.

    >>> checksums(np.array([[1], [1], [2]], np.uint8), np.array([7, 7, 7], np.uint8)).tolist()
    [3332814365, 3332814365, 3985368542]
    """
    parts = tuple(np.ascontiguousarray(part) for part in parts)
    sums = np.zeros(len(parts[0]), np.uint32)
    for row in range(len(sums)):
        for part in parts:
            sums[row] = zlib.crc32(part[row].tobytes(), int(sums[row]))
    return sums
