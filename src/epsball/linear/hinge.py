"""A linear support vector machine trained on the worst perturbation of each example, exactly."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from epsball.linear import solver
from epsball.linear.logistic import RobustClassifier
from epsball.linear.losses import Hinge
from epsball.linear.robust import begun, column, report, settings


class RobustLinearSVC(RobustClassifier):
    """A linear classifier that minimises the mean hinge loss under the worst perturbation of each example.

    The minimum over (w, b) of mean max(0, 1 + t - y (w.x + b)), t the attacker's gain as in
    `RobustLogisticRegression`, which documents the parameters too; with three classes or more, of each class against
    the rest. `objective_` and `dual_gap_` are then sums over the classes. Without a penalty and against a max-norm or
    L1 attacker this is a linear programme, whose minimum may be attained at many points.

    >>> X, y = np.array([[0.0, 1], [1, 0], [2, 0.5], [3, 2], [1, 1]]), np.array([0, 0, 1, 1, 1])
    >>> model = RobustLinearSVC(eps=0.1).fit(X, y)
    >>> bool(model.dual_gap_ <= 1e-6), model.robust_score(X, y)
    (True, 1.0)
    """

    loss = "hinge"

    def __init__(
        self,
        eps: Any = 0.01,
        *,
        norm: str = "linf",
        penalty: str | None = None,
        C: float = 1.0,
        fit_intercept: bool = True,
        class_weight: Any = None,
        tol: float = 1e-6,
        max_iter: int = 1000,
        warm_start: bool = False,
    ) -> None:
        self.eps = eps
        self.norm = norm
        self.penalty = penalty
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to X (n, d), dense or sparse, and labels y (n,), each example weighing `sample_weight` (n,) >= 0."""
        classes, data = self._labelled(X, y, sample_weight)
        chosen = settings(self, data.X.shape[1], data.total)
        self.classes_ = classes
        parts = (data.p, chosen.gauge, data.spread, chosen.ridge, chosen.lasso, bool(self.fit_intercept))
        against = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        start = begun(self, (len(against), data.X.shape[1]), data.middle)
        solutions = []
        for place, label in enumerate(against):
            problem = solver.Problem(data.X, np.where(data.y == label, 1.0, -1.0), Hinge(), *parts)
            first = None if start is None else (start[0][place], float(start[1][place]))
            solutions.append(solver.solve(problem, tol=self.tol, max_iter=self.max_iter, start=first))
        self.coef_ = np.stack([solution.w for solution in solutions])
        self.intercept_ = np.array([solution.b for solution in solutions]) - self.coef_ @ data.middle
        report(self, solutions)
        return self

    def worst_loss(self, X: Any, y: Any, eps: Any = None, *, sample_weight: Any = None) -> float:
        """Mean loss under the worst perturbation of radius `eps` (default: the one trained for), without a penalty.

        With three classes or more the sum over the classes of that of each against the rest.
        """
        coef, gauge = self._weights(), self._gauge(eps)
        scores = np.asarray(self.decision_function(X))
        index = self._indices(column("y", y, len(scores)))
        scores = scores[:, None] if scores.ndim == 1 else scores
        against = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        worst = [
            Hinge().value(scores[:, place], gauge.value(coef[place]), np.where(index == label, 1.0, -1.0))
            for place, label in enumerate(against)
        ]
        return float(np.average(np.sum(worst, axis=0), weights=sample_weight))
