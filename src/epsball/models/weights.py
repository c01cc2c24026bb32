"""Weights are read and written without running code from a file.

A pickle can run any code when it is read, and so can TorchScript, torch.export and joblib archives. Only safetensors,
and torch's own files through its `weights_only` reader, are opened.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.common.limits import check_archive, check_file
from epsball.common.tensor_files import read_tensors, write_tensors

CONVERT = (
    "where it can be trusted, convert it once: "
    "`from epsball.models.weights import save_weights; save_weights(model, 'weights.safetensors')`"
)
ENDINGS = (".safetensors", ".pt", ".pth", ".pth.tar", ".ckpt", ".bin")
ENTRIES = ("state_dict", "model_state_dict", "model", "net")
"""Where a checkpoint of somebody's training loop keeps the state dict."""
COMPILED = "_orig_mod."
"""What `torch.compile` puts into the names of a network, and of its parts."""
COUNTS = "num_batches_tracked"
"""The buffer of BatchNorm that files from before torch 0.4 lack; nothing in eval mode reads it."""
SHOWN = 6


def load_weights(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Copy the weights of a file into `model`, in place: all of them, or none. Returns what was done, a sentence each.

    `path` is a `.safetensors` file, or a `.pt`, `.pth`, `.pth.tar`, `.bin` or Lightning's `.ckpt`, with a plain state
    dict or one under an entry of `ENTRIES`. A prefix that all names of the network have in the file and not in the
    model, or the other way round (`module.`, `model.`, `net.`, `_orig_mod.`), is left out.

    Raises `BadInput` for a missing or unreadable file, one that would run code, one with several networks, and names or
    shapes that do not fit.
    """
    path = Path(path).expanduser()
    if not path.name.lower().endswith(ENDINGS):
        raise BadInput(
            f"`weights` must be a .safetensors, .pt, .pth, .pth.tar or .ckpt file, got {str(path)!r}: other formats "
            f"(pickle, joblib, torch.export) run code from the file when they are read; {CONVERT}"
        )
    if not path.is_file():
        similar = get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], n=1)
        hint = "".join(f"; did you mean {name!r}?" for name in similar)
        raise BadInput(f"`weights` must be an existing file, got {str(path)!r}{hint}")
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    state, notes = _renamed(_read(path), list(expected), path)
    for name, value in expected.items():
        if name.endswith(COUNTS):
            state.setdefault(name, value)
    wrong = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "different": [
            f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in expected.items()
            if name in state and state[name].shape != value.shape
        ]
        + [
            f"{name} is {state[name].dtype} instead of {value.dtype}"
            for name, value in expected.items()
            if name in state and state[name].is_complex() > value.is_complex()
        ],
    }
    if any(wrong.values()):
        shown = "; ".join(
            f"{what} {', '.join(names[:SHOWN])}{f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''}"
            for what, names in wrong.items()
            if names
        )
        raise BadInput(
            f"`weights` must fit the model, but in {str(path)!r}: {shown}; "
            "is it the same architecture, width and number of classes?"
        )
    model.load_state_dict(state)
    return notes


def _renamed(state: dict[str, Tensor], expected: list[str], path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state under the names that are expected, where these differ by a prefix, and what was done; else as it is."""
    names = {name.replace(COMPILED, ""): name for name in expected}
    keys = {key.replace(COMPILED, ""): key for key in state}
    needed = [name for name in names if not name.endswith(COUNTS)]
    if not needed or all(name in state for name in expected if not name.endswith(COUNTS)):
        return dict(state), ()
    endings = sorted({key.removesuffix(needed[0]) for key in keys if f".{key}".endswith(f".{needed[0]}")})
    complete = [prefix for prefix in endings if all(prefix + name in keys for name in needed)]
    if len(complete) > 1:
        raise BadInput(
            f"`weights` must hold one network, but {str(path)!r} holds one under each of {', '.join(complete)}; write "
            f"the one that is meant into a file of its own: torch.save({{key.removeprefix({complete[0]!r}): value for "
            f"key, value in state.items() if key.startswith({complete[0]!r})}}, path)"
        )
    if complete:
        found = {names[name]: state[keys[complete[0] + name]] for name in names if complete[0] + name in keys}
        left = [key for key in state if not any(state[key] is value for value in found.values())]
        removed = [complete[0]] if complete[0] else []
        removed += [COMPILED] if any(COMPILED in key for key in state) else []
        notes = (f"The prefix {' and '.join(removed)} of the names in the file was left out.",) if removed else ()
        if left:
            notes += (f"The file's {', '.join(left[:SHOWN])}{', ...' if len(left) > SHOWN else ''} were not used.",)
        return found, notes
    wrapped = needed[0].removesuffix(next((key for key in keys if needed[0].endswith(f".{key}")), needed[0]))
    if wrapped and all(name.startswith(wrapped) and name.removeprefix(wrapped) in keys for name in needed):
        inner = {name: name.removeprefix(wrapped) for name in names}
        found = {names[name]: state[keys[short]] for name, short in inner.items() if short in keys}
        if len(found) >= len(keys):
            return found, (f"The model's prefix {wrapped} is not in the names in the file.",)
    return dict(state), ()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)
        check_file(path)
        with suppress(BadZipFile):  # the format before torch 1.6
            check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of TorchScript; so does the error below
            state = torch.load(path, weights_only=True, map_location="cpu")
    except BadInput as error:
        raise BadInput(f"`weights` must be an undamaged file, got {str(path)!r}: {error}") from error
    except Exception as error:  # a damaged file raises whatever its reader meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(
            f"`weights` must hold tensors only, and {str(path)!r} is damaged or holds something else, which would run "
            f"code from the file when it is read ({reason}); {CONVERT}"
        ) from error
    for key in ENTRIES:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = f"a dict of {', '.join(map(str, list(state)[:6]))}" if isinstance(state, dict) else type(state).__name__
        raise BadInput(
            f"`weights` must be a state dict, or hold one under {', '.join(map(repr, ENTRIES))}, got {found} in "
            f"{str(path)!r}; write `torch.save(model.state_dict(), path)`"
        )
    odd = [
        f"{name} ({'meta' if value.is_meta else 'quantized' if value.is_quantized else str(value.layout)[6:]})"
        for name, value in state.items()
        if value.is_meta or value.is_quantized or value.is_nested or value.layout != torch.strided
    ]
    if odd:
        raise BadInput(
            f"`weights` must hold plain tensors, but in {str(path)!r} these are not: {', '.join(map(str, odd[:6]))}; "
            "store them dense, with their numbers"
        )
    return state


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state dict of `model` to a `.safetensors` file: the whole file or none, also when interrupted.

    Tensors that share memory are written once per name, so that any reader finds every name.
    """
    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise BadInput(f"`path` must end in .safetensors, got {str(path)!r}")
    write_tensors(path, dict(model.state_dict()))
