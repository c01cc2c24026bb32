"""What the robust estimators share: checked arguments become a problem, and its solution becomes attributes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import column_or_1d
from sklearn.utils.validation import _check_sample_weight, validate_data

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.linear.gauge import GAUGES, Gauge
from epsball.linear.newton import Matrix, squares
from epsball.linear.solver import Solution

PENALTIES = ("l1", "l2")


class ConstantModelWarning(UserWarning):
    """The radius is so large that the best robust model looks at no feature."""


@dataclass(frozen=True, eq=False)
class Settings:
    """The checked hyperparameters of an estimator, for d features and examples that weigh `total` together."""

    gauge: Gauge
    ridge: float
    lasso: float


def gauge_of(eps: Any, norm: Any, d: int, *, name: str = "eps") -> Gauge:
    """The attacker of radius `eps`, a number or (d,), in `norm`; errors call the radius `name`."""
    radius = numbers(name, eps)
    if radius.shape not in ((), (d,)):
        raise BadInput(f"`{name}` must be a number or ({d},), one per feature, got shape {radius.shape}")
    return GAUGES[check_one_of("norm", str(norm), GAUGES)](np.array(np.broadcast_to(radius, (d,))))


def numbers(name: str, value: Any) -> np.ndarray:
    """Finite numbers >= 0 as an array."""
    if isinstance(value, (bool, str)) or value is None:
        raise BadInput(f"`{name}` must be a number or one per feature, got {value!r}; as in {name}=0.1")
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise BadInput(f"`{name}` must be a number or one per feature, got {value!r}: {error}") from error
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise BadInput(f"`{name}` must be finite and >= 0, got {value!r}; a radius has no sign")
    return array


def settings(estimator: Any, d: int, total: float) -> Settings:
    """The estimator's hyperparameters, checked."""
    gauge = gauge_of(estimator.eps, estimator.norm, d)
    if estimator.penalty is not None:
        check_one_of("penalty", str(estimator.penalty), PENALTIES)
    for name, kind, what in (("C", Real, "a number"), ("tol", Real, "a number"), ("max_iter", Integral, "whole and")):
        value = getattr(estimator, name)
        if isinstance(value, bool) or not isinstance(value, kind) or not float(value) > 0:
            raise BadInput(f"`{name}` must be {what} > 0, got {value!r}; leave it out for the default")
    strength = 1 / (estimator.C * total)
    return Settings(
        gauge, strength if estimator.penalty == "l2" else 0.0, strength if estimator.penalty == "l1" else 0.0
    )


def checked(estimator: Any, X: Any, y: Any, *, numeric: bool) -> tuple[Any, np.ndarray]:
    """X (n, d) in float64, dense or sparse, and y."""
    X, y = validate_data(
        estimator, X, y, accept_sparse=["csr", "csc"], dtype=np.float64, y_numeric=numeric, accept_large_sparse=False
    )
    return X, y


def shares(X: Matrix, sample_weight: Any) -> tuple[np.ndarray, float]:
    """The examples' weights (n,) and their sum."""
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
    if not (weight >= 0).all():
        raise BadInput(f"`sample_weight` must be >= 0, got {weight.min():g}; drop those examples")
    if not weight.sum() > 0:
        raise BadInput("`sample_weight` must have a positive sum, got only zeros; leave it out for equal weights")
    return weight, float(weight.sum())


@dataclass(frozen=True, eq=False)
class Prepared:
    """The examples as the solver takes them; the features have `middle` (d,) taken off, and `spread` is their size."""

    X: Matrix
    y: np.ndarray
    p: np.ndarray
    total: float
    middle: np.ndarray
    spread: np.ndarray


def prepared(X: Any, y: np.ndarray, weight: np.ndarray, intercept: bool) -> Prepared:
    """The examples with weight, equal ones as one with the sum of their weights, in an order of their own.

    A weight of two is then the same to the last bit as two equal examples, and no order of the data matters. Where an
    intercept takes it up, the mean of each feature of a dense X is taken off, so that an offset costs no digits.
    """
    X, y, weight = _merged(X, y, weight)
    total = float(weight.sum())
    p = weight / total
    middle = np.zeros(X.shape[1])
    if sparse.issparse(X):
        X = sparse.csc_array(X)
    elif intercept:
        middle = p @ X
        X -= middle  # it is a copy
    size = np.sqrt(squares(X, p))
    return Prepared(X, y, p, total, middle, np.where(size > 0, size, 1.0))


def _merged(X: Any, y: np.ndarray, weight: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    mix = np.random.default_rng(0).standard_normal(X.shape[1])
    key = np.concatenate([_keys(part, mix) for part in _blocks(X)])  # row by row: the place of a row changes no bit
    order = np.lexsort((y, key))
    order = order[weight[order] > 0]
    X, y, key, weight = (X.tocsr() if sparse.issparse(X) else X)[order], y[order], key[order], weight[order]
    twin = np.flatnonzero((key[1:] == key[:-1]) & (y[1:] == y[:-1])) + 1
    if len(twin):
        differ = X[twin] != X[twin - 1]
        twin = twin[np.asarray(differ.sum(1)).ravel() == 0]
        first = np.ones(len(y), bool)
        first[twin] = False
        weight = np.add.reduceat(weight, np.flatnonzero(first))
        X, y = X[first], y[first]
    return X, y, weight


def _blocks(X: Any) -> list[Any]:
    rows = max(1, (1 << 20) // max(X.shape[1], 1))
    X = X.tocsr() if sparse.issparse(X) else X
    return [X[start : start + rows] for start in range(0, X.shape[0], rows)]


def _keys(part: Any, mix: np.ndarray) -> np.ndarray:
    if sparse.issparse(part):
        return np.asarray(part.multiply(mix[None]).tocsr().sum(1)).ravel()
    return np.ascontiguousarray(part * mix).sum(1)


def begun(estimator: Any, shape: tuple[int, ...], middle: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Where a warm start begins: weights `shape` and intercepts of the last fit; None if they are for other data."""
    coef = getattr(estimator, "coef_", None) if getattr(estimator, "warm_start", False) else None
    if coef is None:
        return None
    coef = coef.toarray() if sparse.issparse(coef) else np.asarray(coef)
    if coef.shape != shape or not np.isfinite(coef).all():
        return None
    return coef, np.asarray(estimator.intercept_) + coef @ middle


def column(name: str, y: Any, n: int) -> np.ndarray:
    """`y` as (n,)."""
    y = column_or_1d(y)
    if len(y) != n:
        raise BadInput(f"`{name}` must hold one entry per row of X, {n}, got {len(y)}")
    return y


def report(estimator: Any, solutions: list[Solution], unit: float = 1.0) -> None:
    """Set what the solver found out, summed over the parts of a one-against-the-rest fit; warn where it has to be."""
    estimator.n_iter_ = max(solution.n_iter for solution in solutions)
    estimator.objective_ = unit * sum(solution.objective for solution in solutions)
    estimator.dual_gap_ = unit * sum(solution.gap for solution in solutions)
    if not all(solution.converged for solution in solutions):
        warnings.warn(
            f"{type(estimator).__name__} stopped after {estimator.n_iter_} steps with its objective "
            f"{estimator.objective_:.6g} at most {estimator.dual_gap_:.3g} above the optimum, which is more than `tol` "
            "asks for; "
            + (
                "raise `max_iter`"
                if estimator.n_iter_ >= estimator.max_iter
                else "raise `tol`; double precision ends here"
            ),
            ConvergenceWarning,
            stacklevel=3,
        )
    elif not np.any(estimator.coef_):
        warnings.warn(
            f"the weights of {type(estimator).__name__} are all zero: no feature is worth its risk and its penalty, or "
            "none varies; lower `eps` below what `epsball.linear.eps_max` gives, or raise `C`",
            ConstantModelWarning,
            stacklevel=3,
        )
