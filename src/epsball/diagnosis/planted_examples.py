"""Planted adversarial examples: a head for each example, whose second class certainly exists in the example's ball.

In the space of the features, an inner part of the ball is one class and a point at its edge the other; the hyperplane
of widest margin between them, moved close to the edge point, is the new head. So the edge point is an adversarial
example by construction, and an attack has to find it or another one.

Zimmermann, Brendel, Tramer and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations" (NeurIPS 2022),
the binarization test. The authors' numbers are those of their code for its case studies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import nnls
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.shapes import column
from epsball.diagnosis.binary_heads import Featured, Heads
from epsball.engine.batches import forward_rows
from epsball.problem.task import Task

INNER = 99
"""Inner points of a head, beside the example itself (in the authors' case studies 49 to 999), half of them at the edge
of the inner ball: without those, the head separates corners from inner points in general, and random corners find the
planted one (on networks of `benchmarks/nets.py` in 17 to 62 of 64 cases)."""
INNER_RADIUS = 0.95
"""The radius of the inner points, in units of eps; the authors' gap of .05."""
EDGES = 10
"""Points at the edge, of which the one with the widest gap is planted. With the first that has a gap, random search
finds 0 to 52 of 64 there, with the widest 0 to 30."""
CLOSENESS = 0.999
"""Where the decision boundary lies between the half-way plane (0) of the nearest inner point and the edge point (1)."""
REREADS = 5
"""How often the features of the edge point are computed again if the model draws random numbers: the boundary lies
below the lowest score, as in the authors' case studies."""
LEAST_GAP = 1e-5
"""A gap below this share of the features' spread is none: single precision would not separate the sides."""
LEAST_MARGIN = 1e-3
"""The margin of the head where the model's own margin at the example is smaller, as at a tie."""
INNER_RESTART, EDGE_RESTART = 1 << 20, 2 << 20
"""First restart indices of their noise, above those of any attack: no attack starts at a point that made a head."""


def separate(inner: np.ndarray, outer: np.ndarray) -> tuple[np.ndarray, float] | None:
    """The widest-margin hyperplane between the points `inner` (m, d) and the one point `outer` (d,).

    Returns its unit normal (d,), towards `outer`, and the gap: <normal, outer - p> >= gap for every p in `inner`; None
    where there is no gap. The normal is the shortest vector from the convex hull to `outer`. With the differences as
    the columns of A, the non-negative u that minimises |A u|^2 + (1 - sum u)^2 has its direction.

    >>> normal, gap = separate(np.array([[0.0, 0.0], [0.0, 1.0]]), np.array([2.0, 0.5]))
    >>> np.allclose(normal, [1, 0]), round(gap, 6)
    (True, 2.0)
    """
    differences = outer - inner
    spread = np.linalg.norm(differences, axis=1).max()
    if not 0 < spread < np.inf:
        return None
    scaled = differences / spread
    if scaled.shape[1] > len(scaled):  # a rotation reduces the dimensions and does not change the problem
        rotation, reduced = np.linalg.qr(scaled.T)
    else:
        rotation, reduced = None, scaled.T
    system = np.vstack([reduced, np.ones(len(scaled))])
    try:
        weights, _ = nnls(system, np.append(np.zeros(len(reduced)), 1.0), maxiter=10 * len(scaled))
    except RuntimeError:  # out of iterations: the caller tries another point, or skips the example
        return None
    normal = reduced @ weights
    normal = normal if rotation is None else rotation @ normal
    length = np.linalg.norm(normal)
    if not length > 0:
        return None
    normal = normal / length
    gap = (scaled @ normal).min()
    return (normal, float(gap * spread)) if gap > LEAST_GAP else None


def repeated(task: Task, row: int, restarts: Int64[Tensor, " k"]) -> Task:
    """One row of the task, once for each restart index of the noise."""
    copies = task.rows(torch.full_like(restarts, row))
    return copies.with_jobs(restarts, copies.aim)


def at_edge(task: Task) -> Float[Tensor, "n *shape"]:
    """A random point at the edge of each ball: the maximiser of a random direction, within the box.

    In the max norm a corner, in L2 a point in a uniform direction, in L1 and L0 the ends of random coordinates.
    """
    direction = task.noise.normal(task.x.shape[1:], dtype=torch.promote_types(task.x.dtype, torch.float32))
    return task.ball.argmax(direction.to(task.x.dtype), task.x)


def scattered(task: Task) -> Float[Tensor, "n *shape"]:
    """A random point of each ball, every other one at its edge."""
    points, edge = task.ball.sample(task.x, task.noise), at_edge(task)
    return torch.where(column(task.noise.restart % 2 == 0, points.ndim), points, edge)


def make_heads(
    featured: Featured, task: Task, margin: Float[Tensor, " n"], *, batch_size: int
) -> tuple[Heads | None, Int64[Tensor, " m"]]:
    """A head for each row of `task` that can have one, and the rows that they belong to.

    `margin` (n,) is that of the label's logit at each example: the score there is its negative, so that a loss
    saturates on the head where it does on the model. (The authors give the head the range of all logits, which
    saturates earlier.) Features are not standardised, as with the authors: one that is zero inside would dominate.
    """
    inner_ball = task.ball.with_eps(task.ball.eps * INNER_RADIUS).bind(task.x)
    rows, planes, points = [], [], []
    dtype = task.x.dtype
    for row in range(len(task.x)):
        candidates = _candidates(task, inner_ball, row)
        copies = task.rows(torch.full((len(candidates),), row, device=task.x.device))
        features = forward_rows(featured, copies, candidates, batch_size)
        dtype = torch.promote_types(features.dtype, torch.float32)
        plane = _plane(featured, features, candidates)
        if plane is not None:
            rows.append(row)
            planes.append(plane.scaled(max(margin[row].item(), LEAST_MARGIN)))
            points.append(candidates[plane.place])
    kept = torch.tensor(rows, dtype=torch.long, device=task.x.device)
    if not rows:
        return None, kept
    weight, origin, bias = (
        torch.tensor(np.stack(part), dtype=dtype, device=task.x.device) for part in zip(*planes, strict=True)
    )
    return Heads(task.noise.ids[kept], weight, origin, bias, torch.stack(points)), kept


def _candidates(task: Task, inner_ball: Ball, row: int) -> Float[Tensor, "k *shape"]:
    """The example, `INNER` points of the inner ball, and up to `EDGES` points at the edge of the ball."""
    device = task.x.device
    inner = repeated(task, row, INNER_RESTART + torch.arange(INNER, device=device))
    inner = replace(inner, ball=inner_ball.rows(torch.full_like(inner.y, row)))
    edge = repeated(task, row, EDGE_RESTART + torch.arange(EDGES, device=device))
    edge_points = at_edge(edge)
    return torch.cat([task.x[row : row + 1], scattered(inner), edge_points[edge.ball.contains(edge_points, edge.x)]])


@dataclass(frozen=True, eq=False)
class _Plane:
    """A hyperplane that separates the candidate at `place` from the inner ones: its unit normal towards the candidate.

    The score <normal, features - origin> + bias is 0 on it, and `-depth` at the example.
    """

    place: int
    normal: np.ndarray
    origin: np.ndarray
    bias: float
    depth: float

    def scaled(self, margin: float) -> tuple[np.ndarray, np.ndarray, float]:
        """Weight, origin and bias of the head whose score at the example is `-margin`."""
        scale = margin / self.depth
        return self.normal * scale, self.origin, self.bias * scale


def _plane(featured: Featured, features: Float[Tensor, "k d"], candidates: Tensor) -> _Plane | None:
    """The head of one example, not scaled yet: for the edge point with the widest gap; None where no gap exists."""
    points = features.double().cpu().numpy()
    if not np.isfinite(points).all():
        return None
    inner, edges = points[: INNER + 1], points[INNER + 1 :]
    found = [(place, plane) for place, point in enumerate(edges) if (plane := separate(inner, point)) is not None]
    if not found:
        return None
    place, (normal, gap) = max(found, key=lambda pair: pair[1][1])
    edge, lowest = edges[place], 0.0
    place += INNER + 1
    if featured.eot > 1:  # the point has to be adversarial in spite of the model's noise
        again = [featured.forward(candidates[place : place + 1]) for _ in range(REREADS)]
        lowest = ((torch.cat(again).double().cpu().numpy() - edge) @ normal).min()
    bias = (1 - CLOSENESS) * (gap + lowest) / 2 - lowest
    depth = normal @ (edge - inner[0]) - bias
    return _Plane(place, normal, edge, bias, depth) if depth > gap / 2 else None
