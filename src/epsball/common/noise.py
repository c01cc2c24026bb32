"""Counter-based random numbers: every draw is a pure function of (seed, example id, job restart, step, draw, position).

So an example gets the same numbers in whatever batch, order, process or device it is drawn. The generator is
SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a Weyl sequence through a 64-bit finaliser, here with the counter
given and the key finalised once per component. Integers and uniforms are bit-identical everywhere; `normal` and
`exponential` go through log and cos, whose last bit may differ between devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def _signed(value: int) -> int:
    """The 64 low bits of `value`, read as a signed integer: torch has no unsigned arithmetic."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
DRAWS = 256
"""Draws of one step that can be told apart."""
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def _shift_(bits: Int64[Tensor, "*s"], by: int) -> Int64[Tensor, "*s"]:
    """Logical shift to the right, in place (torch's own keeps the sign)."""
    return bits.bitwise_right_shift_(by).bitwise_and_((1 << (64 - by)) - 1)


def _mix_(bits: Int64[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
    """`mix` in place: for an image a batch of words is larger than a cache, and fresh memory costs more than sums."""
    other = torch.empty_like(bits)
    for by, factor in ((30, MIX_1), (27, MIX_2), (31, 1)):
        bits ^= _shift_(other.copy_(bits), by)
        bits *= factor
    return bits


def mix(bits: Int64[Tensor, "*s"]) -> Int64[Tensor, "*s"]:
    """SplitMix64's finaliser, a bijection of 64-bit words.

    >>> hex(mix(torch.tensor([GOLDEN])).item() & (1 << 64) - 1)  # the reference generator's first output, seed 0
    '0xe220a8397b1dcdaf'
    """
    return _mix_(bits.clone())


def _mix_int(value: int) -> int:
    """`mix` of a Python integer, after one step of the Weyl sequence."""
    ones = (1 << 64) - 1
    bits = (value + GOLDEN) & ones
    bits = (bits ^ bits >> 30) * MIX_1 & ones
    bits = (bits ^ bits >> 27) * MIX_2 & ones
    return _signed(bits ^ bits >> 31)


@dataclass(frozen=True, eq=False)
class Noise:
    """The random numbers of a batch of rows.

    `seed` is any integer, `ids` (n,) the examples' row numbers, `restart` (n,) the job's restart among its example's.
    The draws take the shape of one example, a `step` (an int, or (n,) one per row), and `draw`, which tells apart
    several draws of one step; they return (n, *shape).
    """

    seed: int
    ids: Int64[Tensor, " n"]
    restart: Int64[Tensor, " n"]

    def rows(self, index: Tensor) -> Noise:
        """The noise of some of the rows."""
        return replace(self, ids=self.ids[index], restart=self.restart[index])

    def bits(self, shape: Sequence[int], step: int | Int64[Tensor, " n"] = 0, draw: int = 0) -> Int64[Tensor, "n ..."]:
        """64 random bits for each coordinate of each row.

        >>> two = Noise(0, torch.tensor([5, 7]), torch.tensor([0, 0])).bits((3,))
        >>> one = Noise(0, torch.tensor([7]), torch.tensor([0])).bits((3,))
        >>> torch.equal(two[1:], one)
        True
        """
        place = step * DRAWS + draw
        place = place * GOLDEN if isinstance(place, Tensor) else _signed(place * GOLDEN)
        key = _mix_(_mix_(self.ids + _mix_int(self.seed)) + (self.restart << 40) + place)
        counter = torch.arange(1, math.prod(shape) + 1, device=self.ids.device)
        return _mix_(key[:, None] + counter * GOLDEN).reshape(len(self.ids), *shape)

    def uniform(
        self, shape: Sequence[int], step: int | Tensor = 0, draw: int = 0, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "n ..."]:
        """Uniform on [0, 1): multiples of 2^-53 in float64, of 2^-24 in float32, of 2^-8 in bfloat16."""
        digits = round(1 - math.log2(torch.finfo(dtype).eps))
        return _shift_(self.bits(shape, step, draw), 64 - digits).to(dtype).mul_(2.0**-digits)

    def sign(
        self, shape: Sequence[int], step: int | Tensor = 0, draw: int = 0, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "n ..."]:
        """-1 or +1, each with probability one half."""
        return _shift_(self.bits(shape, step, draw), 63).mul_(2).sub_(1).to(dtype)

    def normal(
        self, shape: Sequence[int], step: int | Tensor = 0, draw: int = 0, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "n ..."]:
        """Standard normal, by Box and Muller (1958) in float64 on the two halves of a coordinate's 64 bits."""
        bits = self.bits(shape, step, draw)
        radius = ((_shift_(bits.clone(), 32) + 1).double() * 2.0**-32).log().mul(-2).sqrt()
        angle = (bits & 0xFFFFFFFF).double() * (2.0**-32 * 2 * math.pi)
        return (radius * angle.cos()).to(dtype)

    def exponential(
        self, shape: Sequence[int], step: int | Tensor = 0, draw: int = 0, *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "n ..."]:
        """Exponential with mean 1, by inversion in float64."""
        return -torch.log1p(-self.uniform(shape, step, draw, dtype=torch.float64)).to(dtype)
