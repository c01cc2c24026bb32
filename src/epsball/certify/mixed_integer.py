"""Decide whether a linear functional of the logits can be negative, by a mixed-integer programme that HiGHS solves.

Tjeng et al. (2019, arXiv:1711.07356, section 4): of a ReLU r = max(z, 0) whose input is known to lie in [l, u] with
l < 0 < u, a binary a says which piece it is on: r >= z, r >= 0, r <= u a, r <= z - l (1 - a). All else is linear. The
programme asks for a point at which the functional is negative, so it ends as soon as there is none or one is found.

**What the answer is worth.** HiGHS computes in floating point, and takes a row as satisfied within 1e-6. Every variable
is therefore scaled to a range of about 1 and every row is loosened by `SLACK`, twice that; the row of the functional by
`SLACK` times the functional's range. So a counterexample satisfies every row with at least that much to spare, while
the solver gives up a branch only over rows that are violated by more than its tolerance. Coefficients that HiGHS would
drop (below 1e-9) are dropped here, and the row is loosened by what they can contribute. `verified` is still the word of
a solver in floating point and no proof that can be checked again: whoever reports it says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import Bounds as Box
from scipy.optimize import LinearConstraint, milp
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.linf import Linf
from epsball.certify.activations import Activation
from epsball.certify.graph import Graph
from epsball.certify.operators import Bounds
from epsball.common.errors import BadInput

MOST_BINARIES = 60
"""Beyond so many the solver rarely ends within minutes."""
SLACK = 2e-6
SMALLEST = 1e-9
"""HiGHS reads smaller coefficients as 0."""
INFEASIBLE = 2
"""scipy's status of a programme without a solution."""


@dataclass(frozen=True, eq=False)
class Decision:
    """`verified`: the functional is positive in the whole region. `point` (*shape): an input at which it is <= 0.

    Neither where the time is up, or where the least value is too near 0 for the solver. `reason` says which.
    """

    verified: bool
    point: Float[Tensor, " *shape"] | None
    reason: str
    seconds: float


@dataclass(frozen=True, eq=False)
class _Programme:
    """matrix @ v <= ceiling, least <= v <= greatest, within [-1, 1]; the last row is the functional."""

    matrix: np.ndarray
    ceiling: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    whole: np.ndarray
    moves: np.ndarray  # (features, variables): what the variables add to x

    def solve(self, above: float, seconds: float) -> tuple[int, np.ndarray | None]:
        """scipy's status, and the first move of x found at which the functional is at most `above` times its range."""
        ceiling = self.ceiling.copy()
        ceiling[-1] += above
        sides: tuple[Any, ...] = (self.least, self.greatest, ceiling)  # arrays, which the stubs do not know of
        found = milp(
            self.matrix[-1],
            integrality=self.whole,
            bounds=Box(*sides[:2]),
            constraints=LinearConstraint(self.matrix, -np.inf, sides[2]),
            options={"time_limit": max(seconds, 0.01), "mip_rel_gap": 1e9},
        )
        return found.status, None if found.x is None else self.moves @ found.x


def binaries(graph: Graph, bounds: Sequence[Bounds]) -> Int64[Tensor, " n"] | None:
    """How many binaries the programme of each example has; None where an activation is not piecewise linear."""
    count = torch.zeros(len(bounds[0][0]), dtype=torch.long)
    for number in graph.activations:
        activation = graph.nodes[number].operator
        assert isinstance(activation, Activation)
        if not activation.kinks:
            return None
        low, high = bounds[graph.before(number)]
        for place in activation.kinks:
            count += ((low < place) & (high > place)).flatten(1).sum(1).cpu()
    return count


def decide(
    graph: Graph,
    bounds: Sequence[Bounds],
    functional: Float[Tensor, " k"],
    ball: Ball,
    x: Float[Tensor, "1 *shape"],
    *,
    seconds: float,
    splits: Mapping[int, Tensor] | None = None,
) -> Decision:
    """Whether <functional, logits> is positive at every input in `ball` around `x`, which is one example.

    All in float64 and on the CPU. `bounds` (1, *shape) each, of every node, must be sound. `splits` maps nodes that
    activations read to 1 where the value is known to be >= 0, -1 where <= 0, and 0 elsewhere (1, *shape); `bounds` say
    so too. The time limit is in seconds.

    Raises `BadInput` where an activation or the ball is not piecewise linear.
    """
    began = time.perf_counter()
    ball = ball.bind(x)
    programme = _programme(graph, bounds, functional, _moves(ball, x), splits or {}, x)

    def answer(verified: bool, point: Tensor | None, reason: str) -> Decision:
        return Decision(verified, point, reason, time.perf_counter() - began)

    for above in (SLACK, -SLACK):  # the second: a point where it is negative by more than the tolerances
        status, move = programme.solve(above, seconds - (time.perf_counter() - began))
        if status == INFEASIBLE and above > 0:
            return answer(True, None, "")
        if move is not None:
            z = ball.project(x + torch.from_numpy(move).to(x).reshape(x.shape), x)
            with torch.no_grad():
                value = float(graph(z)[0] @ functional)
            if value <= 0:
                return answer(False, z[0], "")
        elif status != INFEASIBLE:
            return answer(False, None, "time")
    return answer(False, None, "too near 0 for the tolerances of HiGHS")


@dataclass(frozen=True, eq=False)
class _Moves:
    """x + matrix @ v with least <= v <= greatest, within [-1, 1]; and rows that v satisfies, row @ v <= 1."""

    matrix: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    rows: np.ndarray


def _moves(ball: Ball, x: Tensor) -> _Moves:
    """The inputs of the ball, one variable for each feature that may change; of a sparse ball one up and one down."""
    shape = ball.choose({"intervals": "box", "sparse": "diamond"})
    if shape is None:
        raise BadInput(f"`ball` must be bounded by planes for HiGHS, got {ball.symbol}; leave out this stage for it")
    around = Linf(eps=ball.eps, lo=ball.lo, hi=ball.hi, mask=ball.mask) if shape == "diamond" else ball
    low, high = ((end - x).flatten().numpy() for end in around.intervals(x))
    units = np.eye(len(low))
    if shape == "box":
        size = np.maximum(high, -low)
        free = size > 0
        size = size[free]
        return _Moves(units[:, free] * size, low[free] / size, high[free] / size, np.zeros((0, len(size))))
    up, down = high > 0, low < 0
    sizes = np.concatenate([high[up], -low[down]])
    matrix = np.concatenate([units[:, up], -units[:, down]], 1) * sizes
    total = sizes[None] / float(ball.radius_like(x))
    return _Moves(matrix, np.zeros(len(sizes)), np.ones(len(sizes)), total)


@dataclass(frozen=True, eq=False)
class _Unfolded:
    """The network as affine functions of the input and of its unstable hinges max(input - place, 0).

    `inputs` (m,) those of the hinges less their places, with their ranges `low` < 0 < `high`; `hinges` are the leaves
    that stand for their values. `known` are values that a split says to be >= 0, with their `scales`.
    """

    inputs: Tensor
    low: Tensor
    high: Tensor
    hinges: list[Tensor]
    known: Tensor
    scales: Tensor
    logits: Tensor


def _hinges(activation: Activation) -> tuple[float, float, list[float]]:
    """A piecewise linear f as constant + slope * x + the sum of jump * max(x - kink, 0) over its kinks."""
    kinks = activation.kinks
    x = torch.tensor([kinks[0] - 1, *kinks, kinks[-1] + 1], dtype=torch.float64)
    y = activation.forward(x)
    slopes = (y.diff() / x.diff()).tolist()
    return float(y[1]) - slopes[0] * kinks[0], slopes[0], [b - a for a, b in pairwise(slopes)]


def _unfolded(graph: Graph, bounds: Sequence[Bounds], splits: Mapping[int, Tensor], x: Tensor) -> _Unfolded:
    values, hinges = [x], []
    parts: dict[str, list[Tensor]] = {name: [x.new_zeros(0)] for name in ("inputs", "low", "high", "known", "scales")}
    for node in graph.nodes[1:]:
        given = [values[i] for i in node.inputs]
        if not isinstance(node.operator, Activation):
            assert node.operator is not None
            values.append(node.operator.forward(*given))
            continue
        (z,), (low, high) = given, bounds[node.inputs[0]]
        if not node.operator.kinks:
            raise BadInput(f"`model` must be piecewise linear for HiGHS, got {node.name}; leave out this stage for it")
        constant, slope, jumps = _hinges(node.operator)
        value = constant + slope * z
        for place, jump in zip(node.operator.kinks, jumps, strict=True):
            open_ = (low < place) & (high > place)
            hinge = x.new_zeros(int(open_.sum())).requires_grad_()
            hinges.append(hinge)
            for name, part in (("inputs", z), ("low", low), ("high", high)):
                parts[name].append(part[open_] - place)
            value = value + jump * torch.where(low >= place, z - place, 0).masked_scatter(open_, hinge)
        values.append(value)
        if (split := splits.get(node.inputs[0])) is not None:
            known = split != 0
            parts["known"].append((z * split)[known])
            parts["scales"].append(torch.maximum(low.abs(), high.abs())[known])
    joined = {name: torch.cat(part) for name, part in parts.items()}
    return _Unfolded(**joined, hinges=hinges, logits=values[-1][0])


def _derivatives(rows: Tensor, leaves: Sequence[Tensor]) -> np.ndarray:
    """The derivatives of each of `rows` (m,) in all numbers of the leaves, (m, numbers)."""
    found = []
    for row in rows:
        parts = torch.autograd.grad(row, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        found.append(torch.cat([part.flatten() for part in parts]).numpy())
    return np.stack(found)


def _programme(
    graph: Graph,
    bounds: Sequence[Bounds],
    functional: Tensor,
    moves: _Moves,
    splits: Mapping[int, Tensor],
    x: Tensor,
) -> _Programme:
    start = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        net = _unfolded(graph, bounds, splits, start)
        affine = torch.cat([net.inputs, net.known, (net.logits @ functional)[None]])
    slope, constant = _derivatives(affine, [start, *net.hinges]), affine.detach().numpy()
    low, high = net.low.detach().numpy(), net.high.detach().numpy()
    count, features = len(low), x.numel()
    # Columns: moves of x, hinges in units of their upper ends, binaries.
    through = np.concatenate([slope[:, :features] @ moves.matrix, slope[:, features:] * high], 1)
    none, unit = np.zeros((count, moves.matrix.shape[1])), np.eye(count)
    own, scale = np.concatenate([none, np.diag(high)], 1), np.maximum(high, -low)[:, None]
    inputs, offset = through[:count], constant[:count]
    zeros = np.zeros((count, count))
    known, span = slice(count, -1), np.abs(through[-1:]).sum() or 1.0
    scales = net.scales.detach().numpy()[:, None]
    blocks = [
        (np.concatenate([moves.rows, np.zeros((len(moves.rows), 2 * count))], 1), np.ones(len(moves.rows))),
        (np.concatenate([inputs - own, zeros], 1) / scale, -offset / scale[:, 0]),  # z <= r
        (np.concatenate([none, unit, -unit], 1), np.zeros(count)),  # r <= u a
        (np.concatenate([own - inputs, -np.diag(low)], 1) / scale, (offset - low) / scale[:, 0]),  # r <= z - l (1 - a)
        (np.pad(-through[known], ((0, 0), (0, count))) / scales, constant[known] / scales[:, 0]),
        (np.pad(through[-1:], ((0, 0), (0, count))) / span, -constant[-1:] / span),
    ]
    matrix, ceiling = np.concatenate([block for block, _ in blocks]), np.concatenate([most for _, most in blocks])
    small = np.abs(matrix) < SMALLEST
    ceiling += np.abs(np.where(small, matrix, 0)).sum(1)  # every variable is in [-1, 1]
    ceiling[:-1] += SLACK
    rest = np.zeros(2 * count)
    whole = np.concatenate([np.zeros(len(moves.least) + count), np.ones(count)])
    moved = np.pad(moves.matrix, ((0, 0), (0, 2 * count)))
    least, greatest = np.concatenate([moves.least, rest]), np.concatenate([moves.greatest, rest + 1])
    return _Programme(np.where(small, 0, matrix), ceiling, least, greatest, whole, moved)
