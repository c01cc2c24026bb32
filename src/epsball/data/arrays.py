"""Examples from tensors, numpy arrays and lists, and from .npz files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.common.limits import check_arrays
from epsball.data.examples import Examples
from epsball.data.labels import labels


def from_arrays(
    x: Any,
    y: Any,
    *,
    ids: Any = None,
    lo: float = -math.inf,
    hi: float = math.inf,
    classes: int | None = None,
    name: str = "arrays",
) -> Examples:
    """Examples from torch tensors, numpy arrays or lists: `x` (n, *shape), `y` (n,) whole numbers >= 0.

    Floating point `x` keeps its dtype and, where possible, its memory; uint8 becomes float32 / 255 in the box [0, 1].
    `ids` (n,) default to 0..n-1, `classes` to the greatest label + 1.

    Raises `BadInput` for other dtypes, lengths that differ, and values outside the box or not numbers.

    >>> data = from_arrays(np.array([[0, 255]], dtype=np.uint8), [3])
    >>> data.x, data.hi, data.classes
    (tensor([[0., 1.]]), 1.0, 4)
    """
    x = _tensor("x", x)
    if x.ndim == 0:
        raise BadInput("`x` must have a first dimension of examples, got a scalar; write x[None]")
    if x.dtype == torch.uint8:
        x, lo, hi = x.float().div_(255), max(lo, 0.0), min(hi, 1.0)
    if not x.is_floating_point():
        raise BadInput(f"`x` must be floating point, or uint8 images, got {x.dtype}; write x.astype('float32')")
    if x.numel():
        lowest, highest = x.amin().item(), x.amax().item()
        rounded_lo, rounded_hi = torch.tensor([lo, hi], dtype=x.dtype).tolist()  # the box in the dtype of x
        if not (rounded_lo <= lowest and highest <= rounded_hi):
            raise BadInput(
                f"`x` must be numbers in the box [{lo:g}, {hi:g}], got values from {lowest:g} to {highest:g}; "
                "drop NaN, rescale x, or widen `lo` and `hi`"
            )
    y = labels("y", _tensor("y", y), x)
    ids = torch.arange(len(x), device=x.device) if ids is None else labels("ids", _tensor("ids", ids), x)
    least_classes = int(y.max()) + 1 if len(y) else 0
    if classes is not None and classes < least_classes:
        raise BadInput(f"`y` must be below the {classes} classes, got {least_classes - 1}; number the classes from 0")
    return Examples(x=x, y=y, ids=ids, lo=float(lo), hi=float(hi), classes=classes or least_classes, name=name)


def read_npz(path: Path) -> Examples:
    """The examples of a `.npz` file with arrays `x` and `y`, as `from_arrays` takes them."""
    try:
        check_arrays(path)
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except Exception as error:  # whatever numpy's reader meets in a damaged file
        raise BadInput(
            f"`data` must hold plain arrays `x` and `y`, but {str(path)!r} does not: {error}; write "
            "`numpy.savez(path, x=x, y=y)`"
        ) from error
    return from_arrays(x, y, name=str(path))


def _tensor(name: str, value: Any) -> Tensor:
    try:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.require(value, requirements=["C", "W"]))
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"`{name}` must be a tensor, an array or a list of numbers of one length, got {type(value).__name__}: "
            f"{error}"
        ) from error
