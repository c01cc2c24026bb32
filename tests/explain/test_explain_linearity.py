"""Linearity: a linear model's logits are straight, a network's R^2 is numpy's, and the accuracy is a closed form's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from explain_doubles import assert_drawn, assert_survives_json, assert_untouched, examples, known
from nets import Broken, Counting, linear, mlp, weighted

import epsball as eb
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.explain import linearity
from epsball.explain.analyses.linearity import PIECES, explained
from epsball.explain.measure import shuffled
from epsball.problem.objective import ModelWarning

SHAPE = (2, 3, 2)
BALLS = {"linf": eb.Linf(eps=0.1), "l2": eb.L2(eps=0.5), "l1": eb.L1(eps=1.0)}
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}


@pytest.mark.parametrize("norm", [*BALLS, "l0"])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_logits_of_a_linear_model_are_straight(norm: str, classes: int):
    boxed = norm == "l0"
    ball = eb.L0(eps=2, lo=-1, hi=2) if boxed else BALLS[norm]
    found = linearity(linear(SHAPE, classes), examples(9, SHAPE, classes, lo=-1, hi=2), ball, points=21, boxed=boxed)
    for piece in PIECES:
        assert np.allclose(found.explained[piece], 1, rtol=0, atol=1e-12)
        assert np.allclose(found.explained_control[piece], 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", BALLS)
def test_the_accuracy_along_the_line_is_that_of_the_closed_form(norm: str):
    model = weighted(torch.linspace(-2, 3, 12, dtype=torch.float64), -1.0)
    data = examples(60, (12,), 1, lo=-1, hi=1)
    found = linearity(model, data, BALLS[norm], span=4, points=17)
    away = (1 - 2 * data.y) * (data.x @ model[1].weight[0] + model[1].bias).detach()  # < 0: right
    gain = BALLS[norm].eps * torch.linalg.vector_norm(model[1].weight[0].detach(), DUAL[norm])
    for t, accuracy in zip(found.t, found.accuracy, strict=True):
        assert accuracy == pytest.approx((away + t * gain < 0).double().mean().item(), abs=1e-12)
    assert found.t[8] == 0
    assert found.accuracy[8] == found.control[8]
    assert found.steady == 1


def test_the_share_explained_is_that_of_numpys_lines():
    model, ball, data = mlp(SHAPE, 3), eb.L2(eps=0.7), examples(7, SHAPE, 3)
    found = linearity(model, data, ball, span=6, points=25)
    leaf = data.x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(leaf), data.y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, leaf)
    step = 0.7 * grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
    t = np.linspace(-6, 6, 25)
    with torch.no_grad():
        logits = np.stack([model(data.x + at * step).numpy() for at in t])
    for piece, there in (("whole", t == t), ("before", t <= -1), ("ball", abs(t) <= 1), ("beyond", t >= 1)):
        for row, share in enumerate(found.explained[piece]):
            line = logits[there, row]
            left = line - np.polynomial.polynomial.polyval(
                t[there], np.polynomial.polynomial.polyfit(t[there], line, 1), tensor=True
            ).T.reshape(line.shape)
            assert share == pytest.approx(1 - (left**2).sum() / ((line - line.mean(0)) ** 2).sum(), abs=1e-9)
    label = np.take_along_axis(logits, data.y.numpy()[None, :, None], 2)[:, :, 0]
    assert np.allclose(found.label, np.quantile(label, (0.05, 0.5, 0.95), axis=1), rtol=1e-12)
    assert np.allclose(found.example["logits"], logits[:, found.example["id"]], rtol=1e-12)


def test_the_accuracy_at_one_radius_is_that_under_fgsm():
    model, ball = mlp(SHAPE, 3), eb.Linf(eps=0.4)
    data = known(model, examples(50, SHAPE, 3))
    found = linearity(model, data, ball, span=2, points=9)
    z = eb.FGSM()(model, data.x, data.y, ball)
    accuracy = (model(z).argmax(1) == data.y).double().mean().item()
    assert 0 < accuracy < 1
    assert found.at(1) == pytest.approx(accuracy)
    assert found.at(0) == 1


def test_the_line_within_the_box_differs_from_the_line_without_it():
    model, ball = mlp(SHAPE, 3), eb.Linf(eps=0.4, lo=0, hi=1)
    data = known(model, examples(40, SHAPE, 3))
    boxed = linearity(model, data, ball, span=2, points=9, boxed=True)
    z = eb.FGSM()(model, data.x, data.y, ball)
    assert boxed.at(1) == pytest.approx((model(z).argmax(1) == data.y).double().mean().item())
    assert boxed.label != linearity(model, data, ball, span=2, points=9).label


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_batch_size_changes_neither_figures_nor_model_calls(batch_size: int):
    data, model = examples(11, SHAPE, 3), Counting(mlp(SHAPE, 3, noisy=True))
    found = linearity(model, data, BALLS["linf"], points=9, batch_size=batch_size)
    whole = linearity(mlp(SHAPE, 3, noisy=True), data, BALLS["linf"], points=9)
    assert found.accuracy == whole.accuracy
    assert found.control == whole.control
    assert np.allclose(found.explained["whole"], whole.explained["whole"], rtol=0, atol=1e-12)
    assert np.allclose(found.explained_control["whole"], whole.explained_control["whole"], rtol=0, atol=1e-12)
    assert (model.forwards, model.backwards) == (11 * 19, 11) == (found.config["forwards"], found.config["backwards"])


def test_the_share_explained_of_straight_and_bent_lines_is_that_by_hand():
    t = torch.linspace(-1, 1, 51, dtype=torch.float64)
    kink = t.clamp_min(0)
    values = torch.stack([t, kink, t.abs(), torch.full_like(t, 7)], 1)[:, :, None]
    by_hand = np.corrcoef(t, kink)[0, 1] ** 2
    assert np.allclose(explained(t, values), [1, by_hand, 0, 1], rtol=0, atol=1e-12)
    assert explained(t, torch.stack([t, t.abs()], 1)[:, None]).item() == pytest.approx(
        (t**2).sum().item() / ((t**2).sum() + ((t.abs() - t.abs().mean()) ** 2).sum()).item()
    )


def test_the_control_has_the_same_norm_and_does_not_move_masked_coordinates():
    delta = torch.tensor([[0.1, 0.0, -0.3, 0.2, 0.5], [1.0, 2.0, 3.0, 4.0, -5.0]]).double()
    noise = Noise(3, torch.tensor([8, 9]), torch.tensor([0, 0]))
    mask = torch.tensor([[True, False, True, True, True]])
    for found in (shuffled(delta, noise), shuffled(delta, noise, mask)):
        assert torch.equal(found.abs().sort(1).values, delta.abs().sort(1).values)
    assert torch.equal(found[:, 1].abs(), delta[:, 1].abs())
    assert torch.equal(shuffled(delta[1:], noise.rows(torch.tensor([1]))), shuffled(delta, noise)[1:])
    many = torch.ones(2000, 10, dtype=torch.float64).cumsum(1)
    ids = torch.arange(2000)
    moved = shuffled(many, Noise(0, ids, torch.zeros_like(ids)))
    assert moved.mean().abs() < 0.1  # no sign is preferred, and no coordinate
    assert (moved.abs().mean(0) - 5.5).abs().max() < 0.3


def test_logits_that_are_not_finite_affect_no_other_example():
    data = examples(6, SHAPE, 3)
    data.x[:, 0, 0, 0] = torch.tensor([0.1, 0.1, 0.95, 0.1, 0.1, 0.1])
    with pytest.warns(ModelWarning, match="not finite"):
        found = linearity(Broken(mlp(SHAPE, 3), 0.9), data, eb.Linf(eps=0.01), span=2, points=5)
    assert found.explained["whole"][2] is None
    assert sum(share is None for share in found.explained["whole"]) == 1
    assert found.label[1][2] is not None
    assert_survives_json(found)


def test_the_model_is_returned_unchanged():
    data = examples(5, SHAPE, 3)
    assert_untouched(lambda model: linearity(model, data, BALLS["linf"], points=5), SHAPE, raises_at=4)


def test_the_record_survives_json_and_has_a_figure(tmp_path: Path):
    found = linearity(mlp(SHAPE, 3), examples(12, SHAPE, 3), eb.Linf(eps=0.2), points=21)
    assert_survives_json(found)
    assert_drawn(found, tmp_path / "linearity.png")
    assert "12 examples" in found.sentence
    assert_drawn(linearity(linear((4,), 1), examples(3, (4,), 1), eb.L2(eps=0.1), points=5), tmp_path / "two.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 10}, "`points` must be odd"),
        ({"points": 3}, "`points` must be a whole number >= 5"),
        ({"span": 1.0}, "`span` must be > 1"),
        ({"rows": 0}, "`rows` must be a whole number >= 1"),
    ],
)
def test_a_bad_argument_is_named(options: dict, message: str):
    with pytest.raises(BadInput, match=message):
        linearity(mlp(SHAPE, 3), examples(4, SHAPE, 3), eb.Linf(eps=0.1), **options)


def test_examples_and_balls_that_do_not_fit_are_named():
    data = examples(4, SHAPE, 3)
    for bad, message in (
        (lambda: linearity(mlp(SHAPE, 3), data.rows(slice(0)), eb.Linf(eps=0.1)), "at least one example"),
        (lambda: linearity(mlp(SHAPE, 3), data, eb.Linf(eps=torch.full((4,), 0.1))), "one radius"),
        (lambda: linearity(mlp(SHAPE, 2), examples(4, SHAPE, 3, seed=5), eb.Linf(eps=0.1)), "below the 2 classes"),
        (lambda: linearity(mlp(SHAPE, 3), data, eb.Linf(eps=0.1, lo=0.5)), "must lie in the box"),
    ):
        with pytest.raises(BadInput, match=message):
            bad()
