"""A fitted scikit-learn classifier, a pipeline or a search as a torch module of the same function, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted
from torch import nn

from epsball.common.errors import BadInput
from epsball.models.estimator_densities import DENSITIES
from epsball.models.estimator_kernels import KERNEL_MACHINES
from epsball.models.estimator_linear import LINEAR
from epsball.models.estimator_networks import NETWORKS
from epsball.models.estimator_rules import Rules, Translate, Translation, steps_of
from epsball.models.estimator_transforms import transform_layer
from epsball.models.estimator_wrappers import WRAPPERS


def _alone(rule: Callable[[Any], Translation], classifier: Any, translate: Translate) -> Translation:
    return rule(classifier)


CLASSIFIERS: Rules[Callable[[Any, Translate], Translation]] = Rules(
    "a classifier that is known in torch",
    ("decision_function", "predict"),
    {
        **{cls: partial(_alone, rule) for cls, rule in (LINEAR | DENSITIES | NETWORKS | KERNEL_MACHINES).items()},
        **WRAPPERS,
    },
)


def translated(estimator: Any) -> Translation:
    """What a fitted classifier is in torch, for rows (n, features) of float64.

    Raises `Untranslated` where a part of it has no rule, and `BadInput` where it has several labels per example.
    """
    *before, (_, classifier) = list(steps_of(estimator)) or [("", None)]
    rule = CLASSIFIERS.of(classifier)
    check_one_label(classifier)
    head = rule(classifier, translated)
    if not before:
        return head
    layers = [transform_layer(step) for _, step in before]
    logits = nn.Sequential(*layers, head.logits)
    decision = head.decision
    if decision is not None:
        decision = logits if decision is head.logits else nn.Sequential(*layers, decision)
    return Translation(logits, head.classes, decision, head.probability)


def check_one_label(classifier: Any) -> None:
    """Raise `BadInput` for a classifier of several labels, or several outputs, per example."""
    binarizers = (getattr(classifier, name, None) for name in ("_label_binarizer", "label_binarizer_"))
    kinds = [str(getattr(one, "y_type_", "")) for one in binarizers]
    several = isinstance(getattr(classifier, "classes_", None), list) or getattr(classifier, "outputs_2d_", False)
    if several or any("multilabel" in kind or "multioutput" in kind for kind in kinds):
        raise BadInput("it was fitted with several labels per example")


def check_fitted(name: str, step: Any) -> None:
    """Raise `BadInput` for an estimator that is not fitted."""
    if not isinstance(step, BaseEstimator):
        return
    try:
        check_is_fitted(step)
    except NotFittedError as error:
        raise not_fitted(name, step) from error


def not_fitted(name: str, step: object) -> BadInput:
    """The error for an estimator that is not fitted."""
    return BadInput(f"`model` must be fitted, but {named(name, step)} is not; call `fit` first")


def named(name: str, step: object) -> str:
    """How a step is called in a message."""
    return f"step {name!r} ({type(step).__name__})" if name else f"this {type(step).__name__}"
