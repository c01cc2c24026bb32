"""How a fitted estimator is translated: a table of rules a kind, classes to functions, and what these answer with.

A rule holds for a class and for its subclasses that override nothing that a prediction may go through. Whatever has no
rule is `Untranslated`, which is no error: it is a black box then.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import issparse
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.common.errors import BadInput

Probability = Literal["softmax", "sigmoids"]
"""How probabilities follow from logits: a softmax (a sigmoid of one), or the sigmoids of all, divided by their sum."""
MOST_DENSE = 1 << 26
"""Numbers that a sparse array may have when it is made dense: half a gigabyte."""
USUAL = re.compile(
    r"__\w+__|_?(partial_)?fit|fit_\w+|[gs]et_params|set_\w+_request|get_metadata_routing|score|_\w+_tags"
)
"""What a subclass may override without any other prediction: how it is made, fitted, and measured."""
T = TypeVar("T")


class Untranslated(Exception):
    """There is no torch module of the same function; the message says why, as the end of a sentence about it."""


@dataclass(frozen=True, eq=False)
class Translation:
    """A classifier in torch, (n, features) -> logits, and what its wrappers ask it for.

    The argmax of `logits` (n, k) is what `predict` answers; a single logit is that of the second class. `decision` is
    what `decision_function` answers, (n, 1) or (n, k), None where the estimator has none; `probability` says how
    `predict_proba` follows from the logits. `classes` are the labels, in the order of the logits.
    """

    logits: nn.Module
    classes: np.ndarray
    decision: nn.Module | None = None
    probability: Probability | None = None


Translate = Callable[[Any], Translation]
"""A fitted classifier, pipeline or search -> what it is in torch. Raises `Untranslated`."""


@dataclass(frozen=True)
class Rules(Generic[T]):
    """How estimators of each class in `table` are translated; a subclass with a method of its own is not known.

    `methods` are those that scikit-learn's own subclasses have to share with the class in the table.
    """

    kind: str
    methods: tuple[str, ...]
    table: dict[type, T]

    def of(self, estimator: object) -> T:
        """The rule for an estimator. Raises `Untranslated`."""
        cls = type(estimator)
        base = next((base for base in cls.__mro__ if base in self.table), None)
        if base is None or any(
            getattr_static(cls, method, None) is not getattr_static(base, method, None) for method in self.methods
        ):
            raise Untranslated(f"it is not {self.kind}")
        own = _overridden(cls, base)
        if own is not None:
            raise Untranslated(f"{cls.__name__} has its own {own}")
        return self.table[base]


def _overridden(cls: type, base: type) -> str | None:
    """A method, public or not, that a class between `cls` and `base` has in the place of an inherited one."""
    above = cls.__mro__
    for place, one in enumerate(above[: above.index(base)]):
        if one.__module__.startswith(("sklearn.", "epsball.")):
            continue
        for name, part in vars(one).items():
            method = callable(part) or isinstance(part, staticmethod | classmethod)
            if method and not USUAL.fullmatch(name) and any(name in vars(other) for other in above[place + 1 :]):
                return name
    return None


def steps_of(estimator: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The steps of nested pipelines with dotted names, without those that do nothing; of a search those of its best."""
    if isinstance(estimator, FrozenEstimator):
        yield from steps_of(estimator.estimator, name)
    elif isinstance(estimator, BaseSearchCV):
        if not hasattr(estimator, "best_estimator_") and hasattr(estimator, "cv_results_"):
            raise BadInput(
                f"`model` must be refitted, but this {type(estimator).__name__} has results alone; write refit=True"
            )
        estimator = getattr(estimator, "best_estimator_", estimator)
        yield from [(name, estimator)] if isinstance(estimator, BaseSearchCV) else steps_of(estimator, name)
    elif type(estimator) is Pipeline:
        for inner, part in estimator.steps:
            yield from steps_of(part, f"{name}.{inner}" if name else inner)
    elif estimator is not None and estimator != "passthrough":
        yield name, estimator


def array_of(part: Any) -> np.ndarray:
    """Numbers of an estimator or a torch module, dense or sparse, as doubles of their own."""
    if isinstance(part, Tensor):
        part = part.detach().cpu().double().numpy()
    elif issparse(part):
        if math.prod(part.shape) > MOST_DENSE:
            raise BadInput(f"`model` must have at most {MOST_DENSE:,} weights, got a sparse array of {part.shape}")
        part = part.toarray()
    return np.array(part, dtype=np.float64)


def tensor_of(part: Any) -> Float[Tensor, "..."]:
    """Numbers of an estimator as a float64 tensor of its own."""
    return torch.from_numpy(np.ascontiguousarray(array_of(part)))


def parameter_of(part: Any) -> nn.Parameter:
    """Numbers of an estimator as a float64 parameter."""
    return nn.Parameter(tensor_of(part))


def linear_layer(weight: Any, bias: Any = None) -> nn.Linear:
    """x @ weight.T + bias in float64; `weight` (k, m), `bias` a number or (k,)."""
    weight = np.atleast_2d(array_of(weight))
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = parameter_of(weight)
    if bias is not None:
        layer.bias = parameter_of(np.broadcast_to(array_of(bias), len(weight)))
    return layer


class Features(nn.Module):
    """Examples of any shape as rows (n, `count`): the number of features that an estimator was fitted to."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Float[Tensor, "n *shape"]) -> Float[Tensor, "n d"]:
        if x.ndim < 2 or x[:1].numel() != self.count * len(x[:1]):
            raise BadInput(
                f"`x` must have {self.count} features per example, those that the estimator was fitted to, got "
                f"{tuple(x.shape)}; select its columns"
            )
        return x.flatten(1)

    def extra_repr(self) -> str:
        return str(self.count)


class OneLogit(nn.Module):
    """The logit of the second of two classes, (n, 2) or (n, 1) -> (n, 1)."""

    def forward(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n 1"]:
        return z if z.shape[1] == 1 else z[:, 1:] - z[:, :1]


class LogProbability(nn.Module):
    """The logarithms of probabilities, from logits (n, k) -> (n, max(k, 2)); finite also where 1 - p rounds to 1."""

    def __init__(self, kind: Probability) -> None:
        super().__init__()
        self.kind: Probability = kind

    def forward(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n c"]:
        if z.shape[1] == 1:
            return torch.cat([F.logsigmoid(-z), F.logsigmoid(z)], 1)
        if self.kind == "softmax":
            return F.log_softmax(z, 1)
        parts = F.logsigmoid(z)
        return parts - parts.logsumexp(1, keepdim=True)


class Exponential(nn.Module):
    """exp(z), feature by feature."""

    def forward(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return z.exp()


def log_probability_of(part: Translation) -> nn.Module:
    """The logarithm of what `predict_proba` answers, (n, features) -> (n, classes). Raises `Untranslated`."""
    if part.probability is None:
        raise Untranslated("its probabilities are no function of its scores")
    return nn.Sequential(part.logits, LogProbability(part.probability))


def one_logit_of(part: Translation) -> nn.Module:
    """The single logit of a classifier of two classes, whose sign is the decision. Raises `Untranslated`."""
    if len(part.classes) != 2:
        raise Untranslated("one of its parts has other than two classes")
    if isinstance(part.logits, nn.Linear) and part.logits.out_features == 1:
        return part.logits
    return nn.Sequential(part.logits, OneLogit())
