"""Linear regression trained on the worst perturbation of each example, exactly."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.linear_model._base import LinearModel

from epsball.linear.losses import LOSSES
from epsball.linear.robust import (
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


class RobustRegressor(RegressorMixin, LinearModel, RobustEstimator):
    """A linear regression that minimises the mean squared error under the worst perturbation of each example.

    The minimum over (w, b) of mean (|y - w.x - b| + t)^2, t the attacker's gain (Ribeiro et al., NeurIPS 2023, eq. 4).
    The parameters are those of `RobustLogisticRegression`; eps is in units of X, and `penalty` adds |w|^2 / (2 C n) or
    |w|_1 / (C n). coef_ is (d,), intercept_ a number.

    >>> X, y = np.array([[0.0], [1], [2], [3]]), np.array([0.0, 1, 2, 3])
    >>> RobustRegressor(eps=0.1).fit(X, y).coef_.round(4)
    array([1.])
    """

    loss = "squared"

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fit to X (n, d), dense or sparse, and numbers y (n,), with weights `sample_weight` (n,) >= 0."""
        X, y = self._validated(X, y, numeric=True)
        data = problem_data(self, X, y, example_weights(X, sample_weight))
        p, y = data.arguments["p"], data.y
        centre = p @ y if self.fit_intercept else 0.0
        unit = float(np.sqrt(p @ (y - centre) ** 2)) or 1.0  # the spread of y: the scale of the solver
        scaled = {"y": (y - centre) / unit, "lasso": data.arguments["lasso"] / unit, "loss": LOSSES[self.loss]}
        start = warm_start(self, (X.shape[1],), data.mean)
        if start is not None:
            start = start[0] / unit, float((start[1] - centre) / unit)
        problem = ScalarProblem(**data.arguments | scaled)
        solution = problem.solve(tol=self.tol, max_iter=self.max_iter, start=start)
        self.coef_ = unit * solution.w
        self.intercept_ = float(unit * solution.b + centre - self.coef_ @ data.mean)
        set_results(self, [solution], unit**2)
        return self

    def worst_loss(self, X: Any, y: Any, eps: Any = None, *, sample_weight: Any = None) -> float:
        """Mean squared error under the worst perturbation of radius `eps` (default: the one trained for), rounded."""
        coef, gauge = self._fitted(eps)
        with refusing("X"):
            scores = self.predict(X)
        with refusing("y"):
            target = column("y", y, len(scores)).astype(float)
        return weighted_mean(LOSSES[self.loss].value(scores, gauge.value(coef), target), sample_weight)
