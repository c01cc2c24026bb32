"""What a function is given as model, data and ball, so that they fit each other.

A model of any kind becomes a module, a callable or a black box (`models.given`). Data of any kind become examples
(`data.collected`), the ball gets their box (`data.box`), labels follow the names of the model's classes, and x goes to
the device and the dtype of the model's parameters.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.balls.registry import ball_of
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays, inputs_of
from epsball.data.box import ball_for
from epsball.data.class_names import are_values, numbered_like
from epsball.data.collected import examples_of, lazy_examples_of
from epsball.data.examples import Examples
from epsball.data.feature_names import ordered_like
from epsball.data.labels import is_text
from epsball.data.lazy_examples import LazyExamples
from epsball.models.black_box import BlackBox
from epsball.models.frozen import frozen
from epsball.models.given import as_model
from epsball.models.model_record import FEATURE_NAMES, LABEL_NAMES
from epsball.models.preparation import PREPARATION
from epsball.problem.model_errors import is_one_example
from epsball.problem.objective import Model

log = logging.getLogger(__name__)

CHANNELS = 4
"""The most channels of an image that may have been meant as one example."""
EXACT = 0.01
"""x is rounded to the model's dtype where that moves no example by more than this share of the radius."""


def inputs_for(model: Any, data: Any, ball: Ball | str) -> tuple[Model, Examples, Ball]:
    """The model, the examples and the ball of a function that takes these; see the module.

    Raises `BadInput` where there are no examples, where they do not fit, or where rounding them to the model's dtype
    would move them by more than `EXACT` of the radius.
    """
    model = as_model(model)
    examples = data_for(model, data).whole()
    found = ball_for(ball, examples)
    return model, examples_for(model, examples, found), found


def data_for(model: Model, data: Any, spool: Path | None = None) -> Examples | LazyExamples:
    """The data for a model: in memory, or lazy where they can be read row by row.

    Labels that are texts, or numbers where the names of the model's classes are, are those of the model; images are
    prepared as it wants them. Data that come one after the other are kept in the folder `spool`.
    """
    names, preparation = getattr(model, LABEL_NAMES, None), getattr(model, PREPARATION, None)
    if names is not None and isinstance(data, tuple | list) and len(data) == 2:
        x, y = data
        if is_text(y):
            return from_arrays(x, y, label_names=names)
        values = np.asarray(y) if are_values(names) else np.empty(0, dtype=object)
        if values.dtype.kind in "iufb" and bool(np.all(values == np.round(values))):
            return from_arrays(x, values.astype(np.int64).astype(str), label_names=names)
    found = lazy_examples_of(data, preparation, spool)
    if isinstance(found, LazyExamples):
        found = ordered_like(numbered_like(found, names), getattr(model, FEATURE_NAMES, None))
    return found


def examples_for(model: Model, data: Any, ball: Ball | None, *, move: bool = True) -> Examples:
    """The examples alone; `ball` says how far x may be rounded, None: as far as it takes.

    Without `move` they stay where they are, for a training that moves its batches.
    """
    examples = examples_of(data)
    if not len(examples):
        raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
    examples = numbered_like(examples, getattr(model, LABEL_NAMES, None))
    given, examples = examples, ordered_like(examples, getattr(model, FEATURE_NAMES, None))
    if examples is not given and ball is not None:
        _check_order(ball, len(given.shape) and given.shape[0])
    x = _in_dtype_of(model, _on_device_of(model, examples.x) if move else examples.x, ball)
    _check_batch(model, x)
    if x is examples.x:
        return examples
    return replace(examples, x=x, y=examples.y.to(x.device), ids=examples.ids.to(x.device))


def _check_order(ball: Ball, d: int) -> None:
    """Raise `BadInput` for a ball with numbers for each of d features, which may be in the order of data or model."""
    for name, part in (("eps", ball.eps), ("lo", ball.lo), ("hi", ball.hi), ("mask", ball.mask)):
        if part is not None and torch.as_tensor(part).shape[1:] == (d,) and d > 1:
            raise BadInput(
                f"`{name}` must not be given for each feature where the columns of the data are in another order than "
                "the model's; put both in the order that it was fitted to"
            )


def batch_for(model: Any, x: Any, ball: Ball | str) -> tuple[Model, Float[Tensor, "n *shape"], Ball]:
    """The model, x and the ball of a direct call of an attack; uint8 becomes float32 / 255 in the box [0, 1]."""
    model = as_model(model)
    x, scale = inputs_of(x)
    ball = ball_of(ball)
    if scale != 1:
        labels = torch.zeros(len(x), dtype=torch.long)
        ball = ball_for(ball, Examples(x=x, y=labels, ids=labels, lo=0.0, hi=1.0, classes=1, name="x", scale=scale))
    if len(x):
        x = _in_dtype_of(model, _on_device_of(model, x), ball)
        _check_batch(model, x)
    return model, x, ball


def _check_batch(model: Model, x: Tensor) -> None:
    """Raise `BadInput` where x is one example (d,) or (C, H, W), also of a model that does not mind."""
    alone = len(x) > 1 and (x.ndim == 1 or (x.ndim == 3 and len(x) <= CHANNELS))
    if not alone or isinstance(model, BlackBox) or not callable(model):
        return
    with frozen(model):
        one = is_one_example(model, _on_device_of(model, x))
    if one:
        raise BadInput(f"`x` must be a batch (n, *shape), not one example, got {tuple(x.shape)}; write x[None]")


def _parameter(model: Model) -> Tensor | None:
    """The first floating point parameter of a module."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((one for one in parameters if one.is_floating_point()), None)


def _on_device_of(model: Model, x: Tensor) -> Tensor:
    """x where the parameters are, if all of them are in one place."""
    first = _parameter(model)
    if first is None or first.device == x.device or first.is_meta or not isinstance(model, nn.Module):
        return x
    return x.to(first.device) if len({one.device for one in model.parameters()}) == 1 else x


def _in_dtype_of(model: Model, x: Tensor, ball: Ball | None) -> Tensor:
    """x in the dtype of the parameters, if they have one, and the model does not take x as it is."""
    first = _parameter(model)
    if first is None or first.dtype == x.dtype or not isinstance(model, nn.Module):
        return x
    if len({one.dtype for one in model.parameters() if one.is_floating_point()}) > 1 or _takes(model, x):
        return x
    cast = x.to(first.dtype)
    widened = torch.promote_types(x.dtype, first.dtype) == first.dtype
    if not widened:
        _check_exact(x, cast, ball)
    log.info("x is %s, as the parameters of the model; it was %s", cast.dtype, x.dtype)
    return cast


def _takes(model: nn.Module, x: Tensor) -> bool:
    """Whether the model takes x as it is: many cast it themselves."""
    try:
        with frozen(model), torch.no_grad():
            model(_on_device_of(model, x[:1]))
    except Exception:  # whatever it raises; the first real call says it
        return False
    return True


def _check_exact(x: Tensor, cast: Tensor, ball: Ball | None) -> None:
    dtype = str(cast.dtype).removeprefix("torch.")
    if not bool(cast.isfinite().all()):
        raise BadInput(
            f"`x` must be within the range of {dtype}, the dtype of the model's parameters, got values up to "
            f"{x.abs().max().item():g}; rescale x, or take model.float()"
        )
    if ball is None or "count" in ball.traits or not x.numel():
        return
    eps = torch.as_tensor(ball.eps, dtype=torch.float64)
    eps = eps[eps.isfinite() & (eps > 0)]
    smallest = float(eps.min()) if eps.numel() else math.inf
    moved = float(ball.norm(cast.double() - x.double()).max())
    if moved > EXACT * smallest:
        raise BadInput(
            f"`x` must be in the dtype of the model's parameters, {dtype}, got {x.dtype}: rounding moves an example "
            f"by {moved:.2g}, {moved / smallest:.0%} of eps; write torch.as_tensor(x).to(torch.{dtype}) for the ball "
            "around the rounded examples, or take the model in the dtype of x"
        )
