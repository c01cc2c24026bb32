"""Direction: cosines of linear models are those of their weights; transfer and agreement are counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from explain_doubles import assert_drawn, assert_survives_json, assert_untouched, examples, known
from nets import Staircase, batch, linear, mlp, rng, weighted

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.explain import companions, direction, networks, trained, trained_further
from epsball.explain.analyses.direction import _agreement
from epsball.problem.objective import ModelWarning

SHAPE = (2, 3, 2)


def test_two_classes_of_a_linear_model_have_opposite_gradients():
    model = weighted(torch.linspace(-1, 2, 6, dtype=torch.float64))
    data = known(model, examples(20, (6,), 1, lo=-1, hi=1))
    assert 0 < data.y.sum() < 20
    found = direction({"one": model}, data, eb.Linf(eps=0.1))
    (pairs,) = found.pairs
    assert pairs.gradient_same == pytest.approx((1,) * 5)
    assert pairs.gradient_other == pytest.approx((-1,) * 5)
    assert pairs.step_same == pytest.approx((1,) * 5)
    assert pairs.step_other == pytest.approx((-1,) * 5)
    assert np.allclose(pairs.classes, [[1, -1], [-1, 1]])
    assert found.chance == pytest.approx(1 / math.sqrt(6))
    assert pairs.accuracy == 1
    assert found.transfer[0][0] == pairs.fooled


def test_the_cosines_of_a_network_are_numpys():
    model, data = mlp(SHAPE, 3), examples(15, SHAPE, 3)
    leaf = data.x.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(leaf), data.y, reduction="sum")
    grad = torch.autograd.grad(loss, leaf)[0].flatten(1).numpy()
    unit = grad / np.linalg.norm(grad, axis=1, keepdims=True)
    cosine, y = unit @ unit.T, data.y.numpy()
    pairs = direction(model, data, eb.L2(eps=0.3)).pairs[0]
    one, other = np.triu_indices(15, 1)
    same = y[one] == y[other]
    values = np.sort(cosine[one, other][same])
    assert pairs.gradient_same[0] == pytest.approx(values[round(0.05 * (len(values) - 1))])
    assert pairs.gradient_same[2] == pytest.approx(np.quantile(values, 0.5), abs=np.diff(values).max())
    for a in range(3):
        for b in range(3):
            block = cosine[np.ix_(y == a, y == b)]
            off = block[~np.eye(len(block), dtype=bool)] if a == b else block
            assert pairs.classes[a][b] == pytest.approx(off.mean())


def test_a_network_is_like_itself_and_unlike_its_opposite():
    model = mlp(SHAPE, 3)
    data, ball = known(model, examples(30, SHAPE, 3)), eb.Linf(eps=0.8)
    opposite = mlp(SHAPE, 3)
    with torch.no_grad():
        opposite[-1].weight.neg_()
    found = direction({"a": model, "b": mlp(SHAPE, 3), "c": mlp(SHAPE, 3, seed=5)}, data, ball)
    assert found.between[0][1] == pytest.approx(1)
    assert found.between_steps[0][1] == pytest.approx(1)
    assert found.transfer[0][1] == found.transfer[0][0] == found.transfer[1][0] == found.pairs[0].fooled > 0
    assert found.agreement[0][1] == 1
    assert found.between[0][2] == pytest.approx(found.between[2][0]) != 1
    two = weighted(torch.linspace(-1, 2, 6, dtype=torch.float64))
    other = weighted(-torch.linspace(-1, 2, 6, dtype=torch.float64))
    data = known(two, examples(20, (6,), 1, lo=-1, hi=1))
    found = direction({"two": two, "other": other}, data, ball)
    assert found.between[0][1] == pytest.approx(-1)
    assert found.transfer[0][1] is None  # the other classifies none correctly
    assert found.transfer[1][0] == 0


def test_transfer_is_what_is_counted_by_hand():
    maker, evaluator = mlp(SHAPE, 4, seed=1), mlp(SHAPE, 4, seed=1)
    with torch.no_grad():
        for part in evaluator.parameters():
            part.add_(0.4 * torch.randn(part.shape, generator=rng(3), dtype=part.dtype))
    data, ball = known(maker, examples(200, SHAPE, 4)), eb.Linf(eps=0.5, lo=0, hi=1)
    found = direction({"maker": maker, "evaluator": evaluator}, data, ball)
    z = eb.FGSM()(maker, data.x, data.y, ball)
    with torch.no_grad():
        right = [net(data.x).argmax(1) == data.y for net in (maker, evaluator)]
        predicted = [net(z).argmax(1) for net in (maker, evaluator)]
    assert found.transfer[0][1] == pytest.approx((predicted[1] != data.y)[right[1]].double().mean().item())
    both = right[0] & right[1] & (predicted[0] != data.y) & (predicted[1] != data.y)
    assert int(both.sum()) > 3
    assert found.agreement[0][1] == pytest.approx((predicted[0] == predicted[1])[both].double().mean().item())
    assert found.noise[0][1] < found.transfer[0][0]


def test_agreement_by_chance_is_that_of_independent_draws():
    y = torch.tensor([0, 0, 0, 0, 1, 1])
    one = torch.nn.functional.one_hot(torch.tensor([1, 1, 2, 2, 0, 2]), 3).double()
    other = torch.nn.functional.one_hot(torch.tensor([1, 2, 2, 2, 0, 0]), 3).double()
    agreed, chance = _agreement(one, other, y, torch.ones(6, dtype=torch.bool))
    assert agreed == pytest.approx(4 / 6)
    assert chance == pytest.approx((4 * (0.5 * 0.25 + 0.5 * 0.75) + 2 * (0.5 * 1)) / 6)
    assert math.isnan(_agreement(one, other, y, torch.zeros(6, dtype=torch.bool))[0])


def test_examples_without_a_gradient_form_no_pair():
    data = from_arrays(batch(6, (4,)), [0, 1, 0, 1, 0, 1])
    with pytest.warns(ModelWarning, match="exactly zero"):
        found = direction(Staircase(linear((4,), 2)), data, eb.Linf(eps=0.1))
    assert found.pairs[0].gradient_same is None
    assert found.pairs[0].gradient_other is None
    assert_survives_json(found)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_batch_size_does_not_change_the_figures(batch_size: int):
    models, data = {"a": mlp(SHAPE, 3), "b": mlp(SHAPE, 3, seed=1)}, examples(17, SHAPE, 3)
    narrow, wide = (direction(models, data, eb.Linf(eps=0.2), batch_size=w) for w in (batch_size, 128))
    for name in ("transfer", "noise", "agreement", "by_chance"):
        assert getattr(narrow, name) == getattr(wide, name)
    assert np.allclose(narrow.between, wide.between, rtol=0, atol=1e-12)


def test_the_model_is_returned_unchanged():
    data = examples(6, SHAPE, 3)
    assert_untouched(lambda model: direction(model, data, eb.Linf(eps=0.1)), SHAPE, raises_at=2)


def test_the_record_survives_json_and_has_a_figure(tmp_path: Path):
    data = examples(40, SHAPE, 3)
    several = direction({"a": mlp(SHAPE, 3), "b": mlp(SHAPE, 3, seed=1)}, data, eb.Linf(eps=0.5))
    assert_survives_json(several)
    assert_drawn(several, tmp_path / "several.png")
    assert "by chance" in several.sentence
    one = direction(mlp(SHAPE, 3), data, eb.Linf(eps=0.5))
    assert_survives_json(one)
    assert_drawn(one, tmp_path / "one.png")
    assert "another" not in one.sentence


def test_networks_that_do_not_fit_are_named():
    data = examples(6, SHAPE, 3)
    with pytest.raises(BadInput, match="at least one network"):
        direction({}, data, eb.Linf(eps=0.1))
    with pytest.raises(BadInput, match="same classes, got 4 of 'b'"):
        direction({"a": mlp(SHAPE, 3), "b": mlp(SHAPE, 4)}, data, eb.Linf(eps=0.1))


def test_companions_are_other_networks_and_reproducible():
    train = from_arrays(batch(60, (4,)).float(), torch.arange(60) % 3, lo=0, hi=1)
    found, again = (companions(train, count=2, steps=3, seed=7) for _ in range(2))
    assert list(found) == ["small-mlp, seed 8", "small-mlp, seed 9", "linear"]
    states = [torch.cat([p.flatten() for p in net.parameters()]) for net in (*found.values(), *again.values())]
    assert all(torch.equal(a, b) for a, b in zip(states[:3], states[3:], strict=True))
    assert not torch.equal(states[0], states[1])


def test_training_further_leaves_the_model_unchanged():
    train = from_arrays(batch(60, (4,)).float(), torch.arange(60) % 3, lo=0, hi=1)
    model = trained("small-mlp", train, steps=2, seed=1)
    state = {name: part.clone() for name, part in model.state_dict().items()}
    other = trained_further(model, train, eb.Linf(eps=0.1, lo=0, hi=1), steps=2)
    assert all(torch.equal(part, state[name]) for name, part in model.state_dict().items())
    assert any(not torch.equal(part, state[name]) for name, part in other.state_dict().items())
    with pytest.raises(BadInput, match="`steps` must be a whole number >= 1"):
        networks.fitted(model, train, steps=0)
