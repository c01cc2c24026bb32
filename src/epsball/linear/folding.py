"""A fitted linear classifier as one weight matrix in the units of the raw data.

Scaling, projecting and selecting features are affine, so a pipeline of them before a linear classifier is a linear
classifier of the raw features. Folding them into its weights leaves epsilon in the units of the raw data; scaling the
data instead would change the ball. Steps are folded from the last to the first, so that nothing larger than
(classes, features) and the step's own matrix is ever made.
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
class Affine:
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

    def mapped(self, matrix: Any, shift: Any = None) -> _Scores:
        """Before a step matrix @ z + shift."""
        matrix = _double(matrix)
        if matrix.shape[0] != self.weight.shape[1]:
            raise BadInput(f"it gives {matrix.shape[0]} features where the next step takes {self.weight.shape[1]}")
        bias = self.bias if shift is None else self.bias + self.weight @ _double(shift)
        return _Scores(self.weight @ matrix, bias)

    def _per_feature(self, part: Any) -> np.ndarray:
        part, m = np.atleast_1d(_double(part)), self.weight.shape[1]
        if m % len(part):
            raise BadInput(f"it gives {len(part)} features where the next step takes {m}")
        return np.repeat(part, m // len(part))  # one per channel, or one per feature


Step = Callable[[Any, _Scores], _Scores]


def affine(model: object) -> Affine:
    """The weights of a fitted linear classifier, with the affine steps before it folded in.

    `model` is one of

    - a fitted scikit-learn classifier with `coef_` whose decision is linear (LogisticRegression, LinearSVC,
      SGDClassifier, RidgeClassifier, Perceptron, LinearDiscriminantAnalysis; any `LinearClassifierMixin`);
    - a `Pipeline`, nested too, of StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PCA, TruncatedSVD and
      feature selectors before one of them, or a search (GridSearchCV) that was refitted to the best of such;
    - a torch `nn.Linear`, or an `nn.Sequential`, nested too, of Linear, Flatten, Unflatten, Identity, Dropout,
      BatchNorm1d and `Normalize`, taken as in eval mode. It stays untouched, and no gradient is kept.

    Raises `BadInput` that names the step and its class where one is not affine or not fitted.

    >>> layer = nn.Linear(2, 1)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[3.0, -1.0]])), layer.bias.fill_(0.5)
    >>> affine(nn.Sequential(Normalize([1.0], [0.5]), layer))
    Affine(weight=tensor([[ 6., -2.]], dtype=torch.float64), bias=tensor([-3.5000], dtype=torch.float64), \
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
    return Affine(torch.from_numpy(scores.weight), torch.from_numpy(scores.bias), classes)


# scikit-learn


def _standard(step: StandardScaler, scores: _Scores) -> _Scores:
    return _centred(scores, step.mean_ if step.with_mean else None, step.scale_ if step.with_std else None)


def _robust(step: RobustScaler, scores: _Scores) -> _Scores:
    return _centred(scores, step.center_ if step.with_centering else None, step.scale_ if step.with_scaling else None)


def _centred(scores: _Scores, centre: Any, scale: Any) -> _Scores:
    """Before a step (z - centre) / scale."""
    factor = 1 / _double(1.0 if scale is None else scale)
    return scores.scaled(factor, None if centre is None else -_double(centre) * factor)


def _min_max(step: MinMaxScaler, scores: _Scores) -> _Scores:
    if step.clip:
        raise BadInput("it clips what lies outside the training range (clip=True)")
    return scores.scaled(step.scale_, step.min_)


def _max_abs(step: MaxAbsScaler, scores: _Scores) -> _Scores:
    if step.get_params().get("clip"):  # an option of newer versions of scikit-learn
        raise BadInput("it clips what lies outside the training range (clip=True)")
    return scores.scaled(1 / _double(step.scale_))


def _pca(step: PCA, scores: _Scores) -> _Scores:
    components = _double(step.components_)
    if step.whiten:
        deviation = np.sqrt(_double(step.explained_variance_))
        # As scikit-learn does: directions without variance are not blown up.
        components = components / np.maximum(deviation, np.finfo(step.explained_variance_.dtype).eps)[:, None]
    return scores.mapped(components, -components @ _double(step.mean_))


def _svd(step: TruncatedSVD, scores: _Scores) -> _Scores:
    return scores.mapped(step.components_)


def _selected(step: Any, scores: _Scores) -> _Scores:
    kept = step.get_support()
    if int(kept.sum()) != scores.weight.shape[1]:
        raise BadInput(f"it keeps {int(kept.sum())} features where the next step takes {scores.weight.shape[1]}")
    weight = np.zeros((len(scores.weight), len(kept)))
    weight[:, kept] = scores.weight
    return _Scores(weight, scores.bias)


TRANSFORMERS: dict[type, Step] = {
    StandardScaler: _standard,
    RobustScaler: _robust,
    MinMaxScaler: _min_max,
    MaxAbsScaler: _max_abs,
    PCA: _pca,
    TruncatedSVD: _svd,
    SelectorMixin: _selected,
}


def _linear(classifier: Any) -> _Scores:
    coef = classifier.coef_
    weight = np.atleast_2d(_double(coef.toarray() if issparse(coef) else coef))
    return _Scores(weight, np.broadcast_to(_double(classifier.intercept_), len(weight)).copy())


def _ridge(classifier: RidgeClassifier | RidgeClassifierCV) -> _Scores:
    scores = _linear(classifier)
    if classifier._label_binarizer.y_type_.startswith("multilabel"):
        raise BadInput("it was fitted with several labels per example")
    return scores


CLASSIFIERS: dict[type, Callable[[Any], _Scores]] = {
    RidgeClassifier: _ridge,
    RidgeClassifierCV: _ridge,
    LinearDiscriminantAnalysis: _linear,
    LinearClassifierMixin: _linear,
}


def _from_sklearn(model: BaseEstimator) -> tuple[_Scores, np.ndarray]:
    steps = list(_flattened("", model))
    if not steps:
        raise BadInput("`model` must end in a linear classifier, got a pipeline that does nothing; add one")
    (name, classifier), *before = steps[::-1]
    kind = _kind(classifier, CLASSIFIERS, ("decision_function", "predict"))
    if kind is None:
        raise _refused("it is not a linear classifier", name, classifier)
    read = CLASSIFIERS[kind]
    scores = _folded(name, classifier, lambda: read(classifier))
    for name, step in before:
        kind = _kind(step, TRANSFORMERS, ("transform",))
        if kind is None:
            raise _refused("it is not an affine step", name, step)
        scores = _folded(name, step, lambda fold=TRANSFORMERS[kind], step=step, scores=scores: fold(step, scores))
    return scores, np.asarray(classifier.classes_)


def _flattened(name: str, step: Any) -> Iterator[tuple[str, Any]]:
    """The steps of nested pipelines with dotted names, without those that do nothing; of a search, what it found."""
    if isinstance(step, BaseSearchCV):
        step = getattr(step, "best_estimator_", step)
    if type(step) is Pipeline:
        for inner, part in step.steps:
            yield from _flattened(f"{name}.{inner}" if name else inner, part)
    elif step is not None and step != "passthrough":
        yield name, step


def _folded(name: str, step: Any, fold: Callable[[], _Scores]) -> _Scores:
    try:
        check_is_fitted(step)
        return fold()
    except NotFittedError as error:
        raise BadInput(f"`model` must be fitted, but {_named(name, step)} is not; call `fit` first") from error
    except BadInput as error:
        raise _refused(str(error), name, step) from error


# torch


def _dense(layer: nn.Linear, scores: _Scores) -> _Scores:
    return scores.mapped(layer.weight, layer.bias)


def _same(layer: nn.Module, scores: _Scores) -> _Scores:
    return scores


def _batch_norm(layer: nn.BatchNorm1d, scores: _Scores) -> _Scores:
    if layer.running_mean is None or layer.running_var is None:
        raise BadInput("it normalises by the batch (track_running_stats=False)")
    factor = 1 / np.sqrt(_double(layer.running_var) + layer.eps)
    if layer.weight is not None:
        factor = factor * _double(layer.weight)
    shift = -_double(layer.running_mean) * factor
    return scores.scaled(factor, shift if layer.bias is None else shift + _double(layer.bias))


def _normalize(layer: Normalize, scores: _Scores) -> _Scores:
    return _centred(scores, layer.mean, layer.std)


def _flatten(layer: nn.Flatten, scores: _Scores) -> _Scores:
    if layer.start_dim != 1:
        raise BadInput(f"it must leave the first dimension alone, got start_dim={layer.start_dim}")
    return scores


LAYERS: dict[type, Step] = {
    nn.Linear: _dense,
    nn.BatchNorm1d: _batch_norm,
    Normalize: _normalize,
    nn.Flatten: _flatten,
    nn.Unflatten: _same,
    nn.Identity: _same,
    nn.Dropout: _same,
}


def _from_torch(model: nn.Module) -> tuple[_Scores, np.ndarray]:
    layers = []
    for name, layer in _layers("", model):
        kind = _kind(layer, LAYERS, ("forward",))
        if kind is None:
            raise _refused("it is not an affine layer", name, layer)
        layers.append((name, layer, LAYERS[kind]))
    outputs = next((layer.out_features for _, layer, _ in layers[::-1] if isinstance(layer, nn.Linear)), None)
    if outputs is None:
        raise BadInput(f"`model` must hold an nn.Linear, got {type(model).__name__} without; {REMEDY}")
    scores = _Scores(np.eye(outputs), np.zeros(outputs))
    for name, layer, fold in layers[::-1]:
        try:
            scores = fold(layer, scores)
        except BadInput as error:
            raise _refused(str(error), name, layer) from error
    return scores, np.arange(max(2, outputs))


def _layers(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward:
        for inner, part in layer._modules.items():  # named_children() leaves out repeated ones
            if part is not None:
                yield from _layers(f"{name}.{inner}" if name else inner, part)
    else:
        yield name, layer


# both


def _kind(step: object, table: dict[type, Any], methods: tuple[str, ...]) -> type | None:
    """The nearest class of the table that `step` inherits `methods` from, None if it brings its own."""
    for base in type(step).__mro__:
        if base in table:
            same = all(getattr(type(step), method, None) is getattr(base, method, None) for method in methods)
            return base if same else None
    return None


def _named(name: str, step: object) -> str:
    return f"step {name!r} ({type(step).__name__})" if name else f"this {type(step).__name__}"


def _refused(why: str, name: str, step: object) -> BadInput:
    return BadInput(f"`model` must be affine, but {_named(name, step)} cannot be folded: {why}; {REMEDY}")


def _double(part: Any) -> np.ndarray:
    array = part.detach().cpu().double().numpy() if isinstance(part, Tensor) else part
    return np.array(array, dtype=np.float64)
