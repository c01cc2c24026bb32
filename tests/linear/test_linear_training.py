"""Robust training against references that share nothing with it: cvxpy, corners of the ball, scikit-learn."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

from epsball.balls.registry import BALLS
from epsball.linear import RobustLinearSVC, RobustLogisticRegression, RobustRegressor, optimum

MODELS: dict[str, Any] = {"logistic": RobustLogisticRegression, "hinge": RobustLinearSVC, "squared": RobustRegressor}
LOSSES = pytest.mark.parametrize("loss", MODELS)
NORMS = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
PENALTIES = pytest.mark.parametrize("penalty", [None, "l2", "l1"])
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
TOL = 1e-6


@dataclass
class Table:
    """Overlapping data with an offset and columns of different spread; y in 0..K-1, or real."""

    X: np.ndarray
    y: np.ndarray

    @classmethod
    def drawn(cls, seed: int, n: int = 300, d: int = 20, classes: int = 2) -> Table:
        rng = np.random.default_rng(seed)
        Z = rng.normal(size=(n, d))
        few = rng.normal(size=(d, max(classes, 1))) * (np.arange(d) < 6)[:, None]
        scores = Z @ few + 1.5 * rng.normal(size=(n, max(classes, 1)))
        y = scores[:, 0] + 3.0 if classes == 0 else scores.argmax(1)
        return cls(Z * rng.uniform(0.5, 2.0, d) + rng.uniform(-1.0, 1.0, d), y)

    @classmethod
    def for_loss(cls, loss: str, seed: int, n: int = 300, d: int = 20) -> Table:
        return cls.drawn(seed, n, d, 0 if loss == "squared" else 2)


def gain(w: np.ndarray, eps: Any, norm: str) -> float:
    return float(np.linalg.norm(eps * w, DUAL[norm]))


def losses(loss: str, X: np.ndarray, y: np.ndarray, W: np.ndarray, b: np.ndarray, eps: Any, norm: str) -> np.ndarray:
    """The worst-case loss of each example, written out from its definition."""
    if len(W) > 1:
        out = np.empty(len(y))
        for i, (x, k) in enumerate(zip(X, y, strict=True)):
            rivals = [
                (W[j] - W[k]) @ x + b[j] - b[k] + gain(W[k] - W[j], eps, norm) if j != k else 0.0 for j in range(len(W))
            ]
            out[i] = logsumexp(rivals)
        return out
    s, t = X @ W[0] + b[0], gain(W[0], eps, norm)
    if loss == "squared":
        return (np.abs(y - s) + t) ** 2
    margin = np.where(y == 1, s, -s) - t
    return np.maximum(0, 1 - margin) if loss == "hinge" else np.logaddexp(0, -margin)


def risk(loss: str, table: Table, W: Any, b: Any, eps: Any, norm: str, weight: Any, penalty: Any, C: float) -> float:
    """What a fit minimises, by hand."""
    W, b = np.atleast_2d(W), np.atleast_1d(b)
    weight = np.ones(len(table.y)) if weight is None else weight
    extra = {None: 0.0, "l2": (W**2).sum() / 2, "l1": np.abs(W).sum()}[penalty] / (C * weight.sum())
    return float(np.average(losses(loss, table.X, table.y, W, b, eps, norm), weights=weight) + extra)


def of_constant(loss: str, table: Table, weight: Any, intercept: bool) -> float:
    """The objective of the best model without weights."""
    weight = np.ones(len(table.y)) if weight is None else weight
    if loss == "logistic":
        share = np.bincount(table.y, weight) / weight.sum()
        return float(-(share @ np.log(share))) if intercept else float(np.log(len(share)))
    zero = np.zeros(table.X.shape[1])

    def at(b: float) -> float:
        return risk(loss, table, zero, b, 0.0, "linf", weight, None, 1.0)

    return minimize_scalar(at, bracket=(-1, 1), options={"xtol": 1e-10}).fun if intercept else at(0.0)


def reference(
    loss: str, table: Table, eps: Any, norm: str, weight: Any, penalty: Any, C: float, intercept: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(W, b) of an interior-point method for cones."""
    n, d = table.X.shape
    classes = int(table.y.max()) + 1 if loss == "logistic" else 2
    weight = np.ones(n) if weight is None else weight
    p = weight / weight.sum()
    W, b = cp.Variable((classes if classes > 2 else 1, d)), cp.Variable(classes if classes > 2 else 1)
    size = {"linf": cp.norm1, "l2": cp.norm2, "l1": cp.norm_inf}[norm]
    if classes > 2:
        pairs = {
            (k, j): size(cp.multiply(np.broadcast_to(eps, (d,)), W[k] - W[j]))
            for k, j in itertools.combinations(range(classes), 2)
        }
        worst = 0
        for k in range(classes):
            rows, mine = table.X[table.y == k], p[table.y == k]
            columns = [
                rows @ (W[j] - W[k]) + b[j] - b[k] + (pairs[min(j, k), max(j, k)] if j != k else 0)
                for j in range(classes)
            ]
            worst += mine @ cp.log_sum_exp(cp.vstack(columns).T, axis=1)
    else:
        s, t = table.X @ W[0] + b[0], size(cp.multiply(np.broadcast_to(eps, (d,)), W[0]))
        sign = np.where(table.y == 1, 1.0, -1.0)
        if loss == "squared":
            worst = p @ cp.square(cp.abs(table.y - s) + t)
        elif loss == "hinge":
            worst = p @ cp.pos(1 + t - cp.multiply(sign, s))
        else:
            worst = p @ cp.logistic(t - cp.multiply(sign, s))
    extra = {None: 0, "l2": cp.sum_squares(W) / 2, "l1": cp.sum(cp.abs(W))}[penalty]
    problem = cp.Problem(cp.Minimize(worst + extra / (C * weight.sum())), [] if intercept else [b == 0])
    with warnings.catch_warnings():
        # It may stop a little short of 1e-10 and warns; `compare` evaluates the point that it returns.
        warnings.filterwarnings("ignore", "Solution may be inaccurate", UserWarning)
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert problem.status in ("optimal", "optimal_inaccurate")
    return W.value, b.value if intercept else np.zeros_like(b.value)


def radius(kind: str, d: int) -> Any:
    """A number; one per feature; one per feature, some of them zero."""
    per_feature = np.linspace(0.04, 0.12, d)
    return {"number": 0.08, "per feature": per_feature, "some zero": per_feature * (np.arange(d) % 3 > 0)}[kind]


def compare(loss: str, table: Table, norm: str, penalty: Any, kind: str, weighted: str, intercept: bool) -> None:
    """A fit against the cone solver: the same objective to six digits, and a gap that is an upper bound."""
    n, d = table.X.shape
    rng = np.random.default_rng(n + d)
    weight = rng.uniform(0.2, 3.0, n) if weighted == "examples" else None
    C, eps, settings = 0.05 if table.y.max() < 2 or loss == "squared" else 0.5, radius(kind, d), {}
    if weighted == "classes" and loss != "squared":
        settings["class_weight"] = {0: 1.0, 1: 2.5}
        effective = np.where(table.y == 1, 2.5, 1.0)
    else:
        effective = weight
    model = MODELS[loss](eps, norm=norm, penalty=penalty, C=C, fit_intercept=intercept, tol=TOL, **settings)
    model.fit(table.X, table.y, sample_weight=weight)
    W, b = reference(loss, table, eps, norm, effective, penalty, C, intercept)

    def objective(W: Any, b: Any) -> float:
        return risk(loss, table, W, b, eps, norm, effective, penalty, C)

    constant, best = of_constant(loss, table, effective, intercept), objective(W, b)
    assert best < 0.98 * constant, "the case must not be trivial"
    assert model.objective_ == pytest.approx(objective(model.coef_, model.intercept_), rel=1e-12)
    assert model.objective_ == pytest.approx(best, abs=TOL * constant)
    slack = 1e-8 * constant  # the error of the reference
    assert model.objective_ - model.dual_gap_ <= best, "the lower bound must be below every objective"
    assert best <= model.objective_ + slack, "no objective is below the optimum"
    assert 0 <= model.dual_gap_ <= TOL * constant
    assert intercept or np.all(model.intercept_ == 0)


@LOSSES
@NORMS
@PENALTIES
def test_fits_reach_the_optimum_that_a_cone_solver_finds(loss: str, norm: str, penalty: str | None) -> None:
    compare(loss, Table.for_loss(loss, 3), norm, penalty, "number", "none", True)


@LOSSES
@pytest.mark.parametrize("kind", ["number", "per feature", "some zero"])
@pytest.mark.parametrize("weighted", ["none", "examples", "classes"])
@pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "through zero"])
def test_radii_weights_and_intercepts_reach_the_cone_solvers_optimum(
    loss: str, kind: str, weighted: str, intercept: bool
) -> None:
    place = ["none", "examples", "classes"].index(weighted) + ["number", "per feature", "some zero"].index(kind)
    norm = ["linf", "l2", "l1"][place % 3]
    compare(
        loss,
        Table.for_loss(loss, 4, d=12),
        norm,
        [None, "l2", "l1"][(place + intercept) % 3],
        kind,
        weighted,
        intercept,
    )


@NORMS
@pytest.mark.parametrize(("classes", "penalty"), [(3, None), (3, "l2"), (3, "l1"), (5, None)])
def test_many_classes_reach_the_optimum_that_a_cone_solver_finds(norm: str, classes: int, penalty: str | None) -> None:
    compare("logistic", Table.drawn(5, 120, 8, classes), norm, penalty, "number", "none", True)


@NORMS
@pytest.mark.parametrize(
    ("kind", "weighted", "intercept"), [("per feature", "examples", False), ("some zero", "none", True)]
)
def test_many_classes_with_radii_per_feature_and_weights_reach_the_cone_solvers_optimum(
    norm: str, kind: str, weighted: str, intercept: bool
) -> None:
    compare("logistic", Table.drawn(6, 120, 6, 3), norm, None, kind, weighted, intercept)


@NORMS
@pytest.mark.parametrize("eps", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_tiny_radius_gives_almost_the_model_of_radius_zero(norm: str, eps: float, classes: int) -> None:
    table = Table.drawn(7, 200, 5, classes)
    model = RobustLogisticRegression(eps, norm=norm).fit(table.X, table.y)
    plain = RobustLogisticRegression(0, norm=norm).fit(table.X, table.y)
    reach = gain(np.abs(plain.coef_).sum(0) * 2, eps, norm)
    assert plain.objective_ - 2e-6 <= model.objective_ <= plain.objective_ + reach + 2e-6
    assert np.abs(model.coef_ - model.coef_.mean(0) * (classes > 2)).max() < 10 * np.abs(plain.coef_).max()


@NORMS
def test_the_weights_of_many_classes_do_not_drift_along_a_common_shift(norm: str) -> None:
    """Adding one vector to all classes changes no loss; the weights must not grow along it."""
    table = Table.drawn(8, 200, 5, 3)
    coef = RobustLogisticRegression(0.05, norm=norm).fit(table.X, table.y).coef_
    apart = max(np.abs(coef[k] - coef[j]).max() for k, j in itertools.combinations(range(3), 2))
    assert np.abs(coef).max() <= apart


@LOSSES
def test_the_objective_is_the_mean_loss_at_the_worst_corner(loss: str) -> None:
    """Every corner of the max-norm ball around every example, d = 6."""
    table = Table.for_loss(loss, 9, 60, 6)
    eps = np.linspace(0.1, 0.3, 6)
    model = MODELS[loss](eps).fit(table.X, table.y)
    corners = eps * np.array(list(itertools.product([-1.0, 1.0], repeat=6)))
    moved = table.X[:, None] + corners
    scores = moved @ model.coef_.ravel() + model.intercept_
    target = table.y[:, None]
    sign = np.where(target == 1, 1.0, -1.0)
    at_corners = {
        "logistic": lambda: np.logaddexp(0, -sign * scores),
        "hinge": lambda: np.maximum(0, 1 - sign * scores),
        "squared": lambda: (target - scores) ** 2,
    }[loss]()
    worst = at_corners.max(1)
    assert model.objective_ == pytest.approx(worst.mean(), rel=1e-12)
    weight = np.linspace(0.0, 2.0, 60)
    assert model.worst_loss(table.X, table.y, sample_weight=weight) == pytest.approx(np.average(worst, weights=weight))
    if loss != "squared":
        robust = ((sign * scores).min(1) > 0).astype(float)
        assert 0 < robust.mean() < 1
        assert model.robust_score(table.X, table.y) == robust.mean()
        assert model.robust_score(table.X, table.y, sample_weight=weight) == pytest.approx(
            np.average(robust, weights=weight)
        )


def test_many_classes_bound_the_worst_cross_entropy_from_above() -> None:
    """One perturbation for all rivals at once (a corner) does no more than one per rival class."""
    table = Table.drawn(10, 50, 5, 4)
    model = RobustLogisticRegression(0.15).fit(table.X, table.y)
    corners = 0.15 * np.array(list(itertools.product([-1.0, 1.0], repeat=5)))
    scores = (table.X[:, None] + corners) @ model.coef_.T + model.intercept_
    cross = logsumexp(scores, axis=2) - scores[np.arange(50), :, table.y]
    per_rival = losses("logistic", table.X, table.y, model.coef_, model.intercept_, 0.15, "linf")
    assert (per_rival >= cross.max(1) - 1e-12).all()
    assert model.worst_loss(table.X, table.y) == pytest.approx(per_rival.mean(), rel=1e-12)
    robust = (scores.argmax(2) == table.y[:, None]).all(1)
    assert 0 < robust.mean() < 1
    assert model.robust_score(table.X, table.y) == robust.mean()


@NORMS
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("model", [RobustLogisticRegression, RobustLinearSVC])
def test_scores_agree_with_the_exact_optimum_of_the_attacker(model: Any, classes: int, norm: str) -> None:
    table, fresh = (Table.drawn(seed, 150, 7, classes) for seed in (11, 11))
    fresh.X = fresh.X + np.random.default_rng(12).normal(size=fresh.X.shape) * 0.2
    names = np.array(["ant", "bee", "cow"])[:classes]
    fitted = model(0.05, norm=norm).fit(table.X, names[table.y])
    for eps in (0.0, 0.05, 0.3):
        best = optimum(fitted, None, torch.tensor(fresh.X), names[fresh.y], BALLS[norm](eps=eps))
        assert fitted.robust_score(fresh.X, names[fresh.y], eps) == pytest.approx(best.robust_accuracy, abs=1e-12)
        if classes == 2 and model is RobustLogisticRegression:
            assert fitted.worst_loss(fresh.X, names[fresh.y], eps) == pytest.approx(best.loss_after.mean().item())
    assert fitted.robust_score(fresh.X, names[fresh.y], 0.0) == fitted.score(fresh.X, names[fresh.y])


@pytest.mark.parametrize("model", [RobustLogisticRegression, RobustLinearSVC])
def test_a_tie_goes_to_the_first_class(model: Any) -> None:
    """The distance of every example to the decision boundary is exactly the radius."""
    X, y = np.array([[-0.5], [0.5], [-0.5], [0.5]]), np.array([0, 1, 0, 1])
    fitted = model(0.5).fit(np.array([[-2.0], [2.0]]), np.array([0, 1]))
    fitted.coef_, fitted.intercept_ = np.array([[1.0]]), np.array([0.0])
    best = optimum(fitted, None, torch.tensor(X), y, BALLS["linf"](eps=0.5))
    assert best.robust.tolist() == [True, False, True, False]
    assert fitted.robust_score(X[:1], y[:1]) == 1.0
    assert fitted.robust_score(X[1:2], y[1:2]) == 0.0


@pytest.mark.parametrize("penalty", ["l2", None])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("classes", [2, 3])
def test_radius_zero_is_the_logistic_regression_of_scikit_learn(penalty: Any, intercept: bool, classes: int) -> None:
    table = Table.drawn(13, 300, 6, classes)
    strength = 0.3 if penalty else np.inf
    theirs = LogisticRegression(
        C=strength, fit_intercept=intercept, tol=1e-10, max_iter=10_000, solver="newton-cholesky"
    )
    theirs.fit(table.X, table.y)
    C = 0.3 if penalty else 1.0
    for norm in ("linf", "l2", "l1"):
        ours = RobustLogisticRegression(0, norm=norm, penalty=penalty, C=C, fit_intercept=intercept, tol=1e-11)
        ours.fit(table.X, table.y)
        W, V = (coef - coef.mean(0) * (classes > 2) for coef in (ours.coef_, theirs.coef_))
        b, c = (np.ravel(bias) - np.mean(bias) * (classes > 2) for bias in (ours.intercept_, theirs.intercept_))
        np.testing.assert_allclose(W, V, atol=1e-4)
        np.testing.assert_allclose(b, c, atol=1e-4)
        if classes == 2:
            np.testing.assert_allclose(ours.predict_proba(table.X), theirs.predict_proba(table.X), atol=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
def test_radius_zero_is_least_squares_or_ridge(intercept: bool) -> None:
    table = Table.for_loss("squared", 14, 200, 6)
    plain = LinearRegression(fit_intercept=intercept).fit(table.X, table.y)
    ours = RobustRegressor(0, fit_intercept=intercept, tol=1e-12).fit(table.X, table.y)
    np.testing.assert_allclose(ours.coef_, plain.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, plain.intercept_, atol=1e-5)
    # mean (y - s)^2 + |w|^2 / (2 C n) is 1 / n times sum (y - s)^2 + alpha |w|^2 at alpha = 1 / (2 C).
    ridge = Ridge(alpha=1 / (2 * 0.02), fit_intercept=intercept).fit(table.X, table.y)
    ours = RobustRegressor(0, penalty="l2", C=0.02, fit_intercept=intercept, tol=1e-12).fit(table.X, table.y)
    np.testing.assert_allclose(ours.coef_, ridge.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, ridge.intercept_, atol=1e-5)


@LOSSES
@NORMS
@pytest.mark.parametrize("shape", [(60, 2000), (20_000, 10)], ids=["wide", "tall"])
def test_wide_and_tall_data_reach_their_tolerance(loss: str, norm: str, shape: tuple[int, int]) -> None:
    table = Table.for_loss(loss, 15, *shape)
    # Wide: so large a radius that the classes cannot be parted by it, and the features are still worth their risk.
    wide = {"linf": 0.35 if loss == "squared" else 0.5, "l2": 4.0, "l1": 20.0}
    eps = 0.1 if shape[0] > shape[1] else wide[norm]
    model = MODELS[loss](eps, norm=norm).fit(table.X, table.y)
    constant = of_constant(loss, table, None, True)
    by_hand = risk(loss, table, model.coef_, model.intercept_, eps, norm, None, None, 1.0)
    assert model.objective_ == pytest.approx(by_hand, rel=1e-10)
    assert by_hand < 0.999 * constant
    assert model.dual_gap_ <= TOL * constant


def thinned(table: Table, seed: int) -> Table:
    """Two thirds of the entries zero."""
    nonzero = np.random.default_rng(seed).random(table.X.shape) < 0.35
    return Table(np.where(nonzero, table.X, 0.0), table.y)


@LOSSES
@NORMS
@pytest.mark.parametrize("shape", [(150, 12), (60, 900)], ids=["narrow", "wide"])
def test_sparse_and_dense_give_the_same_model(loss: str, norm: str, shape: tuple[int, int]) -> None:
    table = thinned(Table.for_loss(loss, 16, *shape), 17)
    eps = 0.02 if shape[1] < 100 else {"linf": 0.05, "l2": 0.3, "l1": 1.0}[norm]
    settings = {"eps": eps, "norm": norm, "penalty": "l2", "C": 0.1, "tol": 1e-8}
    dense = MODELS[loss](**settings).fit(table.X, table.y)
    assert np.abs(dense.coef_).max() > 1e-3
    for kind in (sparse.csr_array, sparse.csc_array) if shape[1] < 100 else (sparse.csr_matrix,):
        other = MODELS[loss](**settings).fit(kind(table.X), table.y)
        assert other.objective_ == pytest.approx(dense.objective_, abs=2e-8 * of_constant(loss, table, None, True))
        np.testing.assert_allclose(
            other.decision_function(table.X) if loss != "squared" else other.predict(table.X),
            dense.decision_function(table.X) if loss != "squared" else dense.predict(table.X),
            atol=1e-3,
        )
    robust = dense.worst_loss(sparse.csr_array(table.X), table.y)
    assert robust == pytest.approx(dense.worst_loss(table.X, table.y), rel=1e-10)


@pytest.mark.parametrize("classes", [2, 3])
@NORMS
def test_sparse_and_dense_give_the_same_weights(classes: int, norm: str) -> None:
    table = thinned(Table.drawn(18, 200, 10, classes), 19)
    settings = {"eps": 0.01, "norm": norm, "penalty": "l2", "tol": 1e-13 if classes == 2 else 1e-11}
    dense = RobustLogisticRegression(**settings).fit(table.X, table.y)
    other = RobustLogisticRegression(**settings).fit(sparse.csr_array(table.X), table.y)
    np.testing.assert_allclose(other.coef_, dense.coef_, atol=1e-6 if classes == 2 else 1e-5)


@pytest.mark.parametrize("unit", [1e-9, 1e-4, 1e3, 1e8])
@pytest.mark.parametrize("case", ["logistic", "hinge", "squared", "3 classes"])
@NORMS
def test_the_unit_of_all_features_changes_nothing(case: str, norm: str, unit: float) -> None:
    loss = case if case in MODELS else "logistic"
    table = Table.drawn(20, 120, 5, {"3 classes": 3, "squared": 0}.get(case, 2))
    model = MODELS[loss](0.1, norm=norm).fit(table.X, table.y)
    other = MODELS[loss](0.1 * unit, norm=norm).fit(unit * table.X, table.y)
    constant = np.var(table.y) if loss == "squared" else 1.0
    assert other.objective_ == pytest.approx(model.objective_, abs=4 * TOL * constant)
    moved = np.abs(unit * other.coef_ - model.coef_).max() / np.abs(model.coef_).max()
    assert moved < (0.02 if loss != "hinge" else 0.2)  # the hinge's optimum is flat


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize("case", ["logistic", "squared", "3 classes"])
def test_one_feature_in_another_unit_changes_nothing(case: str, eps: float) -> None:
    loss = case if case in MODELS else "logistic"
    table = Table.drawn(21, 150, 5, {"3 classes": 3, "squared": 0}.get(case, 2))
    units = np.array([1e-6, 1.0, 1e5, 1e-2, 30.0])
    model = MODELS[loss](np.full(5, eps)).fit(table.X, table.y)
    other = MODELS[loss](eps * units).fit(table.X * units, table.y)
    constant = np.var(table.y) if loss == "squared" else 1.0
    assert other.objective_ == pytest.approx(model.objective_, abs=4 * TOL * constant)
    np.testing.assert_allclose(other.coef_ * units, model.coef_, atol=0.02)
    assert ((other.coef_ != 0) == (model.coef_ != 0)).all(), "which features are zero must not depend on their unit"


@pytest.mark.parametrize("offset", [100.0, 1e4])
@pytest.mark.parametrize("case", ["logistic", "hinge", "squared", "3 classes"])
def test_an_offset_of_the_features_is_left_to_the_intercept(case: str, offset: float) -> None:
    loss = case if case in MODELS else "logistic"
    table = Table.drawn(22, 150, 5, {"3 classes": 3, "squared": 0}.get(case, 2))
    model = MODELS[loss](0.1).fit(table.X, table.y)
    other = MODELS[loss](0.1).fit(table.X + offset, table.y)
    constant = np.var(table.y) if loss == "squared" else 1.0
    assert other.objective_ == pytest.approx(model.objective_, abs=4 * TOL * constant)


@LOSSES
@NORMS
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_constant_and_duplicated_columns_never_raise_the_objective(loss: str, norm: str, eps: float) -> None:
    table = Table.for_loss(loss, 23, 150, 5)
    wider = np.hstack([table.X, np.full((150, 1), 4.0), np.zeros((150, 1)), table.X[:, :2]])
    model = MODELS[loss](eps, norm=norm).fit(wider, table.y)
    plain = MODELS[loss](eps, norm=norm).fit(table.X, table.y)
    constant = np.var(table.y) if loss == "squared" else 1.0
    assert np.isfinite(model.coef_).all()
    # Against l2 and l1 a copy of a feature is of use: its weight is shared. Against linf, and at radius 0, it is not.
    assert model.objective_ <= plain.objective_ + 2 * TOL * constant
    if norm == "linf" or eps == 0:
        assert model.objective_ == pytest.approx(plain.objective_, abs=2 * TOL * constant)
    if eps > 0 and norm == "linf":
        assert (model.coef_.ravel()[5:7] == 0).all(), "a constant column cannot be worth its risk"


@pytest.mark.parametrize("model", [RobustLogisticRegression, RobustLinearSVC])
@NORMS
@pytest.mark.parametrize("classes", [2, 3])
def test_separable_data_end_with_an_objective_of_zero(model: Any, norm: str, classes: int) -> None:
    rng = np.random.default_rng(24)
    y = np.arange(90) % classes
    centres = 6 * np.eye(4)[:classes]
    X = centres[y] + rng.uniform(-1, 1, (90, 4)) + 5.0
    fitted = model(0.2, norm=norm).fit(X, y)
    constant = {RobustLogisticRegression: np.log(classes), RobustLinearSVC: 1.0 if classes == 2 else 2.0}[model]
    assert 0 <= fitted.objective_ <= TOL * constant * 1.001
    assert np.isfinite(fitted.coef_).all()
    assert np.isfinite(fitted.intercept_).all()
    assert fitted.robust_score(X, y) == 1.0


def test_data_that_a_line_fits_end_with_an_objective_of_zero() -> None:
    rng = np.random.default_rng(25)
    X = rng.normal(size=(30, 3)) + 2.0
    y = X @ np.array([1.0, -2.0, 0.5]) + 4.0
    fitted = RobustRegressor(0).fit(X, y)
    assert 0 <= fitted.objective_ <= TOL * np.var(y)
    assert np.isfinite(fitted.coef_).all()


@LOSSES
@NORMS
def test_two_examples_reach_the_cone_solvers_optimum(loss: str, norm: str) -> None:
    fitted = MODELS[loss](0.1, norm=norm, penalty="l2").fit([[1.0, 5.0], [3.0, 5.0]], [0, 1])
    w, b = fitted.coef_.ravel(), np.ravel(fitted.intercept_)[0]
    assert w[0] > 0.1
    assert np.array([1.0, 5.0]) @ w + b < 0.5 < np.array([3.0, 5.0]) @ w + b + 0.5
    table = Table(np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([0, 1]))
    W, c = reference(loss, table, 0.1, norm, None, "l2", 1.0, True)
    best = risk(loss, table, W, c, 0.1, norm, None, "l2", 1.0)
    assert fitted.objective_ == pytest.approx(best, abs=2 * TOL)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 4))])
def test_the_working_set_settles_on_data_with_many_ties(seed: int) -> None:
    """Zeros and ones: many ties; the best point and the best bound may be of different steps."""
    rng = np.random.default_rng(seed)
    X, y = (rng.normal(size=(50, 10)) > 1).astype(float), rng.integers(0, 2, 50)
    model = RobustLinearSVC(eps=0.01 * X.std(0)).fit(X, y)
    assert model.dual_gap_ <= 1e-6


@pytest.mark.parametrize(
    "move", [lambda X: X + 10, lambda X: X * 100, lambda X: X + 1000], ids=["+10", "x100", "+1000"]
)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_warm_start_from_other_data_reaches_the_same_objective(move: Any, classes: int) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), 30)
    X = rng.normal(size=(len(y), 5)) + y[:, None]
    warm = RobustLogisticRegression(eps=0.1, warm_start=True).fit(X, y).fit(move(X), y)
    cold = RobustLogisticRegression(eps=0.1).fit(move(X), y)
    assert warm.objective_ == pytest.approx(cold.objective_, abs=4e-6)
