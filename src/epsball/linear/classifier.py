"""What robust linear classifiers share, whatever their loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Self

import numpy as np
from scipy import sparse
from sklearn.linear_model._base import LinearClassifierMixin, SparseCoefMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from epsball.common.errors import BadInput
from epsball.linear.exact_arithmetic import SAFE_SQUARES, TINY, difference_of_root, gamma, whole_numbers
from epsball.linear.gauge import Gauge
from epsball.linear.losses import LOSSES
from epsball.linear.robust import (
    ProblemData,
    RobustEstimator,
    column,
    example_weights,
    problem_data,
    refusing,
    set_results,
    warm_start,
    weighted_mean,
)
from epsball.linear.scalar_problem import ScalarProblem
from epsball.linear.solver import Solution


@dataclass(eq=False, repr=False, kw_only=True)
class RobustClassifier(LinearClassifierMixin, SparseCoefMixin, RobustEstimator):
    """A robust linear classifier; with three classes or more, one of each class against the rest."""

    class_weight: Any = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to X (n, d), dense or sparse, and labels y (n,), with weights `sample_weight` (n,) >= 0."""
        X, y = self._validated(X, y, numeric=False)
        with refusing("y"):
            check_classification_targets(y)
            classes, index = np.unique(y, return_inverse=True)
        weight = example_weights(X, sample_weight)
        if self.class_weight is not None:
            with refusing("class_weight"):
                factor = compute_class_weight(self.class_weight, classes=classes, y=y)
            weight = example_weights(X, weight * factor[index])
        weighty = np.bincount(index, weight) > 0
        if len(classes) < 2 or not weighty.all():
            raise BadInput(
                f"`y` must hold at least two classes, each with weight; got {len(classes)} class(es), {weighty.sum()} "
                "with weight; add examples, or drop the class"
            )
        data = problem_data(self, X, index, weight)
        self.classes_ = classes
        start = warm_start(self, (len(self._columns()), X.shape[1]), data.mean)
        solutions = self._solve(data, start)
        self.coef_ = np.vstack([solution.w for solution in solutions])
        self.intercept_ = np.concatenate([np.atleast_1d(solution.b) for solution in solutions])
        self.intercept_ = self.intercept_ - self.coef_ @ data.mean
        set_results(self, solutions)
        return self

    def robust_score(self, X: Any, y: Any, eps: Any = None, *, sample_weight: Any = None) -> float:
        """Share of examples predicted correctly under every perturbation of radius `eps`, without a box. Exact.

        `eps` is a number or one per feature, in units of X; default: the radius trained for. Each example is decided
        for the real-valued model with these weights, whatever the rounding of its margin: a margin within the bound of
        its rounding error is computed again in whole numbers. With a box, and for the perturbed inputs themselves, see
        `epsball.linear.optimum`.
        """
        coef, gauge = self._fitted(eps)
        X = self._examples(X)
        index = self._indices(column("y", y, X.shape[0]))
        bias = np.broadcast_to(np.asarray(self.intercept_, dtype=float), len(coef))
        if len(self.classes_) == 2:
            coef, bias = np.vstack([0 * coef, coef]), np.concatenate([[0.0], bias])
        return weighted_mean(_are_robust(coef, bias, gauge, X, index), sample_weight)

    def worst_loss(self, X: Any, y: Any, eps: Any = None, *, sample_weight: Any = None) -> float:
        """Mean loss under the worst perturbation of radius `eps` (default: the one trained for), without a penalty."""
        coef, gauge = self._fitted(eps)
        with refusing("X"):
            scores = np.asarray(self.decision_function(X))
        index = self._indices(column("y", y, len(scores)))
        return weighted_mean(self._worst_losses(gauge, coef, scores, index), sample_weight)

    def _columns(self) -> list[int]:
        """The classes that have weights: with two classes, the second."""
        return [1] if len(self.classes_) == 2 else list(range(len(self.classes_)))

    def _solve(self, data: ProblemData, start: tuple[np.ndarray, np.ndarray] | None) -> list[Solution]:
        solutions = []
        for place, label in enumerate(self._columns()):
            sign = np.where(data.y == label, 1.0, -1.0)
            problem = ScalarProblem(**data.arguments | {"y": sign, "loss": LOSSES[self.loss]})
            first = None if start is None else (start[0][place], float(start[1][place]))
            solutions.append(problem.solve(tol=self.tol, max_iter=self.max_iter, start=first))
        return solutions

    def _worst_losses(self, gauge: Gauge, coef: np.ndarray, scores: np.ndarray, index: np.ndarray) -> np.ndarray:
        """The losses (n,) under the worst perturbations, summed over the classes against the rest."""
        columns = zip(self._columns(), coef, scores.reshape(len(scores), -1).T, strict=True)
        return np.sum(
            [LOSSES[self.loss].value(s, gauge.value(w), np.where(index == k, 1.0, -1.0)) for k, w, s in columns], axis=0
        )

    def _indices(self, y: Any) -> np.ndarray:
        """The places of labels in `classes_`."""
        with refusing("y"):
            index = np.searchsorted(self.classes_, y).clip(0, len(self.classes_) - 1)
            known = np.asarray(self.classes_[index] == y)
        if not known.all():
            raise BadInput("`y` must hold labels of the data that was fitted, got others; see `classes_`")
        return index


def _are_robust(weight: np.ndarray, bias: np.ndarray, gauge: Gauge, X: Any, index: np.ndarray) -> np.ndarray:
    """Which examples (n,) of the classes `index` keep the greatest score, `weight` (K, d), under every perturbation."""
    scores = np.asarray(X @ weight.T) + bias
    largest = abs(X).max(1)
    largest = largest.toarray().ravel() if sparse.issparse(largest) else largest
    sums, relative = np.abs(weight).sum(1), 8 * gamma(2 * X.shape[1] + 32)
    robust = np.ones(len(index), bool)
    for k, j in permutations(range(len(weight)), 2):
        (rows,) = np.nonzero((index == k) & robust)
        if not len(rows):
            continue
        difference = weight[j] - weight[k]
        slopes = np.abs(gauge.eps * difference)
        steepest = float(slopes.max(initial=0.0))
        safe = steepest == 0 == float(gauge.eps @ (difference != 0)) or SAFE_SQUARES[0] <= steepest <= SAFE_SQUARES[1]
        gain = gauge.value(difference)
        margin = scores[rows, k] - scores[rows, j] - gain
        terms = largest[rows] * (sums[k] + sums[j]) + abs(bias[k]) + abs(bias[j]) + gain
        error = relative * terms + TINY * (2 * X.shape[1] + 32) if safe else np.full(len(rows), np.inf)
        for i in np.flatnonzero(~(np.abs(margin) > error)).tolist():
            x = X[rows[i]].toarray().ravel() if sparse.issparse(X) else X[rows[i]]
            margin[i] = _worst_margin(weight[[k, j]], bias[[k, j]], x, gauge)
        robust[rows] = (margin > 0) | ((margin == 0) & (k < j))
    return robust


def _worst_margin(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, gauge: Gauge) -> float:
    """The least margin of the first of two classes over the second, with the sign of the real number."""
    (weight, bias, at, radius), bits = whole_numbers(weight, bias, x, gauge.eps)
    slope = weight[1] - weight[0]
    margin = ((bias[0] - bias[1]) << bits) - (slope * at).sum()
    reach = np.abs(slope) * radius  # of each feature, in units of its radius
    reach = reach[reach != 0]
    gain, squared = gauge.ball(eps=1).exact_gain(reach, np.full(len(reach), math.inf, dtype=object), 1)
    return difference_of_root(margin - gain, squared, 2 * bits)
