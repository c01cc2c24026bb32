"""Networks by name, without weights: the built-in ones, and what a user's own factory module:function makes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module, invalidate_caches
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.models.model_record import is_factory
from epsball.models.registry import MODELS, build
from epsball.models.weights import load_weights

UNASKED = 16_000_000
"""The numbers of a network that is made without a look at the size of its weights."""


def make_network(spec: str, shape: Sequence[int], classes: int, *, seed: int = 0) -> nn.Module:
    """The network that `spec` names: a built-in (see `build`), or "package.module:factory"."""
    if not is_factory(spec):
        return build(spec, shape, classes, seed=seed)
    module, _, attribute = spec.partition(":")
    return _imported(module, attribute)


def make_with_weights(
    spec: str, shape: Sequence[int], classes: int, weights: str | Path, *, seed: int = 0
) -> nn.Module:
    """The network that `spec` names, with the weights of a file.

    A built-in one is sketched first: what is far larger than its weights is refused before it takes any memory.
    """
    path = Path(weights).expanduser()
    if not is_factory(spec) and path.is_file():
        try:
            with torch.device("meta"):
                sketch = make_network(spec, shape, classes, seed=seed)
        except (ArithmeticError, MemoryError, RuntimeError, TypeError) as error:
            raise BadInput(
                f"`model` {spec} must be one for examples of shape {tuple(shape)} and {classes} classes, but "
                f"{str(error).partition(chr(10))[0]}; smaller ones can be made"
            ) from error
        count = sum(part.numel() for part in sketch.state_dict().values())
        if count > max(UNASKED, size := path.stat().st_size):
            raise BadInput(
                f"`weights` must fit the model, but {spec} for examples of shape {tuple(shape)} has {count:,} numbers "
                f"and {str(path)!r} {size:,} bytes; is it the same architecture, width and number of classes?"
            )
    model = make_network(spec, shape, classes, seed=seed)
    load_weights(model, path)
    return model


class Wrapped(nn.Module):
    """A callable as a module; it has no weights that torch could see."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))


def _imported(module: str, attribute: str) -> nn.Module:
    """What the factory `module:attribute` makes."""
    spec = f"{module}:{attribute}"
    with _current_directory():
        try:
            imported = import_module(module)
        except (ModuleNotFoundError, TypeError, ValueError) as error:
            missing = getattr(error, "name", None)
            if missing is not None and missing != module and not module.startswith(f"{missing}."):
                raise  # the module itself was found; what it imports is missing
            similar = get_close_matches(module, [*MODELS, *(file.stem for file in Path.cwd().glob("*.py"))], n=1)
            hint = f"did you mean {similar[0]!r}?" if similar else f"run in the folder of {module.partition('.')[0]}.py"
            raise BadInput(
                f"`model` must be one of {', '.join(MODELS)} or module:factory, got {spec!r}, whose module is not "
                f"found; {hint}"
            ) from error
        public = [name for name in vars(imported) if not name.startswith("_")]
        factory = getattr(imported, check_one_of(f"model {module}:", attribute, public))
        if isinstance(factory, nn.Module):
            return factory
        try:
            signature(factory).bind()
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"`model` must name a factory that needs no arguments, got {spec!r}: {error}; "
                "write `def model(): return Net(...)` and name that"
            ) from error
        model = factory()
    if not callable(model):
        raise BadInput(
            f"`model` must name a factory of an nn.Module or callable, but {spec} returned {type(model).__name__}; "
            "return the model"
        )
    return model if isinstance(model, nn.Module) else Wrapped(model)


@contextmanager
def _current_directory() -> Iterator[None]:
    """The current directory comes first on the import path, as for a script."""
    here = os.getcwd()
    sys.path.insert(0, here)
    invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)
