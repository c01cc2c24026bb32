"""Worst-case softmax regression with three classes or more, to a certified gap.

minimise over (W, b):  sum_i p_i log sum_j exp(z_ij - z_iy + t(w_y - w_j)) + ridge/2 |W|^2 + lasso |W|_1,   z = X W' + b

The attacker may choose a perturbation for each rival class apart: an upper bound on the worst cross-entropy, and equal
to it for two classes. Newton's method on a smoothed objective as in `solver.py`, its equations solved by preconditioned
conjugate gradients: beside X and the scores no memory but that of one matrix of `DIRECT` rows and of X' diag(p) X.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.special import softmax, xlogy

from epsball.linear.gauge import AgainstLinf, Gauge, Smoothed, SoftAbs, soft_abs
from epsball.linear.multiclass_newton import Second, burdens_of, newton_step, spread_out
from epsball.linear.newton import Matrix
from epsball.linear.solver import AGAIN, LEAST, REACH, SHRINK, Solution, tidied

SWEEPS = 100
"""Rounds of coordinate descent that a point of the dual is worth."""


def worst(gauge: Gauge, W: np.ndarray, Z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The loss (n,) at weights W (K, d) and scores Z (n, K) under the worst perturbation for each rival class."""
    T = np.zeros((len(W), len(W)))
    for k, j in combinations(range(len(W)), 2):
        T[k, j] = T[j, k] = gauge.value(W[k] - W[j])
    return _softmax_loss(Z + T[y], y)


@dataclass(frozen=True, eq=False)
class Problem:
    """`X` (n, d) dense or CSC, `y` (n,) in 0..K-1, `p` (n,) > 0 with sum 1, `spread` (d,) > 0 the features' sizes."""

    X: Matrix
    y: np.ndarray
    p: np.ndarray
    gauge: Gauge
    spread: np.ndarray
    ridge: float = 0.0
    lasso: float = 0.0
    intercept: bool = True

    def constant(self) -> np.ndarray:
        """The best scores (K,) that look at no feature."""
        share = np.bincount(self.y, self.p)
        return np.log(share) - np.log(share).mean() if self.intercept else np.zeros(len(share))

    def objective(self, W: np.ndarray, Z: np.ndarray) -> float:
        """The exact objective at weights W (K, d) with scores Z (n, K)."""
        loss = self.p @ worst(self.gauge, W, Z, self.y)
        return float(loss + self.ridge / 2 * (W * W).sum() + self.lasso * np.abs(W).sum())


@dataclass(frozen=True, eq=False)
class Point:
    """The smoothed problem at (W, b); `pairs` holds the attacker's gain on w_k - w_j for k < j."""

    W: np.ndarray
    b: np.ndarray
    Z: np.ndarray
    value: float
    P: np.ndarray
    pairs: dict[tuple[int, int], Smoothed]
    size: SoftAbs
    dual: np.ndarray  # the probabilities that the last step looked forward to, and
    worst: dict[tuple[int, int], np.ndarray]  # the attacker's moves likewise: a point of the dual


def solve(
    problem: Problem, *, tol: float, max_iter: int, start: tuple[np.ndarray, np.ndarray] | None = None
) -> Solution:
    """Minimise to a gap of at most `tol` times the objective of the best constant scores; w (K, d), b (K,).

    The gap holds against all weights up to `REACH` times the Euclidean size of those found, in units of `spread`.
    """
    n, d = problem.X.shape
    b = problem.constant()
    W, Z, mu = np.zeros((len(b), d)), np.tile(b, (n, 1)), 0.1
    constant = problem.objective(W, Z)
    enough = tol * constant
    point = _at(problem, W, b, Z, mu, {}, None, None)
    gap = _gap(problem, point)
    if gap <= enough:
        return Solution(W, b, constant, gap, 0, True)
    bound = constant - gap
    best, objective = (W, b), constant
    if start is not None:
        scores = problem.X @ start[0].T + start[1]
        value = problem.objective(start[0], scores)
        if value < constant:  # else it is of other data
            (W, b), Z, mu = (start[0].copy(), start[1].copy()), scores, 1e-2
            point = _at(problem, W, b, Z, mu, {}, None, None)
            best, objective = (W, b), value
    second = Second(problem)
    taken = again = 0
    while taken < max_iter and mu > LEAST:
        point, steps = _centre(problem, point, mu, max_iter - taken, enough, second)
        taken += steps
        here = problem.objective(point.W, point.Z)
        bound = max(bound, here - _gap(problem, point))
        if here <= objective:
            best, objective = (point.W, point.b), here
        if objective - bound <= enough:
            break
        finer = here - point.value > enough / 4 or again == AGAIN
        mu, again = (mu * SHRINK, 0) if finer else (mu, again + 1)
        point = _at(problem, point.W, point.b, point.Z, mu, {}, None, point.dual)
    if constant - bound <= max(enough, objective - bound):
        best, objective = (np.zeros_like(W), problem.constant()), constant
    gap = objective - bound
    found = Solution(*best, objective, gap, taken, gap <= enough)
    if isinstance(problem.gauge, AgainstLinf) and problem.ridge == problem.lasso == 0:
        found = replace(found, w=found.w - np.median(found.w, axis=0))  # a shift of all classes changes no loss
    return tidied(found, np.abs(found.w).max(0), lambda w: problem.objective(w, problem.X @ w.T + found.b), enough)


def _at(
    problem: Problem,
    W: np.ndarray,
    b: np.ndarray,
    Z: np.ndarray,
    mu: float,
    slopes: dict[tuple[int, int], np.ndarray],
    lasso: np.ndarray | None,
    dual: np.ndarray | None,
) -> Point:
    classes = len(W)
    pairs = {
        (k, j): problem.gauge.smoothed(W[k] - W[j], mu, slopes.get((k, j))) for k, j in combinations(range(classes), 2)
    }
    T = np.zeros((classes, classes))
    for (k, j), gain in pairs.items():
        T[k, j] = T[j, k] = gain.value
    shifted = Z + T[problem.y]
    size = soft_abs(W, mu, lasso)
    value = problem.p @ _softmax_loss(shifted, problem.y)
    value += problem.ridge / 2 * (W * W).sum() + problem.lasso * size.value.sum()
    P = softmax(shifted, axis=1)
    worst = {
        pair: problem.gauge.inside(slopes[pair]) if pair in slopes else gain.gradient for pair, gain in pairs.items()
    }
    return Point(W, b, Z, float(value), P, pairs, size, P if dual is None else dual, worst)


def _centre(problem: Problem, point: Point, mu: float, most: int, enough: float, second: Second) -> tuple[Point, int]:
    """Newton's method with backtracking on the smoothed problem, until it is solved as well as it is smoothed."""
    smoothing = problem.objective(point.W, point.Z) - point.value
    for taken in range(1, most + 1):
        accuracy = 1e-3 if smoothing > enough else 1e-8
        slope_W, slope_b = _slope(problem, point)
        step_W, step_b, dual = newton_step(problem, point, slope_W, slope_b, second, accuracy)
        fall = -float((slope_W * step_W).sum() + slope_b @ step_b)
        along = problem.X @ step_W.T + step_b
        slopes = {(k, j): gain.after(step_W[k] - step_W[j]) for (k, j), gain in point.pairs.items()}
        lasso = point.size.after(step_W)
        length = 1.0
        while True:
            with np.errstate(over="ignore", invalid="ignore"):
                trial = _at(
                    problem,
                    point.W + length * step_W,
                    point.b + length * step_b,
                    point.Z + length * along,
                    mu,
                    slopes,
                    lasso,
                    dual,
                )
            if trial.value <= point.value - 1e-4 * length * fall:
                break
            length /= 2
            if not length > 1e-10:
                return point, taken  # as far as double precision goes
        point = trial
        objective = problem.objective(point.W, point.Z)
        smoothing = objective - point.value
        if objective <= enough or fall <= 0.1 * smoothing or fall <= 1e-15 * max(1.0, point.value):
            return point, taken
    return point, most


def _slope(problem: Problem, point: Point) -> tuple[np.ndarray, np.ndarray]:
    pull = problem.p[:, None] * _minus_label(point.P, problem.y)
    burdens = burdens_of(point.P, problem.y, problem.p)
    slope = (problem.X.T @ pull).T + problem.ridge * point.W + problem.lasso * point.size.slope
    slope += spread_out({pair: gain.gradient for pair, gain in point.pairs.items()}, burdens)
    return slope, pull.sum(0) if problem.intercept else np.zeros(len(point.b))


def _gap(problem: Problem, point: Point) -> float:
    """How far the exact objective can be above the optimum, from the probabilities as a point of the dual."""
    p, y, P = problem.p, problem.y, point.dual
    pull = p[:, None] * _minus_label(P, y)
    rest = -(problem.X.T @ pull).T - spread_out(point.worst, burdens_of(P, y, p))
    if isinstance(problem.gauge, AgainstLinf):
        rest = _settled(rest, point.worst, burdens_of(P, y, p), problem.gauge.eps)
    bound = -float(p @ xlogy(P, P).sum(1))
    if problem.intercept:
        bound -= REACH * float(np.abs(pull.sum(0)).sum()) * max(float(np.abs(point.b).max()), 1.0)
    rest = np.sign(rest) * np.maximum(np.abs(rest) - problem.lasso, 0)
    if problem.ridge > 0:
        bound -= float((rest * rest).sum()) / (2 * problem.ridge)
    else:
        size = max(float(np.linalg.norm(point.W * problem.spread)), 1.0)
        bound -= REACH * float(np.linalg.norm(rest / problem.spread)) * size
    return problem.objective(point.W, point.Z) - max(bound, 0.0)


def _settled(
    rest: np.ndarray, moves: dict[tuple[int, int], np.ndarray], burdens: np.ndarray, eps: np.ndarray
) -> np.ndarray:
    """What is left of `rest` (K, d) when the moves of a max-norm attacker take as much of it as they may.

    Pair by pair the least squares are exact and each feature stands alone: coordinate descent.
    """
    rest, moves = rest.copy(), dict(moves)
    for _ in range(SWEEPS):
        before = float(np.abs(rest).max(initial=0.0))
        for (k, j), move in moves.items():
            if burdens[k, j] > 0:
                moved = np.clip(move + (rest[k] - rest[j]) / (2 * burdens[k, j]), -eps, eps)
                rest[k] -= burdens[k, j] * (moved - move)
                rest[j] += burdens[k, j] * (moved - move)
                moves[k, j] = moved
        if float(np.abs(rest).max(initial=0.0)) > 0.99 * before:
            break
    return rest


def _softmax_loss(Z: np.ndarray, y: np.ndarray) -> np.ndarray:
    top = Z.max(1)
    return top + np.log(np.exp(Z - top[:, None]).sum(1)) - Z[np.arange(len(y)), y]


def _minus_label(P: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = P.copy()
    out[np.arange(len(y)), y] -= 1
    return out
