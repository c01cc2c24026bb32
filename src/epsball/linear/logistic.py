"""Logistic regression trained on the worst perturbation of each example, exactly.

Two classes: min mean softplus(t(w) - y (w.x + b)), t(w) = eps |w|_1 against a max-norm attacker, y in {-1, 1}
(Goodfellow et al. 2015, section 5; the sign printed there is a slip for y = -1). More: the worst per rival class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import softmax

from epsball.linear.classifier import RobustClassifier
from epsball.linear.gauge import Gauge
from epsball.linear.multiclass_problem import MulticlassProblem, worst_losses
from epsball.linear.robust import ProblemData
from epsball.linear.solver import Solution


class RobustLogisticRegression(RobustClassifier):
    """Logistic regression that minimises the mean loss under the worst perturbation of each example.

    With two classes it is the minimum over (w, b) of mean softplus(t - y (w.x + b)), t = max <w, delta> over the
    attacker's ball: eps |w|_1 (`norm="linf"`), eps |w|_2 ("l2"), eps max |w| ("l1"). With more classes, of the
    mean log(1 + sum_j exp(-(margin_j - t(w_y - w_j)))): the worst perturbation is taken for each rival class j
    separately, which gives an upper bound of the worst-case cross-entropy, equal to it for two classes. There is no
    box.

    Parameters
    ----------
    eps
        The attacker's radius in units of X, >= 0: a number, or one per feature (say, a standard deviation each); the
        perturbation of a feature is divided by its radius before the norm is taken. 0 is plain logistic regression.
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
        Stop when the duality gap is at most `tol` times the objective of the best constant model.
    max_iter
        Newton steps at most.
    warm_start
        Begin where the last fit ended.

    Attributes
    ----------
    coef_ (1 or K, d), intercept_ (1 or K,), classes_, n_iter_ (Newton steps), objective_ (what is minimised),
    dual_gap_ (the duality gap: an upper bound of `objective_` less its minimum. The intercept and features with eps 0
    satisfy the constraints of the dual up to rounding only; their share of the gap is bounded for weights up to ten
    times those found, or ten units of the score).

    Where the classes can be separated by more than eps there is no minimum: the weights grow until the objective is
    below `tol`. Above `epsball.linear.eps_max` they are all zero. Raises `BadInput`, a ValueError.

    >>> X, y = np.array([[0.0, 1], [1, 0], [2, 0.5], [3, 2], [1, 1]]), np.array([0, 0, 1, 1, 1])
    >>> model = RobustLogisticRegression(eps=0.4).fit(X, y)
    >>> model.coef_.round(3), bool(model.dual_gap_ < 1e-6)
    (array([[1.386, 0.   ]]), True)
    """

    loss = "logistic"

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities (n, K) of the classes at X itself, without attack."""
        return softmax(self._logits(X), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of `predict_proba`."""
        scores = self._logits(X)
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)

    def _logits(self, X: Any) -> np.ndarray:
        scores = self.decision_function(X)
        return np.stack([np.zeros_like(scores), scores], 1) if scores.ndim == 1 else scores

    def _solve(self, data: ProblemData, start: tuple[np.ndarray, np.ndarray] | None) -> list[Solution]:
        if len(self.classes_) == 2:
            return super()._solve(data, start)
        return [MulticlassProblem(**data.arguments).solve(tol=self.tol, max_iter=self.max_iter, start=start)]

    def _worst_losses(self, gauge: Gauge, coef: np.ndarray, scores: np.ndarray, index: np.ndarray) -> np.ndarray:
        if len(self.classes_) == 2:
            return super()._worst_losses(gauge, coef, scores, index)
        return worst_losses(gauge, coef, scores, index)
