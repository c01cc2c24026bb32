"""Growth: eps * m * n against what numpy makes of the same weights, what grows with n, and what the record keeps."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import weighted
from shared_data import shared_data
from sklearn.linear_model import LogisticRegression

import epsball as eb
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.explain import Growth, draw, growth, resize
from epsball.explain.analyses.growth import KINDS, GrowthAtSize
from epsball.explain.resize import resized

FAST = {"sides": (4, 8, 12), "draws": 3, "eps": 0.07}


@pytest.fixture(scope="module")
def digits() -> Examples:
    return load_data("digits")


@pytest.fixture(scope="module")
def train() -> Examples:
    return load_data("digits", split="train")


def shifted(data: Examples, lo: float, hi: float) -> Examples:
    """The same pictures in another box."""
    return from_arrays(lo + (hi - lo) * data.x, data.y, ids=data.ids, lo=lo, hi=hi, name="shifted")


def pair_rows(data: Examples, pair: tuple[int, int] = (3, 7)) -> Examples:
    rows = data.rows(((data.y == pair[0]) | (data.y == pair[1])).nonzero().squeeze(1))
    return rows


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize("eps", [0.01, 0.3])
def test_the_measured_change_is_eps_m_n(digits, train, eps: float, box: tuple[float, float]):
    data, fitted = shifted(digits, *box), shifted(train, *box)
    found = growth(data, train=fitted, eps=eps, sides=(7, 8, 20), draws=3)
    assert len(found.sizes) == 9
    for size in found.sizes:
        assert size.n == size.side**2
        assert size.predicted == pytest.approx(eps * size.m * size.n, rel=1e-14)
        assert size.measured == pytest.approx(size.predicted, rel=1e-12)
        assert 0 < size.boxed < size.measured


@pytest.mark.parametrize("box", [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize("kind", ["normal", "shifted"])
def test_the_figures_of_drawn_weights_are_numpys(digits, kind: str, box: tuple[float, float]):
    data, eps, draws, side, seed = shifted(digits, *box), 0.2, 5, 8, 11
    found = growth(data, eps=eps, sides=(side,), draws=draws, seed=seed, rows=10_000, train=data)
    (size,) = found.of(kind)
    index = torch.arange(draws)
    noise = Noise(seed, index, torch.zeros_like(index))
    w = noise.normal((64,), step=side, draw=list(KINDS).index(kind), dtype=torch.float64).numpy()
    w = w + 1 if kind == "shifted" else w
    x = pair_rows(data).x.double().flatten(1).numpy()
    even = min((data.y == 3).sum().item(), (data.y == 7).sum().item())
    assert len(x) == found.config["rows"] >= 2 * even
    moved = np.clip(x[:, None] + eps * np.sign(w), *box) - x[:, None]
    assert size.m == pytest.approx(np.abs(w).mean(), rel=1e-13)
    assert size.boxed == pytest.approx((moved * w).sum(2).mean(), rel=1e-12)
    assert size.clean == pytest.approx(np.abs(x @ w.T).mean(), rel=1e-12)
    assert size.spread == pytest.approx((x @ w.T).std(0).mean(), rel=1e-12)
    assert size.per_clean == pytest.approx(size.measured / size.clean)
    assert size.per_spread == pytest.approx(size.measured / size.spread)
    assert size.accuracy is size.fgsm_accuracy is size.fgsm_boxed is None


@pytest.mark.parametrize("side", [5, 8, 13])
def test_the_figures_of_trained_weights_are_those_of_fgsm_on_scikit_learns_classifier(digits, train, side: int):
    found = growth(digits, train=train, eps=0.15, sides=(side,), draws=1, fit_rows=200, C=0.5)
    (size,) = found.of("trained")
    fitted, held_out = pair_rows(train), pair_rows(digits)
    first = torch.cat([(fitted.y == label).nonzero().squeeze(1)[:100] for label in (3, 7)]).sort().values
    fitted = fitted.rows(first)
    model = LogisticRegression(C=0.5, max_iter=2000).fit(resized(fitted.x, side), fitted.y == 7)
    net = weighted(torch.from_numpy(model.coef_[0]), float(model.intercept_[0]))
    x, y = resized(held_out.x, side), (held_out.y == 7).long()
    assert size.m == pytest.approx(np.abs(model.coef_).mean(), rel=1e-9)
    assert size.accuracy == pytest.approx(model.score(x.numpy(), y.numpy()))
    assert size.clean == pytest.approx(net(x).abs().mean().item(), rel=1e-9)
    for ball, share in ((eb.Linf(eps=0.15), size.fgsm_accuracy), (eb.Linf(eps=0.15, lo=0, hi=1), size.fgsm_boxed)):
        x_adv = eb.FGSM()(net, x, y, ball)
        assert share == pytest.approx(((net(x_adv) > 0).long() == y).double().mean().item())


def test_with_random_signs_the_change_outgrows_the_clean_activation(digits, train):
    found = growth(digits, train=train, eps=0.1, sides=(7, 14, 28, 56), draws=32)
    assert found.exponent("normal", "measured") == pytest.approx(1, abs=0.02)
    assert found.exponent("normal", "clean") == pytest.approx(0.5, abs=0.1)
    assert found.exponent("normal", "spread") == pytest.approx(0.5, abs=0.1)
    assert found.exponent("normal", "per_clean") == pytest.approx(0.5, abs=0.1)
    assert found.exponent("normal", "per_spread") == pytest.approx(0.5, abs=0.1)


def test_with_a_mean_the_clean_activation_keeps_up(digits, train):
    found = growth(digits, train=train, eps=0.1, sides=(8, 16, 32, 64), draws=32)
    assert found.exponent("shifted", "measured") == pytest.approx(1, abs=0.02)
    assert found.exponent("shifted", "clean") == pytest.approx(1, abs=0.02)
    assert found.exponent("shifted", "per_clean") == pytest.approx(0, abs=0.02)
    before, after = found.of("shifted")[-2:]  # the spread is the root of a n^2 + b n
    assert after.per_spread / before.per_spread == pytest.approx(1, abs=0.03)


def test_trained_weights_shrink_with_the_dimension(digits, train):
    found = growth(digits, train=train, eps=0.1, sides=(8, 16, 32), draws=1)
    assert found.exponent("trained", "m") < -0.5
    assert 0 < found.exponent("trained", "measured") < 0.5


def test_on_mnist_fgsm_gets_stronger_with_the_dimension():
    folder = shared_data("mnist")
    data, fitted = load_data(folder, first=2000), load_data(folder, split="train", limit=6000)
    found = growth(data, train=fitted, eps=0.1, sides=(7, 14, 28, 56), draws=8, rows=300)
    accuracies = [size.fgsm_accuracy for size in found.of("trained")]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > 0.4 > 0.2 > accuracies[-1]
    assert all(size.accuracy > 0.94 for size in found.of("trained"))
    assert found.exponent("normal", "per_spread") > 0.35
    assert found.exponent("trained", "per_spread") == pytest.approx(0.15, abs=0.1)


@pytest.mark.parametrize("exponent", [-0.7, 0.0, 0.5, 1.0])
def test_the_exponent_of_a_power_law_is_found(exponent: float):
    sizes = tuple(
        GrowthAtSize("normal", side, side**2, 1.0, 1.0, 3.0 * side ** (2 * exponent), 1.0, 1.0, 0.0)
        for side in (16, 4, 9)
    )
    found = Growth(sizes=sizes, config={})
    assert found.exponent("normal", "measured") == pytest.approx(exponent, abs=1e-12)
    assert found.exponent("normal", "spread") is None
    assert found.exponent("trained", "measured") is None
    assert [size.n for size in found.of("normal")] == [16, 81, 256]


def test_resizing_down_is_the_mean_of_areas():
    x = torch.arange(2 * 3 * 8 * 8, dtype=torch.float64).reshape(2, 3, 8, 8) - 50
    expected = x.reshape(2, 3, 4, 2, 4, 2).mean((3, 5)).flatten(1)
    assert torch.allclose(resized(x, 4), expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(resized(x, 8), x.flatten(1))
    assert torch.equal(resized(x[:, 0], 3), resized(x[:, :1], 3))


@pytest.mark.parametrize("side", [3, 7, 8, 11, 30])
def test_resizing_stays_in_the_range_of_the_image(side: int):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(50, 2, 8, 8, generator=generator) * 4 - 1).round(decimals=1)
    small = resized(x, side)
    assert small.shape == (50, 2 * side * side)
    assert bool((small.amin(1) >= x.double().flatten(1).amin(1)).all())
    assert bool((small.amax(1) <= x.double().flatten(1).amax(1)).all())
    flat = torch.full((1, 1, 8, 8), 0.1)
    assert bool((resized(flat, side) == flat.double()[0, 0, 0, 0]).all())


def test_without_training_data_half_of_each_class_is_trained_on(digits):
    found = growth(digits, **FAST)
    order = digits.y.argsort(stable=True)
    parts = [order[0::2].sort().values, order[1::2].sort().values]
    assert found == growth(digits.rows(parts[1]), train=digits.rows(parts[0]), **FAST)


def test_the_order_of_the_training_data_plays_no_part(digits, train):
    order = train.y.argsort(stable=True)
    found = growth(digits, train=train.rows(order), fit_rows=60, rows=40, **FAST)
    again = growth(digits, train=train, fit_rows=60, rows=40, **FAST)
    assert (found.config["fit_rows"], found.config["rows"]) == (60, 40)
    for size, other in zip(found.sizes, again.sizes, strict=True):
        assert size.m == pytest.approx(other.m, rel=1e-4)  # the solver sees the same rows in another order


def test_colour_images_are_counted_per_channel():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(40) % 2
    x = torch.rand(40, 3, 6, 5, generator=generator) * 0.5 + 0.5 * y[:, None, None, None]
    found = growth(from_arrays(x, y, lo=0, hi=1), **FAST)
    assert found.config["pair"] == (0, 1)
    assert [size.n for size in found.of("trained")] == [48, 192, 432]


def test_blocks_of_rows_do_not_change_the_figures(digits, train, monkeypatch):
    whole = growth(digits, train=train, **FAST)
    monkeypatch.setattr(resize, "BLOCK", 1000)
    for size, other in zip(whole.sizes, growth(digits, train=train, **FAST).sizes, strict=True):
        for name, value in vars(size).items():
            same = value if value is None or isinstance(value, str) else pytest.approx(value, rel=1e-10)
            assert getattr(other, name) == same


def test_random_weights_depend_on_the_seed_alone(digits, train):
    state = torch.random.get_rng_state()
    before = digits.x.clone()
    one, two, other = (growth(digits, train=train, seed=seed, **FAST) for seed in (0, 0, 1))
    assert one == two
    assert one.of("normal") != other.of("normal")
    assert one.of("trained") == other.of("trained")
    assert torch.equal(digits.x, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_record_survives_json(digits):
    found = growth(digits, **FAST)
    assert Growth.from_json(found.to_json()) == found
    summary = found.summary()
    assert summary["config"]["versions"]["epsball"] == eb.__version__
    assert summary["config"]["seed"] == 0
    assert summary["exponents"]["normal"]["measured"] == found.exponent("normal", "measured")
    assert len(summary["sizes"]) == 9


def test_progress_is_reported_for_every_size_and_kind_of_weights(digits):
    seen = []
    growth(digits, on_progress=lambda *at: seen.append(at), **FAST)
    assert [done for done, _, _ in seen] == list(range(10))
    assert seen[0] == (0, 9, "4 x 4, normal")


@pytest.mark.parametrize("sides", [(8,), (7, 14, 28), tuple(range(5, 15))])
def test_the_figure_is_a_picture(digits, tmp_path: Path, sides: tuple[int, ...]):
    from PIL import Image

    draw(growth(digits, sides=sides, draws=2), tmp_path / "a" / "growth.png")
    with Image.open(tmp_path / "a" / "growth.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 1500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["growth.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "`eps` must be > 0"),
        ({"eps": math.inf}, "`eps` must be > 0"),
        ({"sides": ()}, "`sides` must name"),
        ({"sides": (7, 0)}, "`sides` must be a whole number >= 1"),
        ({"sides": (7.5,)}, "`sides` must be a whole number"),
        ({"draws": 0}, "`draws` must be a whole number >= 1"),
        ({"rows": 1}, "`rows` must be a whole number >= 2"),
        ({"fit_rows": 1}, "`fit_rows` must be a whole number >= 2"),
        ({"C": 0.0}, "`C` must be > 0"),
        ({"pair": (3, 3)}, "`pair` must be two different labels"),
        ({"pair": (3, 12)}, "`pair` must be two different labels"),
    ],
)
def test_a_bad_argument_is_named(digits, options: dict, message: str):
    with pytest.raises(BadInput, match=message):
        growth(digits, **options)


def test_bad_data_are_named(digits, train):
    rows = from_arrays(digits.x.flatten(1), digits.y)
    with pytest.raises(BadInput, match="must be images"):
        growth(rows)
    with pytest.raises(BadInput, match="`examples` must hold at least two classes"):
        growth(digits.rows((digits.y == 3).nonzero().squeeze(1)), train=train)
    with pytest.raises(BadInput, match="`train` must hold both classes"):
        growth(digits, train=train.rows((train.y == 3).nonzero().squeeze(1)))
