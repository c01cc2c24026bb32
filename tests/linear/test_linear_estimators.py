"""What scikit-learn and its users expect of the robust estimators, and the radius at which all weights are zero."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.optimize import bisect
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from epsball.common.errors import BadInput
from epsball.linear import (
    RobustLinearSVC,
    RobustLogisticRegression,
    RobustLogisticRegressionCV,
    RobustRegressor,
    eps_max,
)
from epsball.linear.robust import ConstantModelWarning

MODELS: dict[str, Any] = {"logistic": RobustLogisticRegression, "hinge": RobustLinearSVC, "squared": RobustRegressor}
LOSSES = pytest.mark.parametrize("loss", MODELS)
NORMS = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def drawn(loss: str, seed: int, n: int = 120, d: int = 5, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping data with an offset; real targets for the squared loss."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.5, 2, d) + rng.uniform(-1, 1, d)
    score = X @ np.linspace(1.5, -0.5, d) + 1.5 * rng.normal(size=n)
    if loss == "squared":
        return X, score + 4
    return X, np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1] ** 1.3))


@parametrize_with_checks(
    [
        RobustLogisticRegression(),
        RobustLogisticRegression(eps=0.05, norm="l2", penalty="l2"),
        RobustLogisticRegression(eps=0.05, norm="l1"),
        RobustLinearSVC(),
        RobustLinearSVC(eps=0.05, norm="l2", penalty="l2"),
        RobustRegressor(),
        RobustRegressor(eps=0.05, norm="l1", penalty="l1"),
        RobustLogisticRegressionCV(eps=2, cv=2),
    ]
)
@pytest.mark.filterwarnings("ignore::epsball.linear.robust.ConstantModelWarning")  # the checks' data may be noise
@pytest.mark.filterwarnings("ignore:The least populated class:UserWarning")  # scikit-learn's data
@pytest.mark.filterwarnings(
    "ignore:The number of unique classes is greater than 50%:UserWarning"
)  # scikit-learn's data
def test_estimators_pass_scikit_learns_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def refit(model: Any, *data: Any, **more: Any) -> Any:
    return clone(model).fit(*data, **more)


@LOSSES
@NORMS
def test_order_repeats_and_zero_weights_change_no_bit(loss: str, norm: str) -> None:
    X, y = drawn(loss, 1)
    model = MODELS[loss](0.05, norm=norm)
    rng = np.random.default_rng(2)
    base = refit(model, X, y)
    order = rng.permutation(len(y))
    np.testing.assert_array_equal(refit(model, X[order], y[order]).coef_, base.coef_)
    again = refit(model, X, y)
    np.testing.assert_array_equal(again.coef_, base.coef_)
    np.testing.assert_array_equal(again.intercept_, base.intercept_)

    times = rng.integers(0, 4, len(y))
    weighted = refit(model, X, y, sample_weight=times)
    repeated = refit(model, np.repeat(X, times, axis=0), np.repeat(y, times))
    dropped = refit(model, X[times > 0], y[times > 0], sample_weight=times[times > 0])
    assert not np.array_equal(weighted.coef_, base.coef_)
    for other in (repeated, dropped):
        np.testing.assert_array_equal(other.coef_, weighted.coef_)
        np.testing.assert_array_equal(other.intercept_, weighted.intercept_)
    ridge = MODELS[loss](0.05, norm="linf", penalty="l2", C=0.1)
    one, other = refit(ridge, X, y, sample_weight=times), refit(ridge, np.repeat(X, times, axis=0), np.repeat(y, times))
    np.testing.assert_array_equal(one.coef_, other.coef_)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, sparse.csc_array])
def test_repeats_and_order_change_no_bit_in_three_classes_or_sparse(kind: Callable[..., Any]) -> None:
    X, y = drawn("logistic", 3, classes=3)
    X = X * (X > 0)
    times = np.random.default_rng(4).integers(0, 3, len(y))
    model = RobustLogisticRegression(0.05)
    weighted = refit(model, kind(X), y, sample_weight=times)
    repeated = refit(model, kind(np.repeat(X, times, axis=0)[::-1]), np.repeat(y, times)[::-1])
    np.testing.assert_array_equal(repeated.coef_, weighted.coef_)


def test_a_common_weight_of_all_examples_leaves_an_unpenalised_model_unchanged() -> None:
    X, y = drawn("logistic", 5)
    model = RobustLogisticRegression(0.05)
    np.testing.assert_allclose(
        refit(model, X, y, sample_weight=np.full(len(y), 8.0)).coef_, refit(model, X, y).coef_, rtol=1e-12
    )


def test_balanced_weights_equal_those_written_out() -> None:
    X, y = drawn("logistic", 6, classes=3)
    share = np.bincount(y) / len(y)
    out = 1 / (3 * share)
    one = RobustLogisticRegression(0.05, class_weight="balanced").fit(X, y)
    two = RobustLogisticRegression(0.05).fit(X, y, sample_weight=out[y])
    np.testing.assert_allclose(one.coef_, two.coef_, rtol=1e-6)


@LOSSES
@NORMS
def test_a_warm_start_from_the_solution_takes_fewer_iterations(loss: str, norm: str) -> None:
    X, y = drawn(loss, 7)
    model = MODELS[loss](0.05, norm=norm, warm_start=True).fit(X, y)
    cold, before = model.n_iter_, model.objective_
    model.fit(X, y)
    assert model.n_iter_ < cold
    assert model.objective_ == pytest.approx(before, abs=2e-6 * max(1.0, np.var(y)))


@pytest.mark.parametrize("change", ["features", "more classes", "fewer classes", "sparsified", "other norm"])
def test_a_warm_start_from_another_problem_reaches_the_same_objective(change: str) -> None:
    X, y = drawn("logistic", 8)
    _, three = drawn("logistic", 8, classes=3)
    first, then = {"features": ((X, y), (X[:, :3], y)), "more classes": ((X, y), (X, three))}.get(
        change, ((X, three), (X, y)) if change == "fewer classes" else ((X, y), (X, y))
    )
    model = RobustLogisticRegression(0.05, warm_start=True).fit(*first)
    if change == "sparsified":
        model.sparsify()
    if change == "other norm":
        model.set_params(norm="l2")
    model.fit(*then)
    cold = RobustLogisticRegression(0.05, norm=model.norm).fit(*then)
    assert model.coef_.shape == cold.coef_.shape
    assert model.objective_ == pytest.approx(cold.objective_, abs=2e-6)


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array, sparse.csc_array, np.asfortranarray])
@LOSSES
def test_fitting_and_scoring_leave_arguments_unchanged(loss: str, kind: Callable[..., Any]) -> None:
    X, y = drawn(loss, 9)
    given, target, weight, eps = kind(X.copy()), y.copy(), np.linspace(0, 1, len(y)), np.full(5, 0.05)
    model = MODELS[loss](eps).fit(given, target, sample_weight=weight)
    model.worst_loss(given, target)
    model.predict(given)
    if loss != "squared":
        model.robust_score(given, target)
    np.testing.assert_array_equal(given.toarray() if sparse.issparse(given) else given, X)
    np.testing.assert_array_equal(target, y)
    np.testing.assert_array_equal(weight, np.linspace(0, 1, len(y)))
    np.testing.assert_array_equal(eps, 0.05)
    assert model.eps is eps


@LOSSES
def test_pickles_and_clones_equal_the_estimator(loss: str) -> None:
    X, y = drawn(loss, 10)
    model = MODELS[loss](0.07, norm="l2", penalty="l1", C=0.5, tol=1e-5)
    assert clone(model).get_params() == model.get_params()
    assert model.get_params()["C"] == 0.5
    with pytest.raises(NotFittedError):
        model.worst_loss(X, y)
    model.fit(X, y)
    other = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(other.predict(X), model.predict(X))
    assert other.worst_loss(X, y) == model.worst_loss(X, y)
    assert vars(clone(model)).keys() == model.get_params().keys()


def test_labels_names_and_pipelines_are_supported() -> None:
    X, y = drawn("logistic", 11, classes=3)
    names = np.array(["low", "mid", "top"])[y]
    frame = pd.DataFrame(X, columns=list("abcde"))
    model = RobustLogisticRegression(0.05).fit(frame, names)
    assert list(model.classes_) == ["low", "mid", "top"]
    assert list(model.feature_names_in_) == list("abcde")
    assert set(model.predict(frame)) <= set(names)
    np.testing.assert_allclose(model.predict_proba(frame).sum(1), 1)
    np.testing.assert_allclose(np.log(model.predict_proba(frame)), model.predict_log_proba(frame))
    assert model.robust_score(frame, names, 0.0) == model.score(frame, names)
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[list("edcba")])
    two = RobustLogisticRegression(0.05).fit(frame, names == "top")
    assert two.predict(frame).dtype == bool
    assert two.coef_.shape == (1, 5)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), RobustLinearSVC()), {"robustlinearsvc__eps": [0.01, 0.1]}, cv=3
    )
    assert search.fit(frame, names).best_score_ > 0.5


@pytest.mark.parametrize("model", [RobustLogisticRegression, RobustLinearSVC, RobustRegressor])
@pytest.mark.parametrize("shape", ["column", "too short", "too long"])
def test_targets_that_do_not_fit_are_refused(model: Any, shape: str) -> None:
    X, y = drawn("logistic", 12)
    fitted = model(0.05).fit(X, y)
    other = {"column": y[:, None], "too short": y[:1], "too long": np.append(y, y)}[shape]
    measures = [fitted.worst_loss] + ([] if model is RobustRegressor else [fitted.robust_score])
    for measure in measures:
        expected = measure(X, y)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # scikit-learn warns of a column
                got = measure(X, other)
        except ValueError:
            continue
        assert shape == "column", "a target of another length must be refused"
        assert got == expected


BAD: list[tuple[dict[str, Any], str]] = [
    ({"eps": -0.1}, "eps"),
    ({"eps": np.nan}, "eps"),
    ({"eps": np.inf}, "eps"),
    ({"eps": None}, "eps"),
    ({"eps": "0.1"}, "eps"),
    ({"eps": True}, "eps"),
    ({"eps": [0.1, 0.2]}, "eps"),
    ({"eps": [[0.1] * 5]}, "eps"),
    ({"eps": [0.1, 0.1, -0.1, 0.1, 0.1]}, "eps"),
    ({"eps": ["a"] * 5}, "eps"),
    ({"norm": "l-inf"}, "norm.*did you mean 'linf'"),
    ({"norm": "L2"}, "norm.*did you mean 'l2'"),
    ({"norm": 2}, "norm"),
    ({"penalty": "ridge"}, "penalty"),
    ({"penalty": "L1"}, "penalty.*did you mean 'l1'"),
    ({"C": 0}, "`C`"),
    ({"C": -1.0}, "`C`"),
    ({"C": np.nan}, "`C`"),
    ({"C": "1"}, "`C`"),
    ({"tol": 0}, "tol"),
    ({"tol": -1e-6}, "tol"),
    ({"max_iter": 0}, "max_iter"),
    ({"max_iter": None}, "max_iter"),
]


@LOSSES
@pytest.mark.parametrize(("settings", "named"), BAD, ids=[str(case[0]) for case in BAD])
def test_a_wrong_setting_is_refused_by_name(loss: str, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        MODELS[loss](**settings).fit(*drawn(loss, 13))


@pytest.mark.parametrize("model", [RobustLogisticRegression, RobustLinearSVC])
def test_labels_that_cannot_be_learnt_are_refused(model: Any) -> None:
    X, y = drawn("logistic", 14)
    with pytest.raises(ValueError, match="class"):
        model().fit(X, np.zeros(len(y)))
    with pytest.raises(ValueError, match="class"):
        model().fit(X, y, sample_weight=y)  # one class weighs nothing
    with pytest.raises(ValueError, match="continuous"):
        model().fit(X, X[:, 0])
    with pytest.raises(ValueError, match="y"):
        model().fit(X, y).worst_loss(X, y + 7)


@LOSSES
def test_data_that_cannot_be_fitted_are_refused(loss: str) -> None:
    X, y = drawn(loss, 15)
    for bad in (np.nan, np.inf):
        broken = X.copy()
        broken[3, 2] = bad
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            MODELS[loss]().fit(broken, y)
    with pytest.raises(ValueError, match="sample_weight"):
        MODELS[loss]().fit(X, y, sample_weight=-np.ones(len(y)))
    with pytest.raises(ValueError, match=r"sample_weight|Sample weights"):  # scikit-learn's message, or ours
        MODELS[loss]().fit(X, y, sample_weight=np.zeros(len(y)))
    with pytest.raises(ValueError, match="inconsistent"):
        MODELS[loss]().fit(X, y[:-1])
    with pytest.raises(ValueError, match="eps"):
        MODELS[loss]().fit(X, y).worst_loss(X, y, eps=-1)
    with pytest.raises(ValueError, match="features"):
        MODELS[loss]().fit(X, y).worst_loss(X[:, :3], y)


@LOSSES
@NORMS
def test_a_fit_that_did_not_converge_warns_with_its_gap(loss: str, norm: str) -> None:
    X, y = drawn(loss, 16)
    model = MODELS[loss](0.05, norm=norm, max_iter=2)
    with pytest.warns(ConvergenceWarning) as caught:
        model.fit(X, y)
    full = MODELS[loss](0.05, norm=norm).fit(X, y)
    assert model.n_iter_ == 2
    assert f"{model.dual_gap_:.3g}" in str(caught[0].message)
    assert np.isfinite(model.dual_gap_)
    assert model.objective_ - model.dual_gap_ <= full.objective_
    assert model.dual_gap_ > full.dual_gap_


def quiet(model: Any, X: Any, y: Any, **more: Any) -> Any:
    """Fitted, without a warning where all weights are zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantModelWarning)
        return model.fit(X, y, **more)


@LOSSES
@NORMS
@pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "through zero"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "per feature"])
def test_weights_vanish_exactly_from_eps_max_on(
    loss: str, norm: str, intercept: bool, weighted: bool, scaled: bool
) -> None:
    X, y = drawn(loss, 17, n=80)
    weight = np.linspace(0.2, 2, 80) if weighted else None
    scale = np.linspace(0.5, 2, 5) if scaled else np.ones(5)
    top = eps_max(X, y, loss=loss, norm=norm, scale=scale, fit_intercept=intercept, sample_weight=weight)
    for factor in (1.0 + 1e-5, 1.5):
        model = MODELS[loss](factor * top * scale, norm=norm, fit_intercept=intercept)
        with pytest.warns(ConstantModelWarning, match="zero"):
            model.fit(X, y, sample_weight=weight)
        assert (model.coef_ == 0).all()
        constant = model.objective_
    below = MODELS[loss](0.97 * top * scale, norm=norm, fit_intercept=intercept).fit(X, y, sample_weight=weight)
    assert np.abs(below.coef_).max() > 1e-4
    assert below.objective_ < constant - 1e-6 * constant


@LOSSES
@NORMS
@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_a_penalty_gives_no_weights_above_eps_max(loss: str, norm: str, penalty: str) -> None:
    X, y = drawn(loss, 18)
    top = eps_max(X, y, loss=loss, norm=norm)
    model = MODELS[loss](1.01 * top, norm=norm, penalty=penalty, C=10.0)
    with pytest.warns(ConstantModelWarning, match="zero"):
        model.fit(X, y)
    assert (model.coef_ == 0).all()


@pytest.mark.parametrize("loss", ["logistic", "hinge"])
@NORMS
def test_weights_of_three_classes_vanish_from_eps_max_on(loss: str, norm: str) -> None:
    X, y = drawn(loss, 19, n=90, classes=3)
    top = eps_max(X, y, loss=loss, norm=norm)
    with pytest.warns(ConstantModelWarning, match="zero"):
        zero = MODELS[loss](1.00001 * top, norm=norm).fit(X, y)
    assert (zero.coef_ == 0).all()
    if loss == "hinge" or norm == "linf":  # for the logistic loss in l2 and l1 it is an upper bound
        below = MODELS[loss](0.97 * top, norm=norm).fit(X, y)
        assert np.abs(below.coef_).max() > 1e-4
        assert below.objective_ < zero.objective_


@pytest.mark.parametrize("intercept", [True, False])
def test_bisection_on_fits_finds_eps_max_for_three_classes(intercept: bool) -> None:
    X, y = drawn("logistic", 20, n=90, classes=3)

    def useful(eps: float) -> float:
        model = RobustLogisticRegression(eps, fit_intercept=intercept, tol=1e-9)
        return 1.0 if np.any(quiet(model, X, y).coef_) else -1.0

    found = bisect(useful, 0.01, 10.0, xtol=1e-5)
    # Below the radius the objective falls with the square of the distance: 1e-9 of it is seen from 1e-4 on.
    assert eps_max(X, y, fit_intercept=intercept) == pytest.approx(found, rel=3e-4)


def test_eps_max_scales_with_the_units() -> None:
    X, y = drawn("logistic", 21)
    for loss, norm in (("logistic", "linf"), ("logistic", "l2"), ("hinge", "linf"), ("hinge", "l1"), ("squared", "l1")):
        once = eps_max(X, y, loss=loss, norm=norm)
        assert eps_max(40 * X + 3, y, loss=loss, norm=norm) == pytest.approx(40 * once, rel=1e-6)
        units = np.geomspace(0.01, 100, 5)
        scaled = eps_max(X * units, y, loss=loss, norm=norm, scale=units)
        assert scaled == pytest.approx(once, rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss": "logit"}, "loss.*did you mean 'logistic'"),
        ({"norm": "linff"}, "norm.*did you mean 'linf'"),
        ({"scale": 0.0}, "scale"),
        ({"scale": -np.ones(5)}, "scale"),
        ({"scale": np.ones(3)}, "scale"),
        ({"sample_weight": -np.ones(120)}, "sample_weight"),
    ],
)
def test_a_wrong_argument_of_eps_max_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        eps_max(*drawn("logistic", 22), **settings)


def test_eps_max_of_one_class_is_refused() -> None:
    X, y = drawn("logistic", 23)
    with pytest.raises(BadInput, match="class"):
        eps_max(X, 0 * y)
    with pytest.raises(BadInput, match="class"):
        eps_max(X, y, sample_weight=y)


@pytest.mark.parametrize("intercept", [True, False])
def test_a_constant_target_gives_no_weights(intercept: bool) -> None:
    X, _ = drawn("squared", 24, n=7)
    model = quiet(RobustRegressor(0.1, fit_intercept=intercept), X, np.full(7, 0.1 if intercept else 0.0))
    assert (model.coef_ == 0).all()
    assert model.intercept_ == pytest.approx(0.1 if intercept else 0.0, rel=1e-12)
    assert 0 <= model.objective_ < 1e-20
