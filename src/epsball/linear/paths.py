"""Robust linear models over a range of radii, each warm-started from the last; a radius chosen by cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass, field
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import check_cv
from sklearn.utils import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets

from epsball.common.errors import BadInput
from epsball.linear.logistic import RobustLogisticRegression
from epsball.linear.radius import eps_max
from epsball.linear.robust import ConstantModelWarning, RobustEstimator, example_weights, radius_array, refusing


@dataclass(frozen=True, eq=False)
class EpsPath:
    """A fitted model for each of m radii, the greatest first, with losses and accuracies on the data of the fit.

    Losses (m,) are means without any penalty, `clean` at the data and `worst` under the worst perturbation of the
    model's own radius; accuracies (m,) likewise, NaN for a regression.
    """

    eps: np.ndarray
    models: tuple[Any, ...]
    clean_loss: np.ndarray
    worst_loss: np.ndarray
    clean_accuracy: np.ndarray
    worst_accuracy: np.ndarray

    @property
    def coef(self) -> np.ndarray:
        """The weights (m, k, d), k = 1 for two classes and for regression."""
        return np.stack([np.atleast_2d(model.coef_) for model in self.models])

    @property
    def intercept(self) -> np.ndarray:
        """The intercepts (m, k)."""
        return np.stack([np.atleast_1d(model.intercept_) for model in self.models])

    @property
    def nonzero(self) -> np.ndarray:
        """How many features each model uses, (m,)."""
        return (self.coef != 0).any(1).sum(1)

    @property
    def gap(self) -> np.ndarray:
        """The duality gap of each model, (m,)."""
        return np.array([model.dual_gap_ for model in self.models])


def eps_path(
    X: Any,
    y: Any,
    *,
    eps: Sequence[float] | np.ndarray | int = 30,
    ratio: float = 1e-2,
    estimator: RobustEstimator | None = None,
    sample_weight: Any = None,
) -> EpsPath:
    """Fit `estimator` (default: `RobustLogisticRegression()`) at each radius, from the greatest down, warm-started.

    `eps` are the radii >= 0 in units of X, or their number: then a geometric grid from `eps_max` down to `ratio` times
    that. `X` (n, d), `y` (n,) and `sample_weight` (n,) as for the estimator's `fit`; the estimator's own eps, where it
    is one per feature, is the unit of the radii. The estimator stays as it is.

    >>> X, y = np.array([[0.0, 1], [1, 0], [2, 0.5], [3, 2], [1, 1]]), np.array([0, 0, 1, 1, 1])
    >>> path = eps_path(X, y, eps=[0.1, 0.4, 2.0])
    >>> path.eps, path.nonzero
    (array([2. , 0.4, 0.1]), array([0, 1, 2]))
    """
    template: Any = RobustLogisticRegression() if estimator is None else estimator
    if not isinstance(template, RobustEstimator) or isinstance(template, RobustLogisticRegressionCV):
        raise BadInput(f"`estimator` must be a robust linear model of epsball, got {type(template).__name__}")
    unit = np.asarray(template.eps, dtype=float) if np.ndim(template.eps) else 1.0
    eps = radii(template, X, y, eps, ratio, sample_weight)
    model: Any = clone(template)
    model.set_params(warm_start=True)
    models, figures = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantModelWarning)  # the first model of a path may be one
        for radius in eps:
            model = copy(model).set_params(eps=radius * unit)
            models.append(model.fit(X, y, sample_weight=sample_weight))
            accuracies = [np.nan, np.nan]
            if is_classifier(model):
                accuracies = [model.robust_score(X, y, e, sample_weight=sample_weight) for e in (0.0, None)]
            figures.append([model.worst_loss(X, y, e, sample_weight=sample_weight) for e in (0.0, None)] + accuracies)
    for fitted in models:
        fitted.set_params(warm_start=template.warm_start)
    return EpsPath(eps, tuple(models), *np.array(figures).T)


def radii(template: Any, X: Any, y: Any, eps: Any, ratio: float, sample_weight: Any) -> np.ndarray:
    """The given radii, the greatest first; or, for their number, the geometric grid below `eps_max`."""
    if not isinstance(eps, Integral) or isinstance(eps, bool):
        given = np.sort(radius_array("eps", eps).ravel())[::-1]
        if not len(given):
            raise BadInput(f"`eps` must be radii >= 0, or how many, got {eps!r}; as in eps=[0.01, 0.1] or eps=30")
        return given
    if eps < 1 or not (isinstance(ratio, Real) and 0 < ratio < 1):
        raise BadInput(f"`eps` must be at least one radius and `ratio` in (0, 1), got {eps!r} and {ratio!r}")
    if (weights := getattr(template, "class_weight", None)) is not None:
        with refusing("class_weight"):
            sample_weight = compute_sample_weight(weights, y) * (1.0 if sample_weight is None else sample_weight)
    top = eps_max(
        X,
        y,
        loss=template.loss,
        norm=template.norm,
        scale=template.eps if np.ndim(template.eps) else 1.0,
        fit_intercept=template.fit_intercept,
        sample_weight=sample_weight,
    )
    if not top > 0:
        raise BadInput("`X` must vary with `y` for radii to be found, got an eps_max of 0; give them: eps=[0.1]")
    return np.geomspace(top, ratio * top, eps)


@dataclass(eq=False, repr=False)
class RobustLogisticRegressionCV(RobustLogisticRegression):
    """Robust logistic regression whose radius is chosen by cross-validation.

    For each fold a path is fitted over the radii. The radius with the greatest mean accuracy on the held-out examples,
    under the worst perturbation of radius `attack` (0: without attack), is chosen, the greatest of equals, and the
    model is fitted again to all the data.

    Parameters
    ----------
    eps
        The radii >= 0, or how many: then a geometric grid, as in `eps_path`.
    ratio
        The least radius of such a grid as a share of the greatest.
    attack
        The attacker's radius when scoring, >= 0.
    cv
        Folds, as in scikit-learn; default 5, or as many as the rarest class has examples.
    norm, penalty, C, fit_intercept, class_weight, tol, max_iter
        As in `RobustLogisticRegression`.

    Attributes
    ----------
    eps_ (the radius chosen), radii_ (m,), scores_ (folds, m), and those of `RobustLogisticRegression`.

    >>> from sklearn.datasets import load_breast_cancer
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> model = RobustLogisticRegressionCV([0.001, 0.1, 1.0], attack=0.2, cv=3).fit(X[:, :4] / X[:, :4].std(0), y)
    >>> model.eps_, model.scores_.mean(0).round(2)
    (0.1, array([0.63, 0.8 , 0.05]))
    """

    eps: Any = 10
    _: KW_ONLY
    ratio: float = 1e-2
    attack: float = 0.0
    cv: Any = None
    warm_start: bool = field(default=False, init=False)  # no parameter: the path warm-starts its fits

    @property
    def trained_eps(self) -> Any:
        return self.eps_

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to X (n, d), dense or sparse, and labels y (n,), with weights `sample_weight` (n,) >= 0."""
        radius_array("attack", self.attack)
        X, y = self._validated(X, y, numeric=False)
        with refusing("y"):
            check_classification_targets(y)
        weight = None if sample_weight is None else example_weights(X, sample_weight)
        names = ("norm", "penalty", "C", "fit_intercept", "class_weight", "tol", "max_iter")
        template = RobustLogisticRegression(**{name: getattr(self, name) for name in names})
        self.radii_ = radii(template, X, y, self.eps, self.ratio, weight)
        scores = []
        fewest = int(np.unique(y, return_counts=True)[1].min())
        with refusing("cv"):
            folds: Any = check_cv(max(2, min(5, fewest)) if self.cv is None else self.cv, y, classifier=True)
            parts = list(folds.split(X, y))
        for train, test in parts:
            part = None if weight is None else weight[train]
            path = eps_path(X[train], y[train], eps=self.radii_, estimator=template, sample_weight=part)
            known = np.isin(y[test], np.unique(y[train]))
            held_out = X[test][known], y[test][known]
            part = None if weight is None else weight[test][known]
            scores.append([model.robust_score(*held_out, self.attack, sample_weight=part) for model in path.models])
        self.scores_ = np.array(scores)
        self.eps_ = float(self.radii_[self.scores_.mean(0).argmax()])
        best = template.set_params(eps=self.eps_).fit(X, y, sample_weight=weight)
        for name in ("coef_", "intercept_", "classes_", "n_iter_", "objective_", "dual_gap_"):
            setattr(self, name, getattr(best, name))
        return self
