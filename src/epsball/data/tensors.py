"""One array of whatever kind as a torch tensor: numpy, torch, pandas, lists, PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from epsball.common.errors import BadInput


@runtime_checkable
class SupportsArray(Protocol):
    """What numpy can read: pandas, pyarrow, polars, PIL images and others."""

    def __array__(self) -> np.ndarray: ...


def tensor_of(name: str, value: Any) -> Tensor:
    """`value` as a dense tensor without gradient; it shares memory with `value` where possible.

    Byte order, memory layout, and whether it was made in inference mode play no part. A pandas index is ignored, rows
    keep their order. Lists of numbers become float32 or int64, lists of PIL images (n, C, H, W).

    Raises `BadInput` for what holds anything but numbers, or rows of different shapes.

    >>> tensor_of("x", np.array([1, 2], dtype=">i2"))
    tensor([1, 2], dtype=torch.int16)
    """
    if value is None:
        raise BadInput(f"`{name}` must be a tensor, an array or a list of numbers, got None; hand over both x and y")
    try:
        if isinstance(value, Tensor):
            return _dense(name, value)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return _stacked(name, value)
        if isinstance(value, SupportsArray):
            return _from_numpy(name, np.asanyarray(value))  # a masked array keeps its mask
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        if isinstance(error, BadInput):
            raise
        remedy = "; write x.toarray()" if type(value).__module__.startswith("scipy.sparse") else ""
        raise BadInput(
            f"`{name}` must be a tensor, an array or a list of numbers of one length, got {type(value).__name__}: "
            f"{error}{remedy}"
        ) from error


def is_image(value: object) -> bool:
    """Whether it is a PIL image."""
    return any(base.__module__.startswith("PIL.") for base in type(value).__mro__)


def _dense(name: str, value: Tensor) -> Tensor:
    if value.is_meta:
        raise BadInput(
            f"`{name}` must hold numbers, got a tensor on the device 'meta', which has none; load them first"
        )
    if value.is_quantized:
        raise BadInput(f"`{name}` must not be quantized, got {value.dtype}; write `{name}.dequantize()`")
    if value.is_nested:
        raise BadInput(f"`{name}` must have rows of one shape, got a nested tensor; write torch.stack of equal rows")
    if value.layout != torch.strided:
        raise BadInput(f"`{name}` must be dense, got the layout {value.layout}; write `{name}.to_dense()`")
    value = value.detach()
    if type(value) is not Tensor:
        value = value.as_subclass(Tensor)
    if value.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch has few operations for these
        value = value.long()
    # autograd takes no tensor that was made in inference mode
    return value.clone() if value.is_inference() and not torch.is_inference_mode_enabled() else value


def _stacked(name: str, values: Sequence[Any]) -> Tensor:
    """A list of rows, or of numbers."""
    first = values[0] if len(values) else None
    if isinstance(first, Tensor):
        return torch.stack([tensor_of(name, one) for one in values])
    if is_image(first):
        pixels = np.stack([np.asarray(one) for one in values])
        return _from_numpy(name, pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2))
    if isinstance(first, np.ndarray | np.generic):
        return _from_numpy(name, np.asarray(values))
    return torch.as_tensor(values if isinstance(values, list | tuple) else list(values))


def _from_numpy(name: str, array: np.ndarray) -> Tensor:
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise BadInput(
            f"`{name}` must have no masked entries; drop those rows, or fill them with `{name}.filled(value)`"
        )
    if array.dtype.kind == "O":
        array = np.array(array.tolist())
    if array.dtype.kind not in "biufc":
        raise BadInput(
            f"`{name}` must be a tensor, an array or a list of numbers, got the dtype {array.dtype}; turn its entries "
            f"into numbers first, and drop or fill those that are missing"
        )
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "u" and size > 1:  # torch has few operations for these
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise BadInput(f"`{name}` must be below 2**63, got {array.max()}; are these numbers what they should be?")
        array = array.astype(np.int64)
    elif kind == "f" and size > 8:
        array = array.astype(np.float64)
    native = np.asarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(np.require(native, requirements=["C", "W"]))
