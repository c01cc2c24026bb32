"""What every bound must be below, on one random network: its exact extremes, or those over many points of the ball."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from exact_search import linear_pieces
from random_networks import Case, margins
from torch import Tensor

from epsball.certify.certifier import Certifier
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional
from epsball.certify.graph import Graph
from epsball.certify.intermediate import Intermediate, Tighten, bounded, crown
from epsball.certify.slopes import Tightening, optimised
from epsball.certify.tracing import trace
from epsball.common.noise import Noise
from epsball.problem.task import task_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
"""Of the scale of a node's values, what rounding may cost: bounds of the search are not rounded outwards."""
POLICIES = ("ibp", "crown", "alpha-crown")
STEPS = 5


@dataclass(frozen=True, eq=False)
class Extremes:
    """What is known of a case: points of the balls, whose examples are `example`, among them (`exact`) the extremes."""

    points: Tensor
    example: Tensor
    exact: bool

    def of(self, values: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The least and the greatest of `values` (m, ...) at the points of each example, (n, k) each."""
        values = values.reshape(len(values), -1)
        index = self.example[:, None].expand(values.shape)
        low = values.new_full((n, values.shape[1]), math.inf).scatter_reduce(0, index, values, "amin")
        return low, (-values).new_full(low.shape, -math.inf).scatter_reduce(0, index, values, "amax")

    def least_margins(self, case: Case) -> Tensor:
        """The least margin of each rival, (n, classes); inf for the label."""
        with torch.no_grad():
            logits = case.model(self.points)
        return self.of(margins(logits, case.y[self.example]), len(case.x))[0]


def extremes(case: Case) -> Extremes:
    """The vertices of the linear pieces; of a smooth network a grid, random points, and ascent on each margin."""
    if case.smooth:
        parts = list(_sampled(case))
        return Extremes(torch.cat([z for z, _ in parts]), torch.cat([example for _, example in parts]), False)
    pieces = linear_pieces(case.model, case.ball, case.x, case.free)
    return Extremes(pieces.inputs(), torch.from_numpy(pieces.example), True)


def _sampled(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    x, ball, n = case.x, case.ball.bind(case.x), len(case.x)
    every, d = torch.arange(n), case.free.shape[1]
    side = torch.linspace(-1, 1, {1: 101, 2: 15}[d], dtype=x.dtype)
    grid = torch.cartesian_prod(*[side] * d).reshape(-1, d)
    far = torch.ones_like(x.flatten(1)) * ball.radius_like(x.flatten(1)) if ball.radius_like(x).ndim == 0 else None
    reach = ball.radius_like(x).to(x).expand(x.shape).flatten(1) if far is None else far
    example = every.repeat_interleave(len(grid))
    moved = x.flatten(1).repeat_interleave(len(grid), 0)
    moved = moved.scatter_add(1, case.free[example], grid.repeat(n, 1) * reach.gather(1, case.free)[example])
    yield ball.rows(example).project(moved.reshape(-1, *x.shape[1:]), x[example]), example
    for restart in range(4):
        z = ball.sample(x, Noise(0, every, torch.full_like(every, restart)))
        yield z, every
        for _ in range(10):
            z = z.detach().requires_grad_()
            gaps = margins(case.model(z), case.y)
            rival = gaps.detach().topk(min(restart + 1, gaps.shape[1]), 1, largest=False).indices[:, -1:]
            loss = torch.where(gaps.isinf(), 0, gaps).gather(1, rival)
            (grad,) = torch.autograd.grad(-loss.sum(), z)
            z = ball.step(grad, z.detach(), x, 0.3)
            yield z, every


def rows_of(case: Case, graph: Graph) -> tuple[Functional, Tensor, Tensor]:
    """The margins over every rival as rows of the output, with the example and the rival of each."""
    n, k = len(case.x), graph.nodes[graph.output].shape[0]
    unit = torch.eye(k, dtype=graph.dtype)
    if k == 1:
        sign = torch.where(case.y == 1, 1, -1).to(graph.dtype)
        return Functional(sign[:, None], torch.arange(n), (1,)), torch.arange(n), torch.zeros(n, dtype=torch.long)
    example, rival = (torch.arange(k) != case.y[:, None]).nonzero(as_tuple=True)
    return Functional(unit[case.y[example]] - unit[rival], example, (k,)), example, rival


def tightening(policy: str) -> Tighten | None:
    """What makes bounds of intermediate neurons tighter than intervals."""
    return {"ibp": None, "crown": crown, "alpha-crown": Tightening(STEPS)}[policy]


def least_bounds(graph: Graph, found: Intermediate, rows: Functional, regions: Regions, policy: str) -> Tensor:
    """The lower bounds of rows at the output, (P,)."""
    steps = STEPS if policy == "alpha-crown" else 0
    return optimised(graph, graph.output, rows, found.lines, regions, steps).bound


def violations(case: Case, dtype: torch.dtype = torch.float64, *, alpha: bool = True) -> list[str]:
    """What is wrong with the graph and the bounds of a network: nothing, one hopes. Without `alpha` it is quicker."""
    known, n = extremes(case), len(case.x)
    model, x = copy.deepcopy(case.model).to(dtype), case.x.to(dtype)
    graph = trace(model, x).graph(dtype)
    values = [known.points.to(dtype)]
    with torch.no_grad():
        for node in graph.nodes[1:]:
            values.append(node.operator.forward(*(values[i] for i in node.inputs)))
        logits = model(known.points.to(dtype)).reshape(len(values[-1]), -1)
    slack = TOLERANCE[dtype]
    problems = [] if _close(values[-1], logits, slack) else ["the graph is another function than the model"]
    exact = [known.of(value.double(), n) for value in values]
    margin = known.least_margins(case)
    regions = Regions(case.ball.bind(x), x)
    for policy in POLICIES if alpha else POLICIES[:2]:
        found = bounded(graph, regions, tightening(policy))
        for number, (low, high) in enumerate(exact):
            least, greatest = (end.double().reshape(n, -1) for end in found.bounds[number])
            room = slack * (1 + torch.maximum(low.abs(), high.abs()))
            if bool((least > low + room).any() | (greatest < high - room).any()):
                problems.append(f"{policy}: node {number}, {graph.nodes[number].name}")
        rows, example, rival = rows_of(case, graph)
        bound, least = least_bounds(graph, found, rows, regions, policy).double(), margin[example, rival]
        if bool((bound > least + slack * (1 + least.abs() + logits.double().abs().max())).any()):
            problems.append(f"{policy}: margin")
    return problems


def _close(a: Tensor, b: Tensor, slack: float) -> bool:
    return bool(((a - b).abs() <= slack * (1 + b.abs())).all())


def broken_certificates(case: Case, dtype: torch.dtype = torch.float32) -> list[str]:
    """What is wrong with what a `Certifier` proves of a network in `dtype`, and with the recheck of what it stores."""
    model, x = copy.deepcopy(case.model).to(dtype), case.x.to(dtype)
    known, certifier, task = extremes(case), Certifier(model, x), task_of(x, case.y, case.ball)
    least, found = known.least_margins(case).amin(1).numpy(), certifier.bounds(task)
    with torch.no_grad():
        as_run = margins(model(known.points.to(dtype)), case.y[known.example]).double()
    as_run = known.of(as_run, len(x))[0].amin(1).numpy()
    problems = []
    for i in found.verified.nonzero()[0]:
        if not 0 < found.margin[i] <= least[i]:
            problems.append(f"{found.method[i]}: margin {found.margin[i]} of example {i}, exact {least[i]}")
        if found.as_run[i] and not as_run[i] > 0:
            problems.append(f"{found.method[i]}: example {i} is broken as the network runs")
        again = certifier.recheck(task.rows(torch.tensor([i])), [found.certificates[i] or b""]).margin.item()
        if not 0 < again <= least[i] or abs(again - found.margin[i]) > 1e-5 * (1 + again):
            problems.append(f"{found.method[i]}: example {i} rechecked alone is {again}, not {found.margin[i]}")
    return problems
