"""The attacker's gain against weights w: t = |e * w| in the norm dual to the attacker's, exact and smoothed.

The radius is a vector e (d,), one entry per feature. The smoothed gain is the minimum of t - mu * (a log barrier of the
cone |e * w| <= t), so that its gradient lies strictly inside the attacker's ball (Boyd and Vandenberghe, Convex
Optimization, 2004, section 11.3): the derivatives of the losses are then a feasible point of the dual, and the duality
gap is known. Its Hessian is a diagonal minus a matrix of rank one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from epsball.balls.ball import Ball
from epsball.balls.l1 import L1
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf


@dataclass(frozen=True, eq=False)
class SoftAbs:
    """|a| smoothed from below by a log barrier: value, slope in (-1, 1), and a curvature to take a Newton step with."""

    value: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray

    def predicted(self, step: np.ndarray) -> np.ndarray:
        """The slopes after a step, by linearisation, clipped to [-1, 1]."""
        return np.clip(self.slope + self.curvature * step, -1, 1)


def soft_abs(a: np.ndarray, mu: float, slope: np.ndarray | None = None) -> SoftAbs:
    """Smooth |a|; `mu` > 0 in the units of a, `slope` in [-1, 1] the slope that the last step predicted.

    The curvature is that of the equation slope * (mu + sqrt(mu^2 + a^2)) = a, linearised in both, and not of its
    solution for the slope: Newton's method then crosses a kink in a few steps instead of creeping along it (Chan, Golub
    and Mulet, SIAM J. Sci. Comput. 1999, section 3). It is never below that of the smoothed |a|.

    >>> soft_abs(np.array([3.0]), 4.0).slope
    array([0.33333333])
    """
    s = np.hypot(a, mu)
    exact = a / (mu + s)
    curvature = (1 - exact * a / s) / (mu + s)
    if slope is not None:
        curvature = np.maximum(curvature, (1 - slope * a / s) / (mu + s))
    return SoftAbs(s - mu - mu * np.log((mu + s) / (2 * mu)), exact, curvature)


@dataclass(frozen=True, eq=False)
class SmoothedGain:
    """The smoothed gain, its gradient (d,), its Hessian diag(`diagonal`) - `rank_one` rank_one'.

    `predicted` maps a step of w (d,) to the slopes after it, by linearisation, for the next `Gauge.smoothed` and for
    `Gauge.feasible_move`.
    """

    value: float
    gradient: np.ndarray
    diagonal: np.ndarray
    rank_one: np.ndarray
    predicted: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Gauge(ABC):
    """The attacker's gain against weights (d,); `eps` (d,) >= 0 is the radius per feature."""

    ball: ClassVar[type[Ball]]

    eps: np.ndarray

    def columns(self, index: np.ndarray) -> Self:
        """The gauge of some of the features, the weights of the others being zero."""
        return type(self)(self.eps[index])

    @abstractmethod
    def value(self, w: np.ndarray) -> float:
        """max of <w, delta> over the attacker's ball: the dual norm of e * w."""

    @abstractmethod
    def smoothed(self, w: np.ndarray, mu: float, slope: np.ndarray | None = None) -> SmoothedGain:
        """The value smoothed from below; its gradient lies strictly inside the attacker's ball."""

    @abstractmethod
    def project(self, v: np.ndarray, scale: float) -> np.ndarray:
        """The Euclidean projection of v (d,) onto the attacker's ball, enlarged `scale` times."""

    @abstractmethod
    def feasible_move(self, slope: np.ndarray) -> np.ndarray:
        """The move (d,) in the attacker's ball that belongs to predicted slopes."""

    @abstractmethod
    def _norm(self, v: np.ndarray) -> float:
        """The attacker's norm of v, for radii of one."""

    def scale_to_contain(self, v: np.ndarray) -> float:
        """The least factor by which the attacker's ball contains v, features with a radius of zero left out."""
        free = self.eps > 0
        return self._norm(v[free] / self.eps[free]) if free.any() else 0.0


class AgainstLinf(Gauge):
    """The attacker moves every feature by at most eps; the gain is sum eps_j |w_j|."""

    ball = Linf

    def value(self, w: np.ndarray) -> float:
        return float(self.eps @ np.abs(w))

    def smoothed(self, w: np.ndarray, mu: float, slope: np.ndarray | None = None) -> SmoothedGain:
        soft = soft_abs(self.eps * w, mu, slope)
        return SmoothedGain(
            float(soft.value.sum()),
            self.eps * soft.slope,
            self.eps**2 * soft.curvature,
            np.zeros_like(w),
            lambda step: soft.predicted(self.eps * step),
        )

    def project(self, v: np.ndarray, scale: float) -> np.ndarray:
        return np.clip(v, -scale * self.eps, scale * self.eps)

    def feasible_move(self, slope: np.ndarray) -> np.ndarray:
        return self.eps * slope

    def _norm(self, v: np.ndarray) -> float:
        return float(np.abs(v).max())


class AgainstL2(Gauge):
    """The attacker moves by a vector of Euclidean length (delta / eps) at most one; the gain is |eps * w|_2."""

    ball = L2

    def value(self, w: np.ndarray) -> float:
        return float(np.linalg.norm(self.eps * w))

    def smoothed(self, w: np.ndarray, mu: float, slope: np.ndarray | None = None) -> SmoothedGain:
        a = self.eps * w
        length = np.linalg.norm(a)
        s = np.hypot(length, mu)
        slopes, rank_one = a / (mu + s), a / ((mu + s) * np.sqrt(s))
        return SmoothedGain(
            float(soft_abs(np.atleast_1d(length), mu).value[0]),
            self.eps * slopes,
            self.eps**2 / (mu + s),
            self.eps * rank_one,
            lambda step: slopes + self.eps * step / (mu + s) - rank_one * (rank_one @ (self.eps * step)),
        )

    def project(self, v: np.ndarray, scale: float) -> np.ndarray:
        free = np.where(self.eps > 0, v, 0.0)
        return _onto_boundary(self, scale, free, lambda theta: free * self.eps**2 / (self.eps**2 + theta))

    def feasible_move(self, slope: np.ndarray) -> np.ndarray:
        return self.eps * slope / max(float(np.linalg.norm(slope)), 1.0)

    def _norm(self, v: np.ndarray) -> float:
        return float(np.linalg.norm(v))


class AgainstL1(Gauge):
    """The attacker spends sum |delta_j| / eps_j <= 1; the gain is the greatest eps_j |w_j|."""

    ball = L1

    def value(self, w: np.ndarray) -> float:
        return float((self.eps * np.abs(w)).max(initial=0.0))

    def smoothed(self, w: np.ndarray, mu: float, slope: np.ndarray | None = None) -> SmoothedGain:
        mu = mu / max(len(w), 1)
        a = self.eps * w
        top = float(np.abs(a).max(initial=0.0))
        z = _barrier_slack(top - np.abs(a), top, mu)
        room = z + np.stack([top - a, top + a])  # t - a and t + a, t = top + z, without cancellation
        slopes = mu / room
        curvature = (slopes if slope is None else np.maximum(slopes, slope)) / room
        both, pull = curvature.sum(0), curvature[0] - curvature[1]
        total = both.sum()

        def predicted(step: np.ndarray) -> np.ndarray:
            da = self.eps * step
            dt = (pull @ da) / total
            return np.maximum(slopes - curvature * np.stack([dt - da, dt + da]), 0)

        return SmoothedGain(
            top + z - mu * float(np.log(room / (2 * mu * len(w))).sum()) - 2 * mu * len(w),
            self.eps * (slopes[0] - slopes[1]),
            self.eps**2 * both,
            self.eps * pull / np.sqrt(total),
            predicted,
        )

    def project(self, v: np.ndarray, scale: float) -> np.ndarray:
        free = np.where(self.eps > 0, v, 0.0)
        per = 1 / np.where(self.eps > 0, self.eps, 1.0)
        return _onto_boundary(
            self, scale, free, lambda theta: np.sign(free) * np.maximum(np.abs(free) - theta * per, 0)
        )

    def feasible_move(self, slope: np.ndarray) -> np.ndarray:
        return self.eps * (slope[0] - slope[1]) / max(float(slope.sum()), 1.0)

    def _norm(self, v: np.ndarray) -> float:
        return float(np.abs(v).sum())


def _onto_boundary(gauge: Gauge, scale: float, v: np.ndarray, at: Callable[[float], np.ndarray]) -> np.ndarray:
    """v if the enlarged ball contains it; else `at`(theta) on its surface, with theta >= 0 found by bisection."""
    if gauge.scale_to_contain(v) <= scale:
        return v
    low, high = 0.0, float(gauge.eps.max() ** 2 + np.abs(v).max() * gauge.eps.max())
    while gauge.scale_to_contain(at(high)) > scale and high < 1e300:
        high *= 4
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if gauge.scale_to_contain(at(middle)) > scale else (low, middle)
    return at(high)


def _barrier_slack(below: np.ndarray, top: float, mu: float) -> float:
    """The z > 0 with sum mu / (z + below) + mu / (z + 2 top - below) = 1: Newton on 1 - 1 / sum, in a bracket."""
    above = 2 * top - below
    low, high = mu, 2 * mu * len(below)
    z = high
    for _ in range(100):
        total = float((mu / (z + below) + mu / (z + above)).sum())
        low, high = (z, high) if total > 1 else (low, z)
        slope = float((mu / (z + below) ** 2 + mu / (z + above) ** 2).sum())
        newton = z + total * (total - 1) / slope
        step = newton if low < newton < high else (low + high) / 2
        if abs(step - z) <= 1e-15 * z:
            break
        z = step
    return z


GAUGES: dict[str, type[Gauge]] = {gauge.ball.name: gauge for gauge in (AgainstLinf, AgainstL2, AgainstL1)}
"""By the name of the attacker's norm."""
