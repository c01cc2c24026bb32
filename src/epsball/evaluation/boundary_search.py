"""An adversarial point is drawn towards its example as far as it still fools: how near is the border?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.engine.batches import forward_rows
from epsball.problem.objective import Objective
from epsball.problem.task import Task

PRECISION = 1e-4
"""How near the border a point is brought, as a share of its distance; at a radius shorter by that it does not fool."""
HALVINGS = 40
"""The most often that the radius is halved in on."""

FARTHER = (1.05, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1e3, 3e3, 1e4, 1e5)
"""So many times its distance is a point carried out that does not fool as it is kept; as far as the box goes."""


def shrunk(
    evaluator: Objective,
    task: Task,
    z: Float[Tensor, "n *shape"],
    *,
    kept: Callable[[Tensor, Tensor], Tensor] = lambda z, x: z,
    batch_size: int = 128,
) -> Float[Tensor, "n *shape"]:
    """The fooling points `z` (n, *shape), drawn towards the examples of `task` as far as `evaluator` says that they fool.

    On the way lie the projections of z onto smaller balls: shorter in L2, clipped in Linf, soft-thresholded in L1, of
    fewer coordinates in L0. The radius is halved in on to `PRECISION`: a forward each time, some fifteen a row. Looked
    at is what `kept` (z, x) leaves of a point; where that does not fool to begin with, the point is carried out first.
    What fools nowhere comes back as it is.
    """

    def fools(rows: Tensor, point: Tensor) -> Tensor:
        part = task.rows(rows)
        return evaluator.succeeds(forward_rows(evaluator, part, kept(point, part.x), batch_size), part)

    rows = torch.arange(len(z), device=z.device)
    z = _outwards(fools, task, z, rows)
    best, far = z.clone(), task.ball.distance(z, task.x).double()
    near = torch.zeros_like(far)
    for _ in range(HALVINGS):
        rows = (far - near > PRECISION * far).nonzero().squeeze(1)
        if not len(rows):
            break
        radius = (near[rows] + far[rows]) / 2
        point = task.ball.rows(rows).with_eps(radius.to(z.dtype)).project(z[rows], task.x[rows])
        hit = fools(rows, point)
        best[rows[hit]] = point[hit]
        reached = task.ball.rows(rows[hit]).distance(point[hit], task.x[rows[hit]]).double()  # in L0 a whole number
        far[rows[hit]], near[rows[~hit]] = torch.minimum(reached, radius[hit]), radius[~hit]
    return best


def _outwards(fools: Callable[[Tensor, Tensor], Tensor], task: Task, z: Tensor, rows: Tensor) -> Tensor:
    """z, farther out where it does not fool as it is kept: rounding may have carried it back over the border."""
    z = z.clone()
    for reach in (1.0, *FARTHER):
        point = task.ball.clip(torch.lerp(task.x[rows], z[rows], reach))
        hit = fools(rows, point)
        z[rows[hit]] = point[hit]
        rows = rows[~hit]
        if not len(rows):
            break
    return z
