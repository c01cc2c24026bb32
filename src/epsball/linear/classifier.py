"""What robust linear classifiers share, whatever their loss."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any, Self

import numpy as np
from sklearn.linear_model._base import LinearClassifierMixin, SparseCoefMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets

from epsball.common.errors import BadInput
from epsball.linear.gauge import Gauge
from epsball.linear.losses import LOSSES
from epsball.linear.robust import (
    ProblemData,
    RobustEstimator,
    column,
    example_weights,
    problem_data,
    set_results,
    warm_start,
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
        check_classification_targets(y)
        weight = example_weights(X, sample_weight)
        classes, index = np.unique(y, return_inverse=True)
        if self.class_weight is not None:
            weight = weight * compute_class_weight(self.class_weight, classes=classes, y=y)[index]
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

        `eps` is a number or one per feature, in units of X; default: the radius trained for. With a box, and for the
        perturbed inputs themselves, see `epsball.linear.optimum`.
        """
        coef, gauge = self._fitted(eps)
        scores = np.asarray(self.decision_function(X))
        index = self._indices(column("y", y, len(scores)))
        if scores.ndim == 1:
            sign = np.where(index == 1, 1.0, -1.0)
            margin = sign * scores - gauge.value(coef[0])
            correct = (margin > 0) | ((margin == 0) & (sign < 0))
        else:
            correct = np.ones(len(index), bool)
            for k, j in permutations(range(len(self.classes_)), 2):
                (rows,) = np.nonzero(index == k)
                margin = scores[rows, k] - scores[rows, j] - gauge.value(coef[k] - coef[j])
                correct[rows] &= (margin > 0) | ((margin == 0) & (k < j))
        return float(np.average(correct, weights=sample_weight))

    def worst_loss(self, X: Any, y: Any, eps: Any = None, *, sample_weight: Any = None) -> float:
        """Mean loss under the worst perturbation of radius `eps` (default: the one trained for), without a penalty."""
        coef, gauge = self._fitted(eps)
        scores = np.asarray(self.decision_function(X))
        index = self._indices(column("y", y, len(scores)))
        return float(np.average(self._worst_losses(gauge, coef, scores, index), weights=sample_weight))

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
        index = np.searchsorted(self.classes_, y).clip(0, len(self.classes_) - 1)
        if not (self.classes_[index] == y).all():
            raise BadInput("`y` must hold labels of the data that was fitted, got others; see `classes_`")
        return index
