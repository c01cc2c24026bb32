"""Branch and bound: every tiny instance decided as exact enumeration decides it, sound leaves, checked certificates."""

from __future__ import annotations

import itertools
from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball.certify.branching import Branching, Limits, Row
from epsball.certify.certificate import Certificate
from epsball.certify.certifier import Certifier, Proofs
from epsball.certify.concretise import Regions
from epsball.certify.intermediate import Intermediate, bounded, crown
from epsball.certify.leaves import from_arrays, leaf_bounds, to_arrays
from epsball.certify.margins import margin_rows
from epsball.certify.multipliers import Network
from epsball.certify.splits import Leaf, Neurons, covers
from epsball.certify.tracing import trace
from epsball.common.errors import BadInput
from epsball.problem.task import Task, task_of

EPS = 1.0


class Residual(nn.Module):
    """A convolution, max pooling, and a sum around a leaky rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.same = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.last = nn.MaxPool2d(2), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.conv(x)))
        return self.last((x + nn.functional.leaky_relu(self.same(x), 0.1)).flatten(1))


def plane(seed: int, slope: float = 0.0) -> nn.Module:
    """A network of two inputs, 8 + 8 neurons and 3 classes."""
    active = nn.LeakyReLU(slope) if slope else nn.ReLU()
    return nets.seeded(
        lambda: nn.Sequential(nn.Linear(2, 8), active, nn.Linear(8, 8), active, nn.Linear(8, 3)), seed, scale=2.0
    ).double()


def clipped(polygon: np.ndarray, normal: np.ndarray, offset: float) -> np.ndarray:
    """The part of a convex polygon (v, 2) where normal.x + offset >= 0."""
    values, corners = polygon @ normal + offset, []
    for i in range(len(polygon)):
        a, b, at, next_ = polygon[i - 1], polygon[i], values[i - 1], values[i]
        if (at < 0) != (next_ < 0):
            corners.append(a + (b - a) * at / (at - next_))
        if next_ >= 0:
            corners.append(b)
    return np.array(corners).reshape(-1, 2)


def exact_margin(model: nn.Sequential, x: Tensor, y: int, slope: float = 0.0) -> float:
    """The least margin over the square of EPS around x, from all linear pieces of the network: polygons."""
    square = x.numpy() + EPS * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    pieces = [(square, np.eye(2), np.zeros(2))]
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        pieces = [(polygon, weight @ a, weight @ b + bias) for polygon, a, b in pieces]
        for neuron in range(len(bias)):
            parts = []
            for (polygon, a, b), side in itertools.product(pieces, (1, -1)):
                part = clipped(polygon, side * a[neuron], side * b[neuron])
                if len(part) > 2:
                    a, b = a.copy(), b.copy()
                    factor = 1 if side > 0 else slope
                    a[neuron], b[neuron] = factor * a[neuron], factor * b[neuron]
                    parts.append((part, a, b))
            pieces = parts
    weight, bias = layers[-1].weight.detach().numpy(), layers[-1].bias.detach().numpy()
    least = np.inf
    for polygon, a, b in pieces:
        logits = polygon @ (weight @ a).T + weight @ b + bias
        least = min(least, (logits[:, [y]] - np.delete(logits, y, 1)).min())
    return float(least)


def problem(seed: int, slope: float = 0.0, n: int = 6) -> tuple[nn.Module, Task]:
    model = plane(seed, slope).float()
    x = nets.batch(n, (2,), lo=-2, hi=2, seed=seed).float()
    return model, task_of(x, nets.predicted(model, x), eb.Linf(eps=EPS))


def searched(model: nn.Module, task: Task) -> tuple[Certifier, Proofs]:
    certifier = Certifier(model, task.x)
    proofs = certifier.bounds(task, ("crown",))
    return certifier, certifier.search(task, proofs, 1e9, Limits(domains=2000))


@pytest.mark.parametrize("slope", [0.0, 0.2])
def test_every_tiny_instance_is_decided_as_exact_enumeration_decides_it(slope: float):
    methods, broken = [], 0
    for seed in range(4):
        model, task = problem(seed, slope)
        _, proofs = searched(model, task)
        for i in range(len(task.x)):
            exact = exact_margin(model.double(), task.x[i].double(), int(task.y[i]), slope)
            assert abs(exact) > 1e-4
            assert proofs.verified[i] == (exact > 0), (seed, i, exact, proofs.reason[i])
            if exact > 0:
                assert proofs.margin[i] <= exact
                methods.append(proofs.method[i])
                continue
            broken += 1
            assert proofs.reason[i] == "counterexample"
            logits = model(proofs.points[i][None].double())[0]
            assert int(logits.argmax()) != int(task.y[i])
            assert (proofs.points[i] - task.x[i]).abs().max() <= EPS + 1e-6
        model.float()
    assert methods.count("branch-and-bound") >= 2
    assert broken >= 3


def explored(model: nn.Module, x: Tensor, y: Tensor, ball: eb.Ball, domains: int = 30) -> tuple:
    """Everything about a search in float32 that ends after some domains, and the same bounds in float64."""
    traced, regions = trace(model, x), Regions(ball.bind(x), x)
    graph = traced.graph(torch.float32)
    with torch.no_grad():
        found = bounded(graph, regions, crown)
        example = torch.arange(len(x)).repeat_interleave(2)
        rival = (y[example] + torch.tensor([1, 2]).repeat(len(x))) % 3
        rows = margin_rows(example, rival, y, 3, torch.float32)
        neurons = Neurons(graph)
        network = Network(graph, regions, neurons, found.lines)
        limits = Limits(domains=domains, seconds=1e9, tighten=2)
        search = Branching(network, rows, neurons.intervals(found.bounds), torch.zeros(len(rows)), limits)
    return search, found, rows


def all_leaves(search: Branching, ended: dict[int, list[Leaf]]) -> dict[int, list[Leaf]]:
    return {i: row.leaves + ended.get(i, []) for i, row in enumerate(search.found)}


def kept(search: Branching) -> dict[int, list[Leaf]]:
    """Run, and return the domains of each row that were open at the end."""
    ended: dict[int, list[Leaf]] = {}
    give_up = search._end

    def end(example: int, reason: str) -> None:
        for waiting in search.queues.get(example, []):
            ended.setdefault(waiting.row, []).append(waiting.leaf)
        give_up(example, reason)

    search._end = end  # type: ignore[method-assign]
    search._look = lambda *_: None  # type: ignore[method-assign]
    search.run()
    return ended


@pytest.mark.parametrize("ball", [eb.Linf(eps=0.4), eb.L2(eps=1.0), eb.Linf(eps=0.5, lo=-1, hi=0.5)])
def test_no_leaf_has_a_point_below_its_bound(ball: eb.Ball):
    model = nets.seeded(Residual, 2, scale=2.0).float()
    x = nets.batch(2, (1, 4, 4), lo=-1, hi=0.5, seed=1).float()
    y = nets.predicted(model, x)
    search, found, rows = explored(model, x, y, ball)
    leaves = all_leaves(search, kept(search))
    assert max(len(leaf.splits) for row in leaves.values() for leaf in row) >= 3
    assert max(leaf.tightened for row in leaves.values() for leaf in row) >= 2
    graph, regions, bound = search.network.graph, search.network.regions, ball.bind(x)
    met = whole = 0
    for i, row in leaves.items():
        if search.reasons.get(search.found[i].example) != "bound too loose":  # which ends it in the midst of a batch
            assert covers([leaf.splits for leaf in row])
            whole += 1
        least = leaf_bounds(graph, regions, found, rows.rows(torch.tensor([i])), row)
        centre = x[rows.example[i]].expand(4000, 1, 4, 4)
        noise = torch.randn(centre.shape, generator=nets.rng(i))
        z = bound.rows(rows.example[[i] * 4000]).project(centre + noise, centre)
        values, reads = walked(search, z)
        margin = values @ rows.values[i]
        for leaf, low in zip(row, least.tolist(), strict=True):
            split = torch.tensor(leaf.splits, dtype=torch.long)
            inside = (reads[:, split.abs() - 1] * split.sign() >= 0).all(1)
            met += int(inside.any())
            assert not inside.any() or float(margin[inside].min()) >= low - 1e-5
    assert met > 10
    assert whole


def walked(search: Branching, z: Tensor) -> tuple[Tensor, Tensor]:
    """The logits at z, and what each neuron reads."""
    graph, neurons, values = search.network.graph, search.network.neurons, [z]
    with torch.no_grad():
        for node in graph.nodes[1:]:
            values.append(node.operator.forward(*(values[i] for i in node.inputs)))
    return values[-1], neurons.joined(values[graph.before(number)] for number in neurons.starts)


def test_a_wrong_sign_of_a_multiplier_would_be_seen():
    """The same test fails for multipliers below 0, so it can fail."""
    model, task = problem(3, n=3)
    search, found, rows = explored(model, task.x, task.y, eb.Linf(eps=EPS))
    leaves = all_leaves(search, kept(search))
    graph, regions, worst = search.network.graph, search.network.regions, 0.0
    for i, row in leaves.items():
        tilted = [replace(leaf, multipliers=tuple(-1.0 for _ in leaf.splits)) for leaf in row]
        least = leaf_bounds(graph, regions, found, rows.rows(torch.tensor([i])), tilted)
        z = task.x[rows.example[i]] + EPS * (2 * torch.rand(4000, 2, generator=nets.rng(i)) - 1)
        values, reads = walked(search, z)
        for leaf, low in zip(row, least.tolist(), strict=True):
            split = torch.tensor(leaf.splits, dtype=torch.long)
            inside = (reads[:, split.abs() - 1] * split.sign() >= 0).all(1)
            if inside.any():
                worst = max(worst, low - float((values[inside] @ rows.values[i]).min()))
    assert worst > 0.1


def proved_by_branching() -> tuple[Certifier, Task, Certificate]:
    for seed in range(9):
        model, task = problem(seed)
        certifier, proofs = searched(model, task)
        for i in np.flatnonzero(proofs.method == "branch-and-bound"):
            certificate = Certificate.from_bytes(proofs.certificates[i])
            if any(name.endswith("splits") and array.shape[1] > 1 for name, array in certificate.arrays.items()):
                return certifier, task.rows(torch.tensor([i])), certificate
    raise AssertionError("no seed has such a proof")


def test_the_recheck_sees_leaves_that_are_missing_swapped_or_wrongly_priced():
    certifier, task, certificate = proved_by_branching()
    assert float(certifier.recheck(task, [certificate.to_bytes()]).margin[0]) > 0
    name = max(
        (name for name in certificate.arrays if name.endswith("/splits")), key=lambda n: certificate.arrays[n].size
    )
    start = name.removesuffix("splits")
    splits = certificate.arrays[name]

    def recheck(**changed: np.ndarray) -> float:
        arrays = dict(certificate.arrays) | {start + part: array for part, array in changed.items()}
        return float(certifier.recheck(task, [Certificate("branch-and-bound", arrays).to_bytes()]).margin[0])

    per_leaf = {part: certificate.arrays[start + part] for part in ("splits", "multipliers", "tightened", "of")}
    with pytest.raises(BadInput, match="cover the region"):
        recheck(**{part: array[1:] for part, array in per_leaf.items()})
    swapped = splits.copy()
    swapped[0, 0] *= -1
    with pytest.raises(BadInput, match="cover the region"):
        recheck(splits=swapped)
    with pytest.raises(BadInput, match="multipliers of at least 0"):
        recheck(multipliers=-certificate.arrays[start + "multipliers"] - np.float16(1))
    with pytest.raises(BadInput, match="neurons of the network"):
        recheck(splits=np.where(splits > 0, 10_000, splits).astype(np.int32))
    with pytest.raises(BadInput, match="neurons of the network"):
        recheck(tightened=per_leaf["tightened"] + np.int32(99))
    with pytest.raises(BadInput, match="fit together"):
        recheck(of=certificate.arrays[start + "of"][1:])
    alone = recheck(**{part: array[:1, :0] if array.ndim == 2 else array[:1] for part, array in per_leaf.items()})
    assert alone <= 0  # the root alone covers the region, and proves nothing
    assert recheck(multipliers=certificate.arrays[start + "multipliers"] + np.float16(9)) <= 0
    assert recheck(splits=-splits) <= 0  # the same neurons, each leaf's bound on the other side


def test_other_activations_keep_their_lines_and_alone_are_not_searched():
    smooth = nets.seeded(
        lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)), 5, scale=2.0
    ).float()
    x = nets.batch(2, (2,), lo=-1, hi=1, seed=0).float()
    search, found, rows = explored(smooth, x, nets.predicted(smooth, x), eb.Linf(eps=EPS), domains=10)
    leaves = {i: row for i, row in all_leaves(search, kept(search)).items() if row}
    assert len(leaves) >= 2
    assert max(len(leaf.splits) for row in leaves.values() for leaf in row) >= 2
    for i, row in leaves.items():
        low = leaf_bounds(search.network.graph, search.network.regions, found, rows.rows(torch.tensor([i])), row)
        z = x[rows.example[i]] + EPS * (2 * torch.rand(2000, 2, generator=nets.rng(i)) - 1)
        assert float(low.detach().min()) <= float((walked(search, z)[0] @ rows.values[i]).min()) + 1e-5
    tanh = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    task = task_of(x, nets.predicted(tanh, x), eb.Linf(eps=9.0))
    assert not searched(tanh, task)[1].verified.any()


def test_leaves_are_the_same_when_they_are_read():
    _, _, certificate = proved_by_branching()
    model, task = problem(0)
    graph = trace(model, task.x).graph(torch.float32)
    name = next(name for name in certificate.arrays if name.endswith("/splits"))
    start = name.removesuffix("splits")
    arrays = {key.removeprefix(start): array for key, array in certificate.arrays.items() if key.startswith(start)}
    again = to_arrays(from_arrays(arrays, graph))
    assert all(np.array_equal(again[part], arrays[part]) for part in arrays)


def test_a_search_is_the_same_every_time_and_alone():
    model, task = problem(3, n=4)
    limits = Limits(domains=20, batch=4)

    def state(rows: Tensor) -> list[tuple]:
        part = task.rows(rows)
        search, _, _ = explored(model, part.x, part.y, eb.Linf(eps=1.5 * EPS))
        search.limits, search._look = replace(limits, seconds=1e9), lambda *_: None
        return [(row.verified, row.bound, row.domains, [leaf.splits for leaf in row.leaves]) for row in search.run()]

    both = state(torch.arange(4))
    assert both == state(torch.arange(4))
    assert len({row[2] for row in both}) > 2
    assert [row[0] for row in state(torch.tensor([1]))] == [row[0] for row in both[2:4]]


def test_an_example_ends_at_its_limits_with_the_reason():
    model = nets.seeded(Residual, 2, scale=2.0).float()
    x = nets.batch(1, (1, 4, 4), lo=-1, hi=0.5, seed=1).float()
    y = nets.predicted(model, x)
    for limits, reason in (
        (Limits(seconds=0.0), "time"),
        (Limits(domains=4, seconds=1e9), "domains"),
        (Limits(memory=1, seconds=1e9), "memory"),
    ):
        search, _, _ = explored(model, x, y, eb.Linf(eps=2.0))
        search.limits, search._look = limits, lambda *_: None
        rows: list[Row] = search.run()
        assert search.reasons == {0: reason}
        assert min(row.bound for row in rows) <= 0
        assert not all(row.verified for row in rows)


def test_bounds_in_float32_and_float64_agree():
    model, task = problem(2, n=3)
    search, found, rows = explored(model, task.x, task.y, eb.Linf(eps=EPS))
    leaves = all_leaves(search, kept(search))
    graph, regions = search.network.graph, search.network.regions
    exact = trace(model, task.x).graph(torch.float64)
    wide = Regions(eb.Linf(eps=EPS).bind(task.x.double()), task.x.double())
    with torch.no_grad():
        sure: Intermediate = bounded(exact, wide, crown)
    for i, row in leaves.items():
        one = rows.rows(torch.tensor([i]))
        low = leaf_bounds(graph, regions, found, one, row)
        same = leaf_bounds(exact, wide, sure, one.with_values(one.values.double()), row)
        assert (low - same).abs().max() < 1e-4


@pytest.mark.parametrize("slope", [0.1, 0.189])
def test_slopes_of_leaves_are_never_below_a_leaky_slope_that_float16_rounds_down(slope: float) -> None:
    """A lower line less steep than the function below 0 is above it there."""
    assert float(torch.tensor(slope).half()) < slope
    model = nn.Sequential(nn.Linear(1, 1), nn.LeakyReLU(slope), nn.Linear(1, 1)).double()
    for layer, bias in ((0, 0.0), (2, 2 * slope - 1e-5)):
        model[layer].weight.data.fill_(1.0)
        model[layer].bias.data.fill_(bias)
    x = torch.full((1, 1), -0.5, dtype=torch.float64)
    problem = task_of(x, torch.tensor([1]), eb.Linf(eps=1.5, lo=-2, hi=1))
    arrays = {
        "splits": np.zeros((1, 0), np.int32), "multipliers": np.zeros((1, 0), np.float16),
        "tightened": np.zeros(1, np.int32), "neurons": np.zeros(1, np.int32),
        "slopes": np.full((1, 1), slope, np.float16), "of": np.zeros(1, np.int32),
    }  # fmt: skip
    stored = Certificate("branch-and-bound", {f"leaf/0/{name}": part for name, part in arrays.items()}).to_bytes()
    assert float(Certifier(model, x).recheck(problem, [stored]).margin[0]) <= -1e-5
