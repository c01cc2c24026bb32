"""Class indices, one per row, out of whatever a user hands over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.data.tensors import SupportsArray, tensor_of


def labels(name: str, value: object, x: Tensor, names: Sequence[str] | None = None) -> Int64[Tensor, " n"]:
    """`value` as one class index per row of `x`, or one integer for all rows.

    Taken are whole numbers of any dtype, floating point among them, booleans (False is 0), (n, 1), one-hot rows (n, k),
    and, where `names` lists the classes in the order of the model's outputs, their names.

    Raises `BadInput` that names the argument for anything else: labels below 0, fractions, several classes per row.

    >>> x = torch.zeros(3, 2)
    >>> labels("y", [[0.0], [2.0], [1.0]], x), labels("y", ["b", "a", "a"], x, names=["a", "b"])
    (tensor([0, 2, 1]), tensor([1, 0, 0]))
    """
    if value is None:
        raise BadInput(
            f"`{name}` must hold the class of each row of x, got None; to attack what the model predicts, write "
            "model(x).argmax(1)"
        )
    found = _names(value)
    y = tensor_of(name, value).to(x.device) if found is None else _indices(name, found, names).to(x.device)
    if y.is_complex():
        raise BadInput(
            f"`{name}` must hold class indices, got {y.dtype}; write `{name}.real` if they are whole numbers"
        )
    if y.ndim == 2 and len(y) == len(x):
        y = y[:, 0] if y.shape[1] == 1 else _hot(name, y)
    if y.ndim > 0 and y.shape != x.shape[:1]:
        raise BadInput(
            f"`{name}` must be ({len(x)},), one class per row of x, got {tuple(y.shape)}; {_remedy(name, y, x)}"
        )
    y = _whole(name, y)
    y = y.expand(len(x)) if y.ndim == 0 else y
    lowest = min(y.tolist(), default=0)
    if lowest < 0:
        raise BadInput(f"`{name}` must be >= 0, got {lowest}; {_numbering(name, y)}")
    return y


def row_ids(value: object, x: Tensor) -> Int64[Tensor, " n"]:
    """Ids as whole numbers >= 0, one per row of `x`."""
    ids = tensor_of("ids", value).to(x.device)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise BadInput(f"`ids` must be whole numbers, got {ids.dtype}; leave them out to number the rows from 0")
    if ids.shape != x.shape[:1]:
        raise BadInput(f"`ids` must be ({len(x)},), one per row of x, got {tuple(ids.shape)}; or leave them out")
    if len(ids) and int(ids.min()) < 0:
        raise BadInput(f"`ids` must be >= 0, got {int(ids.min())}; they are row numbers")
    return ids.long()


def _remedy(name: str, y: Tensor, x: Tensor) -> str:
    if y.numel() == len(x) != 1:
        return f"write `{name}.reshape(-1)`"
    if y.numel() == 1 or (y.ndim == 1 and len(x) != 1 and 1 in y.shape):
        return "one example is x[None], a batch of one"
    return "hand over as many labels as rows, in the same order"


def _numbering(name: str, y: Tensor) -> str:
    """What to do about labels below 0."""
    values = set(y.tolist())
    if values == {-1, 1}:
        return f"of two classes -1 and 1 write `{name} > 0`"
    if min(values) == -1:
        return "-1 often means: not labelled; drop those rows, or number the classes from 0"
    return "number the classes from 0 (one logit: 0 and 1)"


def _hot(name: str, y: Tensor) -> Tensor:
    """The classes of one-hot rows."""
    if bool(((y == 0) | (y == 1)).all()) and bool(((y == 1).sum(1) == 1).all()):
        return (y == 1).byte().argmax(1)
    shares = y.is_floating_point() and bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < 1e-3).all())
    remedy = f"for the most likely class write `{name}.argmax(1)`" if shares else "choose one class for each row"
    raise BadInput(f"`{name}` must have one class per row, got {tuple(y.shape)} that is not one-hot; {remedy}")


def _whole(name: str, y: Tensor) -> Tensor:
    """Whole numbers as int64."""
    if y.is_floating_point():
        y = y.double()
        broken = y[~(y == y.round()) | (y.abs() >= 2**53)]
        if broken.numel():
            raise BadInput(
                f"`{name}` must hold class indices, whole numbers, got {broken.flatten()[0].item():g}; of "
                f"probabilities of class 1 write `{name} > 0.5`"
            )
    return y.long()


def is_text(value: object) -> bool:
    """Whether these labels are names of classes, at least some of them."""
    return _names(value) is not None


def _names(value: object) -> np.ndarray | None:
    """The entries where some are texts, else None."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return np.array(value, dtype=object) if any(isinstance(one, str | bytes) for one in value) else None
    if isinstance(value, Tensor) or not isinstance(value, SupportsArray | str):
        return None
    array = np.asarray(value)
    if array.dtype.kind == "O":
        return array if any(isinstance(one, str | bytes) for one in array.ravel().tolist()) else None
    return array if array.dtype.kind in "US" else None


def _indices(name: str, found: np.ndarray, names: Sequence[str] | None) -> Tensor:
    """The places of texts among `names`."""
    texts = [one.decode(errors="replace") if isinstance(one, bytes) else one for one in found.ravel().tolist()]
    missing = [one for one in texts if not isinstance(one, str)]
    if missing:
        raise BadInput(f"`{name}` must have a class in every row, got {missing[0]!r} among names; drop those rows")
    if names is None and texts:
        raise BadInput(
            f"`{name}` must hold class indices, got names such as {texts[0]!r}; say in which order the model's outputs "
            "mean them: epsball.data.from_arrays(x, y, label_names=NAMES), where NAMES lists all classes of the model "
            "in that order, also those that no row has (estimators of scikit-learn and folders of images sort them)"
        )
    places = {one: place for place, one in enumerate(names or ())}
    for one in dict.fromkeys(texts):
        check_one_of(name, one, places)
    return torch.tensor([places[one] for one in texts], dtype=torch.long).reshape(found.shape)


def are_signs(values: np.ndarray) -> bool:
    """Whether all labels are -1 or 1, and both occur: two classes, as support vector machines have them."""
    return values.dtype.kind in "if" and np.unique(values).tolist() == [-1, 1]


def class_indices(values: np.ndarray, column: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The classes (n,) in a column of labels, and their names where it holds names, numbered as they are sorted.

    Texts that are all whole numbers count as numbers; the two labels -1 and 1 are names. Raises `BadInput` for
    fractions and numbers below 0.

    >>> class_indices(np.array(["plum", "fig", "plum"]), "fruit")
    (array([1, 0, 1]), ('fig', 'plum'))
    """
    if values.dtype.kind == "U":
        names, places = np.unique(values, return_inverse=True)
        if not all(name.isdecimal() and name == str(int(name)) for name in names.tolist()):
            return places, tuple(names.tolist())
        values = names.astype(np.int64)[places]
    if values.dtype.kind == "f":
        broken = np.flatnonzero(values != np.round(values))
        if len(broken):
            raise BadInput(
                f"`label_column` must hold a whole number >= 0 or a name in every row, but {column!r} holds "
                f"{values[broken[0]]:g} in row {broken[0]}; name another with --label-column"
            )
    values = values.astype(np.int64)
    if are_signs(values):
        return (values > 0).astype(np.int64), ("-1", "1")
    if len(values) and values.min() < 0:
        raise BadInput(
            f"`label_column` must hold a whole number >= 0 or a name in every row, but {column!r} holds {values.min()} "
            f"in row {values.argmin()}; -1 often means: not labelled; drop those rows, take another split, or name "
            "another with --label-column"
        )
    return values, None
