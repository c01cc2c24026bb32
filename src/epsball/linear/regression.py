"""Linear regression trained on the worst perturbation of each example, exactly."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model._base import LinearModel
from sklearn.utils.validation import check_is_fitted

from epsball.linear import solver
from epsball.linear.losses import Squared
from epsball.linear.robust import begun, checked, column, gauge_of, prepared, report, settings, shares


class RobustRegressor(RegressorMixin, LinearModel, BaseEstimator):
    """A linear regression that minimises the mean squared error under the worst perturbation of each example.

    The minimum over (w, b) of mean (|y - w.x - b| + t)^2, t the attacker's gain (Ribeiro et al., NeurIPS 2023, eq. 4).
    The parameters are those of `RobustLogisticRegression`; eps is in units of X, and `penalty` adds |w|^2 / (2 C n) or
    |w|_1 / (C n). coef_ is (d,), intercept_ a number.

    >>> X, y = np.array([[0.0], [1], [2], [3]]), np.array([0.0, 1, 2, 3])
    >>> RobustRegressor(eps=0.1).fit(X, y).coef_.round(4)
    array([1.])
    """

    loss: ClassVar[Literal["logistic", "hinge", "squared"]] = "squared"
    coef_: np.ndarray
    intercept_: float
    n_iter_: int
    objective_: float
    dual_gap_: float

    def __init__(
        self,
        eps: Any = 0.01,
        *,
        norm: str = "linf",
        penalty: str | None = None,
        C: float = 1.0,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 1000,
        warm_start: bool = False,
    ) -> None:
        self.eps = eps
        self.norm = norm
        self.penalty = penalty
        self.C = C
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fit to X (n, d), dense or sparse, and numbers y (n,), each example weighing `sample_weight` (n,) >= 0."""
        X, y = checked(self, X, y, numeric=True)
        weight, _ = shares(X, sample_weight)
        data = prepared(X, y, weight, bool(self.fit_intercept))
        chosen = settings(self, data.X.shape[1], data.total)
        middle = data.p @ data.y if self.fit_intercept else 0.0
        unit = float(np.sqrt(data.p @ (data.y - middle) ** 2)) or 1.0  # y in units of its spread: the solver's scale
        parts = (data.p, chosen.gauge, data.spread, chosen.ridge, chosen.lasso / unit, bool(self.fit_intercept))
        problem = solver.Problem(data.X, (data.y - middle) / unit, Squared(), *parts)
        start = begun(self, (data.X.shape[1],), data.middle)
        first = None if start is None else (start[0] / unit, float((start[1] - middle) / unit))
        solution = solver.solve(problem, tol=self.tol, max_iter=self.max_iter, start=first)
        self.coef_ = unit * solution.w
        self.intercept_ = float(unit * solution.b + middle - self.coef_ @ data.middle)
        report(self, [solution], unit**2)
        return self

    def worst_loss(self, X: Any, y: Any, eps: Any = None, *, sample_weight: Any = None) -> float:
        """Mean squared error under the worst perturbation of radius `eps` (default: the one trained for). Exact."""
        check_is_fitted(self)
        gauge = gauge_of(self.eps if eps is None else eps, self.norm, len(self.coef_))
        scores = self.predict(X)
        worst = Squared().value(scores, gauge.value(self.coef_), column("y", y, len(scores)).astype(float))
        return float(np.average(worst, weights=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags
