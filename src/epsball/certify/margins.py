"""The functionals that decide: the margin of an example's class over each rival, z_y - z_j, as rows of the output.

With one logit the rows are z for class 1 and -z for class 0. With a target, the only rival is the target.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.certify.functionals import Functional


def rivals_of(y: Int64[Tensor, " n"], target: Int64[Tensor, " n"], logits: int) -> Bool[Tensor, "n k"]:
    """Which classes may win: all but the label, or the target alone where it is not -1; one logit has one rival."""
    if logits == 1:
        return torch.ones(len(y), 1, dtype=torch.bool, device=y.device)
    classes = torch.arange(logits, device=y.device)
    others = classes != y[:, None]
    return torch.where((target >= 0)[:, None], classes == target[:, None], others)


def margin_rows(
    example: Int64[Tensor, " p"], rival: Int64[Tensor, " p"], y: Int64[Tensor, " n"], logits: int, dtype: torch.dtype
) -> Functional:
    """The margin of each `example` (P,) over a `rival` (P,), as rows at the output (logits,)."""
    values = torch.zeros(len(example), logits, dtype=dtype, device=y.device)
    count = torch.arange(len(example), device=y.device)
    if logits == 1:
        values[:, 0] = torch.where(y[example] == 1, 1, -1).to(dtype)
    else:
        values[count, y[example]] = 1
        values[count, rival] -= 1
    return Functional(values, example, (logits,))


def margins(logits: Float[Tensor, "n k"], y: Int64[Tensor, " n"], rivals: Bool[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The smallest margin over the rivals at given logits."""
    if logits.shape[1] == 1:
        return torch.where(y == 1, logits[:, 0], -logits[:, 0])
    gaps = logits.gather(1, y[:, None]) - logits
    return torch.where(rivals, gaps, torch.inf).amin(1)
