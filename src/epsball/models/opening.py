"""`load`: what a user names becomes a torch module of logits, or a black box."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from epsball.common.errors import BadInput
from epsball.models.black_box import BlackBox
from epsball.models.door import Asked, Loaded
from epsball.models.doors import door_of
from epsball.models.factory import Wrapped, make_network, make_with_weights
from epsball.models.given import as_model
from epsball.models.model_record import LABEL_NAMES
from epsball.models.preparation import PREPARATION

log = logging.getLogger(__name__)

OPENED_AS = "epsball_opened_as"
"""The attribute of a model that says what it was opened by: another process can open it again."""


def load(
    spec: str,
    *,
    weights: str | Path | None = None,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    seed: int = 0,
    trust: bool = False,
    black_box: bool = False,
) -> Any:
    """The model that `spec` names, by one of the doors that `epsball models` lists, to be handed to any function.

    It is an `nn.Module` (n, *shape) -> logits, in eval mode unless it is a network of epsball's or of your own; or,
    where there are no gradients or with `black_box`, a `BlackBox`. Its `label_names`, where they are known, are the
    classes in the order of its outputs, and `preparation` is what `epsball.data.load_data(..., preparation=)` has to do
    with images first. What was done to the model is logged, a line each.

    `weights` is a file for a network that has none: `.safetensors`, `.pt`, `.pth`, `.pth.tar`, or Lightning's `.ckpt`.
    `shape` (of one example), `classes` and `seed` are for the built-in networks. A factory "package.module:function" or
    "file.py:function" is called without arguments, the current directory comes first; it may be an `nn.Module` itself.
    `trust` lets code run that files hold or name.

    Raises `BadInput` where nothing is found, where a library is not installed, and where a file is damaged, does not
    fit, or would run code without `trust`.
    """
    asked = Asked(
        spec=spec,
        weights=None if weights is None else Path(weights).expanduser(),
        shape=None if shape is None else tuple(shape),
        classes=classes,
        seed=seed,
        trust=trust,
        black_box=black_box,
    )
    loaded = open_model(asked)
    for note in loaded.notes:
        log.info("%s: %s", spec, note)
    for name, value in ((LABEL_NAMES, loaded.label_names), (PREPARATION, loaded.preparation)):
        if value is not None:
            setattr(loaded.model, name, value)
    return loaded.model


def open_model(asked: Asked) -> Loaded:
    """What the door of `asked.spec` answers with."""
    door = door_of(asked.spec)
    loaded = door.open(asked)
    if asked.black_box and not isinstance(loaded.model, BlackBox):
        loaded = replace(loaded, model=BlackBox(function=loaded.model, takes="torch"))
    setattr(loaded.model, OPENED_AS, asked)
    return loaded


def open_built_in(asked: Asked) -> Loaded:
    """A built-in network (see `build`), with weights of the seed or of a file."""
    if asked.shape is None or asked.classes is None:
        raise BadInput(
            f"`shape` and `classes` must be given for {asked.spec}, which fits any data; as in "
            f"epsball.load({asked.spec!r}, shape=(1, 28, 28), classes=10)"
        )
    model, notes = _network(asked, asked.shape, asked.classes)
    return Loaded(model=model, notes=notes, shape=asked.shape)


def open_factory(asked: Asked) -> Loaded:
    """What a factory makes: code of the user's, named by the user."""
    network, notes = _network(asked, (), 0)
    made = as_model(network)
    model = made if isinstance(made, nn.Module | BlackBox) else Wrapped(made)
    return Loaded(model=model, notes=notes, label_names=getattr(made, LABEL_NAMES, None))


def _network(asked: Asked, shape: tuple[int, ...], classes: int) -> tuple[Any, tuple[str, ...]]:
    if asked.weights is None:
        return make_network(asked.spec, shape, classes, seed=asked.seed), ()
    return make_with_weights(asked.spec, shape, classes, asked.weights, seed=asked.seed)
