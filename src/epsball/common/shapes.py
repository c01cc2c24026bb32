"""Shapes: a batch is (n, *shape), what is per example (n,); how the two meet, and how a value is shown in an error."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Batch = Float[Tensor, "n *shape"]
PerExample = Float[Tensor, " n"]
BLOCK = 1 << 18
"""Numbers to a block: temporaries stay in the cache, and below some tens of megabytes."""


def column(per_example: Tensor, ndim: int) -> Tensor:
    """(n,) or () as (n, 1, ..., 1), to broadcast against a batch of `ndim` dimensions."""
    return per_example.reshape(-1, *[1] * (ndim - 1))


def flat(batch: Batch) -> Float[Tensor, "n d"]:
    """(n, *shape) as (n, d)."""
    return batch.flatten(1) if batch.ndim > 1 else batch[:, None]


def blocks(n: int, d: int, device: torch.device) -> tuple[Int64[Tensor, " block"], ...]:
    """The row numbers 0..n-1 in blocks of about `BLOCK` numbers, d to a row."""
    return torch.arange(n, device=device).split(max(1, BLOCK // max(1, d)))


def fits(part: Tensor, x: Tensor) -> bool:
    """Whether a part has as many dimensions as x, each of 1 or of the same size."""
    return part.ndim == x.ndim and all(p in (1, size) for p, size in zip(part.shape, x.shape, strict=True))


def finite(side: float | Tensor) -> bool:
    """Whether all of its numbers are finite."""
    return bool(torch.as_tensor(side).isfinite().all())


def shown(value: float | Tensor) -> str:
    """A number or a tensor as an error shows it."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return f"{float(value):.6g}"
    return f"a tensor {tuple(value.shape)} from {value.min().item():.6g} to {value.max().item():.6g}"
