"""The least worst-case loss of a linear score, to a certified gap.

minimise over (w, b):  sum_i p_i phi(w.x_i + b, t(w)) + ridge/2 |w|^2 + lasso |w|_1,   t(w) = the attacker's gain

Newton's method on a smoothed objective whose smoothing `mu` falls to zero (a log-barrier method; Boyd and Vandenberghe,
Convex Optimization, 2004, chapter 11), on the features that carry weight: against a max-norm attacker most weights are
zero at the optimum, and those whose slack says so are left out until the whole gradient is looked at again. The slopes
of the losses are a feasible point of the dual, so that every stop is a proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from epsball.linear.gauge import AgainstLinf, Gauge, Smoothed, SoftAbs, soft_abs
from epsball.linear.losses import Loss, Slopes
from epsball.linear.newton import Matrix, Quadratic

REACH = 10.0
"""The gap is a proof against all weights up to so many times those found, where their slopes leave the dual's cone."""

SHRINK = 0.2
"""By how much the smoothing falls once Newton's method has converged."""

LEAST = 1e-14
"""The smoothing at which double precision ends."""

MORE = 64
"""Features to take in at a time."""

AGAIN = 4
"""How often a problem is solved again that is smooth enough, but not solved well enough for the gap to be."""

FIRST = 192
"""Features to begin with, the steepest, against a max-norm attacker."""


@dataclass(frozen=True, eq=False)
class Problem:
    """`X` (n, d) dense or CSC, `y` (n,), `p` (n,) > 0 with sum 1, `gauge` over d features; `ridge`, `lasso` >= 0.

    `spread` (d,) > 0 is the size of each feature, in its unit.
    """

    X: Matrix
    y: np.ndarray
    loss: Loss
    p: np.ndarray
    gauge: Gauge
    spread: np.ndarray
    ridge: float = 0.0
    lasso: float = 0.0
    intercept: bool = True

    @property
    def sparse(self) -> bool:
        """Whether many weights are zero at the optimum."""
        return isinstance(self.gauge, AgainstLinf) or self.lasso > 0

    def constant(self) -> float:
        """The best score that looks at no feature."""
        return self.loss.constant(self.y, self.p) if self.intercept else 0.0

    def objective(self, w: np.ndarray, s: np.ndarray) -> float:
        """The exact objective at weights w with scores s."""
        worst = self.p @ self.loss.value(s, self.gauge.value(w), self.y)
        return float(worst + self.ridge / 2 * (w @ w) + self.lasso * np.abs(w).sum())

    def columns(self, index: np.ndarray) -> Problem:
        """The problem in some of the features, the others' weights being zero."""
        return replace(self, X=self.X[:, index], gauge=self.gauge.columns(index), spread=self.spread[index])


@dataclass(frozen=True, eq=False)
class Solution:
    """Weights and intercepts; the exact `objective` and how far it is above the optimum at most; steps; enough?"""

    w: np.ndarray
    b: Any
    objective: float
    gap: float
    n_iter: int
    converged: bool


@dataclass(frozen=True, eq=False)
class _Point:
    """The smoothed problem at (w, b)."""

    w: np.ndarray
    b: float
    s: np.ndarray
    value: float
    slopes: Slopes
    gain: Smoothed
    size: SoftAbs  # of w, for the lasso
    theta: np.ndarray  # the slopes of the losses that the last step looked forward to: a point of the dual
    beta: np.ndarray


def solve(problem: Problem, *, tol: float, max_iter: int, start: tuple[np.ndarray, float] | None = None) -> Solution:
    """Minimise to a gap of at most `tol` times the objective of the best constant score.

    `start` is (w, b) to begin from. What did not converge in `max_iter` Newton steps says so, with its gap.
    """
    w, b, mu = np.zeros(problem.X.shape[1]), problem.constant(), 0.1
    s = np.full(len(problem.y), b)
    constant = problem.objective(w, s)
    enough = tol * constant
    zero = _at(problem, w, b, s, LEAST)
    v = problem.X.T @ (problem.p * zero.theta)
    gap = _gap(problem, zero, v)
    if gap <= enough:
        return Solution(w, b, constant, gap, 0, True)
    if start is not None:
        scores = problem.X @ start[0] + start[1]
        if problem.objective(start[0], scores) < constant:  # else it is of other data
            w, b, mu, s = start[0].copy(), start[1], 1e-2, scores
    chosen = _first_features(problem, w, v)
    part = problem.columns(chosen)
    point = _at(part, w[chosen], b, s, mu)
    best, objective = (w, b), problem.objective(w, s)
    bound, came_back = constant - gap, np.zeros(len(w), bool)
    left_out = ~np.isin(np.arange(len(w)), chosen)
    taken = again = 0
    while taken < max_iter and mu > LEAST:
        point, steps = _centre(part, point, mu, max_iter - taken, enough)
        taken += steps
        w = np.zeros(problem.X.shape[1])
        w[chosen] = point.w
        v = problem.X.T @ (problem.p * point.theta)
        here = problem.objective(w, point.s)
        smoothing = here - point.value
        bound = max(bound, here - _gap(problem, replace(point, w=w), v))
        if here <= objective:
            best, objective = (w, point.b), here
        if objective - bound <= enough:
            break
        missing = _missing(problem, point, chosen, v)
        came_back[missing] |= ~left_out[missing]
        kept = chosen if len(missing) else chosen[_carrying(part, point) | came_back[chosen]]
        if len(missing) or len(kept) < 0.8 * len(chosen):
            left_out[missing] = False
            chosen = np.union1d(kept, missing)
            part = problem.columns(chosen)
            point = replace(point, w=w[chosen], s=part.X @ w[chosen] + point.b)
        if not len(missing):
            finer = smoothing > enough / 4 or again == AGAIN
            mu, again = (mu * SHRINK, 0) if finer else (mu, again + 1)
        point = _at(part, point.w, point.b, point.s, mu)
    if constant - bound <= max(enough, objective - bound):
        best, objective = (np.zeros(len(w)), problem.constant()), constant
    gap = objective - bound
    found = Solution(*best, objective, gap, taken, gap <= enough)
    if problem.sparse:
        return tidied(found, np.abs(found.w), lambda w: problem.objective(w, problem.X @ w + found.b), enough)
    return found


def _first_features(problem: Problem, w: np.ndarray, v: np.ndarray) -> np.ndarray:
    """All features; or, where most will come to nothing, those in use and the steepest at zero weights."""
    steep = np.abs(v) / np.maximum(problem.gauge.eps, 1e-300)
    steep[(w != 0) | (problem.gauge.eps == 0)] = np.inf
    many = max(FIRST, int(np.isinf(steep).sum())) if isinstance(problem.gauge, AgainstLinf) else len(w)
    return np.sort(np.argsort(-steep, kind="stable")[:many])


def _missing(problem: Problem, point: _Point, chosen: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Features left out that would lower the objective, the steepest, `MORE` at most."""
    excess = np.abs(v) - (problem.p @ point.beta) * problem.gauge.eps - problem.lasso
    excess[chosen] = 0
    (missing,) = np.nonzero(excess > 0)
    return missing[np.argsort(-excess[missing], kind="stable")[:MORE]]


def _carrying(problem: Problem, point: _Point) -> np.ndarray:
    """Which features carry weight, against a max-norm attacker; the others' slopes have slack, and together they make
    up a hundredth of the attacker's gain."""
    if not isinstance(problem.gauge, AgainstLinf):
        return np.ones(len(point.w), bool)
    gain = problem.gauge.eps * np.abs(point.w)
    order = np.argsort(gain)
    small = np.empty(len(gain), bool)
    small[order] = np.cumsum(gain[order]) <= 0.01 * gain.sum()
    return ~(small & (np.abs(point.gain.gradient) < 0.5 * problem.gauge.eps))


def tidied(found: Solution, size: np.ndarray, objective: Callable[[np.ndarray], float], enough: float) -> Solution:
    """The smallest weights set to zero, as many features as the gap allows: smoothing leaves none there exactly.

    `size` (d,) is the size of each feature's weights; only those below a thousandth of the greatest are tried.
    """
    order = np.argsort(size, kind="stable")
    low, high = 0, int((size < 1e-3 * size.max()).sum())
    best = found
    while low < high:
        middle = (low + high + 1) // 2
        w = found.w.copy()
        w[..., order[:middle]] = 0
        value = objective(w)
        gap = found.gap + value - found.objective
        if gap <= max(enough, found.gap):
            low, best = middle, replace(found, w=w, objective=value, gap=gap)
        else:
            high = middle - 1
    return best


@dataclass(frozen=True, eq=False)
class _Forward:
    """The slopes at the kinks of gauge, loss and lasso that the last Newton step looked forward to."""

    gauge: np.ndarray | None = None
    loss: np.ndarray | None = None
    lasso: np.ndarray | None = None
    dual: tuple[np.ndarray, np.ndarray] | None = None


def _at(problem: Problem, w: np.ndarray, b: float, s: np.ndarray, mu: float, forward: _Forward = _Forward()) -> _Point:
    gain = problem.gauge.smoothed(w, mu, forward.gauge)
    slopes = problem.loss.slopes(s, gain.value, problem.y, mu, forward.loss)
    size = soft_abs(w, mu, forward.lasso)
    value = problem.p @ slopes.value + problem.ridge / 2 * (w @ w) + problem.lasso * size.value.sum()
    dual = (slopes.theta, slopes.beta) if forward.dual is None else forward.dual
    theta, beta = problem.loss.feasible(*dual, problem.y)
    return _Point(w, b, s, float(value), slopes, gain, size, theta, beta)


def _centre(problem: Problem, point: _Point, mu: float, most: int, enough: float) -> tuple[_Point, int]:
    """Newton's method with backtracking on the smoothed problem, until it is solved as well as it is smoothed."""
    for taken in range(1, most + 1):
        p, slopes, gain = problem.p, point.slopes, point.gain
        burden = float(p @ slopes.beta)
        slope_w = -(problem.X.T @ (p * slopes.theta)) + burden * gain.gradient + problem.ridge * point.w
        slope_w += problem.lasso * point.size.slope
        slope_b = -float(p @ slopes.theta)
        model = Quadratic(
            problem.X,
            p * slopes.ss,
            p * slopes.st,
            float(p @ slopes.tt),
            gain.gradient,
            burden * gain.diagonal + problem.ridge + problem.lasso * point.size.curvature,
            np.sqrt(burden) * gain.rank,
            problem.intercept,
        )
        step_w, step_b = model.step(slope_w, slope_b)
        fall = -(slope_w @ step_w + slope_b * step_b)
        along = problem.X @ step_w + step_b
        forward = _Forward(
            gain.after(step_w),
            slopes.slope_after(along, float(gain.gradient @ step_w)),
            point.size.after(step_w),
            slopes.after(along, float(gain.gradient @ step_w)),
        )
        length = 1.0
        while True:
            with np.errstate(over="ignore", invalid="ignore"):
                trial = _at(
                    problem, point.w + length * step_w, point.b + length * step_b, point.s + length * along, mu, forward
                )
            if trial.value <= point.value - 1e-4 * length * fall:
                break
            length /= 2
            if not length > 1e-10:
                return point, taken  # as far as double precision goes
        point = trial
        objective = problem.objective(point.w, point.s)
        smoothing = objective - point.value
        if objective <= enough or fall <= 0.1 * smoothing or fall <= 1e-15 * max(1.0, point.value):
            return point, taken
    return point, most


def _gap(problem: Problem, point: _Point, v: np.ndarray) -> float:
    """How far the exact objective can be above the optimum, from the slopes as a point of the dual.

    v = X' (p theta) on all features. The bound D + min over w of [burden t(w) - v.w + ridge/2 |w|^2 + lasso |w|_1] has
    a minimum of zero where the attacker's ball, `burden` times as large, holds v; where it does not quite, the bound is
    taken over all weights up to `REACH` times those found, or as large as moves the scores by `REACH`.
    """
    p, w, eps = problem.p, point.w, problem.gauge.eps
    burden = float(p @ point.beta)
    bound = float(p @ problem.loss.dual(point.theta, point.beta, problem.y))
    bound -= abs(float(p @ point.theta)) * REACH * max(abs(point.b), 1.0) if problem.intercept else 0.0
    if problem.ridge > 0:
        rest = _shrunk(v - problem.gauge.nearest(v, burden), problem.lasso)
        bound -= float(rest @ rest) / (2 * problem.ridge)
    else:
        v = _shrunk(v, problem.lasso)
        over = max(problem.gauge.needed(v) - burden, 0.0)
        stray = np.abs(v) @ np.where(eps == 0, np.maximum(np.abs(w), 1 / problem.spread), 0)
        bound -= REACH * (over * max(problem.gauge.value(w), 1.0) + float(stray))
    return problem.objective(w, point.s) - max(bound, 0.0)


def _shrunk(v: np.ndarray, by: float) -> np.ndarray:
    return np.sign(v) * np.maximum(np.abs(v) - by, 0)
