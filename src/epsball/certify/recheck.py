"""Certificates, proved once more: in float64, with what rounding can take subtracted, from the choices alone.

The region is widened by what attacks are allowed too, four units in the last place of the input, so that no success of
an attack contradicts a certificate. Each margin is given twice: for the network in real arithmetic, and for the network
as it runs, with the rounding of its own precision in every layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.certify.backward import Intervals, Shared
from epsball.certify.certificate import Certificate
from epsball.certify.concretise import Regions
from epsball.certify.functionals import units
from epsball.certify.graph import Graph
from epsball.certify.intermediate import Intermediate, Tighten, bounded, crown
from epsball.certify.interval import intersected
from epsball.certify.leaves import from_arrays, leaf_bounds
from epsball.certify.margins import margin_rows
from epsball.certify.operators import Bounds
from epsball.certify.rounding import Rounding
from epsball.certify.slopes import relaxing
from epsball.common.errors import BadInput

FINAL = re.compile(r"final/([0-9]{1,9})/([0-9]{1,9})", re.ASCII)
"""The name of the slopes of a rival at an activation."""
ULPS = 4
"""Units in the last place of the input by which an attack's point may leave the ball (`Ball.contains`)."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Examples in float64 with what is to be proved of them: `y` (n,), `rivals` (n, k), and the regions."""

    graph: Graph
    regions: Regions
    y: Int64[Tensor, " n"]
    rivals: Bool[Tensor, "n k"]

    def rows(self, index: Tensor) -> Problem:
        """Some of the examples."""
        return Problem(self.graph, self.regions.rows(index), self.y[index], self.rivals[index])


@dataclass(frozen=True, eq=False)
class Rechecked:
    """The certified margins (n,) of the network in real arithmetic, and as it runs; only those above 0 certify."""

    margin: Float[Tensor, " n"]
    margin_as_run: Float[Tensor, " n"]


def regions_for(ball: Ball, x: Tensor) -> Regions:
    """The regions in float64 around x as it is, each as wide as an attack's success may be found in."""
    parts = {name: value for name in ball.parts() if (value := getattr(ball, name)) is not None}
    for name, value in parts.items():
        if name in ("lo", "hi"):  # as x's precision sees them
            parts[name] = (
                value.to(x).double() if isinstance(value, Tensor) else float(torch.tensor(value, dtype=x.dtype))
            )
        elif isinstance(value, Tensor) and value.dtype != torch.bool:
            parts[name] = value.double()
    exact = replace(ball, **parts, _bound=False, _per_example=True)
    return Regions(exact.bind(x.double()), x.double()).widened(ULPS * torch.finfo(x.dtype).eps)


def recheck(problem: Problem, certificates: Sequence[Certificate], unit: float) -> Rechecked:
    """The certified margin of each example by its certificate; `unit` is the rounding of the network as it runs."""
    as_run = _margins(problem, certificates, unit)
    exact = as_run.clone()
    missed = (as_run <= 0).nonzero().squeeze(1)
    if len(missed):
        exact[missed] = _margins(problem.rows(missed), [certificates[i] for i in missed.tolist()], 0.0)
    return Rechecked(torch.maximum(exact, as_run), as_run)


def _margins(problem: Problem, certificates: Sequence[Certificate], unit: float) -> Tensor:
    """The margins; certificates that hold no arrays are rechecked together."""
    found = torch.full((len(problem.y),), -torch.inf, dtype=torch.float64)
    groups: dict[tuple[str, int], list[int]] = {}
    for i, certificate in enumerate(certificates):
        kind = "intervals" if certificate.method in ("exact", "ibp", "crown-ibp") else "crown"
        alone = any(name.startswith(("tight/", "leaf/")) for name in certificate.arrays)
        groups.setdefault((kind, i if alone else -1), []).append(i)
    for (kind, _), members in groups.items():
        index = torch.tensor(members)
        found[index] = _together(problem.rows(index), [certificates[i] for i in members], kind, unit)
    return found


def _together(problem: Problem, certificates: Sequence[Certificate], kind: str, unit: float) -> Tensor:
    """The margins of examples whose intermediate bounds are of one kind."""
    graph, regions = problem.graph, problem.regions
    tighten: Tighten | None = None if kind == "intervals" else crown
    if len(certificates) == 1 and any(name.startswith("tight/") for name in certificates[0].arrays):
        tighten = Stored(certificates[0])
    found = bounded(graph, regions, tighten, Rounding(graph, unit))
    return margins_with(problem, found, certificates)


def margins_with(problem: Problem, found: Intermediate, certificates: Sequence[Certificate]) -> Tensor:
    """The smallest margin of each example; each rival's is the best of intervals, CROWN, and slopes that are stored."""
    graph, regions, logits = problem.graph, problem.regions, problem.rivals.shape[1]
    example, rival = problem.rivals.nonzero(as_tuple=True)
    rows = margin_rows(example, rival, problem.y, logits, graph.dtype)
    best = found.bound(graph, graph.output, rows, Intervals(found.bounds), regions)
    open_rows = (best <= 0).nonzero().squeeze(1)
    if len(open_rows):
        relax = Shared(found.lines)
        best[open_rows] = torch.maximum(
            best[open_rows], found.bound(graph, graph.output, rows.rows(open_rows), relax, regions)
        )
    stored = _final_slopes(graph, certificates, example, rival)
    if stored is not None:
        index, slopes = stored
        relax_own = relaxing(found.lines, slopes)
        own = found.bound(graph, graph.output, rows.rows(index), relax_own, regions)
        best[index] = torch.maximum(best[index], own)
    for i in (best <= 0).nonzero().squeeze(1).tolist():
        leaves = _leaves(certificates[int(example[i])], int(rival[i]))
        if leaves:
            row = rows.rows(torch.tensor([i]))
            best[i] = torch.maximum(best[i], leaf_bounds(graph, regions, found, row, from_arrays(leaves, graph)).amin())
    least = torch.full((len(problem.y),), torch.inf, dtype=best.dtype)
    return least.scatter_reduce(0, example, best, "amin")


def _leaves(certificate: Certificate, rival: int) -> dict[str, np.ndarray]:
    """The arrays of the leaves of a rival's tree; none where it has no tree."""
    start = f"leaf/{rival}/"
    return {name[len(start) :]: array for name, array in certificate.arrays.items() if name.startswith(start)}


def _final_slopes(
    graph: Graph, certificates: Sequence[Certificate], example: Tensor, rival: Tensor
) -> tuple[Tensor, dict[int, Tensor]] | None:
    """Which rows have slopes of their own, and those slopes, by the number of the activation."""
    index: list[int] = []
    tables: dict[int, list[np.ndarray]] = {}
    owners = {pair: i for i, pair in enumerate(zip(example.tolist(), rival.tolist(), strict=True))}
    for number, certificate in enumerate(certificates):
        own: dict[int, dict[int, np.ndarray]] = {}
        for name, array in certificate.arrays.items():
            if found := FINAL.fullmatch(name):
                own.setdefault(int(found[1]), {})[int(found[2])] = array
        for who, arrays in own.items():
            if (number, who) not in owners:
                continue
            index.append(owners[number, who])
            for activation in graph.activations:
                if graph.rectifies(activation):
                    shape = graph.nodes[activation].shape
                    array = arrays.get(activation, np.zeros(shape, dtype=np.float16))
                    tables.setdefault(activation, []).append(_sound(array, shape, graph, activation))
    if not index:
        return None
    return torch.tensor(index), {
        place: torch.from_numpy(np.stack(parts)).to(graph.dtype) for place, parts in tables.items()
    }


def _sound(array: np.ndarray, shape: tuple[int, ...], graph: Graph, activation: int) -> np.ndarray:
    """Slopes as they may be used: of the right shape, between those of the rectifier. Raises `BadInput` for others."""
    if array.size != int(np.prod(shape)) or not np.isfinite(array).all():
        raise BadInput(
            f"`certificate` must hold finite slopes of shape {shape}, got {array.shape}; run the evaluation again in "
            "a new directory"
        )
    return array.reshape(shape).astype(np.float64).clip(graph.least_slope(activation), 1)


@dataclass(frozen=True, eq=False)
class Stored:
    """Tightens the bounds of one example's neurons with the slopes of its certificate."""

    certificate: Certificate

    def __call__(self, graph: Graph, regions: Regions, found: Intermediate, number: int, bounds: Bounds) -> Bounds:
        bounds = crown(graph, regions, found, number, bounds)
        arrays = self.certificate.arrays
        neuron = arrays.get(f"tight/{number}/neuron")
        if neuron is None or not neuron.size:
            return bounds
        chosen = torch.from_numpy(neuron.astype(np.int64).reshape(-1))
        if int(chosen.min()) < 0 or int(chosen.max()) >= bounds[0][0].numel():
            raise BadInput(
                "`certificate` must name neurons of the network, got others; run the evaluation again in a new "
                "directory"
            )
        rows = units(torch.zeros_like(chosen), chosen, (1, -1), graph.nodes[number].shape, graph.dtype).single()
        slopes: dict[int, Tensor] = {}
        for place in filter(graph.rectifies, graph.activations):  # another function's intercept belongs to its slope
            array = arrays.get(f"tight/{number}/{place}")
            if array is not None:
                shape = (2 * len(chosen), *array.shape[2:])
                part = _sound(array, shape, graph, place)
                slopes[place] = torch.from_numpy(part)
        least, negated = found.bound(graph, number, rows, relaxing(found.lines, slopes), regions).unflatten(0, (2, -1))
        low, high = bounds[0].clone(), bounds[1].clone()
        low.flatten(1)[0, chosen], high.flatten(1)[0, chosen] = least, -negated
        return intersected(bounds, (low, high))
