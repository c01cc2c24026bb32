"""A fitted linear classifier as one weight matrix in the units of the raw data.

Scaling, projecting and selecting features are affine, so a pipeline of them before a linear classifier is a linear
classifier of the raw features. Folding them into its weights leaves epsilon in the units of the raw data; scaling the
data instead would change the ball. Steps are folded from the last to the first, so that no matrix is larger than
(classes, features) or the step's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.models.builtin import Normalize
from epsball.models.estimator_rules import Features, Rules, Untranslated, array_of, steps_of
from epsball.models.estimator_transforms import Beside, Clip, Columns, Scale, transform_layer
from epsball.models.estimator_translation import check_fitted, named, not_fitted, translated

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
        factor = 1 / array_of(1.0 if scale is None else scale)
        return self.scaled(factor, None if centre is None else -array_of(centre) * factor)

    def mapped(self, matrix: Any, shift: Any = None) -> _Scores:
        """Before a step matrix @ z + shift."""
        matrix = array_of(matrix)
        self.check_features(matrix.shape[0])
        bias = self.bias if shift is None else self.bias + self.weight @ array_of(shift)
        return _Scores(self.weight @ matrix, bias)

    def chosen(self, places: np.ndarray, count: int) -> _Scores:
        """Before a step z[places] of `count` features."""
        self.check_features(len(places))
        weight = np.zeros((len(self.weight), count))
        np.add.at(weight.T, places, self.weight.T)
        return _Scores(weight, self.bias)

    def _per_feature(self, part: Any) -> np.ndarray:
        part, m = np.atleast_1d(array_of(part)), self.weight.shape[1]
        self.check_features(len(part) if m % len(part) else m)
        return np.repeat(part, m // len(part))  # one per channel, or one per feature

    def check_features(self, count: int) -> None:
        if count != self.weight.shape[1]:
            raise BadInput(f"it gives {count} features where the next step takes {self.weight.shape[1]}")


def affine(model: object) -> AffineClassifier:
    """The weights of a fitted linear classifier, with the affine steps before it folded in.

    `model` is one of

    - a fitted scikit-learn classifier whose decision is linear: LogisticRegression, LinearSVC, SGDClassifier,
      RidgeClassifier, Perceptron, LinearDiscriminantAnalysis, any other `LinearClassifierMixin`, MultinomialNB, SVC of
      two classes with a linear kernel, and OneVsRestClassifier of these;
    - a `Pipeline`, nested too, of StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, PCA, TruncatedSVD, feature
      selectors, and ColumnTransformer and FeatureUnion of these, before one of them, or a search (GridSearchCV) that
      was refitted to the best of such;
    - a torch `nn.Linear`, or an `nn.Sequential`, nested too, of Linear, Flatten, Unflatten, Identity, Dropout,
      BatchNorm1d, `Normalize` and the layers of `estimator_transforms`, as in eval mode: also what `module_of` made of
      an estimator. The module is not changed, and no gradient is stored.

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


def is_affine(model: object) -> bool:
    """Whether `affine` folds the model, so that `epsball.linear.optimum` gives exact answers about it.

    >>> is_affine(nn.Linear(2, 2)), is_affine(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    (True, False)
    """
    try:
        affine(model)
    except BadInput:
        return False
    return True


def _refused(why: str, name: str, step: object) -> BadInput:
    return BadInput(f"`model` must be affine, but {named(name, step)} cannot be folded: {why}; {REMEDY}")


def _from_sklearn(model: BaseEstimator) -> tuple[_Scores, np.ndarray]:
    """The scores of a pipeline: each step is translated into torch, and folded there."""
    steps = list(steps_of(model))
    if not steps:
        raise BadInput("`model` must end in a linear classifier, got a pipeline that does nothing; add one")
    *before, (name, classifier) = steps
    check_fitted(name, classifier)
    try:
        translation = translated(classifier)
        scores = _folded(translation.logits)
    except Untranslated as error:
        raise _refused("it is not a linear classifier", name, classifier) from error
    except BadInput as error:
        raise _refused(str(error), name, classifier) from error
    for name, step in reversed(before):
        try:
            scores = _folded(transform_layer(step), scores)
        except NotFittedError as error:
            raise not_fitted(name, step) from error
        except Untranslated as error:
            raise _refused("it is not an affine step", name, step) from error
        except BadInput as error:
            raise _refused(str(error), name, step) from error
    return scores, np.asarray(translation.classes)


# torch


def _batch_norm(layer: nn.BatchNorm1d, scores: _Scores) -> _Scores:
    if layer.running_mean is None or layer.running_var is None:
        raise BadInput("it normalises by the batch (track_running_stats=False)")
    factor = 1 / np.sqrt(array_of(layer.running_var) + layer.eps)
    if layer.weight is not None:
        factor = factor * array_of(layer.weight)
    shift = -array_of(layer.running_mean) * factor
    return scores.scaled(factor, shift if layer.bias is None else shift + array_of(layer.bias))


def _flatten(layer: nn.Flatten, scores: _Scores) -> _Scores:
    if layer.start_dim != 1:
        raise BadInput(f"it must leave the first dimension alone, got start_dim={layer.start_dim}")
    return scores


def _clip(layer: Clip, scores: _Scores) -> _Scores:
    raise BadInput("it clips what lies outside the training range (clip=True)")


def _features(layer: Features, scores: _Scores) -> _Scores:
    scores.check_features(layer.count)
    return scores


def _beside(layer: Beside, scores: _Scores) -> _Scores:
    """The parts' scores add up: each sees its share of the weights, and all see the same features."""
    scores.check_features(sum(layer.widths))
    shares = np.split(scores.weight, np.cumsum(layer.widths)[:-1], axis=1)
    parts = [_folded(part, _Scores(share, 0 * scores.bias)) for part, share in zip(layer.parts, shares, strict=True)]
    return _Scores(np.sum([part.weight for part in parts], 0), scores.bias + np.sum([part.bias for part in parts], 0))


LAYERS: Rules[Callable[[Any, _Scores], _Scores]] = Rules(
    "an affine layer",
    ("forward",),
    {
        nn.Linear: lambda layer, scores: scores.mapped(layer.weight, layer.bias),
        nn.BatchNorm1d: _batch_norm,
        Normalize: lambda layer, scores: scores.centred(layer.mean, layer.std),
        Scale: lambda layer, scores: scores.scaled(
            layer.factor, array_of(layer.shift) - array_of(layer.centre) * array_of(layer.factor)
        ),
        Columns: lambda layer, scores: scores.chosen(layer.places.numpy(), layer.inputs),
        Beside: _beside,
        Clip: _clip,
        Features: _features,
        nn.Flatten: _flatten,
        **dict.fromkeys((nn.Unflatten, nn.Identity, nn.Dropout), lambda layer, scores: scores),
    },
)


def _folded(module: nn.Module, scores: _Scores | None = None) -> _Scores:
    """The scores before a module of layers, from those after it; None: its outputs are the scores.

    Raises `Untranslated` where a layer is not affine.
    """
    layers = [layer for _, layer in _layers("", module)]
    scores = _outputs(layers) if scores is None else scores
    for layer in reversed(layers):
        scores = LAYERS.of(layer)(layer, scores)
    return scores


def _outputs(layers: Sequence[nn.Module]) -> _Scores:
    """The outputs of layers, which the last linear one counts, as scores. Raises `Untranslated` without one."""
    count = next((layer.out_features for layer in reversed(layers) if isinstance(layer, nn.Linear)), None)
    if count is None:
        raise Untranslated("it holds no linear layer")
    return _Scores(np.eye(count), np.zeros(count))


def _from_torch(model: nn.Module) -> tuple[_Scores, np.ndarray]:
    layers = list(_layers("", model))
    for name, layer in layers:
        try:
            LAYERS.of(layer)
        except Untranslated as error:
            raise _refused(str(error), name, layer) from error
    try:
        scores = _outputs([layer for _, layer in layers])
    except Untranslated as error:
        raise BadInput(f"`model` must hold an nn.Linear, got {type(model).__name__} without; {REMEDY}") from error
    classes = np.arange(max(2, len(scores.bias)))
    for name, layer in reversed(layers):
        try:
            scores = LAYERS.of(layer)(layer, scores)
        except (BadInput, Untranslated) as error:
            raise _refused(str(error), name, layer) from error
    return scores, classes


def _layers(name: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward:
        for inner, part in layer._modules.items():  # named_children() leaves out repeated ones
            if part is not None:
                yield from _layers(f"{name}.{inner}" if name else inner, part)
    else:
        yield name, layer
