"""Off the manifold: data in an exact subspace, perturbations in it and across it, and numpy's components."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from explain_doubles import assert_drawn, assert_survives_json, assert_untouched, examples, known
from nets import mlp, rng, weighted

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.explain import manifold
from epsball.explain.analyses.manifold import energy_outside, holding, principal

D, R = 12, 3


def basis() -> torch.Tensor:
    """An orthonormal basis of R^D, one row each."""
    return torch.linalg.qr(torch.randn(D, D, generator=rng(1), dtype=torch.float64)).Q.T


def flat_data(n: int, *, seed: int = 0) -> Examples:
    """n examples in an affine subspace of R dimensions, spanned by the first rows of the basis."""
    spread = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    coordinates = spread * torch.randn(n, R, generator=rng(seed), dtype=torch.float64)
    return from_arrays(5 + coordinates @ basis()[:R], torch.zeros(n, dtype=torch.long), classes=2, name="flat")


@pytest.mark.parametrize("across", [False, True])
def test_perturbations_in_the_subspace_and_across_it_are_distinguished(across: bool):
    data = flat_data(40)
    weight = basis()[R + 1 if across else 0]
    middle = float((data.x @ weight).mean())
    model = weighted(weight, -middle - 0.5 if across else -middle)
    data = known(model, data)
    ball = eb.L2(eps=1.0)
    found = manifold(model, data, ball, train=flat_data(200, seed=3))
    at = found.components.index(R)
    assert found.outside["attack"][at] == pytest.approx(1.0 if across else 0.0, abs=1e-9)
    assert found.outside["difference"][at] == pytest.approx(0, abs=1e-9)
    assert found.outside["images"][at] == pytest.approx(0, abs=1e-9)
    assert 0.2 < found.at("noise", R) < 0.95
    assert found.leading in (2, 3)
    assert (found.fooled_inside[at], found.fooled_outside[at]) == ((0, 1) if across else (1, 0))
    assert (found.fooled_inside[0], found.fooled_outside[0]) == (0, 1)
    assert (found.fooled_inside[-1], found.fooled_outside[-1]) == (1, 0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_shares_are_those_of_numpys_components(norm: str):
    ball = {"linf": eb.Linf(eps=0.2, lo=-1, hi=2), "l2": eb.L2(eps=0.5, lo=-1, hi=2), "l1": eb.L1(eps=1.0)}[norm]
    model, data, train = (
        mlp((2, 3), 3),
        examples(30, (2, 3), 3, lo=-1, hi=2),
        examples(50, (2, 3), 3, lo=-1, hi=2, seed=9),
    )
    found = manifold(model, data, ball, train=train)
    _, vectors = np.linalg.eigh(np.cov(train.x.flatten(1).numpy().T))
    leading = vectors[:, ::-1]
    step = (eb.FGSM()(model, data.x, data.y, ball) - data.x).flatten(1).numpy()
    off = data.x.flatten(1).numpy() - train.x.flatten(1).numpy().mean(0)
    assert found.components == tuple(range(7))
    for k, share, images in zip(found.components, found.outside["attack"], found.outside["images"], strict=True):
        inside = ((step @ leading[:, :k]) ** 2).sum(1) / (step**2).sum(1)
        assert share == pytest.approx(1 - inside.mean(), abs=1e-9)
        assert images == pytest.approx(1 - ((off @ leading[:, :k]) ** 2).sum() / (off**2).sum(), abs=1e-9)


def test_noise_is_spread_over_all_components_alike():
    model, data = weighted(torch.ones(10, dtype=torch.float64)), examples(600, (10,), 1)
    found = manifold(model, data, eb.Linf(eps=0.1), train=examples(100, (10,), 1, seed=4), rows=600)
    for k, share in zip(found.components, found.outside["noise"], strict=True):
        assert share == pytest.approx(1 - k / 10, abs=0.03)


def test_the_components_are_those_of_the_data():
    _, directions, variance = principal(flat_data(50).x)
    assert torch.allclose(directions @ directions.T, torch.eye(len(directions), dtype=torch.float64), atol=1e-12)
    assert float(variance[R:].sum() / variance.sum()) < 1e-20
    assert len(principal(flat_data(5).x)[1]) == 4
    assert holding(torch.tensor([1.0, 1.0, 1.0, 1.0]), share=0.5) == 2
    outside = energy_outside(torch.zeros(1, D, dtype=torch.float64), directions)
    assert outside.isnan().any()


def test_every_number_of_components_is_measured():
    found = manifold(mlp((6,), 3), examples(20, (6,), 3), eb.Linf(eps=0.1), components=(2, 4))
    assert set(found.components) == {0, 2, 4, found.leading}
    assert found.config["rows"] == found.config["fit_rows"] == 10
    with pytest.raises(BadInput, match="`components` must be <= 6"):
        manifold(mlp((6,), 3), examples(20, (6,), 3), eb.Linf(eps=0.1), components=(7,))


def test_where_no_example_is_fooled_there_is_no_share(tmp_path: Path):
    model = weighted(torch.ones(4, dtype=torch.float64), -2.0)
    data = known(model, examples(20, (4,), 1))
    found = manifold(model, data, eb.Linf(eps=1e-9))
    assert found.fooled_inside is None
    assert found.fooled_outside is None
    assert found.fooled_noise is None
    assert "fools" not in found.sentence
    assert_survives_json(found)
    assert_drawn(found, tmp_path / "nobody.png")


def test_the_model_is_returned_unchanged():
    data = examples(8, (2, 3), 3)
    assert_untouched(lambda model: manifold(model, data, eb.Linf(eps=0.1)), (2, 3), raises_at=2)


def test_the_record_survives_json_and_has_a_figure(tmp_path: Path):
    model = mlp((2, 3), 3)
    found = manifold(model, known(model, examples(40, (2, 3), 3)), eb.Linf(eps=2.0), seed=3)
    assert found.fooled_inside is not None
    assert "part within" in found.sentence
    assert_survives_json(found)
    assert_drawn(found, tmp_path / "manifold.png")


def test_data_that_do_not_fit_are_named():
    with pytest.raises(BadInput, match="`train` must hold at least two examples of shape"):
        manifold(mlp((6,), 3), examples(4, (6,), 3), eb.Linf(eps=0.1), train=examples(4, (7,), 3))
    with pytest.raises(BadInput, match="`train` must hold"):
        manifold(mlp((6,), 3), examples(1, (6,), 3), eb.Linf(eps=0.1))
