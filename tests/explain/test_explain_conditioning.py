"""Conditioning: singular values against matrices written out by hand and FFTs, steepness against linear models."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from explain_doubles import assert_drawn, assert_survives_json, assert_untouched, examples
from nets import conv, linear, mlp, rng, seeded
from torch import Tensor, nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.explain import affine_layers as layers_of
from epsball.explain import conditioning
from epsball.explain.affine_layers import Layer, affine_layers, is_chain, singular_values
from epsball.models.builtin import Normalize
from epsball.models.registry import build

SHAPE = (2, 3, 2)


def written_out(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """The matrix, column by column, by forward passes."""
    unit = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return (layer(unit) - layer(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T.numpy()


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 4), (7,)),
    "strided": (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 6)),
    "dilated": (nn.Conv2d(2, 2, 2, dilation=2, groups=2), (2, 5, 5)),
    "line": (nn.Conv1d(2, 3, 3), (2, 6)),
    "transposed": (nn.ConvTranspose2d(2, 1, 3, stride=2), (2, 3, 3)),
    "norm": (nn.BatchNorm2d(3), (3, 2, 2)),
    "mean": (nn.AvgPool2d(2), (2, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_singular_values_are_those_of_the_matrix(name: str):
    layer, shape = LAYERS[name]
    layer = seeded(lambda: layer, seed=3)
    matrix = written_out(layer, shape)
    rows, columns, values, complete = singular_values(layer, shape)
    assert (rows, columns) == matrix.shape
    assert complete
    assert np.allclose(values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-9, atol=1e-12)


def test_a_circular_convolution_has_the_singular_values_of_its_transform():
    layer = seeded(lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), seed=1)
    transform = np.fft.fft2(layer.weight.detach().numpy(), s=(6, 6))  # Sedghi, Gupta and Long (ICLR 2019)
    values = np.linalg.svd(transform.transpose(2, 3, 0, 1), compute_uv=False).flatten()
    assert np.allclose(singular_values(layer, (2, 6, 6))[2], np.sort(values)[::-1], rtol=1e-9)


def test_lanczos_finds_the_norm_of_the_matrix(monkeypatch: pytest.MonkeyPatch):
    layer = seeded(lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), seed=5)
    all_of_them = singular_values(layer, (2, 8, 8))[2]
    monkeypatch.setattr(layers_of, "DENSE", 0)
    rows, columns, leading, complete = singular_values(layer, (2, 8, 8))
    assert (rows, columns, complete) == (64, 128, False)
    assert leading == pytest.approx(all_of_them[:1], rel=1e-6)
    again = singular_values(layer, (2, 8, 8))[2]
    assert np.array_equal(leading, again)


def test_norm_rank_and_condition_follow_from_the_singular_values():
    layer = Layer(name="a", kind="Linear", rows=3, columns=5, singular=(4.0, 2.0, 0.5), complete=True)
    assert (layer.norm, layer.rank, layer.condition) == (4.0, 3, 8.0)
    flat = Layer(name="a", kind="Linear", rows=3, columns=5, singular=(4.0, 2.0, 1e-9), complete=True)
    assert (flat.rank, flat.condition) == (2, None)
    large = Layer(name="a", kind="Conv2d", rows=3000, columns=5000, singular=(4.0, 2.0), complete=False)
    assert (large.norm, large.rank, large.condition) == (4.0, None, None)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", math.inf)])
@pytest.mark.parametrize("classes", [1, 4])
def test_a_linear_model_is_as_steep_as_its_weights(norm: str, dual: float, classes: int):
    ball = {"linf": eb.Linf(eps=0.1, lo=0, hi=1), "l2": eb.L2(eps=0.1), "l1": eb.L1(eps=0.3)}[norm]
    model, data = linear(SHAPE, classes), examples(9, SHAPE, classes)
    found = conditioning(model, data, ball, samples=2)
    weight = model[1].weight.detach()
    rows = torch.cat([torch.zeros_like(weight), weight]) if classes == 1 else weight
    logits = model(data.x).detach()
    logits = torch.cat([torch.zeros_like(logits), logits], 1) if classes == 1 else logits
    for k, y in enumerate(data.y.tolist()):
        differences = np.delete((rows - rows[y]).numpy(), y, axis=0)
        assert found.steepness[k] == pytest.approx(np.linalg.norm(differences, axis=1).max(), rel=1e-12)
        assert found.dual[k] == pytest.approx(np.linalg.norm(differences, dual, axis=1).max(), rel=1e-12)
        gaps = np.delete((logits[k, y] - logits[k]).numpy(), y)
        assert found.margin[k] == pytest.approx(gaps.min(), rel=1e-9)
    assert found.at_example == found.steepness
    assert found.product == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=1e-12)
    assert found.steepest <= found.bound


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_is_no_steeper_than_its_norms_allow(seed: int):
    shape, model = (2, 6, 6), conv(4, seed=seed)
    assert not is_chain(model)  # it has an unknown layer
    model[4] = nn.Flatten()
    found = conditioning(model, examples(12, shape, 4), eb.Linf(eps=0.3, lo=0, hi=1))
    assert found.chain
    assert [layer.kind for layer in found.layers] == ["Conv2d", "Conv2d", "Linear"]
    assert found.product == pytest.approx(math.prod(layer.singular[0] for layer in found.layers))
    assert 0 < found.steepest < found.bound
    assert all(a <= b for a, b in zip(found.at_example, found.steepness, strict=True))


def test_two_orthogonal_layers_reach_what_their_norms_allow():
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    first = torch.linalg.qr(torch.randn(5, 5, generator=rng(2), dtype=torch.float64)).Q
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(3 * first)
        model[1].weight.copy_(torch.eye(2, 5, dtype=torch.float64))
    found = conditioning(model, examples(4, (5,), 2), eb.L2(eps=0.1), samples=0)
    assert (found.product, found.steepest) == (pytest.approx(3), pytest.approx(3 * math.sqrt(2)))
    assert [layer.condition for layer in found.layers] == [pytest.approx(1), pytest.approx(1)]
    assert not is_chain(nn.Sequential(nn.Linear(2, 2), One()))


def test_layers_are_those_that_run_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.unused, self.first = nn.Linear(4, 3), nn.Linear(9, 9), nn.Linear(6, 4)
            self.scale = Normalize([0.5] * 6, [0.25] * 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(self.scale(x)).relu())

    model = Backwards()
    found = affine_layers(model, torch.zeros(1, 6))
    assert [(name, shape) for name, _, shape in found] == [("scale", (6,)), ("first", (6,)), ("last", (4,))]
    assert np.allclose(singular_values(model.scale, (6,))[2], 4)
    assert not is_chain(model)
    assert not is_chain(build("preact-resnet18:width=4", (1, 8, 8), 3))
    assert is_chain(build("maxout:units=8", (6,), 3))
    assert affine_layers(nn.BatchNorm1d(6, track_running_stats=False), torch.zeros(2, 6)) == []


def test_more_samples_never_lower_the_steepness():
    model, data, ball = mlp(SHAPE, 3), examples(10, SHAPE, 3), eb.Linf(eps=0.5)
    few, many = (conditioning(model, data, ball, samples=samples) for samples in (0, 6))
    assert few.steepness == few.at_example == many.at_example
    assert all(a <= b for a, b in zip(few.steepness, many.steepness, strict=True))
    assert many.steepness != few.steepness
    assert many.config["backwards"] == 10 * 7 * 2  # two rivals of three classes
    assert conditioning(model, data, ball, samples=6, batch_size=3).layers == many.layers


def test_the_model_is_returned_unchanged():
    data = examples(6, SHAPE, 3)
    assert_untouched(lambda model: conditioning(model, data, eb.Linf(eps=0.1)), SHAPE, raises_at=1)
    assert_untouched(lambda model: conditioning(model, data, eb.Linf(eps=0.1)), SHAPE, raises_at=3)


def test_the_record_survives_json_and_has_a_figure(tmp_path: Path):
    found = conditioning(conv(3), examples(10, (2, 6, 6), 3), eb.Linf(eps=0.1))
    assert_survives_json(found)
    assert_drawn(found, tmp_path / "conditioning.png")
    assert "3 layers" in found.sentence
    summary = found.summary()
    assert summary["layers"][0]["condition"] == pytest.approx(
        found.layers[0].singular[0] / found.layers[0].singular[-1]
    )
    deep = build("preact-resnet18:width=2", (1, 8, 8), 3).double()
    assert_drawn(conditioning(deep, examples(4, (1, 8, 8), 3), eb.Linf(eps=0.1)), tmp_path / "deep.png")


def test_a_model_without_layers_is_refused_by_name():
    data = examples(4, (6,), 3)
    with pytest.raises(BadInput, match="`model` must be a torch module"):
        conditioning(lambda x: x[:, :3], data, eb.Linf(eps=0.1))
    with pytest.raises(BadInput, match="at least one affine layer"):
        conditioning(nn.Flatten(), data, eb.Linf(eps=0.1))
