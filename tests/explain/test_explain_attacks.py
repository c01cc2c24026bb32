"""Targets, universal perturbations, the decision boundary, rubbish: against models with a known exact answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import LabelOnly, RaisesAt, batch, batch_of, mlp, weighted
from torch import Tensor, nn

import epsball as eb
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.explain import Boundary, Rubbish, Targets, Universal, boundary, draw, rubbish, targets, universal
from epsball.explain.analyses.rubbish import UNIFORM_DRAW
from epsball.explain.finding import numbers

BALLS: dict[str, type[Ball]] = {"linf": eb.Linf, "l2": eb.L2, "l1": eb.L1}
DUAL = {"linf": 1, "l2": 2, "l1": math.inf}
SHAPE = (1, 4, 4)


def examples(n: int = 24, classes: int = 3, *, seed: int = 0, lo: float = 0.0) -> Examples:
    x, y = batch_of(n, SHAPE, classes, seed=seed)
    return from_arrays(x.float() + lo, y, lo=lo, hi=lo + 1, classes=classes)


def net(classes: int = 3, *, noisy: bool = False) -> nn.Module:
    return mlp(SHAPE, classes, noisy=noisy).float()


def itself(x: Tensor) -> Tensor:
    """Logits that are the features."""
    return x


def one_class(n: int, d: int, *, seed: int = 0) -> tuple[Callable[[Tensor], Tensor], Examples, Tensor]:
    """A linear score, examples that it gives the class 1, and the weights."""
    w = batch(1, (d,), lo=-1, hi=1, seed=seed)[0]
    x = batch(n, (d,), lo=-1, hi=1, seed=seed + 1)
    bias = float(1 - (x @ w).min())
    return weighted(w, bias), from_arrays(x, torch.ones(n, dtype=torch.long), classes=2), w


ANALYSES: dict[str, Callable[[Callable, Examples, Ball], object]] = {
    "targets": lambda model, data, ball: targets(model, data, ball, eps=(0.2,)),
    "universal": lambda model, data, ball: universal(model, data, ball, sides=(4, 6), steps=3, training_steps=4),
    "boundary": lambda model, data, ball: boundary(model, data, ball),
    "rubbish": lambda model, data, ball: rubbish(model, data, ball, draws=20),
}
RECORDS = {"targets": Targets, "universal": Universal, "boundary": Boundary, "rubbish": Rubbish}


@pytest.mark.parametrize("name", ANALYSES)
def test_the_model_and_the_examples_are_returned_unchanged(name: str):
    model = net(noisy=True).train()
    model[2].eval()
    model[0].register_parameter("fixed", nn.Parameter(torch.ones(2), requires_grad=False))
    flags = [m.training for m in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    state = {key: part.clone() for key, part in model.state_dict().items()}
    data = examples()
    before, random = data.x.clone(), torch.random.get_rng_state()
    ANALYSES[name](model, data, eb.Linf(eps=0.1, lo=0, hi=1))
    for calls in (1, 4):
        with pytest.raises(RuntimeError, match="out of memory"):
            ANALYSES[name](RaisesAt(model, calls), data, eb.Linf(eps=0.1, lo=0, hi=1))
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == wants
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(part, state[key]) for key, part in model.state_dict().items())
    assert torch.equal(data.x, before)
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("name", ANALYSES)
def test_records_survive_json_and_runs_repeat(name: str):
    first, again = (ANALYSES[name](net(), examples(), eb.L2(eps=0.5, lo=0, hi=1)) for _ in range(2))
    assert first == again
    assert RECORDS[name].from_json(first.to_json()) == first
    assert first.config["versions"]["epsball"] == eb.__version__
    assert any(sign.isdigit() for sign in first.sentence)
    assert first.sentence.endswith(".")


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize("shape", [(3, 5, 4), (6,)])
def test_the_figure_is_a_picture(tmp_path: Path, name: str, shape: tuple[int, ...]):
    from PIL import Image

    x, y = batch_of(24, shape, 3)
    data = from_arrays(x.float(), y, lo=0, hi=1, classes=3)
    model, ball = mlp(shape, 3).float(), eb.Linf(eps=0.2, lo=0, hi=1)
    found = (
        universal(model, data, ball, sides=(), steps=3) if name == "universal" else ANALYSES[name](model, data, ball)
    )
    draw(found, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert 600 < pixels.shape[1] < 3000
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("name", ANALYSES)
def test_an_unbounded_box_and_one_logit_are_measured(tmp_path: Path, name: str):
    x, y = batch_of(20, (5,), 1, seed=3)
    data = from_arrays(x, y, classes=2)
    found = (
        ANALYSES[name](mlp((5,), 1), data, eb.L2(eps=0.5))
        if name != "universal"
        else universal(mlp((5,), 1), data, eb.L2(eps=0.5), steps=3)
    )
    assert RECORDS[name].from_json(found.to_json()) == found
    draw(found, tmp_path / "figure.png")


# targets


@pytest.mark.parametrize(("lo", "hi"), [(-math.inf, math.inf), (0.0, 1.0), (-1.0, 3.0)])
def test_targeted_successes_are_counted_exactly(lo: float, hi: float):
    x = batch(40, (4,), seed=1).float()
    x = x if lo == -math.inf else lo + x * (hi - lo)
    data = from_arrays(x, x.argmax(1), lo=lo, hi=hi, classes=4)
    radii = (0.05, 0.2, 0.4)
    found = targets(itself, data, eb.Linf(eps=0.2, lo=lo, hi=hi), eps=radii)
    assert [one.eps for one in found.curve] == list(radii)
    for one in found.curve:
        reached = np.zeros((40, 4), dtype=bool)
        for t in range(4):
            up, down = (x + one.eps).clamp(lo, hi), (x - one.eps).clamp(lo, hi)
            down[:, t] = -math.inf
            reached[:, t] = (up[:, t] > down.amax(1)).numpy() & (x.argmax(1) != t).numpy()
        assert one.mean == pytest.approx(reached.sum() / 120)
        assert one.everywhere == pytest.approx((reached.sum(1) == 3).mean())
        assert one.somewhere == pytest.approx((reached.sum(1) > 0).mean())
        if one.eps == 0.2:
            counts = [reached[(x.argmax(1) == c).numpy()].sum(0).tolist() for c in range(4)]
            assert np.array(found.successes)[:4].tolist() == counts
            assert list(found.reached) == np.bincount(reached.sum(1), minlength=4).tolist()
    assert (found.at_ball.blank is None) == (lo == -math.inf)


def test_blank_images_and_noise_are_attacked_too():
    data = from_arrays(torch.eye(3), torch.arange(3), lo=0, hi=1)
    found = targets(itself, data, eb.Linf(eps=0.1, lo=0, hi=1), eps=(0.01,))
    shares = found.shares[3:]
    assert found.sources == ("0", "1", "2", "black", "grey", "white", "noise")
    assert shares[:3, 1:].tolist() == [[1.0, 1.0]] * 3  # one colour is a tie: any step decides it
    assert np.isnan(shares[:3, 0]).all()  # and the first class is what it is predicted as
    assert found.at_ball.everywhere == 0


def test_misclassified_examples_are_left_out():
    x = batch(30, (3,), seed=2).float()
    y = x.argmax(1)
    wrong = torch.arange(30) < 7
    data = from_arrays(x, torch.where(wrong, (y + 1) % 3, y), classes=3)
    found = targets(itself, data, eb.Linf(eps=5.0))
    right = targets(itself, data.rows(~wrong), eb.Linf(eps=5.0))
    assert sum(found.reached) == 23
    assert found.attempts == right.attempts
    assert found.successes == right.successes == right.attempts
    assert found.at_ball.everywhere == found.at_ball.mean == 1


# universal perturbations


@pytest.mark.parametrize("norm", BALLS)
def test_one_perturbation_fools_all_examples_that_a_linear_model_allows(norm: str):
    model, data, w = one_class(60, 12, seed=4)
    score = model(data.x).detach()
    ball = BALLS[norm](eps=float(score.median() / torch.linalg.vector_norm(w, DUAL[norm])))
    found = universal(model, data.rows(slice(30, None)), ball, train=data.rows(slice(30)), eps=(float(ball.eps) / 2,))
    for one in found.radii:
        reach = one.eps * torch.linalg.vector_norm(w, DUAL[norm])
        assert one.held_out == pytest.approx((score[30:] < reach).double().mean().item())
        assert one.fitted == pytest.approx((score[:30] < reach).double().mean().item())
        assert one.per_example == pytest.approx(one.held_out)
        assert one.noise < one.held_out
    delta = torch.tensor(found.perturbation, dtype=torch.float64)
    assert float(torch.linalg.vector_norm(delta, {"linf": math.inf, "l2": 2, "l1": 1}[norm])) <= ball.eps * (1 + 1e-9)
    assert found.at_ball.dominant == 0
    assert found.at_ball.dominant_share == 1


def test_no_more_are_fooled_than_a_linear_model_allows():
    w, b = batch(1, (6,), lo=-1, hi=1, seed=9)[0], 0.1
    x = batch(80, (6,), lo=-1, hi=1, seed=10)
    score = x @ w + b
    data = from_arrays(x, (score > 0).long(), classes=2)
    found = universal(weighted(w, b), data, eb.Linf(eps=0.2), train=data)
    reach = 0.2 * w.abs().sum()
    best = max(int(((score > 0) & (score < reach)).sum()), int(((score <= 0) & (-score < reach)).sum()))
    assert 0 < found.at_ball.fitted * 80 <= best + 1e-9


@pytest.mark.parametrize("norm", [*BALLS, "l0"])
def test_the_perturbation_stays_in_ball_and_mask(norm: str):
    from epsball.balls.registry import BALLS as EVERY

    mask = torch.ones(1, *SHAPE, dtype=torch.bool)
    mask[0, 0, 0] = False
    eps = {"linf": 0.2, "l2": 0.8, "l1": 2.0, "l0": 3.0}[norm]
    ball = EVERY[norm](eps=eps, lo=0.5, hi=1.5, mask=mask)
    found = universal(net(), examples(lo=0.5), ball, sides=(), steps=10, draws=2)
    delta = torch.tensor(found.perturbation).reshape(1, *SHAPE)
    assert float(ball.norm(delta)) <= eps * (1 + 1e-6)
    assert not delta[~mask].any()
    assert bool(delta.any())


def test_the_shuffled_values_are_those_of_the_perturbation():
    from epsball.explain.shared_perturbation import PerturbationMaker

    delta = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = False
    mixed = PerturbationMaker(steps=1, draws=5, seed=0, batch_size=8)._shuffled(delta, mask)
    assert len(mixed) == 5
    for one in mixed:
        assert torch.equal(one.flatten().sort().values, delta.flatten().sort().values)
        assert torch.equal(one[~mask], delta[~mask])
        assert not torch.equal(one, delta)


def test_the_sizes_are_those_given():
    ball, few = eb.Linf(eps=0.1, lo=0, hi=1), {"steps": 2, "training_steps": 4, "eps": (0.05,)}
    found = universal(net(), examples(), ball, sides=(3, 8), networks=2, **few)
    assert [[one.n for one in size] for size in found.sizes] == [[9, 9], [64, 64]]
    assert [one.eps for one in found.radii] == [0.05, 0.1]
    assert found.at_ball.n == 16
    first, second = (universal(net(), examples(), ball, sides=(3,), networks=1, seed=s, **few).sizes[0] for s in (0, 1))
    assert (*first, replace(second[0], noise=found.sizes[0][1].noise)) == found.sizes[0]  # noise is keyed by the seed
    assert universal(net(), examples(), ball, sides=(), **few).sizes == ()


def test_the_sentence_states_how_far_networks_of_one_size_differ():
    ball = eb.Linf(eps=0.1, lo=0, hi=1)
    found = universal(net(), examples(), ball, sides=(3, 8), networks=2, steps=2, training_steps=4)
    small, large = (replace(found.sizes[0][0], n=n, held_out=h) for n, h in ((9, 0.25), (64, 0.5)))
    known = replace(found, sizes=((small, replace(small, held_out=0.75)), (large, large)))
    text = (
        "On 2 networks trained at each size it is 50.0 % (25.0 to 75.0 %) in 9 dimensions and 50.0 % (50.0 to 50.0 %)"
    )
    assert text in known.sentence


# the decision boundary


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("lo", [-math.inf, -4.0])
def test_the_distances_of_a_linear_model_are_its_closed_form(norm: str, lo: float):
    w, b = torch.tensor([3.0, -4.0, 1.0]).double(), 0.5
    x = batch(24, (3,), lo=-1, hi=1, seed=6)
    y = (x @ w + b > 0).long()
    y[:2] = 1 - y[:2]  # misclassified without attack
    data = from_arrays(x, y, lo=lo, hi=-lo, classes=2)
    found = boundary(weighted(w, b), data, BALLS[norm](eps=1.0, lo=lo, hi=-lo)).norms[0]
    distance = (x @ w + b).abs() / torch.linalg.vector_norm(w, DUAL[norm])
    distance[:2] = 0
    # the boundary cannot be crossed by less than the rounding of float64
    assert np.allclose(numbers(found.boundary), distance, rtol=2e-3, atol=1e-6)
    apart = torch.stack(
        [torch.linalg.vector_norm(x - one, {"linf": math.inf, "l2": 2, "l1": 1}[norm], dim=1) for one in x]
    )
    other = torch.where(y[:, None] != y, apart, math.inf).amin(1)
    same = torch.where((y[:, None] == y) & ~torch.eye(24, dtype=torch.bool), apart, math.inf).amin(1)
    assert np.allclose(numbers(found.other), other, rtol=1e-12)
    assert np.allclose(numbers(found.same), same, rtol=1e-12)
    right = distance > 0
    assert found.median == pytest.approx(distance[right].median().item(), rel=0.1)
    assert found.within_half == pytest.approx((distance < other / 2)[right].double().mean().item())
    assert found.median_other == pytest.approx(np.median(other[right]))


def test_norms_and_rows_are_those_given():
    data = examples(30)
    found = boundary(
        net(), data, eb.L2(eps=0.1, lo=0, hi=1), train=examples(50, seed=7), norms=("l0", "l2"), rows=11, train_rows=20
    )
    assert [one.norm for one in found.norms] == ["l2", "l0"]
    assert {len(one.other) for one in found.norms} == {11}
    assert found.config["train_rows"] == 20
    counts = numbers(found.of("l0").boundary)
    assert np.array_equal(counts[np.isfinite(counts)], counts[np.isfinite(counts)].round())


# rubbish


def test_only_noise_with_a_confident_class_is_counted():
    data = examples(classes=3)
    ball = eb.Linf(eps=0.1, lo=0, hi=1)
    flat = rubbish(lambda x: 1e-3 * x.flatten(1)[:, :3], data, ball, draws=50)
    assert flat.of("normal").share == flat.of("uniform").share == flat.of("data").share == 0
    assert flat.of("normal").confidence is None
    assert flat.of("normal").mean == pytest.approx(1 / 3, abs=1e-2)
    assert flat.stepped == 0
    confident = rubbish(lambda x: 1e-3 * x.flatten(1)[:, :3] + torch.tensor([9.0, 0.0, 0.0]), data, ball, draws=50)
    assert confident.of("normal").share == confident.of("uniform", "sigmoid").share == 1
    assert confident.of("normal").classes == (50, 0, 0)
    assert confident.towards == (None, 0, 0)


@pytest.mark.parametrize("lo", [0.0, -2.0])
def test_a_step_towards_a_class_has_the_known_success_on_a_linear_model(lo: float):
    w, b = torch.tensor([2.0, -1.0, 0.5]), -0.3 - 1.5 * lo
    data = from_arrays(torch.full((4, 3), lo + 0.5), [0, 1, 0, 1], lo=lo, hi=lo + 1)
    ball = eb.Linf(eps=0.15, lo=lo, hi=lo + 1)
    found = rubbish(lambda x: x @ w + b, data, ball, draws=200, seed=5)
    index = torch.arange(200)
    x = lo + Noise(5, index, torch.zeros_like(index)).uniform((3,), draw=UNIFORM_DRAW)
    for target, side in ((0, -1), (1, 1)):
        before, moved = side * (x @ w + b), (x + 0.15 * side * w.sign()).clamp(lo, lo + 1)
        there = before <= 0  # p <= .5
        expected = (side * (moved @ w + b) > 0)[there].float().mean().item()
        assert 0.1 < expected < 0.9
        assert found.towards[target] == pytest.approx(expected)
    assert found.of("uniform").share == 1  # of two classes one always has p > .5
    assert found.of("uniform").classes == (int((x @ w + b <= 0).sum()), int((x @ w + b > 0).sum()))


def test_confidence_by_sigmoid_and_by_softmax_is_counted_separately():
    data = from_arrays(torch.zeros(3, 4), [0, 1, 2], lo=0, hi=1, classes=4)
    found = rubbish(lambda x: 0 * x + torch.tensor([0.4, 0.3, 0.2, 0.1]), data, eb.Linf(eps=0.1), draws=10)
    assert (found.of("normal").share, found.of("normal", "sigmoid").share) == (0, 1)
    assert found.of("normal", "sigmoid").confidence == pytest.approx(1 / (1 + math.exp(-0.4)))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m, d, b: targets(m, d, b, eps=(0.0,)), "`eps` must be radii > 0"),
        (lambda m, d, b: targets(m, d, b, rows=0), "`rows` must be a whole number >= 1"),
        (lambda m, d, b: targets(m, d, b, attack="pdg"), "did you mean 'pgd'"),
        (lambda m, d, b: targets(m, replace(d, y=0 * d.y, classes=1), b), "at least two classes"),
        (lambda m, d, b: targets(m, d, b.with_eps(math.inf)), "`ball` must have one radius"),
        (lambda m, d, b: universal(m, d, b.with_eps(torch.full((24,), 0.1))), "`ball` must have one radius"),
        (lambda m, d, b: universal(m, d, replace(b, lo=torch.zeros(24, *SHAPE))), "must be the same for all"),
        (lambda m, d, b: universal(m, d, b, eps=(-1.0,)), "`eps` must be radii > 0"),
        (lambda m, d, b: universal(m, d, b, sides=(0,)), "`sides` must be a whole number >= 1"),
        (lambda m, d, b: universal(m, d.rows(slice(1)), b), "at least two examples"),
        (lambda m, d, b: universal(LabelOnly(m), d, b), "must return logits"),
        (
            lambda m, d, b: universal(lambda x: x.flatten(1)[:, :1] * 0 - 1, replace(d, y=0 * d.y + 1), b),
            "be right about",
        ),
        (lambda m, d, b: boundary(m, d, b, norms=("l3",)), "`norms` must be one of"),
        (lambda m, d, b: boundary(m, d, replace(b, mask=torch.ones(1, *SHAPE).bool())), "must have no mask"),
        (lambda m, d, b: boundary(m, d, b, train=d.rows(d.y == 0)), "at least two classes"),
        (lambda m, d, b: rubbish(m, d, b, draws=0), "`draws` must be a whole number >= 1"),
        (lambda m, d, b: rubbish(LabelOnly(m), d, b), "must return logits"),
    ],
)
def test_a_bad_argument_is_named(ask: Callable, message: str):
    with pytest.raises(BadInput, match=message):
        ask(net(), examples(), eb.Linf(eps=0.1, lo=0, hi=1))
