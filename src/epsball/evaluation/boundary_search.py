"""The boundary search: an adversarial example is moved towards its example as far as it stays adversarial."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.engine.batches import forward_rows
from epsball.problem.objective import Objective
from epsball.problem.task import Task

PRECISION = 1e-4
"""The search ends this close to the decision boundary, as a share of the distance."""
HALVINGS = 40
"""The most bisection steps."""
FACTORS = (1.05, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1e3, 3e3, 1e4, 1e5)
"""If the stored (rounded) point no longer fools the model, its perturbation is scaled by these, up to the box."""


def boundary_search(
    evaluator: Objective,
    task: Task,
    z: Float[Tensor, "n *shape"],
    *,
    stored: Callable[[Tensor, Tensor], Tensor] = lambda z, x: z,
    batch_size: int = 128,
) -> Float[Tensor, "n *shape"]:
    """The adversarial examples `z` (n, *shape), moved towards the examples of `task` as far as `evaluator` is fooled.

    The candidates are the projections of z onto smaller balls: shorter in L2, clipped in Linf, soft-thresholded in L1,
    with fewer coordinates in L0. The radius is bisected to `PRECISION`: a forward pass each time, some fifteen a row.
    The model sees what `stored` (z, x) leaves of a candidate; where that does not fool it to begin with, the
    perturbation is scaled up first. A point that fools it at no scale comes back as it is.
    """

    def fools(rows: Tensor, candidates: Tensor) -> Tensor:
        part = task.rows(rows)
        return evaluator.succeeds(forward_rows(evaluator, part, stored(candidates, part.x), batch_size), part)

    z = _scaled_up(fools, task, z)
    best, upper = z.clone(), task.ball.distance(z, task.x).double()
    lower = torch.zeros_like(upper)
    for _ in range(HALVINGS):
        rows = (upper - lower > PRECISION * upper).nonzero().squeeze(1)
        if not len(rows):
            break
        radius = (lower[rows] + upper[rows]) / 2
        candidates = task.ball.rows(rows).with_eps(radius.to(z.dtype)).project(z[rows], task.x[rows])
        fooled = fools(rows, candidates)
        hit, missed = rows[fooled], rows[~fooled]
        best[hit] = candidates[fooled]
        distance = task.ball.rows(hit).distance(candidates[fooled], task.x[hit]).double()  # in L0 a whole number
        upper[hit], lower[missed] = torch.minimum(distance, radius[fooled]), radius[~fooled]
    return best


def _scaled_up(fools: Callable[[Tensor, Tensor], Tensor], task: Task, z: Tensor) -> Tensor:
    """z, with larger perturbations where storage has moved it back over the decision boundary."""
    z, rows = z.clone(), torch.arange(len(z), device=z.device)
    for factor in (1.0, *FACTORS):
        candidates = task.ball.clip(torch.lerp(task.x[rows], z[rows], factor))
        fooled = fools(rows, candidates)
        z[rows[fooled]] = candidates[fooled]
        rows = rows[~fooled]
        if not len(rows):
            break
    return z
