"""What attacks that see labels only share: where they start, and what labels tell of the boundary's normal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.shapes import column, finite, flat
from epsball.problem.task import AWAY, Task

TRIED = 8
"""The references that are tried for an example, the nearest ones of the class that is wanted."""

DITHER = 0.4
"""The part of the normal in a question, in standard deviations of what is lacking."""
RATE = 0.05
"""How fast the standard deviation follows the answers, on the scale of logarithms."""
FIRST, MOST, LEAST = 4.0, 10.0, 0.01
"""The tangent of the angle between the normal and its estimate: at first, at most, at least."""
AGREES = 0.5 * (1 + math.erf(DITHER / math.sqrt(2)))
"""The probability of an answer that agrees with the part of the normal in the question."""
DENSITY = math.exp(-(DITHER**2) / 2) / math.sqrt(2 * math.pi)
LEFT = math.sqrt(1 - DENSITY**2 / (AGREES * (1 - AGREES)))
"""What is left of the standard deviation after a question in every direction."""
SIGNS = 3  # the number of the draw of noise


@dataclass(frozen=True, eq=False)
class References:
    """Points whose class is known: `x` (k, *shape) in the box of the data, `y` (k,) their labels.

    Raises `BadInput` where there are none, or not one label for each.
    """

    x: Float[Tensor, "k *shape"]
    y: Int64[Tensor, " k"]

    def __post_init__(self) -> None:
        if not len(self.x) or self.y.shape != self.x.shape[:1] or self.y.is_floating_point():
            raise BadInput(
                f"`references` must be points (k, *shape) with labels (k,), k >= 1, got {tuple(self.x.shape)} and "
                f"{tuple(self.y.shape)} {self.y.dtype}; as in References(train.x[:1000], train.y[:1000])"
            )


def nearest_references(task: Task, references: References | None) -> Int64[Tensor, "n k"]:
    """The indices of each row's nearest references, by the ball's norm, whose class is wanted; -1: no more."""
    if references is None:
        return task.y.new_empty(len(task.y), 0)
    if references.x.shape[1:] != task.x.shape[1:]:
        raise BadInput(
            f"`references` must have examples of shape {tuple(task.x.shape[1:])}, got {tuple(references.x.shape[1:])}"
        )
    x, y, rows = references.x.to(task.x), references.y.to(task.y), torch.arange(len(task.y), device=task.x.device)
    wanted = torch.where(task.target[:, None] == AWAY, y != task.y[:, None], y == task.target[:, None])
    distances = torch.stack([_distances(task.ball.rows(row[None]), x, task.x[row, None]) for row in rows])
    distances = torch.where(wanted, distances, torch.inf)
    order = distances.argsort(dim=1, stable=True)[:, :TRIED]
    return torch.where(distances.gather(1, order).isfinite(), order, -1)


def _distances(ball: Ball, x: Float[Tensor, "k *shape"], of: Float[Tensor, "1 *shape"]) -> Float[Tensor, " k"]:
    """How far x is from one example in what may change."""
    return ball.distance(ball.apply_mask(x, of), of)


def starting_point(
    task: Task,
    count: Int64[Tensor, " n"],
    warm_start: Float[Tensor, "n *shape"] | None,
    references: References | None,
    order: Int64[Tensor, "n k"],
) -> Float[Tensor, "n *shape"]:
    """The `count`-th starting point: `warm_start` where it is not x, the references in order, then noise."""
    x = task.x
    known = torch.zeros_like(count) if warm_start is None else flat(warm_start != x).any(1).long()
    place = count - known
    rest = place - (order >= 0).sum(1)
    z = _noise(task, rest.clamp_min(0))
    of_reference = (place >= 0) & (rest < 0)
    if references is not None and bool(of_reference.any()):
        at = order.gather(1, place.clamp(0, order.shape[1] - 1)[:, None]).squeeze(1).clamp_min(0)
        there = task.ball.clip(references.x.to(x)[at.to(references.x.device)].to(x.device))
        z = torch.where(column(of_reference, x.ndim), there, z)
    if warm_start is not None:
        z = torch.where(column(place < 0, x.ndim), warm_start, z)
    return z if task.ball.mask is None else torch.where(task.ball.mask, z, x)


def _noise(task: Task, turn: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    """A point of the box: by turns uniform, random ends, one level for all coordinates, random ends mostly of one kind.

    Uniform noise alone looks to a network like one class, and does not reach the corners in which a linear model of few
    coordinates has its other one. Without a box, Gaussian noise that grows.
    """
    x, ball, noise = task.x, task.ball, task.noise
    if not (finite(ball.lo) and finite(ball.hi)):
        scale = column(2.0 ** (turn.clamp_max(40) / 2) * (1 + flat(x).abs().amax(1)), x.ndim)
        return ball.clip((x + noise.normal(x.shape[1:], step=turn) * scale).to(x.dtype))
    lo, hi = (torch.as_tensor(side).to(x) for side in (ball.lo, ball.hi))
    each = noise.uniform(x.shape[1:], step=turn, dtype=x.dtype)
    level = column(noise.uniform((1,), step=turn, draw=1, dtype=x.dtype), x.ndim)
    kind = column(turn % 4, x.ndim)
    ends = (each < torch.where(kind == 1, 0.5, level)).to(x)
    return lo + (hi - lo) * torch.where(kind == 0, each, torch.where(kind == 2, level, ends))


@dataclass(frozen=True, eq=False)
class NormalEstimate:
    """The boundary's normal at `centre`, as the labels of points at the distance `reach` tell it.

    `direction`, of length one, is the normal as far as it is known, `spread` the standard deviation of the components
    that it still lacks, relative to it. A question's label is the sign of the normal's component in its direction. That
    is made orthogonal to `direction`, so that the sign is one of a component that is lacking: n questions along random
    directions leave (1 - 2/pi)^(n/d) of the squared error, where the average of n labels (HopSkipJump's)
    leaves about 1 / (1 + 2n / (pi d)). The directions are those of an orthonormal basis, the cosine transform with
    random signs, a new one for every d questions. A small part of `direction`, added or taken off in turns, makes the
    answers tell also how large the lacking components are: so a boundary that has turned is noticed. `asked` counts the
    questions, `probe` is the present one's component that is orthogonal to `direction`.
    """

    centre: Float[Tensor, "n *shape"]
    reach: Float[Tensor, " n"]
    direction: Float[Tensor, "n *shape"]
    spread: Float[Tensor, " n"]
    probe: Float[Tensor, "n *shape"]
    asked: Int64[Tensor, " n"]

    @staticmethod
    def first_spread(task: Task) -> Float[Tensor, " n"]:
        """The spread before the first question."""
        return FIRST / open_count(task).sqrt()

    def question(self, task: Task) -> tuple[Self, Float[Tensor, "n *shape"]]:
        """The estimate with the next probe, and the point whose label is asked."""
        d = open_count(task).long()
        probe = _basis(task, self.asked // d, self.asked % d)
        probe = unit(probe - self.direction * column(dot(probe, self.direction), probe.ndim).to(probe.dtype))
        way = probe + self.direction * column(self._lean() * self.spread, probe.ndim).to(probe.dtype)
        z = task.ball.clip(self.centre + way * column(self.reach, way.ndim).to(way.dtype))
        return replace(self, probe=probe), z

    def learn(self, fooled: Bool[Tensor, " n"], task: Task) -> Self:
        """The estimate after the answer: the mean of a Gaussian component given on which side of the lean it is."""
        agrees = fooled == (self._lean() > 0)
        size = torch.where(agrees, DENSITY / AGREES, DENSITY / (1 - AGREES)) * self.spread
        size = torch.where(fooled, size, -size)
        direction = unit(self.direction + self.probe * column(size, self.probe.ndim).to(self.probe.dtype))
        spread = self.spread / (1 + size.square()).sqrt()  # it is in units of the normal's own component
        root = open_count(task).sqrt()
        # On average the first line changes nothing where the spread is right.
        spread = spread * torch.where(agrees, math.exp(RATE * (AGREES - 1)), math.exp(RATE * AGREES))
        spread = torch.where((self.asked + 1) % root.square().round().long() == 0, spread * LEFT, spread)
        spread = spread.clamp(min=LEAST / root, max=MOST / root)
        return replace(self, direction=direction, spread=spread, asked=self.asked + 1)

    def _lean(self) -> Float[Tensor, " n"]:
        return torch.where(self.asked % 2 == 0, DITHER, -DITHER)

    def converged(self, task: Task) -> Bool[Tensor, " n"]:
        """Where further questions would tell nothing."""
        return self.spread <= 1.5 * LEAST / open_count(task).sqrt()

    def off_faces(self, z: Float[Tensor, "n *shape"], task: Task) -> Float[Tensor, "n *shape"]:
        """The nearest point to z around which questions stay within the box: cut off, they would all lean one way."""
        room = column(1.5 * math.sqrt(2) * self.reach / open_count(task).sqrt(), z.ndim).to(z.dtype)
        lo, hi = (torch.as_tensor(side).to(z) for side in (task.ball.lo, task.ball.hi))
        middle, boxed = ((lo + hi) / 2).nan_to_num(nan=0.0), lo.isfinite() & hi.isfinite()
        low = torch.where(boxed, torch.minimum(lo + room, middle), lo + room)
        high = torch.where(boxed, torch.maximum(hi - room, middle), hi - room)
        inside = torch.minimum(torch.maximum(z, low), high)
        return inside if task.ball.mask is None else torch.where(task.ball.mask, inside, z)


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


@lru_cache(maxsize=8)
def _cosines(d: int) -> Float[Tensor, " m"]:
    """cos(pi k / 2d) for k < 4d: a table, since the last bit of `cos` depends on a number's place in memory."""
    return torch.arange(4 * d, dtype=torch.float64).mul_(math.pi / (2 * d)).cos_()


def _basis(task: Task, sweep: Int64[Tensor, " n"], k: Int64[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    """The k-th direction of the sweep's basis: cos(pi (2j + 1) k / 2d) with random signs, zero off the mask."""
    x, d = task.x, flat(task.x).shape[1]
    place = (2 * torch.arange(d, device=x.device) + 1) * k[:, None] % (4 * d)
    wave = _cosines(d).to(x.device)[place].reshape(x.shape)
    wave = wave * task.noise.sign(x.shape[1:], step=sweep, draw=SIGNS, dtype=torch.float64)
    if task.ball.mask is not None:
        wave = wave * task.ball.mask
    return unit(wave).to(x.dtype)
