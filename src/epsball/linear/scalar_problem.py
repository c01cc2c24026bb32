"""The worst-case loss of one score per example: two classes, or a regression.

minimise over (w, b):  sum_i p_i phi(w.x_i + b, t(w)) + ridge/2 |w|^2 + lasso |w|_1,   t(w) = the attacker's gain
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from epsball.linear.gauge import AgainstLinf, SmoothedGain, SoftAbs, soft_abs
from epsball.linear.losses import Loss, SmoothedLoss
from epsball.linear.newton import Quadratic
from epsball.linear.solver import REACH, NewtonStep, PredictedSlopes, RobustProblem, SmoothedPoint, Solution


@dataclass(frozen=True, eq=False)
class ScalarPoint(SmoothedPoint):
    """The parts of the smoothed objective, and (theta, beta), a point of the dual."""

    loss: SmoothedLoss
    gain: SmoothedGain
    size: SoftAbs  # of w, for the lasso
    theta: np.ndarray
    beta: np.ndarray


@dataclass(frozen=True, eq=False, kw_only=True)
class ScalarProblem(RobustProblem):
    """`y` (n,) in {-1, 1}, or real for the squared loss."""

    loss: Loss

    def constant(self) -> float:
        return self.loss.constant(self.y, self.p) if self.intercept else 0.0

    def objective(self, w: np.ndarray, s: np.ndarray) -> float:
        worst = self.p @ self.loss.value(s, self.gauge.value(w), self.y)
        return float(worst + self.ridge / 2 * (w @ w) + self.lasso * np.abs(w).sum())

    def columns(self, features: np.ndarray) -> ScalarProblem:
        return replace(self, X=self.X[:, features], gauge=self.gauge.columns(features), spread=self.spread[features])

    def smoothed_at(self, w: np.ndarray, b: float, s: np.ndarray, mu: float, predicted: PredictedSlopes) -> ScalarPoint:
        gain = self.gauge.smoothed(w, mu, predicted.gauge)
        loss = self.loss.smoothed(s, gain.value, self.y, mu, predicted.loss)
        size = soft_abs(w, mu, predicted.lasso)
        value = self.p @ loss.value + self.ridge / 2 * (w @ w) + self.lasso * size.value.sum()
        theta, beta = predicted.dual or (loss.theta, loss.beta)
        theta, beta = self.loss.feasible(theta, beta, self.y)
        return ScalarPoint(w, b, s, float(value), loss, gain, size, theta, beta)

    def newton_step(self, point: ScalarPoint, accuracy: float) -> NewtonStep:
        p, loss, gain = self.p, point.loss, point.gain
        multiplier = float(p @ loss.beta)
        slope_w = -(self.X.T @ (p * loss.theta)) + multiplier * gain.gradient + self.ridge * point.w
        slope_w += self.lasso * point.size.slope
        slope_b = -float(p @ loss.theta)
        equations = Quadratic(
            self.X,
            p * loss.ss,
            p * loss.st,
            float(p @ loss.tt),
            gain.gradient,
            multiplier * gain.diagonal + self.ridge + self.lasso * point.size.curvature,
            np.sqrt(multiplier) * gain.rank_one,
            self.intercept,
        )
        w, b = equations.step(slope_w, slope_b)
        s, t = self.X @ w + b, float(gain.gradient @ w)
        predicted = PredictedSlopes(
            gain.predicted(w), loss.predicted_kink(s, t), point.size.predicted(w), loss.predicted(s, t)
        )
        return NewtonStep(w, b, s, -(slope_w @ w + slope_b * b), predicted)

    def pull(self, point: ScalarPoint) -> np.ndarray:
        return self.X.T @ (self.p * point.theta)

    def duality_gap(self, point: ScalarPoint, pull: np.ndarray) -> float:
        """The bound is D + min over w of [multiplier t(w) - pull.w + ridge/2 |w|^2 + lasso |w|_1].

        The minimum is zero where the attacker's ball, `multiplier` times as large, contains the pull. Where it does not
        quite, the bound is taken over all weights up to `REACH` times those found, or as large as moves the scores by
        `REACH`.
        """
        p, w, eps = self.p, point.w, self.gauge.eps
        multiplier = float(p @ point.beta)
        bound = float(p @ self.loss.dual(point.theta, point.beta, self.y))
        bound -= abs(float(p @ point.theta)) * REACH * max(abs(point.b), 1.0) if self.intercept else 0.0
        if self.ridge > 0:
            rest = soft_threshold(pull - self.gauge.project(pull, multiplier), self.lasso)
            bound -= float(rest @ rest) / (2 * self.ridge)
        else:
            rest = soft_threshold(pull, self.lasso)
            excess = max(self.gauge.scale_to_contain(rest) - multiplier, 0.0)
            unattacked = np.abs(rest) @ np.where(eps == 0, np.maximum(np.abs(w), 1 / self.spread), 0)
            bound -= REACH * (excess * max(self.gauge.value(w), 1.0) + float(unattacked))
        return self.objective(w, point.s) - max(bound, 0.0)

    def finish(self, solution: Solution, max_gap: float) -> Solution:
        sparse = isinstance(self.gauge, AgainstLinf) or self.lasso > 0
        return self.with_small_weights_zero(solution, max_gap) if sparse else solution


def soft_threshold(v: np.ndarray, by: float) -> np.ndarray:
    """Each entry moved towards zero by at most `by`."""
    return np.sign(v) * np.maximum(np.abs(v) - by, 0)
