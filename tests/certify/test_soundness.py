"""No bound is above the exact minimum: random small networks of all layers and balls, against their linear pieces."""

from __future__ import annotations

import pytest
import torch
from certify_checks import broken_certificates, violations
from exact_search import linear_pieces
from nets import batch
from random_networks import drawn
from torch import nn

from epsball.balls.linf import Linf


@pytest.mark.parametrize("block", range(8))
def test_no_bound_is_above_the_exact_minimum(block: int):
    for seed in range(5 * block, 5 * block + 5):
        assert not violations(drawn(seed, 6)), f"network {seed}"


@pytest.mark.parametrize("seed", [100])
def test_no_bound_of_a_smooth_network_is_above_what_a_search_finds(seed: int):
    assert not violations(drawn(seed, 2, smooth=True))


def test_no_bound_in_float32_is_above_the_exact_minimum_by_more_than_rounding():
    for seed in range(200, 210):
        assert not violations(drawn(seed, 6), torch.float32), f"network {seed}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_certified_example_is_broken(dtype: torch.dtype):
    for seed in range(40, 46):
        assert not broken_certificates(drawn(seed, 8), dtype), f"network {seed}"


@pytest.mark.nightly
@pytest.mark.parametrize("block", range(50))
def test_no_bound_of_a_hundred_thousand_is_above_the_exact_minimum(block: int):
    """5,000 networks with 20 inputs each, a hundred networks a block; every fiftieth is smooth."""
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        case = drawn(seed, 20, smooth=seed % 50 == 0)
        assert not violations(case, alpha=False), f"network {seed}"
        assert not broken_certificates(case), f"network {seed}"


def test_the_search_finds_extremes_inside_the_ball():
    """|z0| - |z1| around (.1, .3) with radius .25: least at z0 = 0, z1 = .55, greatest at z0 = .35, z1 = .05."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
        model[2].weight.copy_(torch.tensor([[1.0, 1, -1, -1]]))
    x = torch.tensor([[0.1, 0.3]], dtype=torch.float64)
    pieces = linear_pieces(model, Linf(eps=0.25), x, torch.tensor([[0, 1]]))
    least, greatest = pieces.extremes(model(pieces.inputs()).detach())
    assert least.item() == pytest.approx(-0.55, abs=1e-12)
    assert greatest.item() == pytest.approx(0.3, abs=1e-12)


def test_the_search_is_below_random_points_and_its_points_are_in_the_ball():
    for seed in range(300, 320):
        case = drawn(seed, 4)
        pieces = linear_pieces(case.model, case.ball, case.x, case.free)
        example = torch.from_numpy(pieces.example)
        slightly = case.ball.with_eps(torch.as_tensor(case.ball.eps) * (1 + 1e-9))
        assert bool(slightly.bind(case.x).rows(example).contains(pieces.inputs(), case.x[example]).all())
        low, high = pieces.extremes(case.model(pieces.inputs()).detach().reshape(len(example), -1))
        for k in range(20):
            share = batch(4, (case.free.shape[1],), lo=-1, hi=1, seed=k)
            moved = case.x.flatten(1) + torch.zeros_like(case.x.flatten(1)).scatter(1, case.free, share)
            z = case.ball.project(moved.reshape(case.x.shape), case.x)
            z = case.x + (z - case.x) * 0.99  # an L2 disc is cut into a polygon that is smaller by 0.9 %
            value = case.model(z).detach().reshape(4, -1)
            slack = 1e-9 * (1 + value.abs().max())
            assert bool((value >= low - slack).all())
            assert bool((value <= high + slack).all())
