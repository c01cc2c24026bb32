"""The smallest radius at which the best robust model uses no feature."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import issparse
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_X_y

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.linear.gauge import GAUGES, AgainstL1, AgainstL2, AgainstLinf, Gauge
from epsball.linear.losses import LOSSES
from epsball.linear.newton import Matrix
from epsball.linear.robust import check_range, example_weights, gauge_of, refusing
from epsball.linear.scalar_problem import ScalarProblem


def eps_max(
    X: Any,
    y: Any,
    *,
    loss: Literal["logistic", "hinge", "squared"] = "logistic",
    norm: str = "linf",
    scale: Any = 1.0,
    fit_intercept: bool = True,
    sample_weight: Any = None,
) -> float:
    """The smallest radius at which zero weights minimise the worst-case loss, in units of X (as a factor of `scale`).

    With three classes or more in l2 and l1 it is an upper bound of that.

    Logistic with two classes: |sum_i sigma_i y_i x_i| / sum_i sigma_i in the attacker's norm, sigma_i the loss's slope
    at the best intercept. Squared: |sum_i r_i x_i| / sum_i |r_i|, r the residuals of the best constant. Logistic with
    more classes against a max-norm attacker: the greatest half difference of two pooled means, over all partitions
    of the classes in two (a feasible flow on the complete graph of classes, by max-flow min-cut). In l2 and l1, with an
    intercept, the greatest half distance of two classes' means, an upper bound. Hinge: the least such quotient over
    the slopes that the kink allows, a linear program (in l2 by bisection on certified fits, to 1e-6 relative); with
    more classes the greatest of each against the rest.

    `X` (n, d) dense or sparse, `y` (n,); `scale` is a number or (d,), the attacker's radius per feature, which the
    answer multiplies; `sample_weight` (n,) as in `fit`. Ridge penalties do not change it. Raises `BadInput`.

    >>> eps_max([[0.0], [1.0]], [0, 1])
    0.5
    """
    check_one_of("loss", loss, LOSSES)
    check_one_of("norm", norm, GAUGES)
    with refusing("X"):
        X, y = check_X_y(X, y, dtype="float64", y_numeric=loss == "squared", accept_sparse=True)
        if loss != "squared":
            check_classification_targets(y)
    check_range(X)
    weight = example_weights(X, sample_weight)
    p = weight / weight.sum()
    gauge = gauge_of(scale, norm, X.shape[1], name="scale")
    if not gauge.eps.all():
        raise BadInput(f"`scale` must be > 0, got {scale!r}; leave out features that cannot be attacked")
    if loss == "squared":
        residual = y - (p @ y if fit_intercept else 0.0)
        return _quotient(gauge.scale_to_contain(X.T @ (p * residual)), float(p @ np.abs(residual)))
    classes, index = np.unique(y, return_inverse=True)
    weighty = np.bincount(index, p) > 0
    if len(classes) < 2 or not weighty.all():
        raise BadInput(f"`y` must hold at least two classes, each with weight, got {weighty.sum()} class; add examples")
    if loss == "hinge":
        X = X.toarray() if issparse(X) else X
        one = [1] if len(classes) == 2 else range(len(classes))
        return max(_for_hinge(X, np.where(index == k, 1.0, -1.0), p, gauge, fit_intercept) for k in one)
    if len(classes) > 2:
        return _for_many_classes(X, index, p, gauge, fit_intercept)
    sign = np.where(index == 1, 1.0, -1.0)
    up = p[sign > 0].sum() if fit_intercept else 0.5
    slope = p * np.where(sign > 0, 1 - up, up)
    return _quotient(gauge.scale_to_contain(X.T @ (slope * sign)), float(slope.sum()))


def _quotient(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0


def _for_many_classes(X: Matrix, index: np.ndarray, p: np.ndarray, gauge: Gauge, fit_intercept: bool) -> float:
    """The least eps at which, in each feature, the gradients of the classes are a flow within the pairs' capacities."""
    classes = int(index.max()) + 1
    if not isinstance(gauge, AgainstLinf):
        if not fit_intercept:
            raise BadInput(
                f"`norm` must be 'linf' for {classes} classes without an intercept; give radii instead: eps=[0.01, 0.1]"
            )
        means = [(X.T @ (p * (index == k))) / p[index == k].sum() for k in range(classes)]
        return max(gauge.scale_to_contain((one - other) / 2) for one, other in combinations(means, 2))
    label = np.zeros((classes, len(p)))
    label[index, np.arange(len(p))] = p
    share = label.sum(1)
    predicted = share if fit_intercept else np.full(classes, 1 / classes)
    pull = ((X.T @ label.T).T - predicted[:, None] * (X.T @ p)) / gauge.eps  # (K, d), with sum zero
    capacity = np.outer(share, predicted) + np.outer(predicted, share)
    np.fill_diagonal(capacity, 0)
    if classes > 16:
        raise BadInput(
            f"`y` must hold at most 16 classes, got {classes}: all partitions in two are enumerated; "
            "give radii instead: eps=[0.01, 0.1]"
        )
    greatest = 0.0
    for cut in range(1, 2 ** (classes - 1)):
        side = np.array([(cut >> k) & 1 for k in range(classes)], bool)
        greatest = max(greatest, float(np.abs(pull[side].sum(0)).max() / capacity[np.ix_(side, ~side)].sum()))
    return greatest


def _for_hinge(X: np.ndarray, sign: np.ndarray, p: np.ndarray, gauge: Gauge, fit_intercept: bool) -> float:
    """At w = 0 examples of the rarer class have slope one, the others as much as balances it (all: no intercept)."""
    balance = float(p @ sign)
    rare = (sign * balance <= 0) if fit_intercept else np.ones(len(p), bool)
    total_slope = 2 * float(p[rare].sum()) if fit_intercept else 1.0
    if abs(balance) < 1e-15:
        rare, total_slope = np.ones(len(p), bool), 1.0
    fixed = X[rare].T @ (p[rare] * sign[rare])
    if rare.all():
        return gauge.scale_to_contain(fixed) / total_slope
    free = X[~rare].T * (p[~rare] * sign[~rare])
    if isinstance(gauge, AgainstL2):
        return _by_bisection(X, sign, p, gauge)
    d, n = free.shape
    # Variables: the n slopes in [0, 1], then the move per feature (l1) or one bound for all (linf).
    moves, bound = (d, np.diag(gauge.eps)) if isinstance(gauge, AgainstL1) else (1, gauge.eps[:, None])
    found = linprog(
        np.concatenate([np.zeros(n), np.ones(moves)]),
        A_ub=np.block([[free, -bound], [-free, -bound]]),
        b_ub=np.concatenate([-fixed, fixed]),
        A_eq=np.concatenate([p[~rare], np.zeros(moves)])[None],
        b_eq=[float(p[rare].sum())],
        bounds=[(0, 1)] * n + [(0, None)] * moves,
        method="highs",
    )
    if found.x is None:
        raise BadInput(f"`X` must give a solvable linear program, but it ended with: {found.message}; scale X")
    return float(found.fun) / total_slope


def _by_bisection(X: np.ndarray, sign: np.ndarray, p: np.ndarray, gauge: Gauge) -> float:
    def is_constant(eps: float) -> bool:
        """Whether no weights are certified to be better than none."""
        scaled = replace(gauge, eps=eps * gauge.eps)
        problem = ScalarProblem(X=X, y=sign, loss=LOSSES["hinge"], p=p, gauge=scaled, spread=spread)
        found = problem.solve(tol=1e-9, max_iter=500)
        return found.objective - found.gap >= constant * (1 - 2e-9)

    spread = X.std(0)
    spread[spread == 0] = 1
    constant = 2 * min(float(p[sign > 0].sum()), float(p[sign < 0].sum()))
    low, high = 0.0, gauge.scale_to_contain(np.abs(X - X.mean(0)).max(0))
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_constant(middle) else (middle, high)
    return high
