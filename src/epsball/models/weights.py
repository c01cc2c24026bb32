"""Weights are read and written without running code from a file.

A pickle can run any code when it is read, and so can TorchScript, torch.export and joblib archives. Only safetensors,
and `.pt`/`.pth` through torch's `weights_only` reader, are opened.
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


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Copy the weights of a file into `model`, in place: all of them, or none.

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
        similar = get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], n=1)
        hint = "".join(f"; did you mean {name!r}?" for name in similar)
        raise BadInput(f"`weights` must be an existing file, got {str(path)!r}{hint}")
    state = _read(path)
    expected = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    wrong = [f"missing {name}" for name in expected if name not in state]
    wrong += [f"unexpected {name}" for name in state if name not in expected]
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong += [
        f"{name} is {state[name].dtype} instead of {value.dtype}"
        for name, value in expected.items()
        if name in state and state[name].is_complex() > value.is_complex()
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
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = f"a dict of {', '.join(map(str, list(state)[:6]))}" if isinstance(state, dict) else type(state).__name__
        raise BadInput(
            f"`weights` must be a state dict, or hold one under 'state_dict' or 'model', got {found} in "
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
