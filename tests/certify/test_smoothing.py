"""Randomised smoothing: radii of linear models, coverage, abstention, keyed noise, floating point, attacks on it."""

from __future__ import annotations

import math

import nets
import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import binom, binomtest
from shared_data import shared_data
from torch import Tensor, nn

import epsball as eb
from epsball.certify.gaussian_noise import DIGITS, TOTAL_VARIATION, GridGaussian, _table, radius_of
from epsball.certify.smoothing import SmoothCertificates, Smoothing, smooth_certify
from epsball.common.intervals import clopper_pearson_lower
from epsball.common.noise import Noise


def halfspace(d: int = 5, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """One logit w.x + b, 40 points around its boundary, their labels, and their distances to the boundary."""
    w = torch.randn(d, generator=nets.rng(seed), dtype=torch.float64)
    model = nets.weighted(w, bias=0.3)
    x = torch.randn(40, d, generator=nets.rng(seed + 1), dtype=torch.float64)
    margin = x @ w + 0.3
    return model, x, (margin > 0).long(), margin.abs() / w.norm()


def test_on_a_linear_model_the_radius_is_the_closed_form_within_its_confidence_interval():
    model, x, y, distance = halfspace()
    how = Smoothing(sigma=0.5, n=20_000, alpha=1e-4)
    found = smooth_certify(model, (x, y), eb.L2(eps=0.1), how, batch_size=1 << 14)
    below = np.array(found.count) < how.n
    upper = np.array([binomtest(k, how.n).proportion_ci(1 - 2e-4).high for k in found.count])
    radius, distance = np.array(found.radius), distance.numpy()
    assert (radius <= distance).all()
    assert (distance[below] <= how.sigma * ndtri(upper[below])).all()
    near = (distance > 0.1) & (distance < 1.2)
    assert below.sum() > 20
    assert near.sum() > 20
    assert (radius[near] > 0.8 * distance[near]).all()
    assert found.accuracy >= 0.9


def test_verified_says_label_and_radius():
    model, x, y, _ = halfspace()
    y[0] = 1 - y[0]
    found = smooth_certify(model, (x, y), eb.L2(eps=0.3), Smoothing(sigma=0.5))
    answer, radius = np.array(found.prediction), np.array(found.radius)
    assert not found.verified[0]
    assert found.verified == tuple((answer == y.numpy()) & (radius > 0.3))
    assert found.certified_accuracy == np.mean(found.verified) == found.certified_accuracy_at(0.3)
    assert 0.2 < found.certified_accuracy < found.accuracy < 1
    assert found.model_calls == 40 * 1100 + (-40 * 100) % 32 + (-40 * 1000) % 32


def test_a_saved_record_is_equal_when_it_is_read():
    model, x, y, _ = halfspace()
    found = smooth_certify(model, (x, y), "l2:0.3", Smoothing(sigma=0.5, n=50))
    assert SmoothCertificates.from_json(found.to_json()) == found
    assert found.summary()["certified_accuracy"] == found.certified_accuracy


def test_the_confidence_bound_covers_and_is_exact():
    for n, p in ((50, 0.55), (1000, 0.99), (200, 0.5)):
        counts = np.arange(n + 1)
        bounds = clopper_pearson_lower(counts, n, 0.05)
        chance = binom.pmf(counts, n, p)[bounds > p].sum()
        assert chance <= 0.05
        assert p > 0.9 or chance > 0.01
        expected = [binomtest(int(k), n, alternative="greater").proportion_ci(0.95).low for k in counts[:: n // 10]]
        np.testing.assert_allclose(bounds[:: n // 10], expected, rtol=1e-9)


def test_over_many_seeds_the_radius_is_too_large_as_seldom_as_alpha_says():
    model, x, y, distance = halfspace(d=2)
    near = (distance > 0.2) & (distance < 0.6)
    x, y, distance = x[near], y[near], distance[near].numpy()
    how = Smoothing(sigma=0.5, n0=10, n=100, alpha=0.1)
    x, y = x.repeat(60, 1), y.repeat(60)  # ids of their own: other noise
    radius = np.array(smooth_certify(model, (x, y), eb.L2(eps=0.1), how, seed=5).radius)
    wrong = int((radius > np.tile(distance, 60)).sum())
    assert len(radius) > 400
    assert binomtest(wrong, len(radius), 0.1, alternative="greater").pvalue > 1e-3
    assert wrong > 0.02 * len(radius)  # the bound is not idle: a test at the 10 % level errs sometimes


def test_it_abstains_on_the_boundary_and_where_outputs_are_nan():
    model, _, _, _ = halfspace()
    weight = model.get_parameter("1.weight").detach()
    on_it = -0.3 * weight / (weight @ weight.T)
    found = smooth_certify(model, (on_it, torch.tensor([0])), eb.L2(eps=0), Smoothing(sigma=0.5))
    assert found.abstained == (True,)
    assert found.radius == (0.0,)
    assert found.verified == (False,)
    smoothed = eb.SmoothedClassifier(model, Smoothing(sigma=0.5))
    assert smoothed.predict(on_it).tolist() == [-1]
    broken = nets.Broken(nets.linear((5,), 3), -math.inf)
    found = smooth_certify(broken, (on_it, torch.tensor([0])), eb.L2(eps=0), Smoothing(sigma=0.5))
    assert (found.prediction, found.count, found.abstained) == ((-1,), (0,), (True,))


def test_outputs_that_are_nan_count_against_the_class():
    model = nets.linear((5,), 3, seed=2)
    x = nets.batch(6, (5,))
    y = model(x).argmax(1)
    how = Smoothing(sigma=0.05)
    sound = smooth_certify(model, (x, y), "l2:0.01", how)
    broken = smooth_certify(nets.Broken(model, float(x[:, 0].median())), (x, y), "l2:0.01", how)
    assert all(one <= other for one, other in zip(broken.count, sound.count, strict=True))
    assert sum(broken.count) < sum(sound.count)


@pytest.mark.parametrize("batch_size", [1, 33, 100_000])
def test_results_depend_on_neither_batch_size_nor_order(batch_size):
    model = nets.mlp((6,), 3)
    x, y = nets.batch_of(7, (6,), 3)
    how = Smoothing(sigma=2.0, n=200)
    one = smooth_certify(model, (x, y), eb.L2(eps=0.1), how)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    ids = eb.data.from_arrays(x[order], y[order], ids=order)
    other = smooth_certify(model, ids, eb.L2(eps=0.1), how, batch_size=batch_size)
    assert other.ids == tuple(order.tolist())
    for part in ("prediction", "count", "p_lower", "radius", "abstained", "verified", "needed"):
        values = getattr(one, part)
        assert getattr(other, part) == tuple(values[i] for i in order)
    assert smooth_certify(model, (x, y), eb.L2(eps=0.1), how, seed=1).count != one.count


def test_the_model_is_left_as_it_was():
    model = nets.mlp((6,), 3, noisy=True).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = nets.batch_of(4, (6,), 3)
    smooth_certify(model, (x, y), eb.L2(eps=0.1), Smoothing(sigma=0.3, n=40))
    assert model.training
    assert all(part.training for part in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(part.requires_grad for part in model.parameters())


@pytest.mark.parametrize("scores", ["logits", "labels"])
def test_a_black_box_is_certified_as_the_model_in_it(scores):
    model = nets.mlp((6,), 3)
    x, y = nets.batch_of(5, (6,), 3)

    def function(z: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits = model(torch.from_numpy(z))
        return (logits if scores == "logits" else logits.argmax(1)).numpy()

    how, ball = Smoothing(sigma=2.0, n=200), eb.L2(eps=0.1)
    inside = smooth_certify(model, (x, y), ball, how)
    outside = smooth_certify(eb.BlackBox(function, scores=scores, memory=0), (x, y), ball, how)
    assert (outside.prediction, outside.count) == (inside.prediction, inside.count)


def test_what_a_ball_needs_is_the_distance_of_its_farthest_point():
    x, y = nets.batch_of(3, (2, 3), 2)
    model, how = nets.linear((2, 3), 2), Smoothing(sigma=0.3, n=40)
    mask = torch.zeros(1, 2, 3, dtype=torch.bool)
    mask[0, 0] = True
    eps = torch.tensor([0.1, 0.2, 0.3])
    corner = torch.maximum(x.clamp_max(0.5), (1 - x).clamp_max(0.5)).flatten(1).norm(dim=1)
    cases = [
        (eb.L2(eps=0.2, lo=0, hi=1), torch.full((3,), 0.2)),
        (eb.L2(eps=eps), eps),
        (eb.L1(eps=0.2), torch.full((3,), 0.2)),
        (eb.Linf(eps=0.2), torch.full((3,), 0.2 * math.sqrt(6))),
        (eb.Linf(eps=0.2, mask=mask), torch.full((3,), 0.2 * math.sqrt(3))),
        (eb.Linf(eps=0.5, lo=0, hi=1), corner),
    ]
    for ball, expected in cases:
        found = smooth_certify(model, (x, y), ball, how)
        np.testing.assert_allclose(found.needed, expected.double().numpy(), rtol=1e-6)
    with pytest.raises(eb.BadInput, match="`ball` must be of l2, l1 or linf for smoothing, got l0"):
        smooth_certify(model, (x, y), eb.L0(eps=1, lo=0, hi=1), how)


@pytest.mark.parametrize(
    "options", [{"sigma": 0}, {"sigma": math.inf}, {"n": 0}, {"n0": 0.5}, {"alpha": 0}, {"alpha": 0.5}], ids=str
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(eb.BadInput, match=next(iter(options))):
        Smoothing(**{"sigma": 0.5} | options)


def test_noise_that_is_too_small_for_x_is_refused():
    with pytest.raises(eb.BadInput, match="`sigma` must be at least 1e-10"):
        GridGaussian(1e-12).to_grid(torch.full((1, 1), 1e3))


# Floating point.


@pytest.mark.parametrize("sigma", [0.25, 0.4999])
def test_the_sampler_is_within_its_total_variation_of_the_rounded_gaussian(sigma):
    gaussian = GridGaussian(sigma)
    ratio = sigma / gaussian.step
    table = _table(ratio)
    reached = np.array([0, *table.thresholds.tolist()], dtype=object)
    sampled = np.array([float(part) for part in np.diff(reached)]) / 2.0**DIGITS  # of |Q(N)| / h = 0, 1, ...
    tails = np.array([math.erfc((j + 0.5) / ratio / math.sqrt(2)) for j in range(len(sampled))])
    exact = -np.diff(np.array([1.0, *tails]))
    exact[0] = math.erf(0.5 / ratio / math.sqrt(2))
    assert reached[-1] == 2**DIGITS
    assert (np.abs(sampled - exact).sum() + tails[-1]) / 2 < TOTAL_VARIATION


def test_the_guide_finds_what_a_binary_search_finds():
    table = _table(2.0**13)
    words = Noise(0, torch.arange(64), torch.zeros(64, dtype=torch.long)).bits((1000,)) & ((1 << DIGITS) - 1)
    inner = table.thresholds[table.thresholds < 1 << DIGITS]
    edges = torch.cat([inner - 1, inner, torch.tensor([0, (1 << DIGITS) - 1])])
    for part in (words, edges):
        assert torch.equal(table(part), torch.searchsorted(table.thresholds, part, right=True))


def test_noise_is_symmetric_and_has_the_moments_of_a_gaussian():
    gaussian = GridGaussian(0.3)
    rows = torch.arange(200)
    whole = gaussian.draw(Noise(3, rows, torch.zeros_like(rows)), (5000,), rows)
    z = whole.double() * gaussian.step / 0.3
    n = z.numel()
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.pow(2).mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs(z.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
    for level in (0.5, 2.0, 3.0):
        share = float((z > level).double().mean())
        assert binomtest(round(share * n), n, 1 - float(torch.special.ndtr(torch.tensor(level)))).pvalue > 1e-4


class ReadsLowBits(nn.Module):
    """Class 0 where all coordinates near 0 are multiples of 2^-28: float32 sums of 0.05 and a number near -0.05 are."""

    def forward(self, z: Tensor) -> Tensor:
        scaled = z.double() * 2.0**28
        coarse = ((scaled == scaled.round()) | (z.abs() > 0.0125)).all(1)
        return torch.stack([coarse, ~coarse], 1).to(z)


class ReadsParity(nn.Module):
    """The parity of the sum of the steps of the grid."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step = step

    def forward(self, z: Tensor) -> Tensor:
        odd = (z.double() / self.step).round().sum(1).remainder(2)
        return torch.stack([1 - odd, odd], 1).to(z)


def test_a_classifier_that_reads_low_bits_breaks_naive_smoothing_and_not_this_one():
    d, sigma, n = 400, 1.0, 1000
    shifted, zeros = torch.full((1, d), 0.05), torch.zeros(1, d)
    noise = sigma * torch.randn(n, d, generator=nets.rng(1))
    count = [int((ReadsLowBits()(x + noise).argmax(1) == label).sum()) for label, x in enumerate((shifted, zeros))]
    naive = sigma * ndtri(clopper_pearson_lower(np.array(count), n, 0.001))
    assert naive.min() > 1
    assert naive.sum() > 3 * float((shifted - zeros).norm())
    step = GridGaussian(sigma).step
    for model in (ReadsLowBits(), ReadsParity(step)):
        x = torch.cat([shifted, zeros, zeros + step, zeros + 0.3 * step])
        found = smooth_certify(
            model, (x, torch.zeros(4, dtype=torch.long)), eb.L2(eps=0.5), Smoothing(sigma=sigma, n=n)
        )
        for i in range(4):
            for j in range(i):
                apart = float((x[i].double() - x[j].double()).norm())
                same = found.prediction[i] == found.prediction[j]
                assert same or found.radius[i] + found.radius[j] <= apart


def test_inputs_between_two_steps_lose_what_rounding_can_move_them():
    gaussian, shape = GridGaussian(0.5), (100,)
    off_grid = 0.3 * gaussian.step * torch.ones(1, *shape, dtype=torch.float64)
    assert float(gaussian.moved(off_grid)) == pytest.approx(3 * gaussian.step)
    assert float(gaussian.moved(gaussian.to_grid(off_grid + 1).double() * gaussian.step)) == 0
    p = np.array([0.9])
    assert radius_of(p, 0.5, shape) < 0.5 * ndtri(p) - 5 * gaussian.step
    assert radius_of(p, 0.5, shape) > 0.5 * ndtri(p) - 5.01 * gaussian.step - 1e-6
    assert radius_of(np.array([0.5]), 0.5, shape) < 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_the_model_is_shown_is_a_function_of_the_sum_in_whole_numbers(dtype):
    gaussian = GridGaussian(0.25)
    x = nets.batch(3, (4,)).to(dtype)
    whole = gaussian.to_grid(x)
    shown = gaussian.from_grid(whole, dtype)
    assert shown.dtype == dtype
    assert shown.isfinite().all()
    assert torch.equal(gaussian.from_grid(whole - 5 + 5, dtype), shown)
    assert (shown.double() - x.double()).abs().max() <= gaussian.step + torch.finfo(dtype).eps


# The smoothed classifier as a model.


def test_the_smoothed_model_is_deterministic_differentiable_and_independent_of_the_batch():
    model = nets.mlp((6,), 3)
    smoothed = eb.SmoothedClassifier(model, Smoothing(sigma=0.3), draws=8)
    x = nets.batch(4, (6,)).requires_grad_()
    out = smoothed(x)
    assert torch.allclose(out.exp().sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(torch.cat([smoothed(row[None]) for row in x]), out)
    (grad,) = torch.autograd.grad(out[:, 0].sum(), x)
    move = 8 * GridGaussian(0.3).step  # a multiple of the grid's step, so that rounding plays no part
    for j in range(6):
        up = torch.zeros(6, dtype=torch.float64)
        up[j] = move
        slope = (smoothed(x + up)[:, 0] - smoothed(x - up)[:, 0]) / (2 * move)
        torch.testing.assert_close(grad[:, j], slope, rtol=1e-3, atol=1e-5)


def test_attacks_run_on_the_smoothed_model_and_stop_at_its_radius():
    model, x, y, distance = halfspace()
    how = Smoothing(sigma=0.5, n=2000)
    smoothed = eb.SmoothedClassifier(model, how, draws=64)
    keep = smoothed(x).argmax(1) == y
    x, y, distance = x[keep], y[keep], distance[keep]
    ball = eb.L2(eps=1.1 * distance + 0.3)
    x_adv = eb.PGD(steps=10)(smoothed, x, y, ball)
    assert ball.contains(x_adv, x).all()
    assert (smoothed(x_adv).argmax(1) != y).float().mean() > 0.9
    assert (smoothed.predict(x_adv) == y).float().mean() < 0.1
    certified = torch.tensor(smooth_certify(model, (x, y), ball, how).radius)
    close = eb.L2(eps=0.98 * certified)
    answer = smoothed.predict(eb.PGD(steps=10)(smoothed, x, y, close))
    assert ((answer == y) | (answer == -1) | (certified == 0)).all()


def test_the_smoothed_model_answers_the_class_that_the_linear_model_gives():
    model, x, y, distance = halfspace()
    answer = eb.SmoothedClassifier(model, Smoothing(sigma=0.5)).predict(x)
    far = distance > 0.2
    assert (answer[far] == y[far]).all()
    assert ((answer == y) | (answer == -1)).all()


def test_an_evaluation_takes_the_smoothed_model():
    model = nets.linear((6,), 3, seed=1)
    x, y = nets.batch(20, (6,)), model(nets.batch(20, (6,))).argmax(1)
    smoothed = eb.SmoothedClassifier(model, Smoothing(sigma=0.2), draws=8)
    ev = eb.evaluate(smoothed, (x, y), eb.L2(eps=0.2, lo=0, hi=1), eb.PGD(steps=5), seed=3)
    assert ev.robust_accuracy < ev.clean_accuracy


# A network that was trained for it.


def test_training_with_gaussian_noise_lets_a_network_be_certified():
    data, test = (eb.data.load_data("digits", split=split) for split in ("train", "test"))
    model = eb.models.build("small-mlp", data.shape, data.classes, seed=0)
    eb.fit(model, data, objective=eb.training.Gaussian(sigma=0.25), epochs=15, lr=5e-3)
    found = smooth_certify(model, test.rows(slice(100)), eb.L2(eps=0.25), Smoothing(sigma=0.25, n=200))
    assert found.certified_accuracy > 0.7
    assert found.certified_accuracy_at(0.5) < found.certified_accuracy < found.accuracy


@pytest.mark.nightly
def test_a_small_cnn_trained_with_noise_is_certified_on_mnist_and_a_plain_one_is_not():
    folder = str(shared_data("mnist"))
    data = eb.data.load_data(folder, split="train", limit=10_000)
    test = eb.data.load_data(folder, split="test", limit=100)
    certified = {}
    for objective in (eb.training.Plain(), eb.training.Gaussian(sigma=0.5)):
        model = eb.models.build("small-cnn", data.shape, data.classes, seed=0)
        eb.fit(model, data, objective=objective, epochs=3, batch_size=100, lr=3e-3)
        found = smooth_certify(model, test, eb.L2(eps=0.5, lo=0, hi=1), Smoothing(sigma=0.5, n=1000))
        certified[type(objective).__name__] = found.certified_accuracy
    assert certified["Gaussian"] > 0.85
    assert certified["Gaussian"] > certified["Plain"] + 0.1
