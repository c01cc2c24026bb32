"""The parts of the robust solver, each against finite differences, random dual points or dense linear algebra."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from epsball.linear import newton
from epsball.linear.gauge import GAUGES, AgainstL1, AgainstL2, soft_abs
from epsball.linear.losses import Hinge, Logistic, Loss, Squared
from epsball.linear.newton import Quadratic, gram
from epsball.linear.scalar_problem import ScalarProblem

NORMS = pytest.mark.parametrize("norm", GAUGES)
LOSSES = pytest.mark.parametrize("loss", [Logistic(), Hinge(), Squared()], ids=["logistic", "hinge", "squared"])
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
OWN = {"linf": np.inf, "l2": 2, "l1": 1}
MU = pytest.mark.parametrize("mu", [3.0, 0.3, 1e-3])


def drawn(seed: int, d: int = 7) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Weights, radii per feature, and the generator for further draws."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=d), rng.uniform(0.2, 2.0, d), rng


@NORMS
def test_the_gauge_is_the_dual_norm_of_the_scaled_weights(norm: str) -> None:
    w, eps, rng = drawn(0)
    gauge = GAUGES[norm](eps)
    assert gauge.value(w) == pytest.approx(np.linalg.norm(eps * w, DUAL[norm]))
    # Any move within the radius gains no more, and some move gains it.
    moves = rng.normal(size=(2000, 7))
    moves /= np.linalg.norm(moves, OWN[norm], axis=1, keepdims=True)
    assert (moves * eps @ w).max() <= gauge.value(w) + 1e-12
    a = eps * w
    best = {"linf": np.sign(a), "l2": a / np.linalg.norm(a), "l1": np.sign(a) * (np.abs(a) == np.abs(a).max())}[norm]
    assert (eps * best) @ w == pytest.approx(gauge.value(w))
    assert gauge.value(0 * w) == 0
    assert gauge.columns(np.array([1, 4])).value(w[[1, 4]]) <= gauge.value(w)


@NORMS
def test_the_scale_of_the_ball_that_contains_a_vector_is_the_attackers_norm(norm: str) -> None:
    w, eps, rng = drawn(1)
    v = rng.normal(size=7)
    gauge = GAUGES[norm](eps)
    assert gauge.scale_to_contain(v) == pytest.approx(np.linalg.norm(v / eps, OWN[norm]))
    assert v @ w <= gauge.scale_to_contain(v) * gauge.value(w) + 1e-12
    eps[2] = 0
    assert np.isfinite(GAUGES[norm](eps).scale_to_contain(v)), "a radius of zero must not be divided by"
    assert GAUGES[norm](0 * eps).scale_to_contain(v) == 0


@NORMS
@MU
@pytest.mark.parametrize("w", ["any", "zero", "ties", "one", "no attack on some"])
def test_the_smoothed_gauge_is_convex_and_close_and_its_gradient_in_the_ball(norm: str, mu: float, w: str) -> None:
    weights, eps, _ = drawn(2)
    weights = {"zero": 0 * weights, "ties": np.array([1.0, -1, 1, 0, 1, 0.5, -1]) / eps, "one": np.eye(7)[3]}.get(
        w, weights
    )
    if w == "no attack on some":
        eps[[1, 5]] = 0.0
    gauge = GAUGES[norm](eps)
    smoothed = gauge.smoothed(weights, mu)
    inside = smoothed.gradient[eps > 0] / eps[eps > 0]
    assert np.linalg.norm(inside, OWN[norm]) < 1 + 1e-12, "the gradient must be a move that the attacker can make"
    assert (smoothed.gradient[eps == 0] == 0).all()
    exact = gauge.value(weights)
    assert smoothed.value <= exact + 1e-12
    assert exact - smoothed.value <= 7 * mu * (2 + np.log1p(exact / mu) + np.log(14))
    hessian = np.diag(smoothed.diagonal) - np.outer(smoothed.rank_one, smoothed.rank_one)
    assert np.linalg.eigvalsh(hessian).min() >= -1e-9 * np.abs(hessian).max(), "the smoothed gain must be convex"


@NORMS
@MU
def test_the_derivatives_of_the_smoothed_gauge_match_finite_differences(norm: str, mu: float) -> None:
    w, eps, _ = drawn(3)
    gauge = GAUGES[norm](eps)
    smoothed = gauge.smoothed(w, mu)
    step = 1e-5 * max(mu, 1e-1) * np.eye(7)
    gradient = [(gauge.smoothed(w + h, mu).value - gauge.smoothed(w - h, mu).value) / (2 * h.sum()) for h in step]
    np.testing.assert_allclose(smoothed.gradient, gradient, rtol=2e-5, atol=1e-7)
    small = 1e-3 * mu * np.eye(7)  # a smaller step drowns in the rounding of the l1 gauge's own root search
    hessian = [(gauge.smoothed(w + h, mu).gradient - gauge.smoothed(w - h, mu).gradient) / (2 * h.sum()) for h in small]
    ours = np.diag(smoothed.diagonal) - np.outer(smoothed.rank_one, smoothed.rank_one)
    np.testing.assert_allclose(ours, np.array(hessian), rtol=1e-4, atol=1e-5 * np.abs(ours).max())


@NORMS
def test_the_smoothing_vanishes_with_mu(norm: str) -> None:
    """As mu decreases the value rises to the exact one, and the gradient to one of its subgradients."""
    w, eps, _ = drawn(4)
    gauge = GAUGES[norm](eps)
    values = [gauge.smoothed(w, mu).value for mu in (1.0, 1e-1, 1e-2, 1e-4, 1e-8)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(gauge.value(w), abs=7e-8 * (1 + np.log(2e8 * 7)))  # d mu (1 + log)
    assert gauge.smoothed(w, 1e-10).gradient @ w == pytest.approx(gauge.value(w), rel=1e-6)


@NORMS
@MU
def test_the_move_of_predicted_slopes_is_in_the_ball(norm: str, mu: float) -> None:
    w, eps, rng = drawn(5)
    gauge = GAUGES[norm](eps)
    smoothed = gauge.smoothed(w, mu)
    for size in (1e-3, 1.0, 100.0):
        move = gauge.feasible_move(smoothed.predicted(size * rng.normal(size=7)))
        assert np.linalg.norm(move / eps, OWN[norm]) <= 1 + 1e-12
    still = gauge.feasible_move(smoothed.predicted(np.zeros(7)))
    np.testing.assert_allclose(still, smoothed.gradient, atol=1e-9)


@pytest.mark.parametrize("mu", [1e-12, 1e-3, 1.0, 1e6])
def test_soft_absolute_values_are_finite_and_in_their_bounds(mu: float) -> None:
    a = np.array([-1e8, -3.0, -1e-9, 0.0, 1e-14, 2.0, 1e8])
    soft = soft_abs(a, mu)
    assert np.isfinite(soft.value).all()
    assert (soft.value <= np.abs(a) * (1 + 1e-12)).all()
    assert (np.abs(soft.slope) <= 1).all()
    assert (soft.curvature > 0).all() or mu == 1e-12
    assert soft.value[3] == pytest.approx(0, abs=1e-12 * mu)
    assert (np.abs(soft.predicted(np.linspace(-1e9, 1e9, 7))) <= 1).all()


def targets(loss: Loss, rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n) + 0.5 if isinstance(loss, Squared) else rng.choice([-1.0, 1.0], n)


@LOSSES
def test_the_loss_is_the_worst_within_the_gain(loss: Loss) -> None:
    """phi(s, t) is the greatest loss of any score within t of s; the loss is convex, so that an end attains it."""
    rng = np.random.default_rng(6)
    y, s, t = targets(loss, rng, 50), 2 * rng.normal(size=50), 0.7
    ends = np.stack([loss.value(s + move, 0.0, y) for move in np.linspace(-t, t, 41)])
    np.testing.assert_allclose(loss.value(s, t, y), ends.max(0), rtol=1e-12)


@LOSSES
@pytest.mark.parametrize("mu", [1.0, 0.05])
@pytest.mark.parametrize("t", [0.0, 0.8])
def test_the_derivatives_of_a_smoothed_loss_match_finite_differences(loss: Loss, mu: float, t: float) -> None:
    rng = np.random.default_rng(7)
    y, s, h = targets(loss, rng, 60), 1.5 * rng.normal(size=60), 1e-5 * mu

    def at(ds: float, dt: float) -> Any:
        return loss.smoothed(s + ds, t + dt, y, mu, None)

    here = at(0, 0)
    assert (here.value <= loss.value(s, t, y) + 1e-12).all(), "the smoothed loss must be a lower bound"
    np.testing.assert_allclose(-here.theta, (at(h, 0).value - at(-h, 0).value) / (2 * h), atol=1e-7)
    np.testing.assert_allclose(here.beta, (at(0, h).value - at(0, -h).value) / (2 * h), atol=1e-7)
    np.testing.assert_allclose(here.ss, -(at(h, 0).theta - at(-h, 0).theta) / (2 * h), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(here.st, (at(h, 0).beta - at(-h, 0).beta) / (2 * h), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(here.tt, (at(0, h).beta - at(0, -h).beta) / (2 * h), rtol=1e-5, atol=1e-5)


@LOSSES
def test_the_smoothed_loss_converges_to_the_loss(loss: Loss) -> None:
    rng = np.random.default_rng(8)
    y, s = targets(loss, rng, 40), 2 * rng.normal(size=40)
    np.testing.assert_allclose(loss.smoothed(s, 0.4, y, 1e-11, None).value, loss.value(s, 0.4, y), atol=1e-8)


@LOSSES
def test_a_dual_point_bounds_the_loss_from_below(loss: Loss) -> None:
    """phi(s, t) >= beta t - theta s + dual(theta, beta) for every s, t >= 0 and every feasible (theta, beta)."""
    rng = np.random.default_rng(9)
    n = 20_000
    y, s, t = targets(loss, rng, n), 3 * rng.normal(size=n), 2 * rng.exponential(size=n)
    theta, beta = loss.feasible(2 * rng.normal(size=n), 2 * rng.normal(size=n), y)
    value = np.array([loss.value(s[i : i + 1], t[i], y[i : i + 1])[0] for i in range(n)])
    bound = beta * t - theta * s + loss.dual(theta, beta, y)
    assert (value >= bound - 1e-9).all()
    assert (loss.feasible(theta, beta, y)[0] == theta).all(), "feasible points must stay where they are"
    assert (loss.feasible(theta, beta, y)[1] == beta).all()


@LOSSES
def test_the_dual_bound_is_attained(loss: Loss) -> None:
    """At the derivatives of the loss itself the bound equals the loss, so that the gap can close."""
    rng = np.random.default_rng(10)
    y, s, t = targets(loss, rng, 200), 2 * rng.normal(size=200), 0.6
    here = loss.smoothed(s, t, y, 1e-12, None)
    theta, beta = loss.feasible(here.theta, here.beta, y)
    np.testing.assert_allclose(beta * t - theta * s + loss.dual(theta, beta, y), loss.value(s, t, y), atol=1e-6)


@LOSSES
def test_the_best_constant_has_the_smallest_loss_of_all_constants(loss: Loss) -> None:
    rng = np.random.default_rng(11)
    y, p = targets(loss, rng, 31), rng.uniform(0.1, 1, 31)
    p /= p.sum()
    best = loss.constant(y, p)
    at = [p @ loss.value(np.full(31, b), 0.0, y) for b in best + np.linspace(-2, 2, 401)]
    assert p @ loss.value(np.full(31, best), 0.0, y) <= min(at) + 1e-12


def quadratic(norm: str, loss: Loss, n: int, d: int, intercept: bool, thin: bool) -> Quadratic:
    """The equations at a random point, as the solver makes them."""
    rng = np.random.default_rng(12)
    X: Any = rng.normal(size=(n, d)) + 0.3
    if thin:
        X = sparse.csc_array(np.where(rng.random((n, d)) < 0.3, X, 0.0))
    w, p, y = rng.normal(size=d) / d, np.full(n, 1 / n), targets(loss, rng, n)
    gain = GAUGES[norm](rng.uniform(0.5, 1.5, d)).smoothed(w, 0.3)
    here = loss.smoothed(X @ w, gain.value, y, 0.3, None)
    multiplier = float(p @ here.beta)
    return Quadratic(
        X,
        p * here.ss,
        p * here.st,
        float(p @ here.tt),
        gain.gradient,
        multiplier * gain.diagonal + 0.05,
        np.sqrt(multiplier) * gain.rank_one,
        intercept,
    )


@NORMS
@LOSSES
@pytest.mark.parametrize("shape", [(40, 9), (9, 40)], ids=["tall", "wide"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("thin", [False, True], ids=["dense", "sparse"])
def test_all_ways_to_solve_newtons_equations_agree_with_dense_algebra(
    norm: str, loss: Loss, shape: tuple[int, int], intercept: bool, thin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = quadratic(norm, loss, *shape, intercept, thin)
    n, d = shape
    X = model.X.toarray() if sparse.issparse(model.X) else model.X
    Z = np.hstack([X, np.ones((n, 1))])
    g, r = np.append(model.gradient, 0), np.append(model.rank_one, 0)
    H = Z.T @ (model.ss[:, None] * Z) + np.diag(np.append(model.diagonal, 0)) - np.outer(r, r)
    H += np.outer(Z.T @ model.st, g) + np.outer(g, Z.T @ model.st) + model.tt * np.outer(g, g)
    size = d + intercept
    slope = np.random.default_rng(13).normal(size=d + 1)[:size]
    expected = np.append(np.linalg.solve(H[:size, :size], -slope), 0.0)[: d + 1]
    slope_b = slope[d] if intercept else 0.0
    for way in ("features", "examples", "neither"):
        monkeypatch.setattr(Quadratic, "_way", lambda self, way=way: way)
        w, b = model.step(slope[:d], slope_b)
        np.testing.assert_allclose(np.append(w, b), expected, atol=1e-6 * np.abs(expected).max(), err_msg=way)


def test_a_gram_matrix_is_the_sum_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(14)
    X, h = rng.normal(size=(53, 6)), rng.uniform(0, 2, 53)
    monkeypatch.setattr(newton, "BLOCK", 60)
    np.testing.assert_allclose(gram(X, h), X.T @ np.diag(h) @ X, rtol=1e-12)
    np.testing.assert_allclose(gram(sparse.csc_array(X), h), X.T @ np.diag(h) @ X, rtol=1e-12)


@pytest.mark.parametrize("way", ["examples", "neither"])
@pytest.mark.parametrize("loss", [Logistic(), Squared()], ids=["logistic", "squared"])
@NORMS
def test_the_solution_is_the_same_for_all_ways_to_solve_newtons_equations(
    norm: str, loss: Loss, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(15)
    X = rng.normal(size=(80, 12)) + 0.4
    real = X[:, 0] - X[:, 1] + 0.8 * rng.normal(size=80)
    y = (real - real.mean()) / real.std() if isinstance(loss, Squared) else np.where(real > 0, 1.0, -1.0)
    gauge, p = GAUGES[norm](np.full(12, 0.1)), np.full(80, 1 / 80)
    problem = ScalarProblem(X=X, y=y, loss=loss, p=p, gauge=gauge, spread=X.std(0), ridge=0.01)
    usual = problem.solve(tol=1e-8, max_iter=500)
    assert Quadratic._way(quadratic(norm, loss, 80, 12, True, False)) == "features"
    monkeypatch.setattr(Quadratic, "_way", lambda self: way)
    other = problem.solve(tol=1e-8, max_iter=500)
    assert usual.converged
    assert other.converged
    assert other.objective == pytest.approx(usual.objective, abs=2e-8)
    np.testing.assert_allclose(other.w, usual.w, atol=1e-3)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_gauges_work_with_one_to_three_features(d: int) -> None:
    """With one feature all norms are the same attacker."""
    w, eps, _ = drawn(16, d)
    for mu in (1.0, 1e-6):
        values = [GAUGES[norm](eps).smoothed(w, mu).value for norm in GAUGES]
        assert np.isfinite(values).all()
        if d == 1:
            assert GAUGES["linf"](eps).value(w) == GAUGES["l2"](eps).value(w) == GAUGES["l1"](eps).value(w)
    for kind in (AgainstL2, AgainstL1):
        assert kind(np.zeros(d)).value(w) == 0
        assert np.isfinite(kind(np.zeros(d)).smoothed(w, 0.1).gradient).all()


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 6))])
def test_objective_less_gap_is_a_lower_bound_for_random_weights(seed: int) -> None:
    """No weights have an objective below objective - gap, however early the solver stops."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(30, 4)) * [1, 3, 0.3, 1] + 0.5
    for (norm, gauge), loss in itertools.product(GAUGES.items(), (Logistic(), Hinge(), Squared())):
        y = X[:, 0] - 0.5 + rng.normal(size=30)
        y = y if isinstance(loss, Squared) else np.where(y > 0, 1.0, -1.0)
        gain = gauge(np.array([0.1, 0.2, 0.0, 0.1]))
        parts = {"p": np.full(30, 1 / 30), "gauge": gain, "spread": X.std(0), "lasso": 0.01 * (seed % 2)}
        problem = ScalarProblem(X=X, y=y, loss=loss, **parts)
        best = problem.solve(tol=1e-9, max_iter=500)
        for steps in (1, 3, 8):
            early = problem.solve(tol=1e-9, max_iter=steps)
            assert early.objective - early.gap <= best.objective + 1e-12, (norm, steps)
            for size in (1e-3, 0.1, 1.0):
                w = best.w + size * rng.normal(size=4)
                b = best.b + size * rng.normal()
                assert early.objective - early.gap <= problem.objective(w, X @ w + b), (norm, steps)
