"""The binarization test: planted adversarial examples exist, strong attacks find them, weak ones fail the test."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import run
from nets import Counting, LabelOnly, RaisesAt, Wrapper, conv, linear, mlp, rng
from scipy.optimize import nnls
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.attack import Attack
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.data.load import load_data
from epsball.diagnosis import planted_examples
from epsball.diagnosis.binarization_record import BinarizationTest
from epsball.diagnosis.binarization_test import binarization_test, run_binarization_test
from epsball.diagnosis.binary_heads import Featured, Headed, Heads, last_linear
from epsball.diagnosis.planted_examples import INNER, at_edge, make_heads, repeated, separate
from epsball.evaluation.result import Evaluation
from epsball.models.registry import build
from epsball.problem.losses import cross_entropy, margin
from epsball.problem.objective import ModelWarning, Objective
from epsball.problem.task import Task, task_of
from epsball.training.fit import fit

SHIFT = -0.5
"""Digits are in [0, 1]; shifted, the box does not begin at 0."""
BOX = {"lo": SHIFT, "hi": 1 + SHIFT}
BALLS: dict[str, Ball] = {
    "linf": eb.Linf(eps=0.1, **BOX),
    "l2": eb.L2(eps=0.8, **BOX),
    "l1": eb.L1(eps=4.0, **BOX),
    "l0": eb.L0(eps=6, **BOX),
}


@pytest.fixture(scope="module")
def digits() -> Examples:
    data = load_data("digits", split="test", first=64)
    return replace(data, x=data.x + SHIFT, lo=SHIFT, hi=1 + SHIFT)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    data = load_data("digits", split="train")
    model = build("small-mlp", (1, 8, 8), 10)
    fit(model, (data.x + SHIFT, data.y), epochs=12, seed=0)
    return model.eval()


def made(model: Callable[[Tensor], Tensor], data: Examples, ball: Ball, seed: int = 0) -> tuple[Heads, Task, nn.Module]:
    """Heads of the correctly classified examples, their task as an attack gets it, and the layer they replace."""
    task = task_of(data.x, data.y, ball, ids=data.ids, seed=seed)
    with Objective(model, cross_entropy) as objective:
        logits = objective.forward(task.x)
    good = (logits.argmax(1) == task.y).nonzero().squeeze(1)
    task, logits = task.rows(good), logits[good]
    layer = last_linear(model, task.x[:1])
    with Featured(model, layer) as featured:
        heads, rows = make_heads(featured, task, margin(logits, task).neg(), batch_size=64)
    assert heads is not None
    return heads, replace(task, y=torch.zeros_like(task.y), clean=logits).rows(rows), layer


# The hyperplane.


@pytest.mark.parametrize(("m", "d"), [(40, 3), (30, 60), (5, 200), (1, 4)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_the_hyperplane_is_the_widest(m: int, d: int, offset: float):
    random = np.random.default_rng(m + d)
    inner, outer = random.normal(size=(m, d)) + offset, 3 * random.normal(size=d) + offset
    plane = separate(inner, outer)
    assert plane is not None
    normal, gap = plane
    assert np.linalg.norm(normal) == pytest.approx(1)
    assert ((outer - inner) @ normal).min() == pytest.approx(gap, rel=1e-6)
    # No wider one exists, since the foot of the normal is in the hull of the inner points.
    foot = outer - gap * normal
    _, residual = nnls(np.vstack([inner.T - foot[:, None], np.ones(m)]), np.append(np.zeros(d), 1.0), maxiter=1000)
    assert residual < 1e-6 * np.linalg.norm(outer - inner, axis=1).max()


def test_a_point_among_the_others_cannot_be_separated():
    inner = np.random.default_rng(0).normal(size=(60, 3))
    assert separate(inner, inner.mean(0)) is None
    assert separate(inner, inner[7]) is None
    assert separate(np.zeros((4, 3)), np.zeros(3)) is None


# Planted adversarial examples.


@pytest.mark.parametrize("norm", BALLS)
def test_a_planted_example_is_in_the_ball_and_inner_points_are_not_adversarial(net, digits, norm: str):
    ball = BALLS[norm]
    heads, task, layer = made(net, digits, ball)
    assert len(heads.ids) > 50
    assert torch.equal(heads.ids, task.noise.ids)
    assert task.ball.contains(heads.edge, task.x).all()
    assert (task.ball.norm(heads.edge - task.x) >= 0.99 * (ball.eps if norm != "l0" else 6)).all()
    with Headed(net, layer, heads) as headed:
        assert not headed.evaluate_at(task.x, task).fooled.any()
        assert headed.evaluate_at(heads.edge, task).fooled.all()
        for row in range(0, len(task.x), 7):
            inner = repeated(task, row, planted_examples.INNER_RESTART + torch.arange(INNER))
            small = (
                task.ball.with_eps(ball.eps * planted_examples.INNER_RADIUS)
                .bind(task.x)
                .rows(torch.full((INNER,), row))
            )
            assert not headed.evaluate_at(planted_examples.scattered(replace(inner, ball=small)), inner).fooled.any()


def test_points_at_the_edge_of_every_ball_are_random_and_keyed_by_the_example(digits):
    for norm, ball in BALLS.items():
        task = task_of(digits.x, digits.y, ball, ids=digits.ids, seed=3)
        points = at_edge(task)
        assert torch.equal(at_edge(task.rows(torch.tensor([9, 2]))), points[[9, 2]])
        moved = (points != task.x).flatten(1)
        assert moved.unique(dim=0).shape[0] > 32 or norm == "l2"
        assert not torch.equal(points, at_edge(replace(task, noise=replace(task.noise, seed=4))))


def test_the_margin_of_a_head_at_its_example_is_that_of_the_model(net, digits):
    heads, task, layer = made(net, digits, BALLS["linf"])
    own = task.clean
    top = own.topk(2, dim=1).values
    with Headed(net, layer, heads) as headed:
        logits = headed.forward(task.x, task)
    assert logits.shape == (len(task.x), 2)
    torch.testing.assert_close(
        logits[:, 0] - logits[:, 1], (top[:, 0] - top[:, 1]).clamp_min(planted_examples.LEAST_MARGIN)
    )


def test_a_row_keeps_its_head_in_any_order_of_the_pool(net, digits):
    heads, task, layer = made(net, digits, BALLS["linf"])
    order = torch.randperm(len(task.x), generator=rng(1)).repeat(2)
    with Headed(net, layer, heads) as headed:
        straight = headed.forward(heads.edge, task)
        mixed = headed.forward(heads.edge[order], task.rows(order))
    torch.testing.assert_close(mixed, straight[order], rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_head_is_that_of_its_own_example(digits):
    model = mlp((1, 8, 8), 10)
    x = digits.x.double()
    data = replace(digits, x=x, y=model(x).argmax(1))
    heads, task, layer = made(model, data, BALLS["linf"])
    with Headed(model, layer, heads, margin) as headed:
        grad = headed(task.x, task).grad
        for row in (0, 5):
            direction = torch.randn(task.x.shape[1:], generator=rng(row), dtype=torch.float64)
            ends = torch.stack([task.x[row] + step * direction for step in (1e-6, -1e-6)])
            score = headed.forward(ends, task.rows(torch.tensor([row, row])))[:, 1]
            assert (grad[row] * direction).sum().item() == pytest.approx((score[0] - score[1]).item() / 2e-6, rel=1e-5)


# Where the features are.


class Post(Wrapper):
    """Does something to the logits after the last layer, in place or not."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(model)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x))


@pytest.mark.parametrize(
    ("model", "shape", "n_features"),
    [
        (mlp((6,), 3), (6,), 16),
        (linear((6,), 1, squeeze=True), (6,), 6),
        (linear((6,), 1), (6,), 6),
        (conv(4), (2, 6, 6), 32),
        (build("preact-resnet18:width=4", (1, 8, 8), 3).double().eval(), (1, 8, 8), 32),
        (Wrapper(mlp((6,), 3)).model, (6,), 16),
    ],
)
def test_the_features_are_the_input_of_the_last_layer(model: nn.Module, shape: tuple[int, ...], n_features: int):
    x = torch.rand(5, *shape, generator=rng(), dtype=torch.float64)
    layer = last_linear(model, x)
    assert isinstance(layer, nn.Linear)
    with Featured(model, layer) as featured:
        features = featured.forward(x)
        assert features.shape == (5, n_features)
    torch.testing.assert_close(layer(features).reshape(5, -1), model(x).reshape(5, -1))
    assert not layer._forward_hooks


@pytest.mark.parametrize(
    "change",
    [lambda z: z * 2, lambda z: z.mul_(2), torch.round],
    ids=["twice", "twice in place", "rounded"],
)
def test_a_model_that_transforms_its_logits_has_the_logits_as_features(change: Callable[[Tensor], Tensor]):
    model, x = Post(mlp((6,), 3), change), torch.rand(5, 6, generator=rng(), dtype=torch.float64)
    assert last_linear(model, x) is None
    with Featured(model, None) as featured:
        assert torch.equal(featured.forward(x), model(x))


def test_the_features_of_a_callable_are_its_logits(net, digits):
    assert last_linear(lambda x: net(x), digits.x[:1]) is None
    assert last_linear(nn.Flatten(), digits.x[:1]) is None
    found = binarization_test(lambda x: net(x), digits, BALLS["linf"], "pgd", n=16)
    assert found.features == "logits"
    assert found.n >= 14
    assert found.found == found.n


# The result.


@pytest.mark.parametrize("norm", BALLS)
def test_strong_attacks_pass_in_every_norm(net, digits, norm: str):
    attacks = {"linf": "apgd-t", "l2": "apgd", "l1": "l1-apgd", "l0": "pgd:restarts=3"}[norm]
    found = binarization_test(net, digits, BALLS[norm], ["pgd:restarts=2", attacks], n=40)
    assert found.n == 40
    assert found.passed, found.sentence
    assert found.features.startswith("input of the last layer, Linear(in_features=100")


def test_random_points_fail_the_test(net, digits):
    found = binarization_test(net, digits, BALLS["linf"], "uniform-noise:restarts=5", n=32)
    assert found.found < 0.5 * found.n
    assert found.too_weak
    assert not found.passed
    assert "failed, the attacks are too weak for this model" in found.sentence
    assert len(found.missed) == found.n - found.found
    assert set(found.missed) < set(digits.ids.tolist())


class Quantised(Wrapper):
    """Sees its input in steps of a twentieth: no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * 20).round() / 20)


class Winners(nn.Module):
    """Only the k largest units of a layer pass (Xiao et al., ICLR 2020): a gradient that jumps from point to point."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, hidden: Tensor) -> Tensor:
        least = hidden.topk(self.k, dim=1).values[:, -1:]
        return torch.where(hidden >= least, hidden, 0)


def test_masked_gradients_fail_the_test_and_random_search_passes(net, digits):
    masked = Quantised(net)
    with pytest.warns(ModelWarning, match="exactly zero"):
        found = binarization_test(masked, digits, BALLS["linf"], ["fgsm", "pgd"], n=32)
    assert found.features.startswith("input of the last layer")
    assert found.too_weak
    assert found.found == 0
    found = binarization_test(masked, digits, BALLS["linf"], ["square"], n=32)
    assert found.passed, found.sentence


def test_rounded_logits_are_tested_as_they_are(net, digits):
    def rounded(x: Tensor) -> Tensor:
        return (net(x) * 1000).round()

    with pytest.warns(ModelWarning, match="exactly zero"):
        found = binarization_test(rounded, digits, BALLS["linf"], ["pgd"], n=16)
    assert found.features == "logits"
    assert found.too_weak


def test_a_loss_that_saturates_on_the_model_saturates_in_the_test(net, digits):
    loud = build("small-mlp", (1, 8, 8), 10).eval()
    loud.load_state_dict(net.state_dict())
    with torch.no_grad():
        last_linear(loud, digits.x[:1]).weight.mul_(1000)
        last_linear(loud, digits.x[:1]).bias.mul_(1000)
    with pytest.warns(ModelWarning, match="exactly zero"):
        assert binarization_test(loud, digits, BALLS["linf"], "pgd", n=32).too_weak
    assert binarization_test(loud, digits, BALLS["linf"], "pgd:loss=margin", n=32).passed


def test_one_step_is_too_weak_where_the_gradient_jumps():
    data = load_data("digits", split="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 200), Winners(10), nn.Linear(200, 200), Winners(10), nn.Linear(200, 10)
        )
    fit(model, data, epochs=8, seed=0)
    test, ball = load_data("digits", split="test", first=48), eb.Linf(eps=0.1, lo=0, hi=1)
    weak = binarization_test(model, test, ball, "fgsm", n=32)
    strong = binarization_test(model, test, ball, ["square:steps=2000", "apgd:restarts=5,loss=margin"], n=32)
    assert weak.too_weak
    assert weak.found < strong.found


def test_the_test_is_inconclusive_where_random_search_finds_everything():
    x = torch.full((16, 1), 0.25, dtype=torch.float64) + torch.arange(16)[:, None] * 1e-3
    model = linear((1,), 2)
    found = binarization_test(model, (x, model(x).argmax(1)), eb.Linf(eps=0.2, lo=0.1, hi=1), "pgd", n=16)
    assert found.found == found.n > 0
    assert found.random >= 0.5 * found.n
    assert found.inconclusive
    assert not found.passed
    assert "inconclusive, too easy" in found.sentence


def test_in_a_ball_of_radius_0_nothing_is_planted_and_the_test_is_inconclusive(net, digits):
    found = binarization_test(net, digits, eb.Linf(eps=0.0, **BOX), "pgd", n=8)
    assert (found.n, found.found, found.skipped) == (0, 0, 8)
    assert found.inconclusive
    assert not found.passed
    assert "inconclusive, nothing could be planted" in found.sentence


def test_fewer_examples_than_requested_are_accepted(net, digits):
    data = digits.rows(torch.arange(20))
    with torch.no_grad():
        correct = int((net(data.x).argmax(1) == data.y).sum())
    found = binarization_test(net, data, BALLS["linf"], "pgd", n=1000)
    assert found.n + found.skipped == correct
    assert found.requested == 1000
    wrong = replace(data, y=(net(data.x).argmax(1) + 1) % 10)
    found = binarization_test(net, wrong, BALLS["linf"], "pgd", n=5)
    assert (found.n, found.skipped) == (0, 0)
    assert not found.passed


def test_correctly_classified_examples_take_part_in_the_order_of_their_ids(net, digits):
    with torch.no_grad():
        correct = digits.ids[net(digits.x).argmax(1) == digits.y].sort().values
    shuffled = digits.rows(torch.randperm(len(digits), generator=rng(2)))
    found = binarization_test(net, shuffled, BALLS["linf"], "uniform-noise", n=12)
    assert set(found.missed) <= set(correct[:12].tolist())
    assert found.n + found.skipped == 12


# Determinism and side effects.


def test_the_same_seed_gives_the_same_result_in_any_order_and_batch_size(net, digits):
    attacks = ["fgsm", "uniform-noise:restarts=3"]
    found = binarization_test(net, digits, BALLS["linf"], attacks, n=32, seed=5)
    assert found == binarization_test(net, digits, BALLS["linf"], attacks, n=32, seed=5)
    turned = digits.rows(torch.arange(len(digits)).flip(0))
    assert found == binarization_test(net, turned, BALLS["linf"], attacks, n=32, seed=5, batch_size=64)
    edges = [made(net, digits, BALLS["linf"], seed=seed)[0].edge for seed in (5, 5, 6)]
    assert torch.equal(edges[0], edges[1])
    assert not torch.equal(edges[0], edges[2])


def flags_of(model: nn.Module) -> list[tuple[bool, int, int]]:
    """Mode and number of hooks of every part."""
    return [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in model.modules()]


@pytest.mark.parametrize("at", [0.02, 0.3, 0.99])
def test_a_model_is_unchanged_even_after_an_exception(digits, at: float):
    """`at` is the share of all model calls after which one fails: in the features, under attack, in the control."""
    inside = mlp((1, 8, 8), 10, noisy=True).float()
    inside[1].weight.requires_grad_(False)
    model = RaisesAt(inside, 0)
    model.train()
    inside[2].eval()
    flags = flags_of(model)
    learning = [part.requires_grad for part in model.parameters()]
    before = {name: part.clone() for name, part in model.state_dict().items()}
    data = replace(digits, y=inside.eval()(digits.x).argmax(1))
    inside.train()
    inside[2].eval()
    attacks = ["pgd", lambda model, x, y, ball: x]

    def assert_unchanged() -> None:
        assert flags == flags_of(model)
        assert learning == [part.requires_grad for part in model.parameters()]
        assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
        assert all(part.grad is None for part in model.parameters())

    binarization_test(model, data, BALLS["linf"], attacks, n=16)
    assert_unchanged()
    model.k = math.ceil(at * -model.k)
    with pytest.raises(RuntimeError, match="says the test"):
        binarization_test(model, data, BALLS["linf"], attacks, n=16)
    assert_unchanged()


def test_the_data_is_not_changed_and_model_calls_are_counted(net, digits):
    before = digits.x.clone()
    counting = Counting(net)
    found = binarization_test(counting, digits, BALLS["linf"], ["fgsm"], n=32)
    assert torch.equal(digits.x, before)
    assert found.backwards == found.n
    assert found.forwards == 2 * found.n  # one for the gradient, one at the end of the step


def test_float64_stays_float64(digits):
    model = mlp((1, 8, 8), 10)
    x = digits.x.double()
    seen = set()

    def attack(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        seen.add((x.dtype, model(x).dtype))
        return x

    binarization_test(model, (x, model(x).argmax(1)), BALLS["linf"], [attack], n=4)
    assert seen == {(torch.float64, torch.float64)}


# A user's own attacks.


def test_a_callable_gets_a_model_with_the_head_of_its_example(net, digits):
    shown = []

    def climb(model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
        assert isinstance(model, nn.Module)
        shown.append((tuple(x.shape), y.tolist(), tuple(model(x).shape), int(model(x).argmax(1))))
        return eb.PGD(steps=20)(model, x, y, ball)

    found = binarization_test(net, digits, BALLS["linf"], climb, n=12)
    assert shown == [((1, 1, 8, 8), [0], (1, 2), 0)] * found.n
    assert found.n >= 11
    assert found.found == found.n
    assert found.found_by == (("climb", found.n),)


def test_points_outside_the_ball_and_correctly_classified_ones_are_not_found(net, digits):
    far = binarization_test(
        net, digits, BALLS["linf"], lambda model, x, y, ball: x + 100 * (torch.rand_like(x) - 0.5), n=8
    )
    assert far.found == 0
    still = binarization_test(net, digits, BALLS["linf"], lambda model, x, y, ball: x, n=8)
    assert still.found == 0
    assert still.too_weak


def test_attacks_run_in_order_each_on_what_those_before_it_missed(net, digits):
    found = binarization_test(net, digits, BALLS["linf"], "worst-of(uniform-noise, fgsm, pgd:steps=30)", n=32)
    assert [name for name, _ in found.found_by] == ["uniform-noise", "fgsm", "pgd:steps=30"]
    assert sum(count for _, count in found.found_by) == found.found


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "`n` must be a whole number >= 1"),
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1"),
        ({"attacks": []}, "`attacks` must name at least one"),
        ({"attacks": [3]}, "`attacks` must be names"),
        ({"attacks": "pgdd"}, "did you mean"),
        ({"attacks": "l1-apgd"}, "`ball` must be"),
    ],
)
def test_bad_arguments_are_refused_by_name(net, digits, arguments: dict, message: str):
    with pytest.raises(BadInput, match=message):
        binarization_test(**({"model": net, "data": digits, "ball": BALLS["linf"], "attacks": "pgd"} | arguments))


def test_a_model_that_returns_labels_is_refused(net, digits):
    with pytest.raises(BadInput, match="must return logits for the binarization test"):
        binarization_test(LabelOnly(net), digits, BALLS["linf"], "pgd", n=4)


def test_duplicate_ids_are_refused(net, digits):
    with pytest.raises(BadInput, match="distinct"):
        binarization_test(net, replace(digits, ids=torch.zeros_like(digits.ids)), BALLS["linf"], "pgd", n=4)


# In an evaluation.


def test_an_evaluation_stores_its_binarization_test(net, digits, tmp_path):
    arguments = (net, digits.rows(torch.arange(24)), BALLS["linf"], ["fgsm", eb.PGD(steps=10)])
    plain = eb.evaluate(*arguments, run_dir=tmp_path)
    assert plain.binarization_test is None
    assert plain.summary()["binarization_test"] is None
    ev = eb.evaluate(*arguments, run_dir=tmp_path, binarization_test=12)
    assert ev.binarization_test == binarization_test(*arguments, n=12)
    assert ev.summary()["binarization_test"]["sentence"] == ev.binarization_test.sentence
    assert Evaluation.load(tmp_path).binarization_test == ev.binarization_test
    assert BinarizationTest.from_json(ev.binarization_test.to_json()) == ev.binarization_test
    assert eb.evaluate(*arguments, run_dir=tmp_path).binarization_test == ev.binarization_test
    assert ev.records.equals(plain.records)


def test_a_stored_result_is_reused_unless_another_number_is_requested(net, digits, tmp_path, monkeypatch):
    made = []

    def counted(*arguments, n: int, **options) -> BinarizationTest:
        made.append(n)
        return run_binarization_test(*arguments, n=n, **options)

    monkeypatch.setattr("epsball.evaluation.evaluate.run_binarization_test", counted)
    arguments = (net, digits.rows(torch.arange(24)), BALLS["linf"], "pgd")
    first, again, more = (
        eb.evaluate(*arguments, run_dir=tmp_path, binarization_test=n).binarization_test for n in (5, 5, 6)
    )
    assert made == [5, 6]
    assert first == again
    assert more.requested == 6
    assert Evaluation.load(tmp_path).binarization_test == more


def test_the_binarization_test_of_a_curve_is_at_the_largest_radius(net, digits):
    data = digits.rows(torch.arange(24))
    ev = eb.evaluate(net, data, eb.Linf(eps=0.0, **BOX), "pgd", eps=[0.02, 0.1], binarization_test=8)
    assert ev.binarization_test == binarization_test(net, data, BALLS["linf"], "pgd", n=8)


def test_an_evaluation_with_a_target_is_tested_too(net, digits):
    ev = eb.evaluate(net, digits.rows(torch.arange(24)), BALLS["linf"], "pgd", target=3, binarization_test=8)
    assert ev.binarization_test.n == 8


def test_the_binarization_test_does_not_depend_on_the_target(net, digits):
    """The heads, scaled by the margin that the model has, are the same for any target, and without one."""
    data, seen = digits.rows(torch.arange(24)), []

    def watched(logits: Tensor, task: Task) -> Tensor:
        if logits.shape[1] == 2:
            seen[-1].append(logits.detach().clone())
        return cross_entropy(logits, task)

    tests = []
    for target in (None, 3, 8):
        seen.append([])
        run = eb.evaluate(net, data, BALLS["linf"], eb.FGSM(loss=watched), target=target, binarization_test=8)
        tests.append(run.binarization_test)
    assert tests[0].n == 8
    assert tests[0] == tests[1] == tests[2]
    for other in seen[1:]:
        assert len(other) == len(seen[0]) > 0
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


def test_a_transfer_with_a_binarization_test_is_refused(net, digits):
    with pytest.raises(BadInput, match="`binarization_test` must be 0 with a `source`"):
        eb.evaluate(net, digits, BALLS["linf"], "pgd", source=net, binarization_test=8)
    with pytest.raises(BadInput, match="`binarization_test` must be a whole number >= 0"):
        eb.evaluate(net, digits, BALLS["linf"], "pgd", binarization_test=-1)


def test_the_command_line_prints_the_result():
    command = ["evaluate", "--limit", "24", "--binarization-test"]
    done = run(*command, "6")
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert re.search(
        r"Binarization test: passed: 6 of 6 planted adversarial examples found \(random search: \d\)", printed
    )
    done = run(*command, "-1")
    assert done.returncode == 2
    assert "`--binarization-test` must be a whole number >= 0" in done.stderr


def test_attacks_find_planted_examples_of_a_noisy_model_with_eot(net, digits):
    class Noisy(Wrapper):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            self.generator = rng(0)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x + 0.02 * torch.randn(x.shape, generator=self.generator))

    found = binarization_test(Noisy(net), digits, BALLS["linf"], "pgd:steps=20", n=12, eot=8)
    assert found.n >= 8
    assert found.found >= 0.9 * found.n


@pytest.mark.parametrize(
    ("found", "random", "weak", "nothing"), [(31, 2, False, False), (30, 2, True, False), (32, 16, False, True)]
)
def test_the_test_is_failed_below_95_percent_and_inconclusive_from_50_percent_random(
    found: int, random: int, weak: bool, nothing: bool
):
    test = BinarizationTest(
        n=32, found=found, random=random, skipped=0, missed=(), found_by=(), features="logits", draws=200, requested=32,
        seed=0, forwards=0, backwards=0, seconds=math.nan,
    )  # fmt: skip
    assert (test.too_weak, test.inconclusive, test.passed) == (weak, nothing, not weak and not nothing)


def test_a_sound_model_causes_no_warning(net, digits):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        binarization_test(net, digits, BALLS["linf"], ["fgsm", "pgd"], n=8)


def test_an_attack_object_in_the_list_has_its_name(net, digits):
    attacks: list[Attack] = [eb.FGSM(), eb.PGD(steps=5)]
    assert [name for name, _ in binarization_test(net, digits, BALLS["linf"], attacks, n=4).found_by] == ["fgsm", "pgd"]
