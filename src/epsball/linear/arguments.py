"""The arguments of exact attacks on linear classifiers: weights or a model, examples, labels and a ball, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from scipy.sparse import issparse
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.registry import parse
from epsball.common.checks import check_type
from epsball.common.errors import BadInput
from epsball.linear.case import LinearCase

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LARGEST_WHOLE = 1 << 53
"""Whole numbers up to this one are doubles."""


@runtime_checkable
class _ArrayLike(Protocol):
    """What numpy can take as an array: arrays, tensors, data frames and their columns."""

    def __array__(self) -> np.ndarray: ...


def checked_case(weight: Any, bias: Any, x: Any, y: Any, ball: Ball | str, target: Any) -> LinearCase:
    """The arguments of `optimum`, checked. Raises `BadInput`."""
    ball = parse(ball) if isinstance(ball, str) else ball
    check_type("ball", ball, Ball, "as in epsball.Linf(eps=0.1, lo=0, hi=1)")
    y, signs = _labels("y", y), False
    is_text = isinstance(weight, (str, bytes))
    if issparse(weight) or (isinstance(weight, (_ArrayLike, Sequence, Real)) and not is_text):
        weight, bias = _doubles("weight", weight), _doubles("bias", 0.0 if bias is None else bias)
        x, classes = _examples(x), None
    else:
        from epsball.models.folding import affine  # scikit-learn is loaded for its own models only

        if bias is not None:
            raise BadInput("`bias` must be None where `weight` is a model, which has its own; write None")
        model = affine(weight)
        _check_columns(x, weight)
        weight, bias, x, classes = model.weight, model.bias, _examples(x), model.classes
    x = _batch(x, weight, y)
    ball = _in_doubles(ball, x)
    weight, bias = weight.to(x.device), bias.to(x.device)
    d = math.prod(x.shape[1:])
    single = weight.ndim == 0 or len(weight) == 1 or weight.numel() == d
    weight = weight.reshape(-1, d)
    if bias.numel() != 1 and tuple(bias.shape) != (len(weight),):
        raise BadInput(f"`bias` must be a number or ({len(weight)},), got {tuple(bias.shape)}; one per row of `weight`")
    bias = bias.reshape(-1).expand(len(weight))
    if not bool(weight.isfinite().all() & bias.isfinite().all()):
        raise BadInput("`weight` and `bias` must be finite, got NaN or infinity; look where they were computed")
    if single:
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
        signs = classes is None
    classes = np.arange(len(weight)) if classes is None else classes
    target = None if target is None else _indices("target", _labels("target", target), x, classes, signs=signs)
    return LinearCase(weight, bias, x, _indices("y", y, x, classes, signs=signs), target, ball, classes)


def _batch(x: Tensor, weight: Tensor, y: np.ndarray) -> Tensor:
    """x (n, *shape), a single example as a batch of one where the weights say that it is one."""
    given, shape = tuple(weight.shape), tuple(x.shape)
    if not shape:
        raise BadInput("`x` must be (n, *shape), got a scalar; write x.reshape(1, 1) for one example of one feature")
    if 0 in given:
        raise BadInput(f"`weight` must have a row for each class, got {given}; a single row is one logit")
    if not math.prod(shape[1:]):
        raise BadInput(f"`x` must have features, got {shape}; every example has at least one number")
    one = _takes(given, shape)
    many = _takes(given, shape[1:]) if len(shape) > 1 else given in {(1,), (1, 1)} or given[1:] == (1,)
    if one and many and len(x) > 1 and y.size == 1:
        raise BadInput(
            f"`x` {shape} with `weight` {given} may be one example or {len(x)}, and `y` does not say which; write "
            f"x[None] for one, or y with one class per row"
        )
    if many:
        return x
    if one:
        return x[None]
    d = weight.shape[-1] if weight.ndim else 1
    if len(shape) == 1:
        raise BadInput(
            f"`x` must be (n, {d}) for `weight` {given}, got {shape}; one example has {d} numbers, and examples of one "
            "feature are x[:, None], with one weight per class"
        )
    d = math.prod(shape[1:])
    raise BadInput(
        f"`weight` must be ({d},) or (classes, {d}) for x {shape}, got {given}; one row per class, or a single row for "
        "one logit"
    )


def _takes(weight: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether weights of that shape give scores of one example of that shape, flattened or not."""
    flat = (math.prod(shape),)
    return weight in {shape, flat} or (len(weight) > 0 and weight[1:] in {shape, flat})


def _check_columns(x: Any, model: Any) -> None:
    """Refuse a data frame whose columns are not those of the model, in its order."""
    columns, names = getattr(x, "columns", None), getattr(model, "feature_names_in_", None)
    if columns is None or names is None or list(columns) == list(names):
        return
    odd = sorted(set(map(str, columns)) ^ set(map(str, names)))
    if odd:
        raise BadInput(
            f"`x` must have the columns that the model was fitted to, but these are not in both: "
            f"{', '.join(odd[:6])}{', ...' if len(odd) > 6 else ''}; write x[model.feature_names_in_]"
        )
    raise BadInput(
        "`x` must have its columns in the order that the model was fitted to; write x[model.feature_names_in_]"
    )


def _in_doubles(ball: Ball, x: Tensor) -> Ball:
    """The ball bound to x, its radius as it was given and its box as x's dtype holds it, in double precision."""
    bound = ball.bind(x)
    eps = ball.eps
    if isinstance(eps, Tensor):  # as it was given, in the form that fits x
        eps = eps.to(x.device).double().reshape(torch.as_tensor(bound.eps).shape)
    parts: dict[str, Any] = {"eps": eps.item() if isinstance(eps, Tensor) and eps.ndim == 0 else eps}
    for name in ("lo", "hi"):
        side = torch.as_tensor(getattr(bound, name), dtype=x.dtype, device=x.device).double()
        parts[name] = side if side.ndim else side.item()
    return replace(bound, **parts)


def _examples(value: Any) -> Tensor:
    """x, floating point in its own dtype, whole numbers as doubles."""
    x = _tensor("x", value)
    if x.is_floating_point() and x.dtype not in FLOATS:
        raise BadInput(f"`x` must be float64, float32, bfloat16 or float16, got {x.dtype}; write x.float()")
    return x if x.is_floating_point() else _doubles("x", x)


def _doubles(name: str, value: Any) -> Tensor:
    """Numbers as doubles, exactly."""
    tensor = _tensor(name, value)
    doubles = tensor.double()
    if not tensor.is_floating_point() and bool((doubles.abs() > LARGEST_WHOLE).any()):
        raise BadInput(f"`{name}` must be whole numbers up to 2^53, got {doubles.abs().max().item():g}; scale them")
    return doubles


def _tensor(name: str, value: Any) -> Tensor:
    """`value` as a dense tensor, sharing its memory where possible; numbers of Python become double precision."""
    if isinstance(value, Tensor):
        plain = value.layout == torch.strided and not value.is_quantized and value.device.type != "meta"
        if not plain or value.is_complex():
            kind = "complex" if value.is_complex() else "sparse, quantised or without data"
            raise BadInput(f"`{name}` must be a dense tensor of real numbers, got one that is {kind}; convert it first")
        return value.detach()
    if issparse(value):
        raise BadInput(f"`{name}` must be dense, got {type(value).__name__}; write `{name}.toarray()`")
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O" and array.size and all(isinstance(entry, Real) for entry in array.flat):
            array = array.astype(np.float64)  # a data frame of several types of numbers
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise BadInput(
            f"`{name}` must be numbers in rows of one length, got {type(value).__name__}: {error}; as in "
            "[[0.5, 1.0], [0.0, 2.0]]"
        ) from error
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise BadInput(
            f"`{name}` must be numbers that doubles hold, got {type(value).__name__} of {array.dtype}; encode text and "
            "missing values as numbers, and write `.astype('float64')` for other numbers"
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def _labels(name: str, value: Any) -> np.ndarray:
    """Labels of any kind as an array, (n, 1) as (n,)."""
    try:
        given = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"`{name}` must be one class per row of x, got {type(value).__name__}: {error}; as in [0, 1, 1]"
        ) from error
    return given[:, 0] if given.ndim == 2 and given.shape[1] == 1 else given


def _indices(name: str, given: np.ndarray, x: Tensor, classes: np.ndarray, *, signs: bool) -> Int64[Tensor, " n"]:
    """Labels as indices into `classes`, one per row of x; `signs`: -1 and 1 are taken for 0 and 1."""
    if given.shape not in ((), (len(x),)):
        one_hot = (
            f"one-hot: {name}.argmax(1)" if given.ndim == 2 and len(given) == len(x) else "one for all is a number"
        )
        raise BadInput(f"`{name}` must be ({len(x)},), one class per row of x, got {given.shape}; {one_hot}")
    place = {label: index for index, label in enumerate(classes.tolist())}
    labels = np.broadcast_to(given, (len(x),)).tolist()
    if signs and -1 in labels and all(label in (-1, 1) for label in labels):
        place = {-1: 0, 1: 1}
    unknown = [label for label in labels if isinstance(label, (list, dict, set)) or label not in place]
    if unknown:
        known = ", ".join(map(repr, list(place)[:12])) + (", ..." if len(place) > 12 else "")
        remedy = "one logit has 0 and 1" if signs else "number the classes from 0, or give the model and its labels"
        raise BadInput(f"`{name}` must be among the classes {known}, got {unknown[0]!r}; {remedy}")
    return torch.tensor([place[label] for label in labels], dtype=torch.long, device=x.device)
