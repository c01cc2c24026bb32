"""What training changed: weights that are known, slopes of linear models, and pictures of the same units."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from explain_doubles import assert_drawn, assert_survives_json, assert_untouched, examples, known
from nets import conv, mlp, weighted
from torch import nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.explain import training_changed
from epsball.explain.analyses.training import evenness, near_zero

SHAPE = (2, 3, 2)


def images(model: nn.Module, shape: tuple[int, ...] = SHAPE, n: int = 30):
    return known(model, examples(n, shape, 3))


def test_the_share_of_weights_near_zero_is_counted():
    weight = torch.tensor([4.0, -0.041, 0.039, -0.01, 0.0, 2.0]).double()
    sparse, dense = weighted(weight), weighted(torch.tensor([1.0, -1, 1, -1, 1, -1]).double())
    data = examples(8, (6,), 1)
    found = training_changed({"sparse": sparse, "dense": dense}, data, eb.Linf(eps=0.1))
    assert (found.plain.near_zero, found.trained.near_zero) == (pytest.approx(0.5), 0)
    (layer,) = found.plain.layers
    assert (layer.name, layer.size) == ("1.weight", 6)
    assert layer.mean == pytest.approx(weight.abs().mean().item())
    assert layer.evenness == pytest.approx((weight.abs().mean() ** 2 / weight.square().mean()).item())
    assert found.trained.layers[0].evenness == pytest.approx(1)
    assert found.plain.gradient_near_zero == pytest.approx(0.5)  # the gradient is the weights
    rows = torch.tensor([[0.0, 0.0], [3.0, 0.0]]).double()
    assert near_zero(rows).tolist() == [0.0, 0.5]
    assert evenness(rows)[1] == 0.5


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", math.inf)])
def test_the_dual_norm_of_a_linear_model_is_that_of_its_weights(norm: str, dual: float):
    ball = {"linf": eb.Linf(eps=0.1), "l2": eb.L2(eps=0.1), "l1": eb.L1(eps=0.1)}[norm]
    weight = torch.linspace(-2, 3, 6, dtype=torch.float64)
    model, twice = weighted(weight, -1.0), weighted(2 * weight, -2.0)
    data = known(model, examples(25, (6,), 1, lo=-1, hi=1))
    found = training_changed({"once": model, "twice": twice}, data, ball, steps=2)
    slope = float(torch.linalg.vector_norm(weight, dual))
    gaps = (data.x @ weight - 1).abs().numpy()
    quantiles = (0.05, 0.5, 0.95)
    assert found.plain.dual_norm == pytest.approx((slope,) * 3)
    assert found.trained.dual_norm == pytest.approx((2 * slope,) * 3)
    assert np.allclose(found.plain.margin, np.quantile(gaps, quantiles))
    assert np.allclose(found.plain.radius, np.quantile(gaps, quantiles) / slope)
    assert np.allclose(found.trained.radius, found.plain.radius)
    robust = float((gaps > 0.1 * slope).mean())
    assert (found.plain.clean, found.plain.fgsm, found.plain.pgd) == (
        1,
        pytest.approx(robust),
        pytest.approx(robust),
    )


def test_one_network_twice_is_unchanged():
    model = mlp(SHAPE, 3)
    found = training_changed({"a": model, "b": mlp(SHAPE, 3)}, images(model), eb.Linf(eps=0.2, lo=0, hi=1))
    assert found.filters["a"] == found.filters["b"]
    assert found.gradients["a"] == found.gradients["b"]
    for name in ("clean", "fgsm", "pgd", "dual_norm", "margin", "layers", "near_zero"):
        assert getattr(found.plain, name) == getattr(found.trained, name)


def test_the_pictures_are_those_of_the_same_units():
    plain, trained = mlp(SHAPE, 3), mlp(SHAPE, 3, seed=4)
    data = images(plain)
    found = training_changed({"plain": plain, "trained": trained}, data, eb.Linf(eps=0.2))
    order = plain[1].weight.norm(dim=1).argsort(descending=True)
    for net, filters in ((plain, found.filters["plain"]), (trained, found.filters["trained"])):
        weight = net[1].weight.detach()[order].reshape(16, *SHAPE).mean(1).flatten(1)
        assert np.allclose(filters, weight, rtol=0, atol=6e-5)
    assert found.shapes == {"filters of plain": (3, 2), "filters of trained": (3, 2), "examples": (3, 2)}
    first = [int((data.y == label).nonzero()[0]) for label in data.y.unique()]
    assert np.allclose(found.examples, data.x[first].mean(1).flatten(1), rtol=0, atol=6e-5)
    assert found.config["ids"] == tuple(first)


def test_accuracy_under_pgd_is_at_most_that_under_fgsm():
    model = mlp(SHAPE, 3)
    found = training_changed({"a": model, "b": mlp(SHAPE, 3, seed=1)}, images(model, n=60), eb.Linf(eps=0.6))
    for side in (found.plain, found.trained):
        assert side.pgd <= side.fgsm <= side.clean


def test_the_model_is_returned_unchanged():
    data = examples(6, SHAPE, 3)

    def both(model: nn.Module) -> object:
        return training_changed({"a": model, "b": mlp(SHAPE, 3)}, data, eb.Linf(eps=0.1), steps=2)

    assert_untouched(both, SHAPE, raises_at=3)


@pytest.mark.parametrize("case", ["images", "kernels", "numbers"])
def test_the_record_survives_json_and_has_a_figure(tmp_path: Path, case: str):
    if case == "images":
        nets, shape = (mlp(SHAPE, 3), mlp(SHAPE, 3, seed=1)), SHAPE
    elif case == "kernels":
        nets, shape = (conv(3), conv(3, seed=1)), (2, 6, 6)
    else:
        nets, shape = (mlp((7,), 3), mlp((7,), 3, seed=1)), (7,)
    data = images(nets[0], shape)
    found = training_changed(dict(zip(("plain", "trained"), nets, strict=True)), data, eb.Linf(eps=0.1), steps=3)
    assert_survives_json(found)
    assert_drawn(found, tmp_path / "changed.png")
    assert "From plain to trained" in found.sentence


def test_anything_but_two_networks_is_refused():
    data, model = examples(4, SHAPE, 3), mlp(SHAPE, 3)
    for models, message in (
        ({"a": model}, "two networks by name"),
        ({"a": model, "b": lambda x: x}, "but 'b' is none"),
        ({"a": model, "b": nn.Flatten()}, "but 'b' is none"),
    ):
        with pytest.raises(BadInput, match=message):
            training_changed(models, data, eb.Linf(eps=0.1))
