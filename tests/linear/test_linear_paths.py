"""The path over radii against separate fits, and the radius by cross-validation against scores computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

from epsball.common.errors import BadInput
from epsball.linear import (
    RobustLinearSVC,
    RobustLogisticRegression,
    RobustLogisticRegressionCV,
    RobustRegressor,
    eps_max,
    eps_path,
)

NORMS = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
CASES = pytest.mark.parametrize(
    "estimator",
    [
        RobustLogisticRegression(),
        RobustLogisticRegression(norm="l2", penalty="l2", C=0.5, class_weight={0: 1, 1: 2}),
        RobustLogisticRegression(norm="l1", fit_intercept=False),
        RobustLinearSVC(),
        RobustRegressor(),
        RobustRegressor(norm="l2", penalty="l1", C=0.5),
    ],
    ids=["logistic", "logistic l2", "logistic l1", "hinge", "squared", "squared l2"],
)


def drawn(seed: int, n: int = 150, d: int = 8, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * rng.uniform(0.5, 2, d) + rng.uniform(-1, 1, d)
    score = X @ np.linspace(1.2, -0.1, d) + 1.5 * rng.normal(size=n)
    return X, np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]))


def fitted(estimator: Any, eps: Any, *data: Any, **more: Any) -> Any:
    return clone(estimator).set_params(eps=eps).fit(*data, **more)


@CASES
@pytest.mark.parametrize("weighted", [False, True])
def test_a_path_agrees_with_separate_fits(estimator: Any, weighted: bool) -> None:
    X, y = drawn(1)
    weight = np.linspace(0.1, 2, len(y)) if weighted else None
    before = dict(estimator.get_params())
    path = eps_path(X, y, eps=[0.05, 0.3, 0.1, 0.0], estimator=estimator, sample_weight=weight)
    assert list(path.eps) == [0.3, 0.1, 0.05, 0.0]
    assert path.coef.shape == (4, 1, 8)
    assert path.intercept.shape == (4, 1)
    assert estimator.get_params() == before
    assert not hasattr(estimator, "coef_")
    for place, eps in enumerate(path.eps):
        cold, warm = fitted(estimator, eps, X, y, sample_weight=weight), path.models[place]
        assert abs(warm.objective_ - cold.objective_) <= warm.dual_gap_ + cold.dual_gap_
        assert path.gap[place] == warm.dual_gap_
        assert path.worst_loss[place] == pytest.approx(warm.worst_loss(X, y, eps, sample_weight=weight))
        assert path.clean_loss[place] == pytest.approx(warm.worst_loss(X, y, 0.0, sample_weight=weight))
        if isinstance(estimator, RobustRegressor):
            assert np.isnan(path.clean_accuracy[place])
        else:
            assert path.clean_accuracy[place] == pytest.approx(warm.score(X, y, sample_weight=weight))
            assert path.worst_accuracy[place] == pytest.approx(warm.robust_score(X, y, eps, sample_weight=weight))
        assert path.nonzero[place] == np.count_nonzero(warm.coef_)
    assert path.clean_loss[-1] == path.worst_loss[-1], "at radius 0 nothing is attacked"
    assert (path.clean_loss <= path.worst_loss).all()


@NORMS
def test_the_worst_loss_increases_with_the_radius(norm: str) -> None:
    X, y = drawn(2)
    path = eps_path(X, y, eps=12, estimator=RobustLogisticRegression(norm=norm))
    assert (np.diff(path.eps) < 0).all()
    assert (np.diff(path.worst_loss) <= path.gap[1:] + path.gap[:-1]).all()
    assert path.nonzero[0] == 0
    assert path.nonzero[-1] > 0
    assert len({id(model) for model in path.models}) == 12
    assert len({model.coef_.tobytes() for model in path.models}) == 12, "models share their weights"


@pytest.mark.parametrize("estimator", [RobustLogisticRegression(), RobustLinearSVC(), RobustRegressor()])
def test_the_grid_begins_at_eps_max(estimator: Any) -> None:
    X, y = drawn(3)
    weight = np.linspace(0.5, 1.5, len(y))
    path = eps_path(X, y, eps=5, ratio=0.1, estimator=estimator, sample_weight=weight)
    assert path.eps[0] == pytest.approx(eps_max(X, y, loss=estimator.loss, sample_weight=weight))
    np.testing.assert_allclose(path.eps[1:] / path.eps[:-1], 0.1**0.25)
    assert path.nonzero[0] == 0
    assert path.nonzero[1] > 0


def test_the_grid_respects_class_weights() -> None:
    X, y = drawn(4)
    estimator = RobustLogisticRegression(class_weight={0: 1.0, 1: 5.0})
    path = eps_path(X, y, eps=3, estimator=estimator)
    assert path.eps[0] == pytest.approx(eps_max(X, y, sample_weight=np.where(y == 1, 5.0, 1.0)))
    assert path.nonzero[0] == 0


def test_radii_per_feature_are_the_unit_of_the_path() -> None:
    X, y = drawn(5)
    unit = X.std(0)
    path = eps_path(X, y, eps=[0.2, 0.05], estimator=RobustLogisticRegression(eps=unit))
    plain = eps_path(X / unit, y, eps=[0.2, 0.05])
    np.testing.assert_allclose(path.coef * unit, plain.coef, atol=2e-3)
    np.testing.assert_allclose(path.worst_loss, plain.worst_loss, atol=2e-6)
    grid = eps_path(X, y, eps=3, estimator=RobustLogisticRegression(eps=unit))
    assert grid.eps[0] == pytest.approx(eps_max(X, y, scale=unit))
    assert grid.nonzero[0] == 0


def test_three_classes_and_sparse_data_have_a_path() -> None:
    X, y = drawn(6, classes=3)
    path = eps_path(X, y, eps=4)
    assert path.coef.shape == (4, 3, 8)
    assert path.nonzero[0] == 0
    assert (np.diff(path.worst_loss) <= path.gap[1:] + path.gap[:-1]).all()
    thin = np.where(X > 0.5, X, 0.0)
    dense, other = eps_path(thin, y, eps=4), eps_path(sparse.csr_array(thin), y, eps=4)
    np.testing.assert_allclose(other.eps, dense.eps)
    np.testing.assert_allclose(other.worst_loss, dense.worst_loss, atol=3e-6)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"eps": []}, "eps"),
        ({"eps": [-0.1, 0.1]}, "eps"),
        ({"eps": [np.nan]}, "eps"),
        ({"eps": ["a"]}, "eps"),
        ({"eps": 0}, "eps"),
        ({"eps": True}, "eps"),
        ({"eps": 3, "ratio": 0.0}, "ratio"),
        ({"eps": 3, "ratio": 1.0}, "ratio"),
        ({"eps": [0.1], "estimator": RobustLogisticRegression(C=0)}, "`C`"),
        ({"eps": 3, "estimator": RobustLogisticRegression(norm="l3")}, "norm"),
    ],
    ids=str,
)
def test_a_wrong_argument_of_a_path_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        eps_path(*drawn(7), **settings)


@pytest.mark.parametrize("attack", [0.0, 0.3])
def test_cross_validation_chooses_the_radius_of_its_best_score(attack: float) -> None:
    """Scores computed again, fold by fold and radius by radius, with independent fits."""
    X, y = drawn(8)
    names = np.array(["no", "yes"])[y]
    radii = [0.6, 0.2, 0.02]
    folds = StratifiedKFold(3)
    model = RobustLogisticRegressionCV(radii, attack=attack, cv=folds, norm="l2").fit(X, names)
    assert list(model.radii_) == radii
    by_hand = np.array(
        [
            [
                RobustLogisticRegression(eps, norm="l2").fit(X[train], y[train]).robust_score(X[test], y[test], attack)
                for eps in radii
            ]
            for train, test in folds.split(X, y)
        ]
    )
    np.testing.assert_allclose(model.scores_, by_hand, atol=0.021)  # one example of fifty may lie on the boundary
    assert model.eps_ == radii[int(model.scores_.mean(0).argmax())]
    alone = RobustLogisticRegression(model.eps_, norm="l2").fit(X, names)
    np.testing.assert_array_equal(model.coef_, alone.coef_)
    assert model.objective_ == alone.objective_
    assert model.dual_gap_ == alone.dual_gap_
    assert model.robust_score(X, names) == alone.robust_score(X, names)
    assert model.worst_loss(X, names) == alone.worst_loss(X, names)
    assert list(model.classes_) == ["no", "yes"]


def test_an_attack_when_scoring_lowers_the_scores() -> None:
    X, y = drawn(9)
    clean, attacked = (RobustLogisticRegressionCV([0.5, 0.1, 0.01], attack=a, cv=3).fit(X, y) for a in (0.0, 0.4))
    assert (attacked.scores_ <= clean.scores_).all()
    assert (attacked.scores_ < clean.scores_).any()
    assert attacked.eps_ >= clean.eps_


def test_of_equal_scores_the_greatest_radius_is_chosen() -> None:
    X = np.array([[-2.0], [-1.9], [-2.1], [2.0], [1.9], [2.1]] * 2) + 7
    y = (X[:, 0] > 7).astype(int)
    model = RobustLogisticRegressionCV([0.1, 0.3, 0.2], cv=2).fit(X, y)
    assert (model.scores_ == 1).all()
    assert model.eps_ == 0.3


def test_the_grid_of_a_cross_validation_is_that_of_the_path() -> None:
    X, y = drawn(10, n=90)
    model = RobustLogisticRegressionCV(4, ratio=0.05, cv=2, class_weight="balanced").fit(X, y)
    np.testing.assert_allclose(
        model.radii_, eps_max(X, y, sample_weight=1 / np.bincount(y)[y]) * np.geomspace(1, 0.05, 4)
    )
    weighted = RobustLogisticRegressionCV(4, cv=2).fit(X, y, sample_weight=np.linspace(0, 2, 90))
    assert weighted.radii_[0] == pytest.approx(eps_max(X, y, sample_weight=np.linspace(0, 2, 90)))
    sparse_one = RobustLogisticRegressionCV(4, cv=2).fit(sparse.csr_array(X), y)
    dense_one = RobustLogisticRegressionCV(4, cv=2).fit(X, y)
    np.testing.assert_allclose(sparse_one.radii_, dense_one.radii_)
    assert sparse_one.eps_ == pytest.approx(dense_one.eps_)


@pytest.mark.parametrize(
    "settings", [{"attack": -0.1}, {"eps": [-1.0]}, {"ratio": 2.0}, {"C": 0}, {"norm": "lin"}], ids=str
)
def test_a_wrong_setting_of_a_cross_validation_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(settings))):
        RobustLogisticRegressionCV(**{"cv": 2, "eps": 3} | settings).fit(*drawn(11, n=60))
