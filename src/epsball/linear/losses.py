"""Losses of a linear score under its worst perturbation: phi(s, t), s the score, t the attacker's gain.

Each loss is convex, and rises with t. It is the maximum over (theta, beta) of beta t - theta s + a concave `dual`, so
that the derivatives found while minimising bound the optimum from below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, xlogy

from epsball.linear.gauge import SoftAbs, soft_abs


@dataclass(frozen=True)
class SmoothedLoss:
    """Per example (n,): the value, theta = -d/ds, beta = d/dt >= 0, and the second derivatives.

    `kink` is the smoothed absolute value in the loss, if there is one, with the derivatives of its argument.
    """

    value: np.ndarray
    theta: np.ndarray
    beta: np.ndarray
    ss: np.ndarray
    st: np.ndarray
    tt: np.ndarray
    kink: SoftAbs | None = None
    kink_s: np.ndarray | float = 0.0
    kink_t: float = 0.0

    def predicted(self, ds: np.ndarray, dt: float) -> tuple[np.ndarray, np.ndarray]:
        """(theta, beta) after a step, by linearisation."""
        return self.theta - self.ss * ds - self.st * dt, self.beta + self.st * ds + self.tt * dt

    def predicted_kink(self, ds: np.ndarray, dt: float) -> np.ndarray | None:
        """The slope at the kink after a step, by linearisation."""
        return None if self.kink is None else self.kink.predicted(self.kink_s * ds + self.kink_t * dt)


class Loss(ABC):
    """phi(s, t) per example, for targets y (n,)."""

    @abstractmethod
    def value(self, s: np.ndarray, t: float, y: np.ndarray) -> np.ndarray:
        """The worst-case loss, exact."""

    @abstractmethod
    def smoothed(self, s: np.ndarray, t: float, y: np.ndarray, mu: float, slope: np.ndarray | None) -> SmoothedLoss:
        """Value and derivatives, smoothed by `mu` at a kink, whose predicted slope is `slope`."""

    @abstractmethod
    def feasible(self, theta: np.ndarray, beta: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest feasible point of the dual."""

    @abstractmethod
    def constant(self, y: np.ndarray, p: np.ndarray) -> float:
        """The best constant score, for examples weighted by p (n,)."""

    @abstractmethod
    def dual(self, theta: np.ndarray, beta: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The concave part: phi(s, t) >= beta t - theta s + dual, for every s and t."""


class _MarginLoss(Loss):
    """A loss of z = t - y s, y in {-1, 1}."""

    def feasible(self, theta: np.ndarray, beta: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        beta = np.clip(beta, 0, 1)
        return y * beta, beta


class Logistic(_MarginLoss):
    """softplus(t - y s), y in {-1, 1}: Goodfellow et al. 2015, section 5, with its slip for y = -1 corrected."""

    def value(self, s: np.ndarray, t: float, y: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, t - y * s)

    def smoothed(self, s: np.ndarray, t: float, y: np.ndarray, mu: float, slope: np.ndarray | None) -> SmoothedLoss:
        z = t - y * s
        beta = expit(z)
        curvature = beta * expit(-z)
        return SmoothedLoss(np.logaddexp(0, z), y * beta, beta, curvature, -y * curvature, curvature)

    def constant(self, y: np.ndarray, p: np.ndarray) -> float:
        return float(np.log(p[y > 0].sum() / p[y < 0].sum()))

    def dual(self, theta: np.ndarray, beta: np.ndarray, y: np.ndarray) -> np.ndarray:
        return -xlogy(beta, beta) - xlogy(1 - beta, 1 - beta)


class Hinge(_MarginLoss):
    """max(0, 1 + t - y s), y in {-1, 1}."""

    def value(self, s: np.ndarray, t: float, y: np.ndarray) -> np.ndarray:
        return np.maximum(0, 1 + t - y * s)

    def smoothed(self, s: np.ndarray, t: float, y: np.ndarray, mu: float, slope: np.ndarray | None) -> SmoothedLoss:
        z = 1 + t - y * s
        kink = soft_abs(z, mu, slope)
        beta, curvature = (1 + kink.slope) / 2, kink.curvature / 2
        return SmoothedLoss((z + kink.value) / 2, y * beta, beta, curvature, -y * curvature, curvature, kink, -y, 1.0)

    def constant(self, y: np.ndarray, p: np.ndarray) -> float:
        return float(np.sign(p @ y))

    def dual(self, theta: np.ndarray, beta: np.ndarray, y: np.ndarray) -> np.ndarray:
        return beta


class Squared(Loss):
    """(|y - s| + t)^2: the worst squared error of a regression (Ribeiro et al., NeurIPS 2023, eq. 4)."""

    def value(self, s: np.ndarray, t: float, y: np.ndarray) -> np.ndarray:
        return (np.abs(y - s) + t) ** 2

    def smoothed(self, s: np.ndarray, t: float, y: np.ndarray, mu: float, slope: np.ndarray | None) -> SmoothedLoss:
        kink = soft_abs(y - s, mu, slope)
        beta = 2 * (kink.value + t)
        return SmoothedLoss(
            beta**2 / 4,
            beta * kink.slope,
            beta,
            2 * kink.slope**2 + beta * kink.curvature,
            -2 * kink.slope,
            np.full_like(beta, 2.0),
            kink,
            -1.0,
        )

    def feasible(self, theta: np.ndarray, beta: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return theta, np.maximum(beta, np.abs(theta))

    def constant(self, y: np.ndarray, p: np.ndarray) -> float:
        return float(p @ y)

    def dual(self, theta: np.ndarray, beta: np.ndarray, y: np.ndarray) -> np.ndarray:
        return theta * y - beta**2 / 4


LOSSES: dict[str, Loss] = {"logistic": Logistic(), "hinge": Hinge(), "squared": Squared()}
