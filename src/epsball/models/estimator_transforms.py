"""Steps before a classifier as torch layers: scaling, projecting, selecting and joining features, in float64.

Each does what the step's `transform` does to finite numbers, in the same order of operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_selection import SelectorMixin
from sklearn.impute import SimpleImputer
from sklearn.pipeline import FeatureUnion
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.models.estimator_rules import Rules, Untranslated, array_of, linear_layer, steps_of, tensor_of

MOST_FACTORS = 10_000_000
"""Factors that all products of polynomial features may have together."""


class Scale(nn.Module):
    """(x - centre) * factor + shift, each a number or one per feature."""

    centre: Tensor
    factor: Tensor
    shift: Tensor

    def __init__(self, centre: Any = None, factor: Any = None, shift: Any = None) -> None:
        super().__init__()
        for name, part, without in (("centre", centre, 0.0), ("factor", factor, 1.0), ("shift", shift, 0.0)):
            self.register_buffer(name, tensor_of(without if part is None else part).reshape(-1))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return (x - self.centre) * self.factor + self.shift


class Clip(nn.Module):
    """x clipped to [lo, hi], where a scaler does so (clip=True)."""

    def __init__(self, lo: float, hi: float) -> None:
        super().__init__()
        self.lo, self.hi = float(lo), float(hi)

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return x.clamp(self.lo, self.hi)


class Columns(nn.Module):
    """The features of these numbers out of `inputs`, in this order."""

    places: Int64[Tensor, " k"]

    def __init__(self, places: Any, inputs: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.register_buffer("places", torch.from_numpy(np.array(places, dtype=np.int64).reshape(-1)))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return x.index_select(1, self.places)


class Beside(nn.Module):
    """What several layers make of the same features, side by side."""

    def __init__(self, parts: Sequence[nn.Module], inputs: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        with torch.no_grad():
            self.widths = [part(torch.zeros(1, inputs, dtype=torch.float64)).shape[1] for part in parts]

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return torch.cat([part(x) for part in self.parts], 1)


class RowNorm(nn.Module):
    """Each row divided by its norm of that order; a row of zeros stays."""

    def __init__(self, order: float) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        norm = torch.linalg.vector_norm(x, self.order, dim=1, keepdim=True)
        return x / torch.where(norm < 10 * torch.finfo(x.dtype).eps, 1.0, norm)


class Products(nn.Module):
    """Products of features: of those of each row of `places` (k, degree), in which d stands for no feature."""

    places: Int64[Tensor, "k degree"]

    def __init__(self, places: Any) -> None:
        super().__init__()
        self.register_buffer("places", torch.from_numpy(np.array(places, dtype=np.int64)))

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        padded = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        product = torch.ones_like(x[:, :1])
        for factor in self.places.unbind(1):
            product = product * padded[:, factor]
        return product.expand(len(x), len(self.places))


class Elementwise(nn.Module):
    """A function of torch on each number."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return getattr(torch, self.name)(x)


FUNCTIONS = {
    np.log: "log",
    np.log1p: "log1p",
    np.exp: "exp",
    np.expm1: "expm1",
    np.sqrt: "sqrt",
    np.square: "square",
    np.abs: "abs",
    np.tanh: "tanh",
    np.arcsinh: "arcsinh",
}


def _inverse(part: Any) -> Any:
    return None if part is None else 1 / array_of(part)


def _min_max(step: Any) -> nn.Module:
    scale = Scale(factor=step.scale_, shift=step.min_)
    return nn.Sequential(scale, Clip(*step.feature_range)) if step.clip else scale


def _max_abs(step: Any) -> nn.Module:
    scale = Scale(factor=_inverse(step.scale_))
    return nn.Sequential(scale, Clip(-1, 1)) if step.get_params().get("clip") else scale  # an option of newer versions


def _pca(step: Any) -> nn.Module:
    components = array_of(step.components_)
    if step.whiten:
        deviation = np.sqrt(array_of(step.explained_variance_))
        # As in scikit-learn: directions without variance are not magnified.
        components = components / np.maximum(deviation, np.finfo(step.explained_variance_.dtype).eps)[:, None]
    return nn.Sequential(Scale(centre=step.mean_), linear_layer(components))


def _selector(step: Any) -> nn.Module:
    kept = step.get_support()
    return Columns(np.flatnonzero(kept), len(kept))


def _normalizer(step: Any) -> nn.Module:
    return RowNorm({"l1": 1.0, "l2": 2.0, "max": math.inf}[step.norm])


def _imputer(step: Any) -> nn.Module:
    """Without missing values: the features that it keeps."""
    if not (isinstance(step.missing_values, float) and math.isnan(step.missing_values)):
        raise Untranslated(f"it replaces {step.missing_values!r}, which a ball leaves")
    if step.add_indicator and step.indicator_ is not None and len(step.indicator_.features_):
        raise Untranslated("it adds indicators of missing values")
    empty = np.isnan(array_of(step.statistics_))
    return nn.Identity() if step.keep_empty_features or not empty.any() else Columns(np.flatnonzero(~empty), len(empty))


def _polynomials(step: Any) -> nn.Module:
    choose = combinations if step.interaction_only else combinations_with_replacement
    degrees, inputs = _degrees(step), step.n_features_in_
    chosen = [one for degree in degrees for one in choose(range(inputs), degree)]
    width = max(1, *degrees)
    return Products([[*one, *[inputs] * (width - len(one))] for one in chosen])


def _degrees(step: Any) -> list[int]:
    """The degrees of the products of polynomial features, in their order; 0 is the constant."""
    low, high = step.degree if isinstance(step.degree, tuple) else (0, step.degree)
    return [*([0] if step.include_bias else []), *range(max(low, 1), high + 1)]


def check_products(step: PolynomialFeatures) -> None:
    """Raise `BadInput` for polynomial features of far more products than a machine can hold."""
    degrees, inputs = _degrees(step), int(step.n_features_in_)  # pyright: ignore[reportAttributeAccessIssue]
    factors = 0
    for degree in degrees:
        factors += degree * math.comb(inputs if step.interaction_only else inputs + degree - 1, degree)
        if factors > MOST_FACTORS:
            raise BadInput(
                f"`model` must have polynomial features of at most {MOST_FACTORS:,} factors, got more for degree "
                f"{step.degree} of {inputs} features; lower the degree"
            )


def _function(step: Any) -> nn.Module:
    if step.func is None:
        return nn.Identity()
    known = next((name for function, name in FUNCTIONS.items() if step.func is function), None)
    if known is None or step.kw_args:
        raise Untranslated("its function is not a known one")
    return Elementwise(known)


def _columns(step: Any) -> nn.Module:
    parts: list[nn.Module] = []
    weights = step.transformer_weights or {}
    for name, inner, _ in step.transformers_:
        places = np.asarray(step._transformer_to_input_indices[name]).reshape(-1)
        if (isinstance(inner, str) and inner == "drop") or not len(places):
            continue
        layers = [Columns(places, step.n_features_in_), *_layers(inner)]
        if name in weights:
            layers.append(Scale(factor=weights[name]))
        parts.append(nn.Sequential(*layers))
    return Beside(parts, step.n_features_in_)


def _union(step: Any) -> nn.Module:
    parts = []
    weights = step.transformer_weights or {}
    for name, inner in step.transformer_list:
        if not (isinstance(inner, str) and inner == "drop"):
            layers = _layers(inner) or [nn.Identity()]
            parts.append(nn.Sequential(*layers, *([Scale(factor=weights[name])] if name in weights else [])))
    return Beside(parts, step.n_features_in_)


def _layers(step: Any) -> list[nn.Module]:
    """The layers of a step inside another, which may be a pipeline."""
    return [transform_layer(one) for _, one in steps_of(step)]


TRANSFORMERS: Rules[Callable[[Any], nn.Module]] = Rules(
    "a step that is known in torch",
    ("transform",),
    {
        StandardScaler: lambda step: Scale(
            step.mean_ if step.with_mean else None, _inverse(step.scale_ if step.with_std else None)
        ),
        RobustScaler: lambda step: Scale(
            step.center_ if step.with_centering else None, _inverse(step.scale_ if step.with_scaling else None)
        ),
        MinMaxScaler: _min_max,
        MaxAbsScaler: _max_abs,
        PCA: _pca,
        TruncatedSVD: lambda step: linear_layer(step.components_),
        SelectorMixin: _selector,
        Normalizer: _normalizer,
        SimpleImputer: _imputer,
        PolynomialFeatures: _polynomials,
        FunctionTransformer: _function,
        ColumnTransformer: _columns,
        FeatureUnion: _union,
    },
)


def transform_layer(step: Any) -> nn.Module:
    """A fitted step of a pipeline as a layer (n, m) -> (n, k). Raises `Untranslated`, and `NotFittedError`."""
    rule = TRANSFORMERS.of(step)
    check_is_fitted(step)
    return rule(step)
