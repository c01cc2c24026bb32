"""Networks by name, without weights: the built-in ones, and what a user's own factory module:function makes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module, invalidate_caches
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from types import ModuleType
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

READ = "__epsball_read__"
"""Where the module of a file has the time and the size that the file had when it was read."""


def make_network(spec: str, shape: Sequence[int], classes: int, *, seed: int = 0) -> Any:
    """The network that `spec` names: a built-in (see `build`), or what a factory of the user's returns."""
    if not is_factory(spec):
        return build(spec, shape, classes, seed=seed)
    module, _, attribute = spec.rpartition(":")
    return _made_by(module, attribute)


def make_with_weights(
    spec: str, shape: Sequence[int], classes: int, weights: str | Path, *, seed: int = 0
) -> tuple[Any, tuple[str, ...]]:
    """The network that `spec` names, with the weights of a file, and what was done to these, a sentence each.

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
    if not isinstance(model, nn.Module):
        raise BadInput(f"`weights` must be left out with {spec}, which makes no nn.Module; load them in it")
    return model, load_weights(model, path)


class Wrapped(nn.Module):
    """A callable as a module; it has no weights that torch could see."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))


def _made_by(module: str, attribute: str) -> Any:
    """What the factory `module:attribute` makes; `module` is a file, or a package.module."""
    spec = f"{module}:{attribute}"
    file = Path(module).expanduser()
    with first_on_path(file.parent.absolute() if file.suffix == ".py" else Path.cwd()):
        imported = _module_of_file(file, spec) if file.suffix == ".py" else _imported(module, spec)
        public = [name for name in vars(imported) if not name.startswith("_")]
        factory = getattr(imported, check_one_of(f"model {module}:", attribute, public))
        if isinstance(factory, nn.Module) or (hasattr(factory, "predict") and not isinstance(factory, type)):
            return factory
        try:
            signature(factory).bind()
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"`model` must name a factory that needs no arguments, got {spec!r}: {error}; "
                "write `def model(): return Net(...)` and name that"
            ) from error
        model = factory()
    if not callable(model) and not hasattr(model, "predict"):
        raise BadInput(
            f"`model` must name a factory of an nn.Module, an estimator or a callable, but {spec} returned "
            f"{type(model).__name__}; return the model"
        )
    return model


def _imported(module: str, spec: str) -> ModuleType:
    try:
        return import_module(module)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        missing = getattr(error, "name", None)
        if missing is not None and missing != module and not module.startswith(f"{missing}."):
            raise  # the module itself was found; what it imports is missing
        similar = get_close_matches(module, [*MODELS, *(file.stem for file in Path.cwd().glob("*.py"))], n=1)
        hint = f"did you mean {similar[0]!r}?" if similar else f"run in the folder of {module.partition('.')[0]}.py"
        raise BadInput(
            f"`model` must be one of {', '.join(MODELS)} or module:factory, got {spec!r}, whose module is not found; "
            f"{hint}"
        ) from error


def _module_of_file(file: Path, spec: str) -> ModuleType:
    """The module that a file holds, as it is now; under a name of its own, so that what it defines can be pickled.

    That name is the file's, unless it is a library's, which every other module must still find. What Python itself has
    imported from the file stays.
    """
    if not file.is_file():
        similar = get_close_matches(file.name, [entry.name for entry in file.parent.glob("*.py")], n=1)
        hint = "".join(f"; did you mean {name!r}?" for name in similar)
        raise BadInput(f"`model` must name a file that is there, got {spec!r}{hint}")
    path, looked = str(file.absolute()), file.stat()
    state = (looked.st_mtime_ns, looked.st_size)
    own = getattr(sys.modules.get(file.stem), "__file__", None) == path
    free = file.stem not in sys.modules and not _is_library(file.stem, path)
    name = file.stem if own or free else f"epsball_user_{file.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == path and getattr(known, READ, state) == state:
        return known
    place = spec_from_file_location(name, path, loader=_FromSource(name, path))
    assert place is not None
    assert place.loader is not None
    module = module_from_spec(place)
    setattr(module, READ, state)
    sys.modules[name] = module
    try:
        place.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def read_modules() -> list[ModuleType]:
    """The modules that were read from files: another process finds none of them by its name."""
    return [module for module in list(sys.modules.values()) if READ in getattr(module, "__dict__", {})]


class _FromSource(SourceFileLoader):
    """A file as it is now: bytecode of the second in which it was edited may be older."""

    def get_code(self, fullname: str) -> Any:
        return self.source_to_code(self.get_data(self.path), self.path)


def _is_library(name: str, path: str) -> bool:
    """Whether `import name` would find another file than `path`, from anywhere but the folder of that file."""
    folder = Path(path).parent
    found = PathFinder.find_spec(name, [entry for entry in sys.path if Path(entry).absolute() != folder])
    return found is not None or name in sys.stdlib_module_names


@contextmanager
def first_on_path(folder: Path) -> Iterator[None]:
    """A folder comes first on the import path, as that of a script."""
    sys.path.insert(0, str(folder))
    invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
