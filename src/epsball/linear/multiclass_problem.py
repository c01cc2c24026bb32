"""The worst-case loss of softmax regression with three classes or more.

minimise over (W, b):  sum_i p_i log sum_j exp(z_ij - z_iy + t(w_y - w_j)) + ridge/2 |W|^2 + lasso |W|_1,   z = X W' + b

The attacker may choose a different perturbation for each rival class: an upper bound of the worst cross-entropy, equal
to it for two classes. Beside X and the scores, the solver needs memory for one matrix of `DIRECT` rows and for
X' diag(p) X.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
from scipy.special import softmax, xlogy

from epsball.linear.gauge import AgainstLinf, Gauge, SmoothedGain, SoftAbs, soft_abs
from epsball.linear.multiclass_newton import MulticlassQuadratic, SecondMoments, pair_weights, spread_over_classes
from epsball.linear.scalar_problem import soft_threshold
from epsball.linear.solver import REACH, NewtonStep, PredictedSlopes, RobustProblem, SmoothedPoint, Solution

MAX_SWEEPS = 100
"""Sweeps of coordinate descent at most, to improve one point of the dual."""


def worst_losses(gauge: Gauge, W: np.ndarray, Z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The loss (n,) at weights W (K, d) and scores Z (n, K) under the worst perturbation for each rival class."""
    T = np.zeros((len(W), len(W)))
    for k, j in combinations(range(len(W)), 2):
        T[k, j] = T[j, k] = gauge.value(W[k] - W[j])
    return _cross_entropy(Z + T[y], y)


@dataclass(frozen=True, eq=False)
class MulticlassPoint(SmoothedPoint):
    """`gains` holds the attacker's gain on w_k - w_j for k < j; (`dual`, `moves`) is a point of the dual."""

    P: np.ndarray  # (n, K), the probabilities under the worst perturbations
    gains: dict[tuple[int, int], SmoothedGain]
    size: SoftAbs  # of W, for the lasso
    dual: np.ndarray  # (n, K), probabilities
    moves: dict[tuple[int, int], np.ndarray]  # a move (d,) of the attacker for each pair of classes


@dataclass(frozen=True, eq=False, kw_only=True)
class MulticlassProblem(RobustProblem):
    """`y` (n,) in 0..K-1."""

    def constant(self) -> np.ndarray:
        share = np.bincount(self.y, self.p)
        return np.log(share) - np.log(share).mean() if self.intercept else np.zeros(len(share))

    def objective(self, w: np.ndarray, s: np.ndarray) -> float:
        loss = self.p @ worst_losses(self.gauge, w, s, self.y)
        return float(loss + self.ridge / 2 * (w * w).sum() + self.lasso * np.abs(w).sum())

    @cached_property
    def second_moments(self) -> SecondMoments:
        """X' diag(p) X."""
        return SecondMoments(self.X, self.p)

    def smoothed_at(
        self, w: np.ndarray, b: np.ndarray, s: np.ndarray, mu: float, predicted: PredictedSlopes
    ) -> MulticlassPoint:
        slopes = predicted.gauge or {}
        gains = {
            (k, j): self.gauge.smoothed(w[k] - w[j], mu, slopes.get((k, j))) for k, j in combinations(range(len(w)), 2)
        }
        T = np.zeros((len(w), len(w)))
        for (k, j), gain in gains.items():
            T[k, j] = T[j, k] = gain.value
        shifted = s + T[self.y]
        size = soft_abs(w, mu, predicted.lasso)
        value = self.p @ _cross_entropy(shifted, self.y)
        value += self.ridge / 2 * (w * w).sum() + self.lasso * size.value.sum()
        P = softmax(shifted, axis=1)
        moves = {
            pair: self.gauge.feasible_move(slopes[pair]) if pair in slopes else gain.gradient
            for pair, gain in gains.items()
        }
        dual = P if predicted.dual is None else predicted.dual
        return MulticlassPoint(w, b, s, float(value), P, gains, size, dual, moves)

    def newton_step(self, point: MulticlassPoint, accuracy: float) -> NewtonStep:
        pull = self._pull(point.P)
        weights = pair_weights(point.P, self.y, self.p)
        slope_w = (self.X.T @ pull).T + self.ridge * point.w + self.lasso * point.size.slope
        slope_w += spread_over_classes({pair: gain.gradient for pair, gain in point.gains.items()}, weights)
        slope_b = pull.sum(0) if self.intercept else np.zeros(len(point.b))
        equations = MulticlassQuadratic(
            self.X,
            self.y,
            self.p,
            point.P,
            point.gains,
            weights,
            np.zeros_like(point.w) + (self.ridge + self.lasso * point.size.curvature),
            self.intercept,
        )
        w, b = equations.step(slope_w, slope_b, accuracy, self.second_moments)
        b = b - b.mean()  # a shift of all classes changes no loss
        w = w if self.ridge or self.lasso else w - w.mean(0)
        dual = np.maximum(point.P + equations.change_of_probabilities(w, b), 0)
        predicted = PredictedSlopes(
            gauge={(k, j): gain.predicted(w[k] - w[j]) for (k, j), gain in point.gains.items()},
            lasso=point.size.predicted(w),
            dual=dual / dual.sum(1, keepdims=True),
        )
        return NewtonStep(w, b, self.X @ w.T + b, -float((slope_w * w).sum() + slope_b @ b), predicted)

    def pull(self, point: MulticlassPoint) -> np.ndarray:
        return -(self.X.T @ self._pull(point.dual)).T

    def duality_gap(self, point: MulticlassPoint, pull: np.ndarray) -> float:
        """As for one score, from the probabilities as a point of the dual.

        The gap holds for all weights up to `REACH` times the Euclidean size of those found, in units of `spread`.
        """
        weights = pair_weights(point.dual, self.y, self.p)
        rest = pull - spread_over_classes(point.moves, weights)
        if isinstance(self.gauge, AgainstLinf):
            rest = _after_best_moves(rest, point.moves, weights, self.gauge.eps)
        bound = -float(self.p @ xlogy(point.dual, point.dual).sum(1))
        if self.intercept:
            imbalance = float(np.abs(self._pull(point.dual).sum(0)).sum())
            bound -= REACH * imbalance * max(float(np.abs(point.b).max()), 1.0)
        rest = soft_threshold(rest, self.lasso)
        if self.ridge > 0:
            bound -= float((rest * rest).sum()) / (2 * self.ridge)
        else:
            size = max(float(np.linalg.norm(point.w * self.spread)), 1.0)
            bound -= REACH * float(np.linalg.norm(rest / self.spread)) * size
        return self.objective(point.w, point.s) - max(bound, 0.0)

    def _pull(self, P: np.ndarray) -> np.ndarray:
        """p (P - the label's indicator), (n, K)."""
        out = P.copy()
        out[np.arange(len(self.y)), self.y] -= 1
        return self.p[:, None] * out

    def finish(self, solution: Solution, max_gap: float) -> Solution:
        if isinstance(self.gauge, AgainstLinf) and self.ridge == self.lasso == 0:
            # A shift of all classes changes no loss.
            solution = replace(solution, w=solution.w - np.median(solution.w, axis=0))
        return self.with_small_weights_zero(solution, max_gap)

    def columns(self, features: np.ndarray) -> MulticlassProblem:
        return self  # no feature is left out


def _after_best_moves(
    rest: np.ndarray, moves: dict[tuple[int, int], np.ndarray], weights: np.ndarray, eps: np.ndarray
) -> np.ndarray:
    """What is left of `rest` (K, d) when the moves of a max-norm attacker cancel as much of it as they can.

    Coordinate descent: for one pair the least squares are exact, and the features are independent.
    """
    rest, moves = rest.copy(), dict(moves)
    for _ in range(MAX_SWEEPS):
        before = float(np.abs(rest).max(initial=0.0))
        for (k, j), move in moves.items():
            if weights[k, j] > 0:
                moved = np.clip(move + (rest[k] - rest[j]) / (2 * weights[k, j]), -eps, eps)
                rest[k] -= weights[k, j] * (moved - move)
                rest[j] += weights[k, j] * (moved - move)
                moves[k, j] = moved
        if float(np.abs(rest).max(initial=0.0)) > 0.99 * before:
            break
    return rest


def _cross_entropy(Z: np.ndarray, y: np.ndarray) -> np.ndarray:
    top = Z.max(1)
    return top + np.log(np.exp(Z - top[:, None]).sum(1)) - Z[np.arange(len(y)), y]
