"""Each fault that is put into the bounds is caught by the comparison with the exact minimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from certify_checks import violations
from random_networks import drawn
from torch import nn

from epsball.balls.l1 import L1
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf
from epsball.certify import intermediate
from epsball.certify.activations import Curve, Lines, Rectifier
from epsball.certify.certifier import Certifier
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional, Windows
from epsball.certify.intermediate import bounded
from epsball.certify.leaves import from_arrays, leaf_bounds, to_arrays
from epsball.certify.operators import Convolution, Linear, Scale, Sum
from epsball.certify.splits import Leaf
from epsball.certify.tracing import trace
from epsball.linear.exact import optimum
from epsball.problem.task import task_of

SEEDS = range(60)
Patch = Callable[[pytest.MonkeyPatch], None]


def changed(owner: Any, name: str, change: Callable[..., Any]) -> Patch:
    """A fault: `change` sees what the function `name` of `owner` returns, and its arguments."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: change(right(*given, **named), *given))

    return patch


def replaced(owner: Any, name: str, wrong: Any) -> Patch:
    """A fault: another function, or another number, in the place of the right one."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, wrong)


def wrong_sign(lines: Lines, rows: Functional) -> tuple[Functional, torch.Tensor | None]:
    """The lines above and below, exchanged."""
    swapped = replace(
        lines,
        lower_slope=lines.upper_slope,
        upper_slope=lines.lower_slope,
        lower_offset=lines.upper_offset,
        upper_offset=lines.lower_offset,
    )
    return RIGHT_BELOW(swapped, rows)


def transposed(rows: Functional) -> Functional:
    """Rows whose windows lie at (column, row), as far as the grid goes."""
    if (windows := rows.windows) is None:
        return rows
    row, column = windows.column.clamp_max(windows.grid[0] - 1), windows.row.clamp_max(windows.grid[1] - 1)
    return replace(rows, windows=replace(windows, row=row, column=column))


RIGHT_BELOW = Lines.below
FAULTS: dict[str, Patch] = {
    "an upper slope that is too small": changed(
        Rectifier, "lines", lambda found, *_: replace(found, upper_slope=0.9 * found.upper_slope)
    ),
    "a line without its offset": changed(
        Rectifier, "lines", lambda found, *_: replace(found, upper_offset=0 * found.upper_offset)
    ),
    "a line that meets a clamp in the middle": replaced(
        Curve,
        "offset",
        lambda curve, slope, low, high, _side: curve.forward((low + high) / 2) - slope * (low + high) / 2,
    ),
    "lines exchanged": replaced(Lines, "below", wrong_sign),
    "a lost bias": replaced(Linear, "constant", lambda *_: None),
    "a convolution's lost bias": replaced(Convolution, "constant", lambda *_: None),
    "a bias that padding shares": replaced(Functional, "without_padding", lambda rows: rows),
    "a window one cell off": changed(Windows, "paddings", lambda found, *_: [found[0] + 1, *found[1:]]),
    "rows and columns of windows exchanged": changed(intermediate, "units", lambda found, *_: transposed(found)),
    "an intermediate bound cut short": changed(
        intermediate, "intersected", lambda found, *_: (found[0] + 1e-3, found[1] - 1e-3)
    ),
    "a batch normalisation without its statistics": changed(Scale, "forward", lambda found, scale, x: x),
    "a batch normalisation that is not carried back": replaced(Scale, "transpose", lambda scale, rows: (rows,)),
    "a sum whose signs are lost": replaced(Sum, "transpose", lambda operator, rows: (rows,) * len(operator.signs)),
    "a leaky slope in single precision": changed(
        Rectifier, "lines", lambda found, *_: replace(found, lower_slope=found.lower_slope.float().double())
    ),
    "a radius that is too small": changed(
        Regions, "least", lambda found, regions, rows: found + 1e-6 * rows.values.abs().flatten(1).sum(1)
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch):
    FAULTS[fault](monkeypatch)
    assert any(violations(drawn(seed, 4), alpha=False) for seed in SEEDS), f"{fault} was not noticed"


def test_batch_statistics_that_moved_are_seen():
    """A graph is read from the parameters as they are: one that is kept over a training step is another network."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    x = torch.tensor([[0.3, -0.2], [0.1, 0.9]], dtype=torch.float64)
    certifier = Certifier(model, x)
    with torch.no_grad():
        model[1].running_mean += 1
        moved = model(x)
    assert not torch.allclose(certifier.graph(x), moved)
    assert torch.allclose(certifier.traced.graph(torch.float64)(x), moved)


@pytest.mark.parametrize("slope", [0.3131, 0.1, 0.7])
def test_slopes_that_were_stored_are_not_below_those_of_the_rectifier(slope: float):
    """leaky(z) + 1 on [-1, 1] is 1 - slope at least; in float16, half of all slopes are rounded down."""
    model = nn.Sequential(nn.Linear(1, 1), nn.LeakyReLU(slope), nn.Linear(1, 1)).double()
    with torch.no_grad():
        for layer, bias in ((model[0], 0.0), (model[2], 1.0)):
            layer.weight.fill_(1.0)
            layer.bias.fill_(bias)
    x = torch.zeros(1, 1, dtype=torch.float64)
    graph, regions = trace(model, x).graph(torch.float64), Regions(Linf(eps=1.0).bind(x), x)
    row = Functional(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long), (1,))
    found = bounded(graph, regions)
    leaf = Leaf((), torch.tensor([slope]).half(), (), 0)
    assert leaf_bounds(graph, regions, found, row, [leaf]).item() <= 1 - slope
    arrays = to_arrays([leaf])
    assert leaf_bounds(graph, regions, found, row, from_arrays(arrays, graph)).item() <= 1 - slope


def test_a_radius_per_feature_is_none_per_example():
    """Two features, two examples: with radii (.5, 0) neither example may be held by the radius of the other feature."""
    layer = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        layer[0].weight.copy_(torch.tensor([[1.0, 1.0]]))
        layer[2].weight.fill_(1.0)
        layer[2].bias.fill_(0.0)
    x = torch.ones(2, 2, dtype=torch.float64)
    found = Certifier(layer, x).bounds(task_of(x, torch.tensor([1, 1]), Linf(eps=torch.tensor([[0.5, 0.0]]))))
    assert found.margin == pytest.approx([1.5, 1.5], abs=1e-9)


@pytest.mark.parametrize("kind", [Linf, L2, L1])
@pytest.mark.parametrize("box", ["free", "box", "mask", "per example", "per feature"])
@pytest.mark.parametrize("classes", [1, 4])
def test_a_linear_network_gets_its_exact_optimum(kind: type[Linf | L2 | L1], box: str, classes: int):
    if box == "per feature" and kind is not Linf:
        pytest.skip("one radius per feature is for L-inf")
    generator = torch.Generator().manual_seed(classes)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, classes)).double().eval()
    with torch.no_grad():
        for part in [*model.parameters(), model[2].running_mean]:
            part.copy_(torch.randn(part.shape, generator=generator, dtype=part.dtype))
        unit = torch.eye(18, dtype=torch.float64).reshape(18, 2, 3, 3)
        bias = model(torch.zeros(1, 2, 3, 3, dtype=torch.float64))[0]
        weight = (model(unit) - bias).T.reshape(-1, 2, 3, 3)
        model[3].bias += 3 * torch.arange(classes) + 6  # so that examples of the last class are robust
    bias = bias + 3 * torch.arange(classes) + 6
    x = torch.rand(6, 2, 3, 3, generator=generator, dtype=torch.float64)
    sides = {} if box == "free" else {"lo": 0.0, "hi": 1.0}
    eps: Any = 0.02
    if box == "mask":
        sides["mask"] = torch.rand(1, 2, 3, 3, generator=generator) < 0.5
    if box == "per example":
        eps = 0.02 * torch.rand(6, generator=generator, dtype=torch.float64)
    if box == "per feature":
        eps = 0.02 * torch.rand(1, 2, 3, 3, generator=generator, dtype=torch.float64)
    ball = kind(eps=eps, **sides)
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1) if classes > 1 else (logits[:, 0] > 0).long()
    best = optimum(weight if classes > 1 else weight[:1], bias if classes > 1 else float(bias), x, y, ball)
    found = Certifier(model, x).bounds(task_of(x, y, ball))
    assert found.verified.tolist() == best.robust.tolist()
    assert found.verified.any()
    assert set(found.method[found.verified]) == {"exact"}
    torch.testing.assert_close(torch.from_numpy(found.margin)[best.robust], best.margin[best.robust], rtol=0, atol=1e-9)
