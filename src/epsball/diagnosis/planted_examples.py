"""What is hidden: a head for each example, whose second class surely exists in the example's ball.

In the space of the features of one ball, an inner part of the ball is one class and a point at its edge the other; the
widest-margin hyperplane between them, moved close to the edge point, is the new head. So the edge point is an
adversarial example by construction, and an attack has to find it or another.

Zimmermann, Brendel, Tramer and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations" (NeurIPS 2022),
the binarization test; what is said of the authors' numbers is that of their code for its case studies.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.optimize import nnls
from torch import Tensor

from epsball.common.shapes import column
from epsball.diagnosis.binary_heads import Featured, Heads
from epsball.engine.batches import forward_rows
from epsball.problem.task import Task

INNER = 99
"""Inner points of a head, beside the example itself (in the authors' case studies 49 to 999), half of them at the edge
of the inner ball: with none there, corners are told from inner points as such, and random corners find the hidden one
(on networks of `benchmarks/nets.py` in 17 to 62 of 64 cases)."""
SHARE = 0.95
"""The radius of the inner points, in units of eps; the authors' gap of .05."""
EDGES = 10
"""Points at the edge, of which the one with the widest gap is hidden. With the first that has a gap, random search
finds 0 to 52 of 64 there, with the widest 0 to 30."""
CLOSENESS = 0.999
"""Where the border lies on the way from the nearest inner point's half-way plane (0) to the edge point (1)."""
REREADS = 5
"""How often the features of the edge point are read again where the model draws random numbers: the border lies below
the lowest score; as in the authors' case studies."""
LEAST_GAP = 1e-5
"""A gap below this share of the features' spread is none: single precision would not tell the sides apart."""
LEAST_MARGIN = 1e-3
"""A tie at the example leaves no margin to give the head."""
INNER_RANK, EDGE_RANK = 1 << 20, 2 << 20
"""Ranks of the noise, above those of any attack's jobs: an attack does not start at a point that a head was made of."""


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
    if scaled.shape[1] > len(scaled):  # a rotation leaves the problem as it is, and makes it small
        rotation, reduced = np.linalg.qr(scaled.T)
    else:
        rotation, reduced = None, scaled.T
    system = np.vstack([reduced, np.ones(len(scaled))])
    try:
        weights, _ = nnls(system, np.append(np.zeros(len(reduced)), 1.0), maxiter=10 * len(scaled))
    except RuntimeError:  # out of iterations: the caller tries another point, or counts the example as left out
        return None
    normal = reduced @ weights
    normal = normal if rotation is None else rotation @ normal
    length = np.linalg.norm(normal)
    if not length > 0:
        return None
    normal = normal / length
    gap = (scaled @ normal).min()
    return (normal, float(gap * spread)) if gap > LEAST_GAP else None


def repeated(task: Task, row: int, restart_indices: Int64[Tensor, " k"]) -> Task:
    """One row of the task, once for each restart of the noise."""
    many = task.rows(torch.full_like(restart_indices, row))
    return many.with_jobs(restart_indices, many.aim)


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


def widest(features: np.ndarray, edges: np.ndarray) -> tuple[int, np.ndarray, float] | None:
    """Of the points `edges` (k, d) the one with the widest gap to `features` (m, d): its place, the normal, the gap."""
    planes = [(place, plane) for place, outer in enumerate(edges) if (plane := separate(features, outer)) is not None]
    if not planes:
        return None
    place, (normal, gap) = max(planes, key=lambda pair: pair[1][1])
    return place, normal, gap


def make_heads(
    featured: Featured, task: Task, margin: Float[Tensor, " n"], *, batch_size: int
) -> tuple[Heads | None, Int64[Tensor, " m"]]:
    """A head for each row of `task` that can have one, and the rows that they belong to.

    `margin` (n,) is by how much the label's own logit leads at each example: the score there is its negative, so that
    a loss saturates on the head where it does on the model. (The authors give the head the range of all logits, which
    saturates earlier.) Features are not standardised, as with the authors: one that is zero inside would outweigh all.
    """
    inner_ranks = INNER_RANK + torch.arange(INNER, device=task.x.device)
    edge_ranks = EDGE_RANK + torch.arange(EDGES, device=task.x.device)
    inside = task.ball.with_eps(task.ball.eps * SHARE).bind(task.x)
    rows, weights, origins, biases, ends = [], [], [], [], []
    dtype = task.x.dtype
    for row in range(len(task.x)):
        inner, edge = repeated(task, row, inner_ranks), repeated(task, row, edge_ranks)
        within, outside = scattered(replace(inner, ball=inside.rows(torch.full_like(inner.y, row)))), at_edge(edge)
        outside = outside[edge.ball.contains(outside, edge.x)]
        points = torch.cat([task.x[row : row + 1], within, outside])
        read = forward_rows(featured, task.rows(points.new_full((len(points),), row).long()), points, batch_size)
        dtype = torch.promote_types(read.dtype, torch.float32)
        features = read.double().cpu().numpy()
        if not np.isfinite(features).all():
            continue
        features, edges = features[: INNER + 1], features[INNER + 1 :]
        plane = widest(features, edges)
        if plane is None:
            continue
        place, normal, gap = plane
        if featured.eot > 1:  # the point has to stay hidden in the noise of the model
            again = [featured.forward(outside[place : place + 1]) for _ in range(REREADS)]
            lowest = ((torch.cat(again).double().cpu().numpy() - edges[place]) @ normal).min()
        else:
            lowest = 0.0
        bias = (1 - CLOSENESS) * (gap + lowest) / 2 - lowest
        depth = normal @ (edges[place] - features[0]) - bias
        if not depth > gap / 2:
            continue
        scale = max(margin[row].item(), LEAST_MARGIN) / depth
        rows.append(row)
        weights.append(normal * scale)
        origins.append(edges[place])
        biases.append(bias * scale)
        ends.append(outside[place])
    kept = torch.tensor(rows, dtype=torch.long, device=task.x.device)
    if not rows:
        return None, kept
    weight, origin, bias = (
        torch.tensor(np.stack(part), dtype=dtype, device=task.x.device) for part in (weights, origins, biases)
    )
    return Heads(task.noise.ids[kept], weight, origin, bias, torch.stack(ends)), kept
