"""What the robust estimators share: checked arguments become a problem, and its solution becomes attributes."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils import column_or_1d
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.linear.gauge import GAUGES, Gauge
from epsball.linear.newton import Matrix, squares
from epsball.linear.solver import Solution

PENALTIES = ("l1", "l2")
LARGEST = 1e100
"""The largest number in X: its squares are summed and multiplied by weights."""


class BadType(BadInput, TypeError):
    """An argument of a type that cannot be used; scikit-learn's checks expect a TypeError."""


@contextmanager
def refusing(argument: str) -> Iterator[None]:
    """Raise what scikit-learn or numpy refuses of an argument as `BadInput`, with their reason."""
    try:
        yield
    except (BadInput, NotFittedError):
        raise
    except (ValueError, TypeError, OverflowError, IndexError) as error:
        kind = BadType if isinstance(error, TypeError) else BadInput
        reason = " ".join(str(error).split())
        raise kind(f"`{argument}` must be what scikit-learn's estimators take, but: {reason}") from error


class ConstantModelWarning(UserWarning):
    """The radius is so large that the best robust model uses no feature."""


class Fitted:
    """The attributes that a fit sets."""

    coef_: Any
    intercept_: Any
    n_iter_: int
    objective_: float
    dual_gap_: float
    classes_: np.ndarray  # of a classifier


@dataclass(eq=False, repr=False)
class RobustEstimator(Fitted, BaseEstimator):
    """A linear model that minimises the mean loss under the worst perturbation of each example.

    The fields are the parameters, as scikit-learn wants them.
    """

    loss: ClassVar[Literal["logistic", "hinge", "squared"]]

    eps: Any = 0.01
    _: KW_ONLY
    norm: str = "linf"
    penalty: str | None = None
    C: float = 1.0
    fit_intercept: bool = True
    tol: float = 1e-6
    max_iter: int = 1000
    warm_start: bool = False

    @abstractmethod
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to X (n, d), dense or sparse, and targets y (n,), with weights `sample_weight` (n,) >= 0."""

    @abstractmethod
    def worst_loss(self, X: Any, y: Any, eps: Any = None, *, sample_weight: Any = None) -> float:
        """Mean loss under the worst perturbation of radius `eps` (default: the one trained for), without a penalty."""

    @property
    def trained_eps(self) -> Any:
        """The radius that the model was trained for."""
        return self.eps

    def _fitted(self, eps: Any) -> tuple[np.ndarray, Gauge]:
        """The weights, and the attacker of radius `eps`, by default the one trained for."""
        check_is_fitted(self)
        coef = self.coef_.toarray() if sparse.issparse(self.coef_) else self.coef_
        return coef, gauge_of(self.trained_eps if eps is None else eps, self.norm, coef.shape[-1])

    def _validated(self, X: Any, y: Any, *, numeric: bool) -> tuple[Any, np.ndarray]:
        """X (n, d) in float64, dense or sparse, and y."""
        with refusing("X"):
            X, y = validate_data(
                self, X, y, accept_sparse=["csr", "csc"], dtype=np.float64, y_numeric=numeric, accept_large_sparse=False
            )
        check_range(X)
        return X, y

    def _examples(self, X: Any) -> Any:
        """X (n, d) in float64, dense or CSR, of a fitted model's features."""
        with refusing("X"):
            return validate_data(self, X, accept_sparse="csr", dtype=np.float64, accept_large_sparse=False, reset=False)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def gauge_of(eps: Any, norm: Any, d: int, *, name: str = "eps") -> Gauge:
    """The attacker of radius `eps`, a number or (d,), in `norm`; errors call the radius `name`."""
    radius = radius_array(name, eps)
    if radius.shape not in ((), (d,)):
        raise BadInput(f"`{name}` must be a number or ({d},), one per feature, got shape {radius.shape}")
    return GAUGES[check_one_of("norm", str(norm), GAUGES)](np.array(np.broadcast_to(radius, (d,))))


def radius_array(name: str, value: Any) -> np.ndarray:
    """Finite numbers >= 0 as an array."""
    try:
        if isinstance(value, (bool, str)) or value is None:
            raise TypeError(f"as in {name}=0.1")
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise BadInput(f"`{name}` must be a number or one per feature, got {value!r}; {error}") from error
    if not (np.isfinite(array).all() and (array >= 0).all()):
        odd = array[~(np.isfinite(array) & (array >= 0))].ravel()[0]
        remedy = "a radius has no sign" if odd < 0 else "from `epsball.linear.eps_max` on all weights are zero"
        raise BadInput(f"`{name}` must be finite and >= 0, got {odd:g}; {remedy}")
    return array


def check_range(X: Matrix) -> None:
    """Refuse numbers whose squares, summed over the examples, leave the range of doubles."""
    data = X.data if sparse.issparse(X) else X
    largest = float(np.abs(data).max(initial=0.0))
    if largest > LARGEST:
        raise BadInput(f"`X` must hold numbers up to {LARGEST:g}, got {largest:g}; scale its features")


def example_weights(X: Matrix, sample_weight: Any) -> np.ndarray:
    """The examples' weights (n,), >= 0 and not all zero."""
    with refusing("sample_weight"):
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
    if not (weight >= 0).all():
        raise BadInput(f"`sample_weight` must be >= 0, got {weight.min():g}; drop those examples")
    if not weight.sum() > 0:
        raise BadInput("`sample_weight` must have a positive sum, got only zeros; leave it out for equal weights")
    return weight


def column(name: str, y: Any, n: int) -> np.ndarray:
    """`y` as (n,)."""
    with refusing(name):
        y = column_or_1d(y)
    if len(y) != n:
        raise BadInput(f"`{name}` must hold one entry per row of X, {n}, got {len(y)}")
    return y


def weighted_mean(values: np.ndarray, sample_weight: Any) -> float:
    """The mean of one value per example."""
    return float(np.average(values, weights=example_weights(values, sample_weight)))


@dataclass(frozen=True, eq=False)
class ProblemData:
    """What all problems of an estimator share: the keyword `arguments` of a `RobustProblem`.

    `mean` (d,) was subtracted from the features of its X.
    """

    arguments: dict[str, Any]
    mean: np.ndarray

    @property
    def y(self) -> np.ndarray:
        return self.arguments["y"]


def problem_data(estimator: Any, X: Any, y: np.ndarray, weight: np.ndarray) -> ProblemData:
    """The checked hyperparameters, and the examples with a positive weight, equal ones merged, in a canonical order.

    A weight of two gives the same result, to the last bit, as two equal examples, and the order of the data does not
    matter. With an intercept, the mean of each feature of a dense X is subtracted, so that an offset costs no digits.
    """
    X, y, weight = _merged(X, y, weight)
    total = float(weight.sum())
    p, mean, intercept = weight / total, np.zeros(X.shape[1]), bool(estimator.fit_intercept)
    if sparse.issparse(X):
        X = sparse.csc_array(X)
    elif intercept:
        mean = p @ X
        X -= mean  # a copy of the caller's X
    size = np.sqrt(squares(X, p))
    gauge = gauge_of(estimator.eps, estimator.norm, X.shape[1])
    if estimator.penalty is not None:
        check_one_of("penalty", str(estimator.penalty), PENALTIES)
    for name, kind, rule in (("C", Real, "a number"), ("tol", Real, "a number"), ("max_iter", Integral, "whole and")):
        value = getattr(estimator, name)
        if isinstance(value, bool) or not isinstance(value, kind) or not float(value) > 0:
            raise BadInput(f"`{name}` must be {rule} > 0, got {value!r}; leave it out for the default")
    strength = 1 / (estimator.C * total)
    arguments = {
        "X": X,
        "y": y,
        "p": p,
        "gauge": gauge,
        "spread": np.where(size > 0, size, 1.0),
        "ridge": strength if estimator.penalty == "l2" else 0.0,
        "lasso": strength if estimator.penalty == "l1" else 0.0,
        "intercept": intercept,
    }
    return ProblemData(arguments, mean)


def _merged(X: Any, y: np.ndarray, weight: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    X = X.tocsr() if sparse.issparse(X) else X
    mix = np.random.default_rng(0).standard_normal(X.shape[1])
    rows = max(1, (1 << 20) // max(X.shape[1], 1))
    # A key of each row, independent of its place.
    key = np.concatenate([_keys(X[start : start + rows], mix) for start in range(0, X.shape[0], rows)])
    order = np.lexsort((y, key))
    order = order[weight[order] > 0]
    X, y, key, weight = X[order], y[order], key[order], weight[order]
    twin = np.flatnonzero((key[1:] == key[:-1]) & (y[1:] == y[:-1])) + 1
    if len(twin):
        differ = X[twin] != X[twin - 1]
        twin = twin[np.asarray(differ.sum(1)).ravel() == 0]
        first = np.ones(len(y), bool)
        first[twin] = False
        weight = np.add.reduceat(weight, np.flatnonzero(first))
        X, y = X[first], y[first]
    return X, y, weight


def _keys(part: Any, mix: np.ndarray) -> np.ndarray:
    if sparse.issparse(part):
        return np.asarray(part.multiply(mix[None]).tocsr().sum(1)).ravel()
    return np.ascontiguousarray(part * mix).sum(1)


def warm_start(estimator: Any, shape: tuple[int, ...], mean: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights of that shape and intercepts of the last fit, if a warm start is wanted and they fit the data."""
    coef = getattr(estimator, "coef_", None) if getattr(estimator, "warm_start", False) else None
    if coef is None:
        return None
    coef = coef.toarray() if sparse.issparse(coef) else np.asarray(coef)
    if coef.shape != shape or not np.isfinite(coef).all():
        return None
    return coef, np.asarray(estimator.intercept_) + coef @ mean


def set_results(estimator: Any, solutions: list[Solution], unit: float = 1.0) -> None:
    """Set iterations, objective and duality gap, summed over the problems of a one-against-the-rest fit.

    Warns of a fit that did not converge, and of a model without weights.
    """
    estimator.n_iter_ = max(solution.n_iter for solution in solutions)
    estimator.objective_ = unit * sum(solution.objective for solution in solutions)
    estimator.dual_gap_ = unit * sum(solution.gap for solution in solutions)
    name = type(estimator).__name__
    if not all(solution.converged for solution in solutions):
        more = estimator.n_iter_ >= estimator.max_iter
        warnings.warn(
            f"{name} stopped after {estimator.n_iter_} steps with its objective {estimator.objective_:.6g} at most "
            f"{estimator.dual_gap_:.3g} above the optimum, which is more than `tol` allows; "
            f"{'raise `max_iter`' if more else 'raise `tol`: double precision ends here'}",
            ConvergenceWarning,
            stacklevel=3,
        )
    elif not np.any(estimator.coef_):
        warnings.warn(
            f"the weights of {name} are all zero: no feature is worth its risk and its penalty, or none varies; lower "
            "`eps` below what `epsball.linear.eps_max` gives, or raise `C`",
            ConstantModelWarning,
            stacklevel=3,
        )
