"""Does a row's output depend on its own input alone? Attacks and records take that for granted.

Outputs change with the batch where a model uses statistics of it (BatchNorm in train mode, a normalisation over all
rows), or reads side inputs by position. Then each attack, and each batch size, sees another model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.models.frozen import frozen
from epsball.models.given import logits_in

ROWS = 32
"""The size of the batch that is tried; its halves are congruent, so that kernels treat their rows alike."""
TOLERANCE, REPEATS = 1e-3, 10
"""What rounding may change, as a share of the largest output, and as a multiple of what a mere repetition changes."""


def rows_independent(model: Callable[..., Any], x: Float[Tensor, "n *shape"]) -> bool:
    """Whether the outputs of `model` at the first 32 rows of x are those of the rows, whatever shares their batch.

    Five model calls, all of one batch size, since kernels round differently in batches of other sizes: the batch twice
    (what differs is noise, no dependence), with half of its rows replaced, with its halves exchanged, and with other
    random numbers: what they change may also change with a row's place. Torch's generators are seeded for each call and
    restored. True also where nothing can be told: one example, outputs that are no tensor of one row per example, or
    noise larger than what is looked for.

    >>> x = torch.rand(32, 4)
    >>> rows_independent(lambda x: x @ x[0], x), rows_independent(lambda x: x.sin(), x)
    (False, True)
    """
    index = torch.arange(ROWS, device=x.device) % len(x) if len(x) else torch.arange(0, device=x.device)
    half = ROWS // 2
    batch = x.detach()[index]
    first, second = batch[:half], batch[half:]
    if len(batch) == 0 or torch.equal(first, first[:1].expand_as(first)):
        return True
    replaced = torch.cat([first, first[:1].expand_as(second)])
    exchanged = torch.cat([second, first])
    with frozen(model):
        outputs = [_output(model, rows, 0) for rows in (batch, batch, replaced, exchanged)]
        outputs.append(_output(model, batch, 1))
    if any(output is None for output in outputs):
        return True
    one, again, beside_others, elsewhere, drawn = (output for output in outputs if output is not None)
    rounding, noise = _difference(one, again), _difference(one, drawn)
    tolerance = max(TOLERANCE * _size(one), REPEATS * rounding)
    if _difference(one[:half], beside_others[:half]) > tolerance:
        return False
    return _difference(one[:half], elsewhere[half:]) <= max(tolerance, REPEATS * noise)


def _output(model: Callable[..., Any], x: Tensor, seed: int) -> Tensor | None:
    """The model's output at x, a row per example, in double precision; None for anything else."""
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        output = logits_in(model(x.clone()))
    if not isinstance(output, Tensor) or output.shape[:1] != x.shape[:1]:
        return None
    return output.detach().double()


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference; where an output is not finite in one alone, infinite."""
    same = (one == other) | (one.isnan() & other.isnan())
    return float(torch.where(same, 0, (one - other).abs().nan_to_num(torch.inf)).amax())


def _size(output: Tensor) -> float:
    """The largest output, where that is finite."""
    return float(output.abs().nan_to_num(0, 0, 0).amax())
