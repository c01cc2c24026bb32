"""From examples that bounds left open to certificates: tight intermediate bounds, then branch and bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from epsball.certify.branching import Branching, Limits, Row
from epsball.certify.concretise import Regions
from epsball.certify.graph import Graph
from epsball.certify.intermediate import bounded
from epsball.certify.leaves import to_arrays
from epsball.certify.margins import margin_rows
from epsball.certify.multipliers import Network
from epsball.certify.slopes import Tightening
from epsball.certify.splits import Neurons

ROUNDING = 2e-5
"""What a bound must exceed, so that it is also proved in float64: this share of what it rose from its first value."""


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
    graph: Graph, regions: Regions, y: Int64[Tensor, " n"], rivals: Bool[Tensor, "n k"], limits: Limits
) -> list[Searched]:
    """Search n examples together, each with all its `rivals`, for `limits.seconds` each."""
    began = limits.clock()
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
        reason = "" if proved else branching.reasons[i]
        searched.append(Searched(mine, reason, branching.spent[i], arrays, worst.point))
    return searched


def _of(rows: list[Row], example: int) -> list[Row]:
    return [row for row in rows if row.example == example]
