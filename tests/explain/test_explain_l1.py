"""Adversarial training beside L1: each fit against an oracle of its own, the penalties against their definitions."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import commands
import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.load import load_data
from epsball.explain import L1Equivalence, draw, gradient_penalty, l1_equivalence
from epsball.explain.analyses.l1 import MODELS, Fading, Fit, penalty
from epsball.explain.inputs import of_pair
from epsball.linear import RobustLogisticRegression, eps_max, optimum

EPS = {"cancer": 0.3, "clouds": 0.15}
FORMS = ("exact", "gradient", "l1")


def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that overlap, off the origin; the labels are words, whose order is that of -1 and 1."""
    if name == "cancer":
        X, y = load_breast_cancer(return_X_y=True)
        return X / X.std(0), np.array(["bad", "good"])[y]
    generator = np.random.default_rng(7)
    X = generator.normal(size=(400, 12)) + 2.5
    score = (X - 2.5) @ np.r_[1.5, -1.0, 0.5, np.zeros(9)] + generator.normal(size=400)
    return X, np.where(score > 0.2, "up", "down")


def sides(y: np.ndarray) -> np.ndarray:
    return np.where(y == np.unique(y)[1], 1.0, -1.0)


@pytest.fixture(scope="module", params=list(EPS))
def case(request) -> tuple[np.ndarray, np.ndarray, float, L1Equivalence]:
    X, y = table(request.param)
    return X, y, EPS[request.param], l1_equivalence(X, y, eps=EPS[request.param])


def margins(fit: Fit, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    return sides(y) * (X @ np.array(fit.weight) + fit.bias)


def test_convex_models_are_the_optima_that_cvxpy_finds(case):
    X, y, eps, found = case
    side, n = sides(y), len(y)
    w, b = cp.Variable(X.shape[1]), cp.Variable()
    m = cp.multiply(side, X @ w + b)
    plain, size = cp.sum(cp.logistic(-m)) / n, cp.norm1(w)
    weak = found.of("plain").strength
    objectives = {
        "plain": plain + weak / 2 * cp.sum_squares(w),
        "adversarial": cp.sum(cp.logistic(eps * size - m)) / n,
        **{name: plain + found.of(name).strength * size for name in ("l1", "l1_hundredth", "l1_eps")},
    }
    for name, objective in objectives.items():
        best = cp.Problem(cp.Minimize(objective)).solve(solver=cp.CLARABEL)
        fit = found.of(name)
        mine = {
            "plain": fit.costs["plain"] + weak / 2 * np.square(fit.weight).sum(),
            "adversarial": fit.costs["exact"],
        }.get(name, fit.costs["plain"] + fit.strength * fit.norm)
        assert mine == pytest.approx(best, abs=2e-6), name
        assert mine - fit.residual <= best + 1e-7, name
    assert weak == pytest.approx(1 / n)
    assert (found.of("l1_hundredth").strength, found.of("l1_eps").strength) == (eps / 100, eps)


def test_each_model_is_best_at_what_it_was_trained_for(case):
    found = case[3]
    for cost, name in (("exact", "adversarial"), ("gradient", "gradient"), ("l1", "l1")):
        others = [fit.costs[cost] for fit in found.fits if fit.name != name]
        assert found.of(name).costs[cost] < min(others) - 1e-4


def test_the_three_penalties_give_different_models(case):
    found = case[3]
    weights = [np.array(found.of(name).weight) for name in ("adversarial", "gradient", "l1")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(weights[one] - weights[other]).max() > 0.1
    assert found.of("adversarial").attacked > found.of("gradient").attacked
    assert found.of("l1_eps").norm < 0.3 * found.of("adversarial").norm


def test_the_gradient_penalty_is_the_l1_norm_of_the_input_gradient(case):
    X, y, eps, found = case
    x = torch.tensor(X, requires_grad=True)
    up = torch.tensor(sides(y) > 0).double()
    for fit in found.fits:
        score = x @ torch.tensor(fit.weight, dtype=torch.float64) + fit.bias
        loss = F.binary_cross_entropy_with_logits(score, up, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), x)
        expected = (loss + eps * grad.abs().sum(1)).mean().item()
        assert fit.costs["gradient"] == pytest.approx(expected, rel=1e-12)
        assert fit.costs["plain"] == pytest.approx(loss.mean().item(), rel=1e-12)


def test_the_gradient_penalty_is_the_first_order_in_eps(case):
    X, y, _, found = case
    side, fit = sides(y), found.of("plain")
    w = np.array(fit.weight)
    for eps in (1e-4, 1e-5):
        exact = np.logaddexp(0, eps * fit.norm - margins(fit, X, y)).mean()
        left = exact - gradient_penalty.objective(w, fit.bias, X, side, eps)
        assert 0 < left < (eps * fit.norm) ** 2 / 8  # the curvature of softplus is 1/4 at most


def test_the_gradient_model_is_a_local_minimum(case):
    X, y, eps, found = case
    fit, side = found.of("gradient"), sides(y)
    w = np.array(fit.weight)
    here = gradient_penalty.objective(w, fit.bias, X, side, eps)
    generator = np.random.default_rng(3)
    steps = [*np.eye(len(w) + 1), *-np.eye(len(w) + 1), *generator.normal(size=(200, len(w) + 1))]
    for step in steps:
        step = 1e-3 * step / np.linalg.norm(step)
        assert gradient_penalty.objective(w + step[:-1], fit.bias + step[-1], X, side, eps) > here - 1e-10
    assert fit.residual <= 1e-7
    assert not fit.endless


def test_the_residual_is_that_of_finite_differences():
    X, y = table("clouds")
    side, generator = sides(y), np.random.default_rng(1)
    w, b, eps, h = generator.normal(size=12), 0.3, 0.2, 1e-6
    w[4:7] = 0
    off, off_b = gradient_penalty.residual(w, b, X, side, eps)

    def at(step: np.ndarray, shift: float = 0.0) -> float:
        return gradient_penalty.objective(w + step, b + shift, X, side, eps)

    here = at(np.zeros(12))
    for j, unit in enumerate(np.eye(12)):
        ahead, back = (at(h * unit) - here) / h, (at(-h * unit) - here) / h
        slope = max(-ahead, -back, 0) if w[j] == 0 else abs(ahead - back) / 2
        assert off[j] == pytest.approx(slope, abs=1e-5)
    assert off_b == pytest.approx(abs(at(np.zeros(12), h) - at(np.zeros(12), -h)) / (2 * h), abs=1e-8)


@pytest.mark.parametrize("start", ["zero", "random", "solution"])
def test_every_start_leads_to_a_stationary_point(start: str):
    X, y = table("clouds")
    side, generator = sides(y), np.random.default_rng(2)
    w = {"zero": np.zeros(12), "random": generator.normal(size=12)}.get(start)
    if w is None:
        w = np.array(l1_equivalence(X, y, eps=0.15).of("gradient").weight)
    before = w.copy()
    found = gradient_penalty.fit(X, side, 0.15, (w, 0.0))
    off, off_b = gradient_penalty.residual(found.w, found.b, X, side, 0.15)
    assert found.residual == max(off.max(), off_b) <= 1e-7
    assert found.objective == gradient_penalty.objective(found.w, found.b, X, side, 0.15)
    assert np.array_equal(w, before)


def test_a_fit_that_did_not_converge_warns(monkeypatch: pytest.MonkeyPatch):
    X, y = table("clouds")
    monkeypatch.setattr(gradient_penalty, "ROUNDS", 1)
    with pytest.warns(ConvergenceWarning, match="residual of"):
        found = gradient_penalty.fit(X, sides(y), 0.15, (np.r_[np.zeros(11), 1.0], 0.0))
    assert found.residual > 1e-7


def test_the_plain_model_is_scikit_learns(case):
    X, y, eps, _ = case
    for C in (1.0, 0.05):
        fit = l1_equivalence(X, y, eps=eps, C=C).of("plain")
        theirs = LogisticRegression(C=C, tol=1e-10, max_iter=10000).fit(X, y)
        assert np.abs(np.array(fit.weight) - theirs.coef_[0]).max() < 1e-3
        assert fit.strength == pytest.approx(1 / (C * len(y)))


def test_the_figures_are_those_of_the_exact_attack(case):
    X, y, eps, found = case
    cut = len(y) // 2
    held_out = l1_equivalence(X[:cut], y[:cut], eps=eps, test=(X[cut:], y[cut:]))
    for result, rows in ((found, slice(None)), (held_out, slice(cut, None))):
        Xt, yt = X[rows], y[rows]
        for fit in result.fits:
            model = RobustLogisticRegression()
            model.coef_, model.intercept_ = np.array([fit.weight]), np.array([fit.bias])
            model.classes_ = np.unique(y)
            best = optimum(model, None, torch.tensor(Xt), yt, eb.Linf(eps=eps))
            assert fit.accuracy == model.score(Xt, yt) == best.accuracy
            assert fit.attacked == model.robust_score(Xt, yt, eps) == best.robust_accuracy
            assert fit.loss == pytest.approx(best.loss_before.mean().item(), rel=1e-9)
            assert fit.worst_loss == pytest.approx(best.loss_after.mean().item(), rel=1e-9)
            assert fit.norm == pytest.approx(sum(map(abs, fit.weight)), rel=1e-12)
            assert fit.zeros == fit.weight.count(0.0)
    assert held_out.config["test_rows"] == len(y) - cut
    assert found.config["test_rows"] is None


def test_the_matched_lambda_costs_what_the_gradient_penalty_costs(case):
    X, y, eps, found = case
    robust = found.of("adversarial")
    m = margins(robust, X, y)
    assert found.of("l1").strength == pytest.approx(eps * expit(-m).mean(), rel=1e-12)
    assert robust.costs["l1"] == pytest.approx(robust.costs["gradient"], rel=1e-12)
    assert found.lasso == pytest.approx(found.fading.means["gradient"], rel=1e-12)


def test_the_penalties_add_up_to_the_objectives(case):
    X, y, eps, found = case
    robust, fading = found.of("adversarial"), found.fading
    m, reach = margins(robust, X, y), eps * robust.norm
    for form in FORMS:
        paid = found.penalty(form, m)
        assert robust.costs["plain"] + paid.mean() == pytest.approx(robust.costs[form], rel=1e-12)
        assert fading.means[form] == pytest.approx(paid.mean(), rel=1e-12)
        assert fading.carried[form] == pytest.approx(paid[m > reach].sum() / paid.sum(), rel=1e-12)
    assert fading.beyond == (m > reach).mean() == robust.attacked
    assert sum(fading.counts) == len(y)
    assert (fading.edges[0], fading.edges[-1]) == pytest.approx((m.min(), m.max()))


def test_the_attackers_penalty_fades_and_l1_does_not():
    m, reach, lasso = np.linspace(-30, 30, 601), 2.4, 0.3
    exact, first, flat = (penalty(form, m, reach, lasso) for form in FORMS)
    assert (np.diff(exact) < 0).all()
    assert (np.diff(first) < 0).all()
    assert (flat == lasso).all()
    assert (exact > first).all()  # the loss is convex
    assert exact[0] == pytest.approx(reach, rel=1e-9)
    assert first[0] == pytest.approx(reach, rel=1e-9)
    assert exact[-1] < 1e-11
    assert exact[-1] / first[-1] == pytest.approx((math.exp(reach) - 1) / reach, rel=1e-2)


def test_swapped_classes_swap_the_sign():
    X, y = table("clouds")
    one = l1_equivalence(X, np.where(y == "up", 1, 0), eps=0.15)
    other = l1_equivalence(X, np.where(y == "up", -4, 9), eps=0.15)
    assert (one.config["classes"], other.config["classes"]) == ((0, 1), (-4, 9))
    for fit, mirrored in zip(one.fits, other.fits, strict=True):
        assert np.abs(np.array(fit.weight) + mirrored.weight).max() < 1e-3
        assert fit.bias == pytest.approx(-mirrored.bias, abs=1e-3)
        assert fit.costs == pytest.approx(mirrored.costs, abs=1e-5)


def test_images_and_tensors_are_the_same_as_their_rows():
    X, y = table("clouds")
    before = X.copy()
    rows = l1_equivalence(X, y, eps=0.15)
    calls: list[tuple[int, int, str]] = []
    images = l1_equivalence(torch.tensor(X.reshape(-1, 1, 3, 4)), y, eps=0.15, on_progress=lambda *at: calls.append(at))
    assert images.fits == rows.fits
    assert images.config["shape"] == (1, 3, 4)
    assert calls == [*((done, 6, name) for done, name in enumerate(MODELS.values())), (6, 6, "")]
    assert np.array_equal(X, before)


def test_separable_classes_have_no_minimum():
    x, y = of_pair(load_data("digits", split="train"))
    found = l1_equivalence(x, y, eps=0.2)
    fit = found.of("gradient")
    assert fit.endless
    assert fit.costs["gradient"] < 1e-5
    assert (margins(fit, x.flatten(1).numpy(), y.numpy()) > 0).all()
    assert not any(other.endless for other in found.fits if other.name != "gradient")
    assert fit.norm > 10 * found.of("adversarial").norm


def test_weights_near_zero_are_counted():
    def fit(*weight: float) -> Fit:
        return Fit("l1", 0.1, weight, 0.0, 0.0, False, 1.0, 1.0, 0.0, 0.0, {})

    assert (fit(0.0, 0.0).zeros, fit(0.0, 0.0).near_zero, fit(0.0, 0.0).norm) == (2, 1.0, 0.0)
    some = fit(-2.0, 0.0, 0.019, 0.02)
    assert (some.zeros, some.near_zero, some.norm) == (1, 0.5, pytest.approx(2.039))


def test_a_record_survives_json(case):
    found = case[3]
    again = L1Equivalence.from_json(found.to_json())
    assert again == found
    assert isinstance(again.fading, Fading)
    assert found.config["versions"]["epsball"] == eb.__version__
    assert "weight" not in found.summary()["fits"][0]


@pytest.mark.parametrize("shape", [(12,), (1, 3, 4), (3, 2, 2)])
def test_the_figure_is_a_picture(tmp_path: Path, shape: tuple[int, ...]):
    from PIL import Image

    X, y = table("clouds")
    top = eps_max(X, y)
    found = l1_equivalence(X.reshape(-1, *shape), y, eps=0.9 * top)
    assert found.of("l1_eps").norm == 0  # a model without weights is drawn too
    draw(found, tmp_path / "l1.png")
    with Image.open(tmp_path / "l1.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "`eps` must be > 0 and finite"),
        ({"eps": math.nan}, "`eps` must be > 0 and finite"),
        ({"eps": 50.0}, "`eps` must be below"),
        ({"C": 0.0}, "`C` must be > 0"),
        ({"test": (np.zeros((2, 5)), ["up", "down"])}, "`test` must hold the classes"),
        ({"test": (np.zeros((2, 12)), ["up", "under"])}, "`test` must hold the classes"),
        ({"test": (np.zeros((2, 12)), ["up"])}, "`test` must be"),
        ({"y": ["up"] * 400}, "`y` must hold two classes, got 1"),
        ({"y": [0, 1, 2, 3] * 100}, "`y` must hold two classes, got 4"),
        ({"X": np.zeros(400)}, "`X` must be"),
        ({"X": np.full((400, 12), np.nan)}, "`X` must hold finite numbers"),
        ({"X": [["a"] * 12] * 400}, "`X` must hold dense arrays of numbers"),
    ],
)
def test_a_bad_argument_is_named(options: dict, message: str):
    X, y = table("clouds")
    parts = {"X": X, "y": y, "eps": 0.15} | options
    with pytest.raises(BadInput, match=message):
        l1_equivalence(parts.pop("X"), parts.pop("y"), **parts)


def test_a_radius_below_the_margin_is_refused():
    x, y = of_pair(load_data("digits", split="train"))
    with pytest.raises(BadInput, match="above what the classes can be separated by"):
        l1_equivalence(x, y, eps=0.02)


def test_the_pair_is_the_one_given():
    data = load_data("digits")
    x, y = of_pair(data, (8, 1))
    assert sorted(set(y.tolist())) == [1, 8]
    assert len(x) == int(((data.y == 1) | (data.y == 8)).sum())
    assert sorted(set(of_pair(data)[1].tolist())) == [3, 7]
    with pytest.raises(BadInput, match="`pair` must be two different labels"):
        of_pair(data, (3, 11))


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("explain", "l1", *arguments, cwd=cwd)


def test_the_command_with_no_argument_prints_its_figures_within_80_columns(tmp_path: Path):
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert sorted(file.name for file in (tmp_path / "explain").iterdir()) == ["l1.json", "l1.png"]
    found = L1Equivalence.from_json((tmp_path / "explain" / "l1.json").read_text())
    assert (found.config["classes"], found.config["rows"], found.config["test_rows"]) == ((3, 7), 289, 73)
    for fit in found.fits:
        name = f"{MODELS[fit.name]}  "
        (line,) = [line for line in done.stdout.splitlines() if line.startswith(name) and "%" in line]
        assert f"{fit.attacked:.1%}" in line
    assert "no minimum" in done.stdout


def test_a_users_own_rows_are_halved(tmp_path: Path):
    X, y = table("clouds")
    np.savez(tmp_path / "table.npz", x=X, y=(y == "up").astype(int))
    done = run("--data", "table.npz", "--eps", "3/20", "--C", "0.5", "--out", "o", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["config"]["eps"], printed["config"]["C"]) == (0.15, 0.5)
    assert (printed["config"]["rows"], printed["config"]["test_rows"]) == (200, 200)
    expected = l1_equivalence(X[::2], y[::2], eps=0.15, C=0.5, test=(X[1::2], y[1::2]))
    assert [fit["attacked"] for fit in printed["fits"]] == [fit.attacked for fit in expected.fits]
    assert L1Equivalence.from_json((tmp_path / "o" / "l1.json").read_text()).fits == expected.fits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pair", "3", "12"], "`--pair` must be two different labels"),
        (["--eps", "a"], "`--eps` must be a number or a fraction"),
        (["--eps", "3"], "`--eps` must be below"),
        (["--eps", "0.01"], "`--eps` must be above"),
        (["--data", "digitz"], "did you mean 'digits'"),
    ],
)
def test_bad_usage_exits_with_2_and_a_message(arguments: list[str], message: str, tmp_path: Path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "explain").exists()
