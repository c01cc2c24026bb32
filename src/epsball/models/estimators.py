"""The door of scikit-learn: any fitted classifier as a torch module of the same function, or else as a black box.

What has a module, has gradients: linear models, networks, kernel machines, Gaussian densities, what wraps them and what
scales their features. It computes in float64, as scikit-learn does, so that its decisions are those of `predict`, up to
rounding where two scores are equal. Trees, neighbours and classifiers of others are asked for their answers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import PolynomialFeatures
from torch import nn

from epsball.common.errors import BadInput
from epsball.models.black_box import BlackBox, class_names
from epsball.models.door import Loaded
from epsball.models.estimator_compare import check_decisions, rows_like
from epsball.models.estimator_rules import Features, Untranslated, steps_of
from epsball.models.estimator_transforms import check_products
from epsball.models.estimator_translation import check_fitted, check_one_label, named, translated
from epsball.models.folding import is_affine
from epsball.models.model_record import FEATURE_NAMES, LABEL_NAMES, MOST_SIZE

EXACT = "it is affine: epsball.linear.optimum gives exact answers about it"
OWN_RULE = tuple(
    f"sklearn.{place}" for place in ("svm", "model_selection", "ensemble._stacking", "semi_supervised", "frozen")
)
"""The parts of scikit-learn in which `predict` may answer otherwise than the highest score does."""


def module_of(estimator: Any) -> nn.Module | BlackBox:
    """A fitted classifier as a torch module (n, *shape) -> logits (n, k) in float64, or as a black box; see `opened`.

    >>> from sklearn.linear_model import LogisticRegression
    >>> module_of(LogisticRegression().fit([[0.0], [1.0]], ["no", "yes"])).label_names
    ('no', 'yes')
    """
    return opened(estimator).model


def opened(estimator: Any, *, black_box: bool = False, compare: bool = True) -> Loaded:
    """A fitted classifier, a pipeline or a search as a model, with what was done and the names of its classes.

    It is a module in eval mode where every step has one, with a single logit where the estimator has a single score;
    examples of any shape become rows. `black_box` asks for its answers alone in any case. Unless `compare` is false,
    which spares an estimator out of a file the call, module and `predict` decide about some random rows: where they
    differ, it is a black box.

    Raises `BadInput` for what is no classifier or not fitted, for several labels per example, and where a step takes
    text, categories or the names of columns that are no numbers.
    """
    _check_classifier(estimator)
    steps = list(steps_of(estimator))
    final = steps[-1][1]
    for name, step in steps:
        if type(step).__module__.startswith("sklearn."):  # those of others may hold nothing that says so
            check_fitted(name, step)
        _check_step(name, step)
    try:
        check_one_label(final)
    except BadInput as error:
        raise BadInput(f"`model` must have one label per example, but this {type(final).__name__} has more") from error
    labels, count = class_names(final.classes_), _feature_count(estimator, steps)
    answers = _Answers(estimator, "predict", _classes(final), getattr(estimator, "feature_names_in_", None))
    reason = "as asked"
    if not black_box:
        try:
            module = _module(translated(estimator).logits, count)
            compared = 0
            if compare and count is not None:
                compared = check_decisions(module, answers, answers.classes, rows_like(steps[0][1], count))
        except Untranslated as error:
            reason = f"there is no torch module of it, as {error}"
        else:
            _name(module, labels, answers)
            kind = type(final).__name__
            alike = f"it decides as `predict` on {compared} random rows" if compared else "not compared with `predict`"
            notes = (f"{kind} of scikit-learn became a torch module of the same function, in float64; {alike}",)
            return Loaded(model=module, notes=notes + ((EXACT,) if is_affine(module) else ()), label_names=labels)
    box, method = _black_box(answers, final)
    _name(box, labels, answers)
    note = f"{type(final).__name__} of scikit-learn is a black box of its {method}: {reason}"
    return Loaded(model=box, notes=(note,), label_names=labels)


def _name(model: nn.Module | BlackBox, labels: tuple[str, ...], answers: _Answers) -> None:
    setattr(model, LABEL_NAMES, labels)
    if answers.names is not None:
        setattr(model, FEATURE_NAMES, tuple(answers.names))


def _module(logits: nn.Module, count: int | None) -> nn.Module:
    """The logits of examples of any shape, in eval mode; one row is tried."""
    layers = logits if type(logits) is nn.Sequential else [logits]
    module = nn.Sequential(nn.Flatten() if count is None else Features(count), *layers).eval()
    state = [*module.parameters(), *module.buffers()]
    if any(bool(part.isnan().any()) for part in state):
        raise BadInput("`model` must have finite weights, got NaN; was its training stable?")
    if count is not None:
        with torch.no_grad():
            module(torch.zeros(1, count, dtype=torch.float64))
    return module


# What is no classifier of numbers


def _check_classifier(estimator: Any) -> None:
    kind = type(estimator).__name__
    if isinstance(estimator, type):
        raise BadInput(
            f"`model` must be a fitted estimator, got the class {estimator.__name__}; write "
            f"{estimator.__name__}().fit(x, y)"
        )
    final = next((step for _, step in reversed(list(steps_of(estimator)))), None)
    if final is None:
        raise BadInput("`model` must end in a classifier, got a pipeline that does nothing; add one")
    if isinstance(final, RegressorMixin):
        raise BadInput(f"`model` must be a classifier, got the regressor {type(final).__name__}; fit one to classes")
    if getattr(final, "kernel", None) == "precomputed":
        raise BadInput(
            f"`model` must take features, but this {type(final).__name__} takes a kernel's values; fit it to x"
        )
    if not callable(getattr(estimator, "predict", None)):
        raise BadInput(f"`model` must be a classifier with a method `predict`, got {kind}; end it in one")
    check_fitted("", final)
    if not hasattr(final, "classes_"):
        raise BadInput(
            f"`model` must be a classifier, got {type(final).__name__} without `classes_`; fit one to classes"
        )


def _check_step(name: str, step: Any) -> None:
    """Raise `BadInput` for a step, also inside another, that takes text or categories, or is far too large."""
    for inner in _inner(step):
        for place, part in steps_of(inner[1], f"{name}.{inner[0]}" if name else inner[0]):
            _check_step(place, part)
    if isinstance(step, PolynomialFeatures):
        check_products(step)
    categories = getattr(step, "categories_", None) or ()
    text = type(step).__module__.startswith("sklearn.feature_extraction") or any(
        np.asarray(one).dtype.kind not in "iufb" for one in categories
    )
    if text or (len(categories) and getattr(step, "handle_unknown", None) == "error"):
        takes = "text" if text else "no other numbers than its categories"
        raise BadInput(
            f"`model` must take tables of numbers, which an attack can move, but {named(name, step)} takes {takes}; "
            "fit it to the numeric columns alone"
        )


def _inner(step: Any) -> list[tuple[str, Any]]:
    """The steps inside a step that joins several."""
    if isinstance(step, ColumnTransformer):
        return [(name, one) for name, one, _ in step.transformers_ if not isinstance(one, str)]
    if isinstance(step, FeatureUnion):
        return [(name, one) for name, one in step.transformer_list if not isinstance(one, str)]
    return []


def _feature_count(estimator: Any, steps: list[tuple[str, Any]]) -> int | None:
    """The number of features of an example, where the estimator knows it."""
    found = (getattr(one, "n_features_in_", None) for one in (estimator, *(step for _, step in steps[:1])))
    count = next((one for one in found if one is not None), None)
    whole = isinstance(count, Integral) and not isinstance(count, bool)
    if count is not None and not (whole and 0 < int(count) <= MOST_SIZE):
        raise BadInput(f"`model` must have been fitted to 1 to {MOST_SIZE:,} features, got {count!r}; fit it again")
    return None if count is None else int(count)


# Black boxes


@dataclass(frozen=True, eq=False)
class _Answers:
    """A method of an estimator as a function of arrays (n, *shape): scores, or labels.

    With `predict` the class that the estimator predicts gets the highest score: where its rule is another one.
    """

    estimator: Any
    method: Literal["decision_function", "predict_proba", "predict"]
    classes: tuple[Any, ...]
    names: Sequence[str] | None = None
    predict: bool = False

    def __call__(self, x: np.ndarray) -> np.ndarray:
        rows: Any = x.reshape(len(x), -1)
        if self.names is not None:
            import pandas as pd

            rows = pd.DataFrame(rows, columns=list(self.names))
        answers = np.asarray(getattr(self.estimator, self.method)(rows))
        if self.method == "predict":
            return answers
        scores = answers.astype(np.float64)
        if not self.predict:
            return scores
        scores = np.stack([np.zeros(len(scores)), scores], 1) if scores.ndim == 1 else scores
        places = {label: place for place, label in enumerate(self.classes)}
        predicted = np.array([places[label] for label in np.asarray(self.estimator.predict(rows)).tolist()])
        other = np.flatnonzero(scores.argmax(1) != predicted)
        scores[other, predicted[other]] = np.nextafter(scores[other].max(1), np.inf)
        return scores


def _classes(final: Any) -> tuple[Any, ...]:
    return tuple(np.asarray(final.classes_).tolist())


def _black_box(labels: _Answers, final: Any) -> tuple[BlackBox, str]:
    """A black box of the estimator's scores, or of its labels where it has none, and the name of the method."""
    estimator = labels.estimator
    pairs = getattr(final, "decision_function_shape", "ovr") == "ovo" and len(labels.classes) > 2
    if callable(getattr(estimator, "decision_function", None)) and not pairs:
        method = "decision_function"
    elif callable(getattr(estimator, "predict_proba", None)) and not pairs:
        method = "predict_proba"
    else:
        return BlackBox(function=labels, scores="labels", classes=labels.classes), labels.method
    place = str(getattr(type(final).predict, "__module__", ""))
    kinds = (place, type(final).__module__, type(estimator).__module__)
    own = all(kind.startswith(("sklearn.", "epsball.")) for kind in kinds) and not place.startswith(OWN_RULE)
    function = replace(labels, method=method, predict=not own)
    return BlackBox(function=function, scores="logits" if method == "decision_function" else "probabilities"), method
