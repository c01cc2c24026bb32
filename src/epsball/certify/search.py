"""From examples that bounds left open to certificates: tight intermediate bounds, then branch and bound."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from epsball.certify.branching import LOOSE, Branching, Limits, Row
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional
from epsball.certify.graph import Graph
from epsball.certify.intermediate import bounded
from epsball.certify.leaves import to_arrays
from epsball.certify.margins import margin_rows
from epsball.certify.mixed_integer import MOST_BINARIES, binaries, decide
from epsball.certify.multipliers import Network
from epsball.certify.operators import Bounds
from epsball.certify.recheck import ULPS, regions_for
from epsball.certify.slopes import Tightening
from epsball.certify.splits import Neurons

ROUNDING = 1e-4
"""What a bound must exceed, so that it is also proved in float64: this share of the margin at the example."""
WIDER = 1.5
"""The searched region is wider than the ball by this much more than the region of the recheck."""


@dataclass(frozen=True, eq=False)
class Searched:
    """What was found of an example: `rows` by rival, why it is open (`reason`, "" where all are proved), its arrays.

    `point` (*shape) is the input with the smallest margin that the search came across, None where it saw none.
    """

    rows: dict[int, Row]
    reason: str
    seconds: float
    arrays: dict[str, np.ndarray]
    point: Tensor | None


def search(
    graph: Graph, exact: Graph, regions: Regions, y: Int64[Tensor, " n"], rivals: Bool[Tensor, "n k"], limits: Limits
) -> list[Searched]:
    """Search n examples together, each with all its `rivals`, for `limits.seconds` each; `exact` is in float64.

    The region is a little wider than that of the recheck. Where no split is left and few neurons are unstable, HiGHS
    looks for a counterexample.
    """
    began = limits.clock()
    regions = regions.widened(WIDER * ULPS * torch.finfo(graph.dtype).eps)
    tightening = Tightening()
    with torch.no_grad():
        found = bounded(graph, regions, tightening)
        example, rival = rivals.nonzero(as_tuple=True)
        rows = margin_rows(example, rival, y, rivals.shape[1], graph.dtype)
        clean = (rows.values * graph(regions.x)[example]).sum(1)
    neurons = Neurons(graph)
    branching = Branching(
        Network(graph, regions, neurons, found.lines), rows, neurons.intervals(found.bounds), ROUNDING * clean, limits
    )
    share = (limits.clock() - began) / len(y)
    branching.spent = dict.fromkeys(range(len(y)), share)
    branching.run()
    known = [dict(zip(rival[example == i].tolist(), _of(branching.found, i), strict=True)) for i in range(len(y))]
    searched = []
    for i, mine in enumerate(known):
        proved = all(row.verified for row in mine.values())
        arrays = {
            f"leaf/{name}/{part}": array for name, row in mine.items() if proved
            for part, array in to_arrays(row.leaves).items()
        } | (tightening.arrays(i) if proved else {})  # fmt: skip
        worst = min(mine.values(), key=lambda row: row.value)
        reason, point = "" if proved else branching.reasons[i], worst.point
        if reason == LOOSE:
            began, left = limits.clock(), limits.seconds - branching.spent[i]
            index = torch.tensor([i], device=y.device)
            bounds = [(low[index].double(), high[index].double()) for low, high in found.bounds]
            reason, met = _decided(exact, regions.rows(index), bounds, rows.rows((example == i).nonzero()[:, 0]), left)
            point = point if met is None else met.to(regions.x)
            branching.spent[i] += limits.clock() - began
        searched.append(Searched(mine, reason, branching.spent[i], arrays, point))
    return searched


def _decided(
    exact: Graph, regions: Regions, bounds: list[Bounds], rows: Functional, seconds: float
) -> tuple[str, Tensor | None]:
    """What HiGHS says of the rows of one example: the reason why it has no certificate, and a counterexample."""
    few = binaries(exact, bounds)
    if few is None or int(few[0]) > MOST_BINARIES or regions.ball.choose({"intervals": 1, "sparse": 1}) is None:
        return LOOSE, None
    deadline, all_above, wide = time.perf_counter() + seconds, True, regions_for(regions.ball, regions.x)
    for values in rows.values.double():
        left = deadline - time.perf_counter()
        if left <= 0:
            return LOOSE, None
        answer = decide(exact, bounds, values, wide.ball, wide.x, seconds=left)
        if answer.point is not None:
            return "counterexample", answer.point
        all_above &= answer.verified
    return ("positive by HiGHS, which leaves no certificate" if all_above else LOOSE), None


def _of(rows: list[Row], example: int) -> list[Row]:
    return [row for row in rows if row.example == example]
