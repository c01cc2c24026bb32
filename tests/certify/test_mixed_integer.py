"""The mixed-integer programme decides as the exact search does, and never in favour of a network that can be fooled."""

from __future__ import annotations

import math

import pytest
import torch
from certify_checks import extremes, rows_of
from random_networks import Case, drawn
from torch import Tensor, nn

from epsball.balls.l2 import L2
from epsball.balls.linf import Linf
from epsball.certify.concretise import Regions
from epsball.certify.graph import Graph
from epsball.certify.intermediate import bounded
from epsball.certify.mixed_integer import SLACK, binaries, decide
from epsball.certify.tracing import trace
from epsball.common.errors import BadInput

ONE = torch.ones(1, dtype=torch.float64)


def shifted(case: Case, shift: float) -> Graph:
    """The graph of a network with `shift` added to the first logit."""

    def model(x: Tensor) -> Tensor:
        logits = case.model(x).reshape(len(x), -1)
        return logits + torch.tensor([shift] + [0.0] * (logits.shape[1] - 1), dtype=logits.dtype)

    return trace(model, case.x).graph(torch.float64)


@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.nightly) for block in range(1, 20))])
def test_it_decides_as_the_exact_search(block: int):
    """The first logit is moved so that a margin is a share of its range above or below 0, or 0 up to rounding."""
    tried = 0
    for seed in range(500 + 12 * block, 512 + 12 * block):
        case = drawn(seed, 1)
        if isinstance(case.ball, L2):
            continue
        case.y.zero_()
        known, rows = extremes(case), rows_of(case, shifted(case, 0))[0]
        functional = rows.values[-1]
        with torch.no_grad():
            values = shifted(case, 0)(known.points) @ functional
        least, span = values.min().item(), (values.max() - values.min()).item()
        for share in (1e-3, -1e-3, 0.3, -0.3, 0.0):
            graph = shifted(case, math.copysign(1, functional[0]) * (share * span - least))
            regions = Regions(case.ball.bind(case.x), case.x)
            bounds = bounded(graph, regions).bounds
            count = binaries(graph, bounds)
            assert count is not None
            if count[0] > 20 or span < 1e-3:  # few, so that the test is quick
                continue
            decision = decide(graph, bounds, functional, regions.ball, case.x, seconds=60)
            if decision.point is not None:
                assert bool(regions.ball.contains(decision.point[None], case.x))
                assert float(graph(decision.point[None]).detach()[0] @ functional) <= 0
            assert decision.verified == (share > 0), f"network {seed}"
            assert (decision.point is not None) == (share < 0) or share == 0, f"network {seed}"
            tried += 1
    assert tried >= 5


def test_a_margin_within_the_tolerances_is_not_verified():
    """One logit z + SLACK / 10 on [0, 1]: positive by less than the solver can tell."""
    layer = nn.Linear(1, 1).double()
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.bias.fill_(SLACK / 10)
    x, ball = torch.full((1, 1), 0.5, dtype=torch.float64), Linf(eps=0.5)
    graph = trace(layer, x).graph(torch.float64)
    found = decide(graph, bounded(graph, Regions(ball.bind(x), x)).bounds, ONE, ball, x, seconds=10)
    assert not found.verified
    assert found.point is None
    assert "too near 0" in found.reason


def test_a_split_narrows_the_region():
    """relu(z) - relu(-z) + .1 = z + .1 on [-1, 1] is negative somewhere, and nowhere if a split says z >= 0."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, -1.0]]))
        model[2].bias.fill_(0.1)
    x, ball = torch.zeros(1, 1, dtype=torch.float64), Linf(eps=1.0)
    graph = trace(model, x).graph(torch.float64)
    bounds = bounded(graph, Regions(ball.bind(x), x)).bounds
    assert decide(graph, bounds, ONE, ball, x, seconds=10).point is not None
    node = graph.before(graph.activations[0])
    low, high = bounds[node]
    bounds[node] = torch.maximum(low, torch.tensor([[0.0, -1.0]], dtype=low.dtype)), high
    found = decide(graph, bounds, ONE, ball, x, seconds=10, splits={node: torch.tensor([[1, 0]])})
    assert found.verified


@pytest.mark.parametrize(
    ("layer", "ball", "named"), [(nn.ReLU(), L2(eps=1.0), "L2"), (nn.Tanh(), Linf(eps=1.0), "Tanh")]
)
def test_what_is_not_piecewise_linear_is_refused(layer: nn.Module, ball: Linf | L2, named: str):
    x = torch.zeros(1, 1, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(1, 1), layer, nn.Linear(1, 1)).double()
    graph = trace(model, x).graph(torch.float64)
    bounds = bounded(graph, Regions(ball.bind(x), x)).bounds
    assert (binaries(graph, bounds) is None) == (named == "Tanh")
    with pytest.raises(BadInput, match=named):
        decide(graph, bounds, ONE, ball, x, seconds=10)
