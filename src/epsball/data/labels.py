"""Class indices, one per row, out of whatever a user hands over."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from epsball.common.errors import BadInput


def labels(name: str, value: object, x: Tensor) -> Int64[Tensor, " n"]:
    """`value` as one class index per row of `x`: a tensor or array (n,), or one integer for all.

    Raises `BadInput` that names the argument where it is not.
    """
    y = torch.as_tensor(value, device=x.device)
    if y.is_floating_point() or y.is_complex():
        raise BadInput(f"`{name}` must hold class indices, got {y.dtype}; write `{name}.long()` if they are whole")
    y = y.long().expand(len(x)) if y.ndim == 0 else y.long()
    if y.shape != x.shape[:1]:
        raise BadInput(
            f"`{name}` must be ({len(x)},), one class per row of x, got {tuple(y.shape)}; one-hot: argmax(1)"
        )
    lowest = min(y.tolist(), default=0)
    if lowest < 0:
        raise BadInput(f"`{name}` must be >= 0, got {lowest}; number the classes from 0 (one logit: 0 and 1)")
    return y
