"""Examples from tensors, numpy arrays, tables of pandas and lists, and from .npz files."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.common.limits import check_arrays
from epsball.common.shapes import flat
from epsball.data.examples import Examples
from epsball.data.feature_names import columns_of
from epsball.data.labels import are_signs, class_indices, labels, row_ids
from epsball.data.tensors import tensor_of

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
PIXEL = 255
"""What 8-bit images are divided by."""


def from_arrays(
    x: Any,
    y: Any,
    *,
    ids: Any = None,
    lo: float = -math.inf,
    hi: float = math.inf,
    classes: int | None = None,
    name: str = "arrays",
    label_names: Sequence[str] | None = None,
) -> Examples:
    """Examples from torch tensors, numpy arrays, pandas or lists: `x` (n, *shape), `y` (n,) whole numbers >= 0.

    Floating point `x` keeps its dtype and, where possible, its memory; uint8 becomes float32 / 255 in the box [0, 1].
    `y` may also be (n, 1), boolean, of whole numbers in floating point, or one-hot (n, k); and with `label_names`, the
    names of the classes in the order of the model's outputs, it may hold names. `ids` (n,) default to 0..n-1,
    `classes` to the number of `label_names`, or else to the greatest label + 1.

    Raises `BadInput` for other dtypes, lengths that differ, and values outside the box or not finite.

    >>> data = from_arrays(np.array([[0, 255]], dtype=np.uint8), [3])
    >>> data.x, data.hi, data.classes
    (tensor([[0., 1.]]), 1.0, 4)
    >>> from_arrays([[0.5], [0.1]], ["dog", "cat"], label_names=["cat", "dog"]).y
    tensor([1, 0])
    """
    _check_same_order(x, y)
    columns = columns_of(x)
    given, (x, scale) = x, inputs_of(x)
    if scale != 1:
        if lo > 0 or hi not in (1, math.inf):
            raise BadInput(
                f"`lo` and `hi` must be left out with x of uint8, got {lo:g} and {hi:g}: its values are divided by "
                f"{PIXEL}, to the box [0, 1]; for a model that takes 0 to {PIXEL} write {_cast(given, 'float32')}"
            )
        lo, hi = 0.0, 1.0
    _check_values(x, lo, hi)
    columns = columns if columns is not None and x.shape[1:] == (len(columns),) else None
    names = None if label_names is None else tuple(map(str, label_names))
    if names is not None and len(set(names)) < len(names):
        raise BadInput(f"`label_names` must be distinct, got {list(names)}; one name for each output of the model")
    if y is not None and not isinstance(y, Sequence) and np.ndim(y) == 0:
        raise BadInput(
            f"`y` must have one class for each of the {len(x)} rows of x, got {y!r} for x {tuple(x.shape)}; one "
            "example is x[None] with [y], several of one class are [y] * len(x)"
        )
    y = labels("y", y, x, names)
    ids = torch.arange(len(x), device=x.device) if ids is None else row_ids(ids, x)
    least_classes = int(y.max()) + 1 if len(y) else 0
    classes = len(names) if classes is None and names is not None else classes
    if classes is not None and classes < least_classes:
        raise BadInput(f"`y` must be below the {classes} classes, got {least_classes - 1}; number the classes from 0")
    if names is not None and classes != len(names):
        raise BadInput(
            f"`label_names` must have a name for each of the {classes} classes, got {len(names)}; leave out `classes`"
        )
    return Examples(
        x=x, y=y, ids=ids, lo=float(lo), hi=float(hi), classes=classes or least_classes, name=name, label_names=names,
        scale=scale, feature_names=columns,
    )  # fmt: skip


def inputs_of(x: Any) -> tuple[Float[Tensor, "n *shape"], float]:
    """`x` as a floating point tensor of at least one dimension, and what its values were divided by: 255 for uint8.

    Raises `BadInput` for other dtypes.
    """
    given, x = x, tensor_of("x", x)
    if x.ndim == 0:
        raise BadInput("`x` must have a first dimension of examples, got a scalar; write x[None]")
    if x.dtype == torch.uint8:
        return x.float().div_(PIXEL), float(PIXEL)
    if x.dtype not in FLOATS:
        pixels = x.ndim > 2 and x.numel() > 0 and not x.is_complex() and x.min() >= 0 and 1 < x.max() <= PIXEL
        remedy = f"{_cast(given, 'uint8')} for 8-bit images, which are divided by {PIXEL}, else " if pixels else ""
        raise BadInput(
            f"`x` must be floating point, or uint8 images, got {x.dtype}; write {remedy}{_cast(given, 'float32')}, "
            "with eps and box in the units of x"
        )
    return x, 1.0


def _cast(x: Any, dtype: str) -> str:
    """How to write x in that dtype, for an error."""
    if isinstance(x, Tensor):
        return f"x.to(torch.{dtype})"
    return f"x.astype('{dtype}')" if hasattr(x, "astype") else f"np.asarray(x, dtype='{dtype}')"


def read_npz(path: Path) -> Examples:
    """The examples of a `.npz` file with arrays `x` and `y`, as `from_arrays` takes them.

    It may also hold the box, `lo` and `hi`, and `label_names`; names of classes without that are numbered as sorted.
    """
    more: dict[str, Any] = {}
    try:
        check_arrays(path)
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
            more |= {side: float(arrays[side]) for side in ("lo", "hi") if side in arrays}
            if "label_names" in arrays:
                more["label_names"] = arrays["label_names"].astype(str).tolist()
    except Exception as error:  # whatever numpy's reader meets in a damaged file
        raise BadInput(
            f"`data` must hold plain arrays `x` and `y`, but {str(path)!r} does not: {error}; write "
            "`numpy.savez(path, x=x, y=y)`"
        ) from error
    if "label_names" not in more and (y.dtype.kind == "U" or are_signs(y)):
        shape = y.shape
        y, names = class_indices(y.ravel(), "y")
        y = y.reshape(shape)
        more |= {} if names is None else {"label_names": names}
    return from_arrays(x, y, name=str(path), **more)


def _check_values(x: Tensor, lo: float, hi: float) -> None:
    """Raise `BadInput` unless the values are finite and inside the box, as the dtype of x sees it."""
    if not x.numel():
        return
    lowest, highest = x.amin().item(), x.amax().item()
    rounded_lo, rounded_hi = torch.tensor([lo, hi], dtype=x.dtype).tolist()
    if not (rounded_lo <= lowest and highest <= rounded_hi) or math.isinf(lowest) or math.isinf(highest):
        low, high = flat(x).aminmax(dim=1)
        rows = (~(low >= rounded_lo) | ~(high <= rounded_hi) | low.isinf() | high.isinf()).nonzero().flatten().tolist()
        raise BadInput(
            f"`x` must be finite numbers in the box [{lo:g}, {hi:g}], got values from {lowest:g} to {highest:g}, in "
            f"{len(rows):,} of {len(x):,} rows, the first of which is {rows[0]}; drop NaN, rescale x, or widen `lo` "
            "and `hi`"
        )


def _check_same_order(x: Any, y: Any) -> None:
    """Raise `BadInput` where the index of two pandas objects says that their rows are in different orders."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not all(isinstance(one, pandas.DataFrame | pandas.Series) for one in (x, y)):
        return
    if len(x) != len(y) or x.index.equals(y.index) or not (x.index.is_unique and y.index.is_unique):
        return
    if len(x.index.symmetric_difference(y.index)) == 0:
        raise BadInput(
            "`y` must be in the order of x, but their pandas indices are in different orders; write y.loc[x.index] "
            "where the index says what belongs together, y.to_numpy() where the position does"
        )
