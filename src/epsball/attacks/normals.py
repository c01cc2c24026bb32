"""What labels around a point of the border tell about the border's normal there.

A question is put at a point a little off the border; its label is the sign of the normal's component in that
direction. The direction is made orthogonal to the normal as far as it is known, so that the sign is one of a component
that is still lacking: n questions along the random direction leave (1 - 2/pi)^(n/d) of the squared error, where the
average of n labels (HopSkipJump's, equation 9) leaves about 1 / (1 + 2n / (pi d)), and two of three bits are wasted.
The directions are those of an orthonormal basis, the cosine transform with random signs, a new one for every d
questions. A small part of the normal, added or taken off in turns, makes the answers tell also how large the lacking
components are: so a border that has turned is noticed.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.common.shapes import column, flat
from epsball.problem.task import Task

DITHER = 0.4
"""The part of the normal in a question, in standard deviations of what is lacking."""
RATE = 0.05
"""How fast the standard deviation follows the answers, on the scale of logarithms."""
FIRST, MOST, LEAST = 4.0, 10.0, 0.01
"""The tangent of the angle between the normal and what is known of it: taken for granted, at most, at least."""
SURE = 0.5 * (1 + math.erf(DITHER / math.sqrt(2)))
"""The probability of an answer that agrees with the part of the normal."""
DENSITY = math.exp(-(DITHER**2) / 2) / math.sqrt(2 * math.pi)
LEFT = math.sqrt(1 - DENSITY**2 / (SURE * (1 - SURE)))
"""What is left of the standard deviation after a question in every direction."""
SIGNS = 3  # the draw of the noise


def dot(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """The inner product of each row, in single precision at least."""
    return flat(a * b).sum(1, dtype=torch.promote_types(a.dtype, torch.float32))


def unit(v: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
    """v at length one; zero stays."""
    length = dot(v, v).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return (v / column(length, v.ndim)).to(v.dtype)


def open_count(task: Task) -> Float[Tensor, " n"]:
    """How many coordinates may change, at least 1."""
    like = torch.empty_like(task.y, dtype=torch.promote_types(task.x.dtype, torch.float32))
    if task.ball.mask is None:
        return torch.full_like(like, flat(task.x).shape[1])
    return flat(task.ball.mask.expand_as(task.x)).sum(1).to(like).clamp_min(1)


def unknown(task: Task) -> Float[Tensor, " n"]:
    """The spread before the first question."""
    return FIRST / open_count(task).sqrt()


def settled(spread: Float[Tensor, " n"], task: Task) -> Bool[Tensor, " n"]:
    """Where further questions would tell nothing."""
    return spread <= 1.5 * LEAST / open_count(task).sqrt()


def room(reach: Float[Tensor, " n"], task: Task) -> Float[Tensor, "n ..."]:
    """How far a question may go in one coordinate, (n, 1, ..., 1)."""
    return column(1.5 * math.sqrt(2) * reach / open_count(task).sqrt(), task.x.ndim)


def question(
    normal: Float[Tensor, "n *shape"], spread: Float[Tensor, " n"], asked: Int64[Tensor, " n"], task: Task
) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, "n *shape"]]:
    """The next direction of length one across the normal, and the one to ask in, which leans to or from the normal."""
    d = open_count(task).long()
    probe = _basis(task, asked // d, asked % d)
    probe = unit(probe - normal * column(dot(probe, normal), probe.ndim).to(probe.dtype))
    return probe, probe + normal * column(_lean(asked) * spread, probe.ndim).to(probe.dtype)


def learnt(
    normal: Float[Tensor, "n *shape"],
    spread: Float[Tensor, " n"],
    probe: Float[Tensor, "n *shape"],
    asked: Int64[Tensor, " n"],
    fooled: Bool[Tensor, " n"],
    task: Task,
) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, " n"]]:
    """Normal and spread after the answer: the mean of a Gaussian component given on which side of the lean it is."""
    agrees = fooled == (_lean(asked) > 0)
    size = torch.where(agrees, DENSITY / SURE, DENSITY / (1 - SURE)) * spread
    size = torch.where(fooled, size, -size)
    normal = unit(normal + probe * column(size, probe.ndim).to(probe.dtype))
    spread = spread / (1 + size.square()).sqrt()  # it is in units of the normal's own component
    root = open_count(task).sqrt()
    # On average the first line changes nothing where the spread is right.
    spread = spread * torch.where(agrees, math.exp(RATE * (SURE - 1)), math.exp(RATE * SURE))
    spread = torch.where((asked + 1) % root.square().round().long() == 0, spread * LEFT, spread)
    return normal, spread.clamp(min=LEAST / root, max=MOST / root)


def _lean(asked: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    return torch.where(asked % 2 == 0, DITHER, -DITHER)


@lru_cache(maxsize=8)
def _cosines(d: int) -> Float[Tensor, " m"]:
    """cos(pi k / 2d) for k < 4d: looked up, since the last bit of `cos` depends on a number's place in memory."""
    return torch.arange(4 * d, dtype=torch.float64).mul_(math.pi / (2 * d)).cos_()


def _basis(task: Task, sweep: Int64[Tensor, " n"], k: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    """The k-th direction of the sweep's basis: cos(pi (2j + 1) k / 2d) with random signs, off the mask zero."""
    x, d = task.x, flat(task.x).shape[1]
    place = (2 * torch.arange(d, device=x.device) + 1) * k[:, None] % (4 * d)
    wave = _cosines(d).to(x.device)[place].reshape(x.shape)
    wave = wave * task.noise.sign(x.shape[1:], step=sweep, draw=SIGNS, dtype=torch.float64)
    if task.ball.mask is not None:
        wave = wave * task.ball.mask
    return unit(wave).to(x.dtype)
