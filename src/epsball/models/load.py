"""What a user names becomes a torch module; weights come in and go out without running code from a file.

A pickle can run any code when it is read, and so can TorchScript, torch.export and joblib archives. Only safetensors,
and `.pt`/`.pth` through torch's `weights_only` reader, are opened.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module, invalidate_caches
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from epsball.common.atomic_files import write_whole
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.models.folder import RECORD, WEIGHTS, is_folder, read_model_folder, read_record
from epsball.models.registry import MODELS, build, spelled

CONVERT = (
    "where it can be trusted, convert it once: "
    "`from epsball.models.load import save_weights; save_weights(model, 'weights.safetensors')`"
)


def load_model(
    spec: str, *, shape: Sequence[int], classes: int, weights: str | Path | None = None, seed: int = 0
) -> nn.Module:
    """The model that `spec` names: a built-in (see `build`), "package.module:factory", or the folder of a trained one.

    A factory is called without arguments and returns an `nn.Module`, or another callable (n, *shape) -> logits, which
    is wrapped; instead of a factory it may be an `nn.Module` itself. The current directory is searched first. `shape`
    (of one example), `classes` and `seed` are for the built-in ones; `weights` is a file for `load_weights`. A folder
    (see `read_model_folder`) has its weights and classes; `shape` must be that of its examples.

    Raises `BadInput` for a name that is not found, a factory that needs arguments or makes no model, weights that do
    not fit, and a folder that is damaged, none of a model, or given weights.
    """
    if is_folder(spec):
        return _kept(Path(spec).expanduser(), tuple(shape), weights)
    base, colon, rest = spec.partition(":")
    built_in = spelled(base) in MODELS or not colon or "=" in rest
    if not colon:
        _refuse_unknown(spec)
    model = build(spec, shape, classes, seed=seed) if built_in else _made(base, rest)
    if weights is not None:
        load_weights(model, weights)
    return model


def _kept(folder: Path, shape: tuple[int, ...], weights: str | Path | None) -> nn.Module:
    """The model of a folder, for examples of that shape."""
    record = read_record(folder)
    if weights is not None:
        raise BadInput(
            f"`weights` must be left out with the folder {folder}, which has its own, got {weights}; for others name "
            f"the network: {record.spec}"
        )
    if record.shape != shape:
        raise BadInput(
            f"`data` must have examples of shape {record.shape} for the model in {folder}, got {shape}; where the "
            f"network takes other shapes, write --model {record.spec} --weights {folder / WEIGHTS}"
        )
    return read_model_folder(folder)


def _refuse_unknown(name: str) -> None:
    """Refuse a name that is neither a built-in's nor a folder's, with the nearest of both."""
    if spelled(name) in MODELS:
        return
    path = Path(name).expanduser()
    beside = [str(path.parent / entry.name) for entry in path.parent.glob("*") if (entry / RECORD).exists()]
    near = get_close_matches(name, [*MODELS, *beside], n=1, cutoff=0.5)
    raise BadInput(
        f"`model` must be one of {', '.join(MODELS)}, module:factory, or a folder that `epsball train` wrote, got "
        f"{name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    )


class Wrapped(nn.Module):
    """A callable as a module; it has no weights that torch could see."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return str(getattr(self.function, "__qualname__", type(self.function).__qualname__))


def _made(module: str, attribute: str) -> nn.Module:
    """What the factory `module:attribute` makes."""
    spec = f"{module}:{attribute}"
    with _current_directory():
        try:
            found = import_module(module)
        except (ModuleNotFoundError, TypeError, ValueError) as error:
            missing = getattr(error, "name", None)
            if missing is not None and missing != module and not module.startswith(f"{missing}."):
                raise  # the module is there, what it imports is not
            near = get_close_matches(module, [*MODELS, *(file.stem for file in Path.cwd().glob("*.py"))], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; run in the folder of {module.partition('.')[0]}.py"
            raise BadInput(
                f"`model` must be one of {', '.join(MODELS)} or module:factory, got {spec!r}, whose module is not "
                f"found{hint}"
            ) from error
        public = [name for name in vars(found) if not name.startswith("_")]
        factory = getattr(found, check_one_of(f"model {module}:", attribute, public))
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
    """The current directory first on the path of imports, as for a script."""
    here = os.getcwd()
    sys.path.insert(0, here)
    invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(here)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights of a file into `model`, in place and all or nothing.

    `path` is a `.safetensors` file, or a `.pt`/`.pth` with a plain state dict or one under "state_dict" or "model".

    Raises `BadInput` for a missing or unreadable file, one that would run code, and names or shapes that do not fit.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise BadInput(
            f"`weights` must be a .safetensors, .pt or .pth file, got {str(path)!r}: other formats (pickle, joblib, "
            f"torch.export) run code from the file when they are read; {CONVERT}"
        )
    if not path.is_file():
        near = get_close_matches(path.name, [p.name for p in path.parent.glob("*")], n=1)
        raise BadInput(
            f"`weights` must be an existing file, got {str(path)!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    state = _read(path)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    wrong = [f"missing {name}" for name in own if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise BadInput(
            f"`weights` must fit the model, but in {str(path)!r}: {', '.join(wrong[:6])}{more}; "
            "is it the same architecture, width and number of classes?"
        )
    model.load_state_dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is TorchScript: the error below says so
            state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(
            f"`weights` must hold tensors only, and {str(path)!r} is damaged or holds something else, which would run "
            f"code from the file when it is read ({why[0][:200]}); {CONVERT}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadInput(
            f"`weights` must be a state dict, or hold one under 'state_dict' or 'model', got {_content(state)} in "
            f"{str(path)!r}; write `torch.save(model.state_dict(), path)`"
        )
    return state


def _content(state: object) -> str:
    return f"a dict of {', '.join(map(str, list(state)[:6]))}" if isinstance(state, dict) else type(state).__name__


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state dict of `model` to a `.safetensors` file: whole or not at all, also when interrupted.

    Tensors that share memory are written once per name, so that any reader finds every name.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise BadInput(f"`path` must end in .safetensors, got {str(path)!r}")
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_whole(path, lambda draft: save_file(state, draft, metadata={"format": "pt"}))
