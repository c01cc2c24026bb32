"""The robust estimators at the limits of what can be asked of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LinearRegression, LogisticRegression

from epsball.common.errors import BadInput
from epsball.linear import (
    RobustLinearSVC,
    RobustLogisticRegression,
    RobustLogisticRegressionCV,
    RobustRegressor,
    eps_max,
)
from epsball.linear.robust import ConstantModelWarning

MODELS: dict[str, Any] = {
    "logistic": RobustLogisticRegression,
    "hinge": RobustLinearSVC,
    "squared": RobustRegressor,
    "cv": RobustLogisticRegressionCV,
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
CLASSIFIERS = pytest.mark.parametrize("name", [name for name in MODELS if name != "squared"])


def model_of(name: str, eps: Any = 0.05, **more: Any) -> Any:
    return RobustLogisticRegressionCV([0.05], cv=2, **more) if name == "cv" else MODELS[name](eps, **more)


def drawn(n: int = 40, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    X = rng.normal(size=(n, d)) + 1
    return X, (X @ np.linspace(2, -1, d) + rng.normal(size=n) > 1).astype(int)


@EVERY_MODEL
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    X, y = drawn()
    broken = X.copy()
    broken[3, 1] = bad
    with pytest.raises(BadInput, match=r"`X` must .*(NaN|infinity)"):
        model_of(name).fit(broken, y)
    fitted = model_of(name).fit(X, y)
    with pytest.raises(BadInput, match=r"`X` must .*(NaN|infinity)"):
        fitted.worst_loss(broken, y)
    with pytest.raises(BadInput, match=r"`X` must .*(NaN|infinity)"):
        eps_max(broken, y)


@CLASSIFIERS
def test_one_class_is_refused(name: str) -> None:
    X, y = drawn()
    with pytest.raises(BadInput, match="at least two classes"):
        model_of(name).fit(X, 0 * y)
    with pytest.raises(BadInput, match="at least two classes"):
        model_of(name).fit(X, y, sample_weight=y)
    with pytest.raises(BadInput, match=r"`y` must .*continuous"):
        model_of(name).fit(X, X[:, 0])


@EVERY_MODEL
def test_weights_of_zero_leave_examples_out_and_all_zeros_are_refused(name: str) -> None:
    X, y = drawn()
    with pytest.raises(BadInput, match="sample_weight"):
        model_of(name).fit(X, y, sample_weight=np.zeros(40))
    weight = np.ones(40)
    weight[::4] = 0
    fitted = model_of(name).fit(X, y, sample_weight=weight)
    if name != "cv":  # whose folds are others
        np.testing.assert_array_equal(fitted.coef_, model_of(name).fit(X[weight > 0], y[weight > 0]).coef_)
    for measure in [fitted.worst_loss] + ([] if name == "squared" else [fitted.robust_score]):
        assert measure(X, y, sample_weight=weight) == pytest.approx(measure(X[weight > 0], y[weight > 0]), rel=1e-12)
        for wrong in (np.zeros(40), -weight, weight[:7], "heavy"):
            with pytest.raises(BadInput, match=r"sample_weight"):
                measure(X, y, sample_weight=wrong)


@pytest.mark.parametrize("eps", [0, 0.0, np.zeros(3)])
def test_a_radius_of_zero_is_the_plain_model(eps: Any) -> None:
    X, y = drawn()
    plain = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(X, y)
    robust = RobustLogisticRegression(eps, tol=1e-9).fit(X, y)
    np.testing.assert_allclose(robust.coef_, plain.coef_, rtol=1e-3)
    assert robust.robust_score(X, y) == robust.score(X, y)
    target = X @ [1.0, 2.0, 0.0] + np.sin(X[:, 2])
    least_squares = LinearRegression().fit(X, target)
    np.testing.assert_allclose(RobustRegressor(eps, tol=1e-9).fit(X, target).coef_, least_squares.coef_, atol=1e-3)


@EVERY_MODEL
@pytest.mark.parametrize("eps", [np.inf, [0.1, np.inf, 0.1], np.nan])
def test_a_radius_that_is_not_finite_is_refused_and_eps_max_is_the_remedy(name: str, eps: Any) -> None:
    X, y = drawn()
    with pytest.raises(
        BadInput, match=r"`eps` must be finite and >= 0, got (inf|nan); from `epsball.linear.eps_max` on"
    ):
        (MODELS[name](eps, cv=2) if name == "cv" else model_of(name, eps)).fit(X, y)
    if name in ("logistic", "hinge", "squared"):
        with pytest.warns(ConstantModelWarning):
            assert not model_of(name, 1.001 * eps_max(X, y, loss=name)).fit(X, y).coef_.any()


@EVERY_MODEL
@pytest.mark.parametrize("value", [0.0, 1.0, -7.25, 1e6])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array])
def test_a_constant_column_has_no_weight_and_changes_nothing(
    name: str, value: float, kind: Callable[[np.ndarray], Any]
) -> None:
    X, y = drawn()
    wider = np.insert(X, 1, value, axis=1)
    fitted, without = model_of(name).fit(kind(wider), y), model_of(name).fit(X, y)
    coef = np.atleast_2d(fitted.coef_)
    assert abs(coef[:, 1] * value).max() < 1e-6
    assert fitted.objective_ == pytest.approx(without.objective_, abs=3e-6)


@EVERY_MODEL
def test_columns_that_are_all_constant_give_the_constant_model(name: str) -> None:
    X, y = np.full((40, 3), 2.5), drawn()[1]
    with pytest.warns(ConstantModelWarning, match="none varies"):
        fitted = model_of(name).fit(X, y)
    assert not np.any(fitted.coef_)
    assert np.isfinite(fitted.intercept_).all()


@EVERY_MODEL
def test_examples_that_are_few_or_wide_are_fitted(name: str) -> None:
    X, y = drawn(6, 30)
    y[:] = [0, 1, 0, 1, 0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantModelWarning)
        fitted = model_of(name).fit(X, y)
    assert np.isfinite(fitted.coef_).all()
    assert fitted.dual_gap_ <= 2e-6


@EVERY_MODEL
def test_numbers_whose_squares_leave_the_range_of_doubles_are_refused(name: str) -> None:
    X, y = drawn()
    with pytest.raises(BadInput, match=r"`X` must hold numbers up to 1e\+100, got .*; scale its features"):
        model_of(name).fit(X * 1e200, y)
    model_of(name).fit(X * 1e200 / 1e200, y)
