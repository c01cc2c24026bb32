"""Classifiers that are one linear layer, in float64: scores x @ coef.T + intercept, one or one per class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeClassifierCV, SGDClassifier
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.naive_bayes import MultinomialNB

from epsball.models.estimator_rules import Probability, Translation, linear_layer


def _linear(classifier: Any) -> Translation:
    layer = linear_layer(classifier.coef_, classifier.intercept_)
    return Translation(layer, np.asarray(classifier.classes_), layer, _probability(classifier))


def _probability(classifier: Any) -> Probability | None:
    """How a linear classifier's probabilities follow from its scores, where it has some of scikit-learn's own."""
    own = getattr(type(classifier), "predict_proba", None)
    if own in (LogisticRegression.predict_proba, LinearDiscriminantAnalysis.predict_proba):
        return "softmax"
    return "sigmoids" if isinstance(classifier, SGDClassifier) and classifier.loss == "log_loss" else None


def _multinomial(classifier: Any) -> Translation:
    layer = linear_layer(classifier.feature_log_prob_, classifier.class_log_prior_)
    return Translation(layer, classifier.classes_, None, "softmax")


LINEAR: dict[type, Callable[[Any], Translation]] = {
    RidgeClassifier: _linear,
    RidgeClassifierCV: _linear,
    LinearDiscriminantAnalysis: _linear,
    LinearClassifierMixin: _linear,
    MultinomialNB: _multinomial,
}
