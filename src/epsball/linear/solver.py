"""The least worst-case loss of a linear model, to a certified duality gap: the method, whatever the loss.

minimise over (w, b):  sum_i p_i loss_i(w, b) + ridge/2 |w|^2 + lasso |w|_1

Newton's method on a smoothed objective whose smoothing `mu` falls to zero (a log-barrier method; Boyd and Vandenberghe,
Convex Optimization, 2004, chapter 11). The derivatives of the losses are a feasible point of the dual problem, so that
every iterate has a certified duality gap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from epsball.linear.gauge import AgainstLinf, Gauge
from epsball.linear.newton import Matrix

REACH = 10.0
"""Where the derivatives of the losses leave the dual cone, the gap holds for weights up to REACH times those found."""

FIRST_MU = 0.1
WARM_MU = 1e-2
"""The smoothing to begin with, from zero weights and from a warm start."""

LAST_MU = 1e-14
"""The smoothing at which double precision ends."""

SHRINK = 0.2
"""The factor of the smoothing once Newton's method has converged."""

FIRST_FEATURES = 192
"""Size of the first working set against a max-norm attacker: the features with the steepest gradient."""

MORE_FEATURES = 64
"""Features added at a time."""

RETRIES = 4
"""How often the same smoothed problem is solved again where its smoothing is not the reason for a large gap."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights and intercepts, the exact objective, the duality gap, Newton iterations, whether the gap met `tol`."""

    w: np.ndarray
    b: Any
    objective: float
    gap: float
    n_iter: int
    converged: bool


@dataclass(frozen=True, eq=False)
class PredictedSlopes:
    """The slopes at the kinks and the point of the dual after the last Newton step, by linearisation."""

    gauge: Any = None
    loss: np.ndarray | None = None
    lasso: np.ndarray | None = None
    dual: Any = None


@dataclass(frozen=True, eq=False)
class SmoothedPoint:
    """The smoothed objective's `value` at weights w and intercepts b, with scores s of the examples."""

    w: np.ndarray
    b: Any
    s: np.ndarray
    value: float


@dataclass(frozen=True, eq=False)
class NewtonStep:
    """A step of w, b and the scores, the decrease of the objective to first order, and the slopes it predicts."""

    w: np.ndarray
    b: Any
    s: np.ndarray
    decrease: float
    predicted: PredictedSlopes


@dataclass(frozen=True, eq=False, kw_only=True)
class RobustProblem(ABC):
    """`X` (n, d) dense or CSC, `y` (n,), weights `p` (n,) > 0 with sum 1, `gauge` over d features; penalties >= 0.

    `spread` (d,) > 0 is the size of each feature, in its unit. Weights w are (d,), or (K, d) for K classes; intercepts
    b a number or (K,); scores s (n,) or (n, K).
    """

    X: Matrix
    y: np.ndarray
    p: np.ndarray
    gauge: Gauge
    spread: np.ndarray
    ridge: float = 0.0
    lasso: float = 0.0
    intercept: bool = True

    @abstractmethod
    def constant(self) -> Any:
        """The best intercepts where all weights are zero."""

    @abstractmethod
    def objective(self, w: np.ndarray, s: np.ndarray) -> float:
        """The exact objective at weights w with scores s."""

    @abstractmethod
    def smoothed_at(self, w: np.ndarray, b: Any, s: np.ndarray, mu: float, predicted: PredictedSlopes) -> Any:
        """The objective smoothed by `mu`, with its derivatives and a feasible point of the dual."""

    @abstractmethod
    def newton_step(self, point: Any, accuracy: float) -> NewtonStep:
        """Newton's step from a point; `accuracy` is that of the linear solver where it iterates."""

    @abstractmethod
    def pull(self, point: Any) -> np.ndarray:
        """Minus the losses' gradient with respect to w, without the attacker's part, at the point of the dual."""

    @abstractmethod
    def duality_gap(self, point: Any, pull: np.ndarray) -> float:
        """An upper bound of the exact objective less its optimum; `point` with the weights of all features."""

    @abstractmethod
    def columns(self, features: np.ndarray) -> Self:
        """The problem in some of the features, the weights of the others being zero."""

    @abstractmethod
    def finish(self, solution: Solution, max_gap: float) -> Solution:
        """The solution in its simplest equivalent form, with a gap of at most `max_gap` or as it was."""

    def scores(self, w: np.ndarray, b: Any) -> np.ndarray:
        """The scores of the examples."""
        return self.X @ w.T + b

    def with_small_weights_zero(self, found: Solution, max_gap: float) -> Solution:
        """The smallest weights set to zero, of as many features as the gap allows: smoothing leaves none there exactly.

        Only features whose weights are below a thousandth of the greatest are tried.
        """
        size = np.abs(found.w).reshape(-1, found.w.shape[-1]).max(0)
        order = np.argsort(size, kind="stable")
        low, high = 0, int((size < 1e-3 * size.max()).sum())
        best = found
        while low < high:
            middle = (low + high + 1) // 2
            w = found.w.copy()
            w[..., order[:middle]] = 0
            value = self.objective(w, self.scores(w, found.b))
            gap = found.gap + value - found.objective
            if gap <= max(max_gap, found.gap):
                low, best = middle, replace(found, w=w, objective=value, gap=gap)
            else:
                high = middle - 1
        return best

    def solve(self, *, tol: float, max_iter: int, start: tuple[np.ndarray, Any] | None = None) -> Solution:
        """Minimise to a duality gap of at most `tol` times the objective of the best constant scores.

        `start` is (w, b) to begin from. A solution that did not converge in `max_iter` Newton steps says so, with its
        gap.
        """
        b = self.constant()
        w, mu = np.zeros((*np.shape(b), self.X.shape[1])), FIRST_MU
        s = np.broadcast_to(b, (len(self.y), *np.shape(b))).copy()
        at_zero = self.smoothed_at(w, b, s, LAST_MU, PredictedSlopes())
        pull = self.pull(at_zero)
        objective, gap = self.objective(w, s), self.duality_gap(at_zero, pull)
        max_gap = tol * objective
        constant = best = Solution(w, b, objective, gap, 0, gap <= max_gap)
        if constant.converged:
            return constant
        if start is not None:
            scores = self.scores(*start)
            objective = self.objective(start[0], scores)
            if objective < constant.objective:  # else the start belongs to other data
                w, b, s, mu = start[0].copy(), start[1], scores, WARM_MU
                best = replace(best, w=w, b=b, objective=objective)
        working = WorkingSet(self, w, pull)
        point = working.part.smoothed_at(w[..., working.features], b, s, mu, PredictedSlopes())
        bound = constant.objective - constant.gap
        taken = retries = 0
        while taken < max_iter and mu > LAST_MU:
            point, steps = working.part.minimise_smoothed(point, mu, max_iter - taken, max_gap)
            taken += steps
            w = working.embed(point.w)
            pull, objective = self.pull(point), self.objective(w, point.s)
            smoothing = objective - point.value
            bound = max(bound, objective - self.duality_gap(replace(point, w=w), pull))
            if objective <= best.objective:
                best = replace(best, w=w, b=point.b, objective=objective)
            if best.objective - bound <= max_gap:
                break
            point, complete = working.update(point, pull)
            if complete:
                finer = smoothing > max_gap / 4 or retries == RETRIES
                mu, retries = (mu * SHRINK, 0) if finer else (mu, retries + 1)
            point = working.part.smoothed_at(point.w, point.b, point.s, mu, PredictedSlopes())
        if constant.objective - bound <= max(max_gap, best.objective - bound):
            best = constant
        gap = best.objective - bound
        return self.finish(replace(best, gap=gap, n_iter=taken, converged=gap <= max_gap), max_gap)

    def minimise_smoothed(self, point: Any, mu: float, max_iter: int, max_gap: float) -> tuple[Any, int]:
        """Newton's method with backtracking on the smoothed problem, until its error is below that of the smoothing.

        Returns the last point and the steps taken.
        """
        smoothing = self.objective(point.w, point.s) - point.value
        for taken in range(1, max_iter + 1):
            step = self.newton_step(point, 1e-3 if smoothing > max_gap else 1e-8)
            length = 1.0
            while True:
                with np.errstate(over="ignore", invalid="ignore"):
                    w, b, s = point.w + length * step.w, point.b + length * step.b, point.s + length * step.s
                    trial = self.smoothed_at(w, b, s, mu, step.predicted)
                if trial.value <= point.value - 1e-4 * length * step.decrease:
                    break
                length /= 2
                if not length > 1e-10:
                    return point, taken  # double precision ends here
            point = trial
            objective = self.objective(point.w, point.s)
            smoothing = objective - point.value
            accurate = step.decrease <= max(0.1 * smoothing, 1e-15 * max(1.0, point.value))
            if objective <= max_gap or accurate:
                return point, taken
        return point, max_iter


class WorkingSet:
    """The `features` whose weights are free, and the problem `part` in these alone; all other weights are zero.

    Against a max-norm attacker and for one score per example, most weights are zero at the optimum. Features whose
    derivatives have slack are left out until the whole gradient is computed again.
    """

    def __init__(self, problem: RobustProblem, w: np.ndarray, pull: np.ndarray) -> None:
        """For a start at weights w; `pull` is that of zero weights."""
        self.problem, self.features = problem, np.arange(w.shape[-1])
        self._partial = w.ndim == 1 and isinstance(problem.gauge, AgainstLinf)
        if self._partial:
            eps = problem.gauge.eps
            steepness = np.abs(pull) / np.maximum(eps, 1e-300)
            steepness[(w != 0) | (eps == 0)] = np.inf
            count = max(FIRST_FEATURES, int(np.isinf(steepness).sum()))
            self.features = np.sort(np.argsort(-steepness, kind="stable")[:count])
        self.part = problem.columns(self.features)
        self._left_out = ~np.isin(np.arange(w.shape[-1]), self.features)
        self._came_back = np.zeros(w.shape[-1], bool)

    def embed(self, w: np.ndarray) -> np.ndarray:
        """The weights of all features."""
        whole = np.zeros((*w.shape[:-1], len(self._left_out)))
        whole[..., self.features] = w
        return whole

    def update(self, point: Any, pull: np.ndarray) -> tuple[Any, bool]:
        """Exchange features; the point in the new ones (its smoothed parts stale), and whether none was missing."""
        if not self._partial:
            return point, True
        missing = self._missing(point, pull)
        self._came_back[missing] |= ~self._left_out[missing]
        kept = self.features
        if not len(missing):
            kept = kept[self._carrying(point) | self._came_back[kept]]
        if len(missing) or len(kept) < 0.8 * len(self.features):
            self._left_out[missing] = False
            w = self.embed(point.w)
            self.features = np.union1d(kept, missing)
            self.part = self.problem.columns(self.features)
            w = w[self.features]
            point = replace(point, w=w, s=self.part.scores(w, point.b))
        return point, not len(missing)

    def _missing(self, point: Any, pull: np.ndarray) -> np.ndarray:
        """Features left out that would lower the objective, the steepest, at most `MORE_FEATURES`."""
        problem = self.problem
        excess = np.abs(pull) - (problem.p @ point.beta) * problem.gauge.eps - problem.lasso
        excess[self.features] = 0
        (missing,) = np.nonzero(excess > 0)
        return missing[np.argsort(-excess[missing], kind="stable")[:MORE_FEATURES]]

    def _carrying(self, point: Any) -> np.ndarray:
        """Which features carry weight. The derivatives of the others have slack, and together they make up at most a
        hundredth of the attacker's gain."""
        eps = self.part.gauge.eps
        gain = eps * np.abs(point.w)
        order = np.argsort(gain)
        small = np.empty(len(gain), bool)
        small[order] = np.cumsum(gain[order]) <= 0.01 * gain.sum()
        return ~(small & (np.abs(point.gain.gradient) < 0.5 * eps))
