"""The Taylor gap: zero where the loss is linear, the closed form where it is known, and of second order elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import Broken, Counting, LabelOnly, RaisesAt, Staircase, batch, batch_of, linear, mlp, weighted
from torch import Tensor
from torch.nn import functional as F

import epsball as eb
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.explain import TaylorGap, draw, taylor_gap
from epsball.problem.losses import LOSSES, margin
from epsball.problem.objective import ModelWarning
from epsball.problem.task import task_of

BALLS: dict[str, type[Ball]] = {"linf": eb.Linf, "l2": eb.L2, "l1": eb.L1}
EPS = {"linf": 0.2, "l2": 0.7, "l1": 2.0}
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
SHAPE = (2, 3, 2)


def boxed(norm: str, lo: float, hi: float) -> Ball:
    """A ball with box and mask, lo != 0."""
    mask = torch.ones(1, *SHAPE, dtype=torch.bool)
    mask[0, 0, 0] = False
    return BALLS[norm](eps=EPS[norm], lo=lo, hi=hi, mask=mask)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("lo", [-math.inf, -1.5, 0.25])
@pytest.mark.parametrize("classes", [1, 2])
def test_the_margin_of_a_linear_model_has_no_gap(norm: str, lo: float, classes: int):
    model = linear(SHAPE, classes)
    x, y = batch_of(9, SHAPE, classes)
    x = x + max(lo, -3.0)
    ball = BALLS[norm](eps=EPS[norm]) if lo == -math.inf else boxed(norm, lo, lo + 1)
    found = taylor_gap(model, x, y, ball, loss=margin)
    assert found.change.shape == (9, 8)
    assert bool((found.first_order > 0).all())
    assert np.abs(found.gap).max() < 1e-12


@pytest.mark.parametrize("norm", BALLS)
def test_the_gap_of_logistic_regression_is_its_closed_form(norm: str):
    w, b = batch(1, (7,), lo=-2, hi=2, seed=3)[0], 0.4
    x, y = batch_of(20, (7,), 1, seed=5)
    radii = (0.01, 0.3, 2.0)
    found = taylor_gap(weighted(w, b), x, y, BALLS[norm](eps=1.0), eps=radii)
    away = (1 - 2 * y) * (x @ w + b)  # the loss is softplus of it
    dual = torch.linalg.vector_norm(w, DUAL[norm])
    assert np.allclose(found.loss, F.softplus(away), rtol=1e-12)
    for k, eps in enumerate(radii):
        gain = eps * away.sigmoid() * dual
        gap = F.softplus(away + eps * dual) - F.softplus(away) - gain
        assert np.allclose(found.first_order[:, k], gain, rtol=1e-12, atol=0)
        assert np.allclose(found.gap[:, k], gap, rtol=0, atol=1e-12)
        assert bool((gap > 1e-9).all())


@pytest.mark.parametrize("norm", BALLS)
def test_the_first_order_is_eps_times_the_dual_norm(norm: str):
    model, ball = mlp(SHAPE, 3), BALLS[norm](eps=EPS[norm])
    x, y = batch_of(6, SHAPE, 3)
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    dual = torch.linalg.vector_norm(grad.flatten(1), DUAL[norm], dim=1)
    found = taylor_gap(model, x, y, ball)
    assert np.allclose(found.first_order, dual[:, None].numpy() * found.eps, rtol=1e-12, atol=0)
    assert np.allclose(found.eps, EPS[norm] * 0.5 ** np.arange(7, -1, -1), rtol=1e-15)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("lo", [-2.0, 0.3])
def test_with_a_box_gain_and_adversarial_example_are_those_of_the_ball(norm: str, lo: float):
    model, ball = mlp(SHAPE, 3), boxed(norm, lo, lo + 1)
    x, y = batch_of(6, SHAPE, 3)
    x = x + lo
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    found = taylor_gap(model, x, y, ball, eps=(0.1, EPS[norm]))
    for k, eps in enumerate((0.1, EPS[norm])):
        scaled = ball.with_eps(eps)
        z = scaled.argmax(grad, x)
        rise = F.cross_entropy(model(z), y, reduction="none") - F.cross_entropy(model(x), y, reduction="none")
        assert bool(scaled.contains(z, x).all())
        assert np.allclose(found.change[:, k], rise.detach(), rtol=0, atol=1e-14)
        assert np.allclose(found.first_order[:, k], scaled.max_gain(grad, x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("loss", LOSSES)
def test_for_a_smooth_network_the_gap_is_of_second_order(norm: str, loss: str):
    x, y = batch_of(30, SHAPE, 3, seed=2)
    model, ball, eps = mlp(SHAPE, 3, seed=1), BALLS[norm](eps=1.0), 2e-4
    found = taylor_gap(model, x, y, ball, eps=(eps, eps / 2), loss=LOSSES[loss])
    task = task_of(x, y, ball)

    def total(z: Tensor) -> Tensor:
        return LOSSES[loss](model(z), task).sum()

    grad = torch.autograd.functional.jacobian(total, x)
    step = ball.argmax(grad, x) - x
    _, bent = torch.autograd.functional.hvp(total, x, step)
    curvature = (step * bent).flatten(1).sum(1).numpy() / 2
    half, full = (found.gap / found.eps**2).T
    assert np.median(found.gap[:, 1] / found.gap[:, 0]) == pytest.approx(4, rel=0.01)
    extrapolated = 2 * half - full  # without the third order
    assert np.allclose(extrapolated, curvature, rtol=1e-4, atol=1e-4 * np.abs(curvature).max())


def test_a_convex_loss_rises_at_least_as_its_first_order():
    x, y = batch_of(25, SHAPE, 5)
    for norm, ball in BALLS.items():
        assert taylor_gap(linear(SHAPE, 5), x, y, ball(eps=EPS[norm])).gap.min() > -1e-12
        assert taylor_gap(linear(SHAPE, 5), x, y, ball(eps=EPS[norm]), loss=margin).gap.min() > -1e-12


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_neither_figures_nor_model_calls(batch_size: int):
    x, y = batch_of(11, SHAPE, 3)
    model = Counting(mlp(SHAPE, 3, noisy=True))
    ball = eb.Linf(eps=torch.linspace(0.1, 0.3, 11), lo=-0.5, hi=1.5)  # one radius per example
    found = taylor_gap(model, x, y, ball, eps=(0.1, 0.2), batch_size=batch_size)
    whole = taylor_gap(mlp(SHAPE, 3, noisy=True), x, y, ball, eps=(0.2, 0.1, 0.1))
    assert (model.forwards, model.backwards) == (33, 11)
    assert (found.config["forwards"], found.config["backwards"]) == (33, 11)
    assert np.allclose(found.change, whole.change, rtol=0, atol=1e-13)
    assert np.allclose(found.first_order, whole.first_order, rtol=1e-12)
    assert found.eps.tolist() == whole.eps.tolist() == [0.1, 0.2]


def test_the_model_and_the_examples_are_returned_unchanged():
    model = mlp(SHAPE, 3, noisy=True).train()
    model[2].eval()
    flags = [m.training for m in model.modules()]
    state = {name: part.clone() for name, part in model.state_dict().items()}
    x, y = batch_of(5, SHAPE, 3)
    before = x.clone()
    taylor_gap(model, x, y, eb.Linf(eps=0.1))
    with pytest.raises(RuntimeError, match="out of memory"):
        taylor_gap(RaisesAt(model, 3), x, y, eb.Linf(eps=0.1))
    assert [m.training for m in model.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(part, state[name]) for name, part in model.state_dict().items())
    assert torch.equal(x, before)
    assert not x.requires_grad


def test_single_precision_gives_the_same_answer():
    x, y = batch_of(12, SHAPE, 3)
    wide = taylor_gap(mlp(SHAPE, 3), x, y, eb.L2(eps=0.5, lo=-1, hi=2))
    narrow = taylor_gap(mlp(SHAPE, 3).float(), x.float(), y, eb.L2(eps=0.5, lo=-1, hi=2))
    assert (wide.config["dtype"], narrow.config["dtype"]) == ("float64", "float32")
    assert np.allclose(narrow.change, wide.change, rtol=0, atol=1e-5)
    assert np.allclose(narrow.first_order, wide.first_order, rtol=1e-4, atol=1e-6)


def test_relative_gaps_and_quantiles_are_those_by_hand():
    first, change = np.array([[1.0, 2.0], [0.5, 1.0], [0.0, 1.0]]), np.array([[2.0, 1.0], [0.5, -2.0], [0.0, np.nan]])
    found = TaylorGap(eps=np.array([0.1, 0.2]), loss=np.zeros(3), first_order=first, change=change, config={})
    assert np.array_equal(found.relative, [[0.5, -1.0], [0.0, -1.5], [np.nan, np.nan]], equal_nan=True)
    assert found.quantiles(found.change)[1].tolist() == [0.5, -0.5]
    assert found.summary()["radii"][1]["relative"][1] == pytest.approx(-1.25)
    nothing = TaylorGap(
        eps=np.array([0.1]), loss=np.zeros(1), first_order=np.zeros((1, 1)), change=np.zeros((1, 1)), config={}
    )
    assert nothing.summary()["radii"][0]["relative"] == (None, None, None)


def test_the_sentence_states_the_medians():
    first, change = np.array([[1.0, 2.0], [0.5, 1.0], [0.0, 4.0]]), np.array([[2.0, 7.0], [0.5, 5.0], [0.0, np.nan]])
    found = TaylorGap(eps=np.array([0.1, 0.2]), loss=np.zeros(3), first_order=first, change=change, config={})
    assert found.sentence == (
        "At eps 0.2 the loss rises by 6 where its gradient predicts 2, at 0.1 by 0.5 for 0.5 (medians over 3 examples)."
    )
    unknown = TaylorGap(
        eps=np.array([0.1]), loss=np.zeros(1), first_order=np.zeros((1, 1)), change=np.full((1, 1), np.nan), config={}
    )
    assert unknown.sentence == "At eps 0.1 the loss rises by - where its gradient predicts 0 (medians over 1 examples)."


def test_a_record_survives_json():
    x, y = batch_of(5, SHAPE, 3)
    model = Broken(mlp(SHAPE, 3), 0.9)
    x[2, 0, 0, 0], x[:2, 0, 0, 0], x[3:, 0, 0, 0] = 0.95, 0.1, 0.1
    with pytest.warns(ModelWarning, match="not finite"):
        found = taylor_gap(model, x, y, eb.Linf(eps=0.1))
    assert np.isnan(found.change[2]).all()
    assert np.isfinite(np.delete(found.change, 2, 0)).all()
    again = TaylorGap.from_json(found.to_json())
    for name in ("eps", "loss", "first_order", "change"):
        assert np.array_equal(getattr(again, name), getattr(found, name), equal_nan=True)
    assert again.config == found.config
    assert found.config["loss"] == "cross_entropy"
    assert found.config["versions"]["epsball"] == eb.__version__


def test_a_gradient_of_zero_has_no_relative_gap():
    x, y = batch_of(4, SHAPE, 3)
    with pytest.warns(ModelWarning, match="exactly zero"):
        found = taylor_gap(Staircase(mlp(SHAPE, 3)), x, y, eb.Linf(eps=0.1))
    assert not found.first_order.any()
    assert not found.change.any()
    assert np.isnan(found.relative).all()


@pytest.mark.parametrize("case", ["smooth", "linear", "flat", "one radius"])
def test_the_figure_is_a_picture(tmp_path: Path, case: str):
    from PIL import Image

    x, y = batch_of(9, SHAPE, 2)
    path, ball = tmp_path / "taylor.png", eb.Linf(eps=0.1, lo=-1, hi=2)
    if case == "smooth":
        draw(taylor_gap(mlp(SHAPE, 2), x, y, ball, eps=np.geomspace(1e-3, 1, 20).tolist()), path)
    elif case == "linear":
        draw(taylor_gap(linear(SHAPE, 2), x, y, ball, loss=margin), path)
    elif case == "flat":
        with pytest.warns(ModelWarning):
            draw(taylor_gap(Staircase(mlp(SHAPE, 2)), x, y, ball), path)
    else:
        draw(taylor_gap(mlp(SHAPE, 2), x, y, ball, eps=(0.1,)), path)
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": ()}, "`eps` must be radii > 0"),
        ({"eps": (0.1, 0.0)}, "`eps` must be radii > 0"),
        ({"eps": (math.inf,)}, "`eps` must be radii > 0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1"),
        ({"loss": lambda logits, task: logits}, "`loss` must give one value per example"),
    ],
)
def test_a_bad_argument_is_named(options: dict, message: str):
    x, y = batch_of(4, SHAPE, 3)
    with pytest.raises(BadInput, match=message):
        taylor_gap(mlp(SHAPE, 3), x, y, eb.Linf(eps=0.1), **options)


def test_bad_examples_are_named():
    x, y = batch_of(4, SHAPE, 3)
    late = torch.tensor([0, 1, 2, 3])
    for bad, message in (
        (lambda: taylor_gap(mlp(SHAPE, 3), x, late, eb.Linf(eps=0.1), batch_size=2), "below the 3 classes"),
        (lambda: taylor_gap(mlp(SHAPE, 3), x[:0], y[:0], eb.Linf(eps=0.1)), "at least one example"),
        (lambda: taylor_gap(mlp(SHAPE, 3), x, y, eb.Linf(eps=0.1, lo=0.5)), "must lie in the box"),
        (lambda: taylor_gap(LabelOnly(mlp(SHAPE, 3)), x, y, eb.Linf(eps=0.1)), "returns labels"),
        (lambda: taylor_gap(mlp(SHAPE, 3), x, y, eb.Linf(eps=torch.full((4,), 0.1))), "`eps` must be given"),
    ):
        with pytest.raises(BadInput, match=message):
            bad()
