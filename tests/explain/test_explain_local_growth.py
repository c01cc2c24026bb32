"""Local growth: a linear model gains eps times the dual norm, the control its root mean square."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from explain_doubles import assert_drawn, assert_survives_json, assert_untouched, examples, known
from nets import mlp, weighted
from torch import nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.load import load_data
from epsball.explain import LocalGrowth, local_growth
from epsball.explain.analyses.local_growth import LocalGrowthAtSize, local_growth_of

SHAPE = (2, 3, 3)
SMALL = {"sides": (4, 7), "steps": 24, "rows": 60}


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", math.inf)])
def test_a_linear_model_gains_eps_times_the_dual_norm(norm: str, dual: float):
    ball = {"linf": eb.Linf(eps=0.1), "l2": eb.L2(eps=0.3), "l1": eb.L1(eps=0.5)}[norm]
    weight = torch.linspace(-2, 3, 18, dtype=torch.float64).reshape(SHAPE)
    model = weighted(weight, -1.0)
    data = known(model, examples(400, SHAPE, 1))
    found = local_growth_of(model, data, ball)
    gain = ball.eps * float(torch.linalg.vector_norm(weight, dual))
    gaps = (data.x.flatten(1) @ weight.flatten() - 1).abs()
    assert (found.gain, found.boxed, found.true_gain) == (pytest.approx(gain), pytest.approx(gain), pytest.approx(gain))
    assert found.margin == pytest.approx(np.median(gaps))
    assert found.per_margin == pytest.approx(np.median(gain / gaps))
    assert found.attacked == pytest.approx((gaps > gain).double().mean().item())
    assert found.clean == 1
    # Over orders and signs the mean square of the control's gain is |step|^2 |w|^2 / n.
    step = ball.argmax(weight[None], torch.zeros(1, *SHAPE, dtype=torch.float64)).norm()
    assert found.noise == pytest.approx(float(step * weight.norm()) / math.sqrt(18), rel=0.15)
    assert found.n == 18
    assert found.side == 3


def test_the_gain_in_the_box_is_that_of_the_ball():
    model, ball = mlp(SHAPE, 3), eb.Linf(eps=0.3, lo=0, hi=1)
    data = known(model, examples(40, SHAPE, 3))
    found = local_growth_of(model, data, ball)
    leaf = data.x.clone().requires_grad_()
    logits = model(leaf)
    rival = logits.scatter(1, data.y[:, None], -torch.inf).amax(1)
    margin = rival - logits.gather(1, data.y[:, None])[:, 0]
    (grad,) = torch.autograd.grad(margin.sum(), leaf)
    z = (data.x + 0.3 * grad.sign()).clamp(0, 1)
    assert found.gain == pytest.approx(0.3 * np.median(grad.flatten(1).abs().sum(1)))
    assert found.boxed == pytest.approx(np.median((grad * (z - data.x)).flatten(1).sum(1)))
    after = model(z).detach()
    rose = after.scatter(1, data.y[:, None], -torch.inf).amax(1) - after.gather(1, data.y[:, None])[:, 0]
    assert found.true_gain == pytest.approx(np.median((rose - margin).detach()))
    assert found.attacked == pytest.approx((after.argmax(1) == data.y).double().mean().item())


def test_gain_over_noise_is_at_most_about_the_square_root_of_the_dimension():
    digits, train = load_data("digits"), load_data("digits", split="train")
    seen: list[tuple[int, str]] = []
    found = local_growth(
        "small-mlp", digits, eb.Linf(eps=0.1, lo=0, hi=1), train=train, **SMALL, on_progress=lambda *at: seen.append(at)
    )
    assert [(step.side, step.n) for step in found.sizes] == [(4, 16), (7, 49)]
    for step in found.sizes:
        assert 1 < step.ratio < 1.25 * math.sqrt(step.n)  # of a root mean square of four draws
        assert step.clean > 0.3
        assert step.attacked < step.noisy
    assert seen == [(0, 2, "4 x 4"), (1, 2, "7 x 7"), (2, 2, "")]
    again = local_growth("small-mlp", digits, eb.Linf(eps=0.1, lo=0, hi=1), train=train, **SMALL)
    assert again == found


def test_a_users_own_network_is_made_at_every_size():
    shapes = []

    def make(shape: tuple[int, ...], classes: int) -> nn.Module:
        shapes.append((shape, classes))
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))

    found = local_growth(make, load_data("digits", first=80), eb.L2(eps=0.5), sides=(3, 8), steps=1, rows=10)
    assert shapes == [((1, 3, 3), 10), ((1, 8, 8), 10)]
    assert found.config["fit_rows"] == 40
    assert_survives_json(found)


def test_exponents_are_those_of_their_powers():
    base = {"side": 1, "boxed": 1.0, "true_gain": 1.0, "per_margin": 1.0, "clean": 1.0, "attacked": 0.0, "noisy": 1.0}
    steps = tuple(
        LocalGrowthAtSize(n=n, margin=2.0, gain=3 * n**0.5, noise=0.5 / n, ratio=6 * n**1.5, **base)
        for n in (10, 100, 400)
    )
    found = LocalGrowth(sizes=steps, config={})
    powers = [found.exponent(name) for name in ("margin", "gain", "noise", "ratio")]
    assert powers == pytest.approx([0, 0.5, -1, 1.5], abs=1e-12)
    assert LocalGrowth(sizes=steps[:1], config={}).exponent("gain") is None


def test_the_model_is_returned_unchanged():
    data = examples(6, SHAPE, 3)
    assert_untouched(lambda model: local_growth_of(model, data, eb.Linf(eps=0.1)), SHAPE, raises_at=3)


def test_the_record_survives_json_and_has_a_figure(tmp_path: Path):
    found = local_growth("small-mlp", load_data("digits", first=120), eb.Linf(eps=0.1, lo=0, hi=1), **SMALL)
    assert_survives_json(found)
    assert_drawn(found, tmp_path / "local.png")
    one = LocalGrowth(sizes=found.sizes[:1], config=found.config)
    assert_drawn(one, tmp_path / "one.png")
    assert "From 16 to 49 coordinates" in found.sentence


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sides": ()}, "`sides` must name"),
        ({"sides": (0,)}, "`sides` must be a whole number >= 1"),
        ({"steps": 0}, "`steps` must be"),
    ],
)
def test_a_bad_argument_is_named(options: dict, message: str):
    with pytest.raises(BadInput, match=message):
        local_growth("small-mlp", load_data("digits", first=20), eb.Linf(eps=0.1), **options)


def test_examples_that_are_no_images_are_refused():
    with pytest.raises(BadInput, match="`data` must be images"):
        local_growth("small-mlp", examples(8, (6,), 3), eb.Linf(eps=0.1))
    with pytest.raises(BadInput, match="one radius"):
        local_growth("small-mlp", load_data("digits", first=20), eb.Linf(eps=torch.full((20,), 0.1)))
