"""Logistic regression trained on the worst perturbation of each example, exactly.

Two classes: min mean softplus(t(w) - y (w.x + b)), t(w) = eps |w|_1 against a max-norm attacker, y in {-1, 1}
(Goodfellow et al. 2015, section 5; the sign printed there is a slip for y = -1). More: the worst per rival class.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any, ClassVar, Literal, Self

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator
from sklearn.linear_model._base import LinearClassifierMixin, SparseCoefMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from epsball.common.errors import BadInput
from epsball.linear import multiclass, solver
from epsball.linear.gauge import Gauge
from epsball.linear.losses import Logistic
from epsball.linear.robust import Prepared, begun, checked, column, gauge_of, prepared, report, settings, shares


class RobustClassifier(LinearClassifierMixin, SparseCoefMixin, BaseEstimator):
    """The part of a robust linear classifier that does not depend on its loss."""

    loss: ClassVar[Literal["logistic", "hinge", "squared"]]
    eps: Any
    norm: str
    class_weight: Any
    fit_intercept: bool
    classes_: np.ndarray
    coef_: Any
    intercept_: np.ndarray
    n_iter_: int
    objective_: float
    dual_gap_: float

    @property
    def _radius(self) -> Any:
        """The radius trained for."""
        return self.eps

    def _gauge(self, eps: Any) -> Gauge:
        return gauge_of(self._radius if eps is None else eps, self.norm, self.coef_.shape[1])

    def _weights(self) -> np.ndarray:
        check_is_fitted(self)
        return self.coef_.toarray() if hasattr(self.coef_, "toarray") else self.coef_

    def robust_score(self, X: Any, y: Any, eps: Any = None, *, sample_weight: Any = None) -> float:
        """Share of examples that stay right under every perturbation of radius `eps`, without a box.

        `eps` is a number or one per feature, in units of X; default: the radius trained for. Exact. With a box, and
        for the points themselves, see `epsball.linear.optimum`.
        """
        coef, gauge = self._weights(), self._gauge(eps)
        scores = np.asarray(self.decision_function(X))
        known = self._indices(column("y", y, len(scores)))
        if scores.ndim == 1:
            side = np.where(known == 1, 1.0, -1.0)
            margin = side * scores - gauge.value(coef[0])
            right = (margin > 0) | ((margin == 0) & (side < 0))
        else:
            right = np.ones(len(known), bool)
            for k, j in permutations(range(len(self.classes_)), 2):
                (mine,) = np.nonzero(known == k)
                margin = scores[mine, k] - scores[mine, j] - gauge.value(coef[k] - coef[j])
                right[mine] &= (margin > 0) | ((margin == 0) & (k < j))
        return float(np.average(right, weights=sample_weight))

    def _labelled(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, Prepared]:
        """The classes, and the examples with class indices for y."""
        X, y = checked(self, X, y, numeric=False)
        check_classification_targets(y)
        weight, _ = shares(X, sample_weight)
        classes, index = np.unique(y, return_inverse=True)
        if self.class_weight is not None:
            weight = weight * compute_class_weight(self.class_weight, classes=classes, y=y)[index]
        weighty = np.bincount(index, weight) > 0
        if len(classes) < 2 or not weighty.all():
            raise BadInput(
                f"`y` must hold at least two classes, each with weight; got {len(classes)} class(es), {weighty.sum()} "
                "with weight; add examples, or drop the class"
            )
        return classes, prepared(X, index, weight, bool(self.fit_intercept))

    def _indices(self, y: Any) -> np.ndarray:
        """The places of labels in `classes_`."""
        index = np.searchsorted(self.classes_, y).clip(0, len(self.classes_) - 1)
        if not (self.classes_[index] == y).all():
            raise BadInput("`y` must hold labels of the data that was fitted, got others; see `classes_`")
        return index

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class RobustLogisticRegression(RobustClassifier):
    """Logistic regression that minimises the mean loss under the worst perturbation of each example.

    With two classes it is the minimum over (w, b) of mean softplus(t - y (w.x + b)), t = max <w, delta> over the
    attacker's ball: eps |w|_1 (`norm="linf"`), eps |w|_2 ("l2"), eps max |w| ("l1"). With more, of the mean
    log(1 + sum_j exp(-(margin_j - t(w_y - w_j)))): the worst case is taken for each rival class j apart, which is an
    upper bound on the worst-case cross-entropy, and equal to it for two classes. No box is taken into account.

    Parameters
    ----------
    eps
        The attacker's radius in units of X, >= 0: a number, or one per feature (a standard deviation each, say), by
        which the attacker's moves are then divided before their norm is taken. 0 is plain logistic regression.
    norm
        The attacker's norm, "linf", "l2" or "l1".
    penalty
        None, "l2" (adds |w|^2 / (2 C n)) or "l1" (adds |w|_1 / (C n)), n the weight of all examples, as in
        scikit-learn.
    C
        Inverse strength of the penalty, > 0.
    fit_intercept
        Whether there is a b.
    class_weight
        None, "balanced" or a dict, as in scikit-learn.
    tol
        Stop when the objective is proved to be within `tol` times that of the best constant model.
    max_iter
        Newton steps at most.
    warm_start
        Begin where the last fit ended.

    Attributes
    ----------
    coef_ (1 or K, d), intercept_ (1 or K,), classes_, n_iter_ (Newton steps), objective_ (what is minimised),
    dual_gap_ (`objective_` is at most so far above the minimum: a bound from the dual problem. What keeps it from being
    exact by rounding, the intercept and features with eps 0, is bounded for weights up to ten times those found, or
    ten units of the score).

    Where the classes can be separated by more than eps there is no minimum: the weights grow until the objective is
    below `tol`. Above `epsball.linear.eps_max` they are all zero. Raises `BadInput`, a ValueError.

    >>> X, y = np.array([[0.0, 1], [1, 0], [2, 0.5], [3, 2], [1, 1]]), np.array([0, 0, 1, 1, 1])
    >>> model = RobustLogisticRegression(eps=0.4).fit(X, y)
    >>> model.coef_.round(3), bool(model.dual_gap_ < 1e-6)
    (array([[1.386, 0.   ]]), True)
    """

    loss = "logistic"

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
        rows = 1 if len(self.classes_) == 2 else len(self.classes_)
        start = begun(self, (rows, data.X.shape[1]), data.middle)
        if rows == 1:
            problem = solver.Problem(data.X, np.where(data.y == 1, 1.0, -1.0), Logistic(), *parts)
            first = None if start is None else (start[0][0], float(start[1][0]))
            solution = solver.solve(problem, tol=self.tol, max_iter=self.max_iter, start=first)
        else:
            problem = multiclass.Problem(data.X, data.y, *parts)
            solution = multiclass.solve(problem, tol=self.tol, max_iter=self.max_iter, start=start)
        self.coef_ = np.atleast_2d(solution.w)
        self.intercept_ = np.atleast_1d(solution.b) - self.coef_ @ data.middle
        report(self, [solution])
        return self

    def worst_loss(self, X: Any, y: Any, eps: Any = None, *, sample_weight: Any = None) -> float:
        """Mean loss under the worst perturbation of radius `eps` (default: the one trained for), without a penalty."""
        coef, gauge = self._weights(), self._gauge(eps)
        scores = np.asarray(self.decision_function(X))
        index = self._indices(column("y", y, len(scores)))
        if scores.ndim == 1:
            worst = Logistic().value(scores, gauge.value(coef[0]), np.where(index == 1, 1.0, -1.0))
        else:
            worst = multiclass.worst(gauge, coef, scores, index)
        return float(np.average(worst, weights=sample_weight))

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities (n, K) of the classes at X itself, unattacked."""
        scores = self.decision_function(X)
        return softmax(np.stack([np.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Their logarithms."""
        scores = self.decision_function(X)
        scores = np.stack([np.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
