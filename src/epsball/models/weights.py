"""Weights are read and written without running code from a file.

A pickle can run any code when it is read, and so can TorchScript, torch.export and joblib archives. Only safetensors,
and torch's own files through its `weights_only` reader, are opened.
"""

from __future__ import annotations

import warnings
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any
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
WRAPPERS = {"module", "model", "net", "network", "backbone", "_orig_mod"}
"""What wrappers, and Lightning modules, call the network in them: what they hold beside it is none of the network's."""
EXTRA = "_extra_state"
"""What a layer keeps beside its tensors (`nn.Module.get_extra_state`): any object."""
COUNTS = "num_batches_tracked"
"""The buffer of BatchNorm that files from before torch 0.4 lack; nothing in eval mode reads it."""
SHOWN = 6


def load_weights(model: nn.Module, path: str | Path) -> tuple[str, ...]:
    """Copy the weights of a file into `model`, in place: all of them, or none. Returns what was done, a sentence each.

    `path` is a `.safetensors` file, or a `.pt`, `.pth`, `.pth.tar`, `.bin` or Lightning's `.ckpt`, with a plain state
    dict or one under an entry of `ENTRIES`. A prefix that all names of the network have in the file and not in the
    model, or the other way round (`module.`, `model.`, `net.`, `_orig_mod.`), is left out.

    Raises `BadInput` for a missing or unreadable file, one that would run code, one with several networks or with a
    larger one, and names, shapes or kinds of numbers that do not fit.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_file():
        raise BadInput(f"`weights` must be a file, got {_what_else(path)}")
    if not path.name.lower().endswith(ENDINGS):
        raise BadInput(
            f"`weights` must be a .safetensors, .pt, .pth, .pth.tar or .ckpt file, got {str(path)!r}: other formats "
            f"(pickle, joblib, torch.export) run code from the file when they are read; {CONVERT}"
        )
    if not path.is_file():
        similar = get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], n=1)
        hint = "".join(f"; did you mean {name!r}?" for name in similar)
        raise BadInput(f"`weights` must be an existing file, got {str(path)!r}{hint}")
    expected = {
        name: value
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and not name.endswith(EXTRA)
    }
    held, read = _read(path)
    state, renamed = _renamed(held, list(expected), path)
    notes = read + renamed
    parameters = dict(model.named_parameters(remove_duplicate=False))
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
            if name in state
            if state[name].is_complex() > value.is_complex()
            or (name in parameters and _whole(state[name]) > _whole(value))
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
    model.load_state_dict(state, strict=False)  # all names fit; a layer's own `EXTRA` stays as it is
    return notes


def _what_else(path: Path) -> str:
    """What is no file, and the weights in it, where it is a folder."""
    if not path.is_dir():
        return f"{str(path)!r}, which is a device or a pipe; copy it into a file"
    inside = sorted(str(entry) for entry in path.iterdir() if entry.name.lower().endswith(ENDINGS))
    return f"the folder {str(path)!r}; " + (f"did you mean {inside[0]!r}?" if inside else "name a file in it")


def _whole(value: Tensor) -> bool:
    """Whether a tensor is of whole numbers, or of bools."""
    return not (value.is_floating_point() or value.is_complex())


def _own_file(prefix: str) -> str:
    """The remedy where a file holds a network among others."""
    return (
        f"torch.save({{key.removeprefix({prefix!r}): value for key, value in state.items() if "
        f"key.startswith({prefix!r})}}, path)"
    )


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
            f"the one that is meant into a file of its own: {_own_file(complete[0])}"
        )
    if complete:
        prefix = complete[0]
        taken = {names[name]: keys[prefix + name] for name in names if prefix + name in keys}
        left = [key for key in state if key not in taken.values()]
        shown = f"{', '.join(left[:SHOWN])}{', ...' if len(left) > SHOWN else ''}"
        found = {name: state[key] for name, key in taken.items()}
        if left and not prefix:
            return found | {key: state[key] for key in left}, ()
        if left and not set(prefix.removesuffix(".").split(".")) <= WRAPPERS:
            raise BadInput(
                f"`weights` must be those of the model alone, but in {str(path)!r} they are the part {prefix!r} "
                f"of a larger network, beside {shown}; load that network, or, if the part is meant, write it into a "
                f"file of its own: {_own_file(prefix)}"
            )
        removed = [prefix] if prefix else []
        removed += [COMPILED] if any(COMPILED in key for key in state) else []
        notes = (f"The prefix {' and '.join(removed)} of the names in the file was left out.",) if removed else ()
        notes += (f"Not used from the file: {shown}.",) if left else ()
        return found, notes
    wrapped = needed[0].removesuffix(next((key for key in keys if needed[0].endswith(f".{key}")), needed[0]))
    if wrapped and all(name.startswith(wrapped) and name.removeprefix(wrapped) in keys for name in needed):
        inner = {name: name.removeprefix(wrapped) for name in names}
        found = {names[name]: state[keys[short]] for name, short in inner.items() if short in keys}
        if len(found) >= len(keys):
            return found, (f"The model's prefix {wrapped} is not in the names in the file.",)
    return dict(state), ()


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a file by their names, and what was taken or left out, a sentence each."""
    try:
        state: Any = read_tensors(path) if path.suffix.lower() == ".safetensors" else _unpickled(path)
    except BadInput as error:
        raise BadInput(f"`weights` must be an undamaged file, got {str(path)!r}: {error}") from error
    except Exception as error:  # a damaged file raises whatever its reader meets
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadInput(
            f"`weights` must hold tensors only, and {str(path)!r} is damaged or holds something else, which would run "
            f"code from the file when it is read ({reason}); {CONVERT}"
        ) from error
    steps, notes = "", ()
    for key in ENTRIES:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            others = [repr(other) for other, value in state.items() if other != key and _holds_network(value)]
            notes += (f"The file's entry {key!r} was taken, and not {', '.join(others[:SHOWN])}.",) if others else ()
            state, steps = state[key], f"{steps}[{key!r}]"
    if isinstance(state, dict) and (extra := [key for key in state if str(key).endswith(EXTRA)]):
        state = {key: value for key, value in state.items() if key not in extra}
        notes += (
            f"Not used from the file, since they are no tensors of a layer: {', '.join(map(str, extra[:SHOWN]))}.",
        )
    named = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not named or not all(isinstance(value, Tensor) for value in state.values()):
        entries = state if isinstance(state, dict) else {}
        found = f"a dict of {', '.join(map(str, list(entries)[:SHOWN]))}" if entries else type(state).__name__
        expected = f"`weights` must be a state dict, or hold one under {', '.join(map(repr, ENTRIES))}, got {found} in "
        networks = [key for key, value in entries.items() if _holds_network(value)]
        if networks:
            raise BadInput(
                f"{expected}{str(path)!r}; if {networks[0]!r} is meant, write it into a file of its own: "
                f"torch.save(torch.load({str(path)!r}, weights_only=True){steps}[{networks[0]!r}], 'weights.pt')"
            )
        raise BadInput(f"{expected}{str(path)!r}; write `torch.save(model.state_dict(), path)`")
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
    return state, notes


def _unpickled(path: Path) -> Any:
    """What a file of torch's holds, by its reader that runs no code."""
    check_file(path)
    with suppress(BadZipFile):  # the format before torch 1.6
        check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of TorchScript; so does the error of what is refused
        return torch.load(path, weights_only=True, map_location="cpu")


def _holds_network(value: object, depth: int = 2) -> bool:
    """Whether an entry of a checkpoint is a state dict, or, as an average of weights may, holds one."""
    if depth == 0 or not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
        return False
    return all(isinstance(part, Tensor) for part in value.values()) or any(
        _holds_network(part, depth - 1) for part in value.values()
    )


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write the state dict of `model` to a `.safetensors` file: the whole file or none, also when interrupted.

    Tensors that share memory are written once per name, so that any reader finds every name.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".safetensors":
        raise BadInput(f"`path` must end in .safetensors, got {str(path)!r}")
    write_tensors(path, dict(model.state_dict()))
