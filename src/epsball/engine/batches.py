"""Batches of few sizes: with few shapes, and none below 32 rows, an input gives the same bits in every batch."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.problem.objective import Objective
from epsball.problem.task import Task

MIN_BATCH = 32
"""The smallest batch. In smaller ones kernels may round a row differently: then results, not bits, are compared."""


def padded_size(wanted: int, batch_size: int) -> int:
    """The size of a batch for `wanted` rows: `batch_size` halved as long as that is enough, a multiple of 32.

    >>> [padded_size(wanted, 128) for wanted in (500, 128, 65, 64, 33, 1)]
    [128, 128, 128, 64, 64, 32]
    """
    least = min(MIN_BATCH, batch_size)
    size = -(-batch_size // least) * least
    while size > least and (half := -(-size // 2 // least) * least) >= wanted:
        size = half
    return size


def forward_rows(objective: Objective, task: Task, z: Float[Tensor, "n *shape"], batch_size: int) -> Tensor:
    """Logits or labels at z, `batch_size` rows of the task at a time; the last batch repeats a row to fill its size."""
    outputs = []
    for start in range(0, len(z), batch_size):
        rows = min(batch_size, len(z) - start)
        index = start + torch.arange(padded_size(rows, batch_size), device=z.device).clamp_max(rows - 1)
        outputs.append(objective.forward(z[index], task.rows(index))[:rows])
    return torch.cat(outputs)
