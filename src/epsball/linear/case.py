"""A linear classifier, examples and a ball, as every function of exact attacks takes them: checked, and in doubles.

Weights, examples and ball are taken at the values that they have, whatever their dtype: doubles hold all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.shapes import BLOCK, blocks, flat
from epsball.linear.exact_arithmetic import SAFE_SQUARES, TINY, Bounded, difference_of_root, gamma, whole_numbers


@dataclass(frozen=True, eq=False)
class LinearCase:
    """Weights and bias in doubles, a single logit as two classes; x as given, the ball bound to it, in doubles.

    The box is the one that x's dtype holds: 0.1 is float32(0.1) for float32 examples.
    """

    weight: Float[Tensor, "classes d"]
    bias: Float[Tensor, " classes"]
    x: Float[Tensor, "n *shape"]
    y: Int64[Tensor, " n"]
    target: Int64[Tensor, " n"] | None
    ball: Ball
    classes: np.ndarray

    @cached_property
    def relative_error(self) -> float:
        """Of a sum over the features, with some roundings before and after it."""
        return 8 * gamma(2 * self.weight.shape[1] + 32)

    @cached_property
    def weight_sums(self) -> Float[Tensor, " classes"]:
        """The sums of the absolute weights."""
        return self.weight.abs().sum(1)

    def doubles(self, rows: Tensor) -> Float[Tensor, "m *shape"]:
        """Some examples in double precision."""
        return self.x[rows].double()

    def scores(self, x: Float[Tensor, "n *shape"]) -> Bounded:
        """The scores (n, classes) at x, any dtype.

        The sum of the absolute products is at most |w|_1 max |x| + |b|.
        """
        scores, errors = [], []
        for part in flat(x).split(max(1, BLOCK // max(1, self.weight.shape[1]))):
            part = part.double()
            scores.append(torch.addmm(self.bias, part, self.weight.T))
            largest = torch.linalg.vector_norm(part, math.inf, dim=1, keepdim=True)
            terms = torch.addcmul(self.bias.abs(), largest, self.weight_sums)
            errors.append(terms.mul_(self.relative_error).add_(self._underflow * (self.weight_sums > 0)))
        found = torch.cat(scores)
        if not bool(found.isfinite().all()):
            raise BadInput("`x` must give finite scores, got NaN or infinity; look for infinite or very large values")
        return Bounded(found, torch.cat(errors))

    def predictions(self, x: Float[Tensor, "n *shape"], scores: Bounded) -> Int64[Tensor, " n"]:
        """The first class with the greatest score at x, of real numbers; a score of -inf leaves the class out."""
        best, chosen = scores.value.max(1)
        least = best - scores.error.gather(1, chosen[:, None])[:, 0]
        near = scores.value + scores.error >= least[:, None]
        for row in (near.sum(1) > 1).nonzero()[:, 0].tolist():
            rivals = near[row].nonzero()[:, 0]
            chosen[row] = rivals[self._first_greatest(x[row], rivals)]
        return chosen

    def directions(self, own: int, rivals: Int64[Tensor, " m"]) -> Float[Tensor, "m *shape"]:
        """The gradients of the rivals' scores less that of the own class."""
        return (self.weight[rivals] - self.weight[own]).reshape(-1, *self.x.shape[1:])

    def clean_margins(self, scores: Bounded, own: int, rivals: Tensor, rows: Tensor) -> Bounded:
        """The scores (m, k) of the own class less those of its rivals (k,), in the rows (m,)."""
        parts = ((part[rows, own, None], part[rows][:, rivals]) for part in (scores.value, scores.error))
        (value, other), (error, other_error) = parts
        return Bounded(value, error) - Bounded(other, other_error)

    def gains(self, own: int, rivals: Tensor, rows: Tensor) -> Bounded:
        """`max_gains` (m, k) of the rivals' directions.

        The gain is a sum of products >= 0. It is monotone in the slopes, the rooms and the radius and at most
        proportional to each, so that relative errors of these stay what they are. Where squares could leave the range
        of doubles the bound is `inf`.
        """
        part, x = self.ball.rows(rows), self.doubles(rows)
        parts, safe = [], []
        for few in blocks(len(rivals), self.weight.shape[1], rivals.device):
            directions = self.directions(own, rivals[few])
            parts.append(part.max_gains(directions, x))
            safe.append(_safe(torch.linalg.vector_norm(flat(directions), math.inf, dim=1)))
        gains = torch.cat(parts, 1)
        safe_radius = _safe(part.radius_like(gains))
        if isinstance(part.eps, Tensor) and part.eps.ndim > 1:  # one per feature
            safe_radius = safe_radius.all()
        error = self.relative_error * gains + self._underflow
        return Bounded(gains, torch.where(torch.cat(safe) & safe_radius, error, math.inf))

    def settled(self, margins: Bounded, own: int, rivals: Tensor, rows: Tensor, *, attacked: bool) -> Bounded:
        """The margins (m, k), with the sign of the real number for those that may be the least of their row.

        `attacked`: they are the worst in the ball.
        """
        unsure = margins.sign_unknown
        if not bool(unsure.any()):
            return margins
        value, error = margins.value.clone(), margins.error.clone()
        for i, k in (unsure & margins.maybe_least).nonzero().tolist():
            exact = self._margin(int(rows[i]), own, int(rivals[k]), attacked)
            value[i, k], error[i, k] = exact, 2.0**-50 * abs(exact)
        return Bounded(value, error)

    def groups(self, opponent: Int64[Tensor, " n"]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(own class, its rivals, row numbers) for blocks of rows that share their directions."""
        classes = torch.arange(len(self.weight), device=self.x.device)
        key = opponent if self.target is None else opponent * len(classes) + self.target
        for value in key.unique().tolist():
            own, rival = (value, None) if self.target is None else divmod(value, len(classes))
            rivals = classes[classes != own] if rival is None else classes[rival : rival + 1]
            (rows,) = (key == value).nonzero(as_tuple=True)
            for few in blocks(len(rows), self.weight.shape[1], rows.device):
                yield own, rivals, rows[few]

    def opponents(self, scores: Bounded) -> Int64[Tensor, " n"]:
        """y; where that is the target, the strongest other class."""
        if self.target is None:
            return self.y
        (rows,) = (self.y == self.target).nonzero(as_tuple=True)
        opponent = self.y.clone()
        others = scores.value[rows].scatter(1, self.target[rows, None], -math.inf)
        opponent[rows] = self.predictions(self.x[rows], Bounded(others, scores.error[rows]))
        return opponent

    def worst(self, direction: Float[Tensor, "m *shape"], rows: Int64[Tensor, " m"]) -> Float[Tensor, "m *shape"]:
        """The maximisers of <direction, z>, in x's dtype, rounded so that each is in the ball of real numbers.

        They are found as displacements, the ball being moved to zero; none is made greater by rounding.
        """
        part, x = self.ball.rows(rows), self.x[rows]
        ends = {name: getattr(part, name) for name in ("lo", "hi")}
        at_zero = replace(part, **{name: end if _is_open(end) else end - x.double() for name, end in ends.items()})
        delta = at_zero.argmax(direction, torch.zeros_like(direction))
        if not part.traits & {"intervals", "count"}:
            delta *= 1 - self.relative_error  # the norm of delta is a sum
        return part.clip(_added(x, delta))

    @property
    def _underflow(self) -> float:
        """What a sum of products loses at most where products underflow."""
        return TINY * (2 * self.weight.shape[1] + 32)

    def _first_greatest(self, x: Float[Tensor, "*shape"], classes: Int64[Tensor, " k"]) -> int:
        """The place of the first class with the greatest score at one example."""
        weight, bias = self.weight[classes].cpu().numpy(), self.bias[classes].cpu().numpy()
        (weight, bias, x_), bits = whole_numbers(weight, bias, x.double().reshape(-1).cpu().numpy())
        scores = [(b << bits) + (w * x_).sum() for w, b in zip(weight, bias, strict=True)]
        return scores.index(max(scores))

    def _margin(self, row: int, own: int, rival: int, attacked: bool) -> float:
        """The margin of the own class over a rival at one example, or at its worst input, with its sign."""
        ball = self.ball.rows(torch.tensor([row], device=self.x.device))
        x = self.x[row : row + 1].double()
        ends = (torch.as_tensor(side, dtype=x.dtype, device=x.device) for side in (ball.lo, ball.hi))
        parts = (x, *ends, ball.radius_like(x))
        (weight, bias, at, lo, hi, radii), bits = whole_numbers(
            self.weight[[own, rival]].cpu().numpy(),
            self.bias[[own, rival]].cpu().numpy(),
            *(part.expand_as(x).reshape(-1).cpu().numpy() for part in parts),
        )
        slope = weight[1] - weight[0]
        margin = ((bias[0] - bias[1]) << bits) - (slope * at).sum()
        if not attacked:
            return difference_of_root(margin, 0, 2 * bits)
        free = slope != 0
        if ball.mask is not None:
            free &= ball.mask.cpu().expand_as(x).reshape(-1).numpy()
        room = np.where(free, np.where(slope > 0, _less(hi, at), _less(-lo, -at)), 0)
        radius: Any = radii[0]
        if isinstance(ball.eps, Tensor) and ball.eps.ndim > 1:  # one per feature
            room, radius = np.minimum(room, radii), math.inf
        elif "count" in ball.traits:
            radius = ball.radius_like(x).reshape(-1)[0].item()
        gain, squared = ball.exact_gain(np.abs(slope), room, radius)
        return difference_of_root(margin - gain, squared, 2 * bits)


def _is_open(end: float | Tensor) -> bool:
    """Whether a side of the box is nowhere."""
    return not isinstance(end, Tensor) and math.isinf(end)


def _less(ends: np.ndarray, at: np.ndarray) -> np.ndarray:
    """ends - at, where an end may be `inf`."""
    return np.array([end if end == math.inf else end - start for end, start in zip(ends, at, strict=True)], object)


def _safe(size: Tensor) -> Tensor:
    """Where squares stay in the range of doubles; a size of zero or `inf` is exact."""
    return ((size >= SAFE_SQUARES[0]) & (size <= SAFE_SQUARES[1])) | (size == 0) | size.isinf()


def _added(x: Float[Tensor, "m *shape"], delta: Float[Tensor, "m *shape"]) -> Float[Tensor, "m *shape"]:
    """x + delta, delta in doubles, in x's dtype, rounded towards x where it would be further away than delta."""
    start = x.double()
    z = (start + delta).to(x.dtype)
    end = z.double()
    moved = end - start
    # What the subtraction lost (Knuth's TwoSum): the real difference is moved + lost.
    part = end - moved
    lost = (end - (moved + part)) + (part - start)
    too_far = (moved.abs() > delta.abs()) | ((moved.abs() == delta.abs()) & (lost * moved.sign() > 0))
    return torch.where(too_far, torch.nextafter(z, x), z)
