"""A fitted linear classifier as one weight matrix in the units of the raw data.

Scaling, projecting and selecting features are affine, so a pipeline of them before a linear classifier is a linear
classifier of the raw features. Folding them into its weights leaves epsilon in the units of the raw data; scaling the
data instead would change the ball. Steps are folded from the last to the first, so that no matrix is larger than
(classes, features) or the step's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.feature_selection import SelectorMixin
from sklearn.linear_model import RidgeClassifier, RidgeClassifierCV
from sklearn.linear_model._base import LinearClassifierMixin
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.models.builtin import Normalize

REMEDY = "use `epsball.evaluate` for models that are not linear"


@dataclass(frozen=True, eq=False)
class AffineClassifier:
    """Scores `x.flatten(1) @ weight.T + bias`; `classes` are the labels that the model itself uses.

    `weight` (k, d) and `bias` (k,) are in float64 on the CPU. With k = 1 there is one logit, and `classes` has two
    entries: the second is predicted where it is > 0.
    """

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]
    classes: np.ndarray


@dataclass(frozen=True, eq=False)
class _Scores:
    """Scores as a function of what a step returns: `weight` (k, m), `bias` (k,), float64."""

    weight: np.ndarray
    bias: np.ndarray

    def scaled(self, factor: Any, shift: Any = None) -> _Scores:
        """Before a step z * factor + shift, feature by feature (a number, or as many as divide the features)."""
        factor, shift = (self._per_feature(part) for part in (factor, 0.0 if shift is None else shift))
        return _Scores(self.weight * factor, self.bias + self.weight @ shift)

    def centred(self, centre: Any, scale: Any) -> _Scores:
        """Before a step (z - centre) / scale."""
        factor = 1 / _double(1.0 if scale is None else scale)
        return self.scaled(factor, None if centre is None else -_double(centre) * factor)

    def mapped(self, matrix: Any, shift: Any = None) -> _Scores:
        """Before a step matrix @ z + shift."""
        matrix = _double(matrix)
        self._check_features(matrix.shape[0])
        bias = self.bias if shift is None else self.bias + self.weight @ _double(shift)
        return _Scores(self.weight @ matrix, bias)

    def selected(self, kept: np.ndarray) -> _Scores:
        """Before a step z[kept], `kept` a mask of the features."""
        self._check_features(int(kept.sum()))
        weight = np.zeros((len(self.weight), len(kept)))
        weight[:, kept] = self.weight
        return _Scores(weight, self.bias)

    def _per_feature(self, part: Any) -> np.ndarray:
        part, m = np.atleast_1d(_double(part)), self.weight.shape[1]
        self._check_features(len(part) if m % len(part) else m)
        return np.repeat(part, m // len(part))  # one per channel, or one per feature

    def _check_features(self, count: int) -> None:
        if count != self.weight.shape[1]:
            raise BadInput(f"it gives {count} features where the next step takes {self.weight.shape[1]}")


def affine(model: object) -> AffineClassifier:
    """The weights of a fitted linear classifier, with the affine steps before it folded in.

    `model` is one of

    - a fitted scikit-learn classifier with `coef_` whose decision is linear (LogisticRegression, LinearSVC,
      SGDClassifier, RidgeClassifier, Perceptron, LinearDiscriminantAnalysis; any `LinearClassifierMixin`);
    - a `Pipeline`, nested too, of StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PCA, TruncatedSVD and
      feature selectors before one of them, or a search (GridSearchCV) that was refitted to the best of such;
    - a torch `nn.Linear`, or an `nn.Sequential`, nested too, of Linear, Flatten, Unflatten, Identity, Dropout,
      BatchNorm1d and `Normalize`, as in eval mode. The module is not changed, and no gradient is stored.

    Raises `BadInput` that names the step and its class where one is not affine or not fitted.

    >>> layer = nn.Linear(2, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[3.0, -1.0]])), layer.bias.fill_(0.5)
    >>> affine(nn.Sequential(Normalize([1.0], [0.5]), layer))
    AffineClassifier(weight=tensor([[ 6., -2.]], dtype=torch.float64), bias=tensor([-3.5000], dtype=torch.float64), \
classes=array([0, 1]))
    """
    if isinstance(model, nn.Module):
        scores, classes = _from_torch(model)
    elif isinstance(model, BaseEstimator):
        scores, classes = _from_sklearn(model)
    else:
        raise BadInput(
            f"`model` must be a fitted scikit-learn classifier or pipeline, or a torch module, got "
            f"{type(model).__name__}; give its weights and bias as arrays"
        )
    if not (np.isfinite(scores.weight).all() and np.isfinite(scores.bias).all()):
        raise BadInput("`model` must have finite weights, got NaN or infinity; was its training stable?")
    return AffineClassifier(torch.from_numpy(scores.weight), torch.from_numpy(scores.bias), classes)


@dataclass(frozen=True)
class _Rules:
    """How steps of each class in `table` are folded; a subclass with its own `methods` is not known."""

    kind: str
    methods: tuple[str, ...]
    table: dict[type, Callable[[Any, Any], _Scores]]

    def known(self, name: str, step: Any) -> type:
        """The class in the table that the step is of."""
        base = next((base for base in type(step).__mro__ if base in self.table), object)
        same = all(getattr(type(step), method, None) is getattr(base, method, None) for method in self.methods)
        if base is object or not same:
            raise _refused(f"it is not {self.kind}", name, step)
        return base

    def fold(self, name: str, step: Any, scores: _Scores | None) -> _Scores:
        """The scores before a step, from those after it."""
        rule = self.table[self.known(name, step)]
        try:
            if isinstance(step, BaseEstimator):
                check_is_fitted(step)
            return rule(step, scores)
        except NotFittedError as error:
            raise BadInput(f"`model` must be fitted, but {_named(name, step)} is not; call `fit` first") from error
        except BadInput as error:
            raise _refused(str(error), name, step) from error


def _named(name: str, step: object) -> str:
    return f"step {name!r} ({type(step).__name__})" if name else f"this {type(step).__name__}"


def _refused(why: str, name: str, step: object) -> BadInput:
    return BadInput(f"`model` must be affine, but {_named(name, step)} cannot be folded: {why}; {REMEDY}")


# scikit-learn


def _min_max(step: MinMaxScaler, scores: _Scores) -> _Scores:
    _refuse_clipping(step)
    return scores.scaled(step.scale_, step.min_)


def _max_abs(step: MaxAbsScaler, scores: _Scores) -> _Scores:
    _refuse_clipping(step)
    return scores.scaled(1 / _double(step.scale_))


def _refuse_clipping(step: BaseEstimator) -> None:
    if step.get_params().get("clip"):  # for MaxAbsScaler an option of newer versions
        raise BadInput("it clips what lies outside the training range (clip=True)")


def _pca(step: PCA, scores: _Scores) -> _Scores:
    components = _double(step.components_)
    if step.whiten:
        deviation = np.sqrt(_double(step.explained_variance_))
        # As in scikit-learn: directions without variance are not magnified.
        components = components / np.maximum(deviation, np.finfo(step.explained_variance_.dtype).eps)[:, None]
    return scores.mapped(components, -components @ _double(step.mean_))


TRANSFORMERS = _Rules(
    "an affine step",
    ("transform",),
    {
        StandardScaler: lambda step, scores: scores.centred(
            step.mean_ if step.with_mean else None, step.scale_ if step.with_std else None
        ),
        RobustScaler: lambda step, scores: scores.centred(
            step.center_ if step.with_centering else None, step.scale_ if step.with_scaling else None
        ),
        MinMaxScaler: _min_max,
        MaxAbsScaler: _max_abs,
        PCA: _pca,
        TruncatedSVD: lambda step, scores: scores.mapped(step.components_),
        SelectorMixin: lambda step, scores: scores.selected(step.get_support()),
    },
)


def _linear(classifier: Any, _: None) -> _Scores:
    if "multilabel" in str(getattr(getattr(classifier, "_label_binarizer", None), "y_type_", "")):
        raise BadInput("it was fitted with several labels per example")
    coef = classifier.coef_
    weight = np.atleast_2d(_double(coef.toarray() if issparse(coef) else coef))
    return _Scores(weight, np.broadcast_to(_double(classifier.intercept_), len(weight)).copy())


CLASSIFIERS = _Rules(
    "a linear classifier",
    ("decision_function", "predict"),
    dict.fromkeys((RidgeClassifier, RidgeClassifierCV, LinearDiscriminantAnalysis, LinearClassifierMixin), _linear),
)


def _from_sklearn(model: BaseEstimator) -> tuple[_Scores, np.ndarray]:
    steps = list(_flattened("", model))
    if not steps:
        raise BadInput("`model` must end in a linear classifier, got a pipeline that does nothing; add one")
    *before, (name, classifier) = steps
    scores = CLASSIFIERS.fold(name, classifier, None)
    for name, step in reversed(before):
        scores = TRANSFORMERS.fold(name, step, scores)
    return scores, np.asarray(classifier.classes_)


def _flattened(name: str, step: Any) -> Iterator[tuple[str, Any]]:
    """The steps of nested pipelines with dotted names, without those that do nothing; a search's best estimator."""
    if isinstance(step, BaseSearchCV):
        step = getattr(step, "best_estimator_", step)
    if type(step) is Pipeline:
        for inner, part in step.steps:
            yield from _flattened(f"{name}.{inner}" if name else inner, part)
    elif step is not None and step != "passthrough":
        yield name, step


# torch


def _batch_norm(layer: nn.BatchNorm1d, scores: _Scores) -> _Scores:
    if layer.running_mean is None or layer.running_var is None:
        raise BadInput("it normalises by the batch (track_running_stats=False)")
    factor = 1 / np.sqrt(_double(layer.running_var) + layer.eps)
    if layer.weight is not None:
        factor = factor * _double(layer.weight)
    shift = -_double(layer.running_mean) * factor
    return scores.scaled(factor, shift if layer.bias is None else shift + _double(layer.bias))


def _flatten(layer: nn.Flatten, scores: _Scores) -> _Scores:
    if layer.start_dim != 1:
        raise BadInput(f"it must leave the first dimension alone, got start_dim={layer.start_dim}")
    return scores


LAYERS = _Rules(
    "an affine layer",
    ("forward",),
    {
        nn.Linear: lambda layer, scores: scores.mapped(layer.weight, layer.bias),
        nn.BatchNorm1d: _batch_norm,
        Normalize: lambda layer, scores: scores.centred(layer.mean, layer.std),
        nn.Flatten: _flatten,
        **dict.fromkeys((nn.Unflatten, nn.Identity, nn.Dropout), lambda layer, scores: scores),
    },
)


def _from_torch(model: nn.Module) -> tuple[_Scores, np.ndarray]:
    layers = list(_layers("", model))
    outputs = next((layer.out_features for _, layer in reversed(layers) if isinstance(layer, nn.Linear)), None)
    if outputs is None:
        for name, layer in layers:
            LAYERS.known(name, layer)
        raise BadInput(f"`model` must hold an nn.Linear, got {type(model).__name__} without; {REMEDY}")
    scores = _Scores(np.eye(outputs), np.zeros(outputs))
    for name, layer in reversed(layers):
        scores = LAYERS.fold(name, layer, scores)
    return scores, np.arange(max(2, outputs))


def _layers(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward:
        for inner, part in layer._modules.items():  # named_children() leaves out repeated ones
            if part is not None:
                yield from _layers(f"{name}.{inner}" if name else inner, part)
    else:
        yield name, layer


def _double(part: Any) -> np.ndarray:
    array = part.detach().cpu().double().numpy() if isinstance(part, Tensor) else part
    return np.array(array, dtype=np.float64)
