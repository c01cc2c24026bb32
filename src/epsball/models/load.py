"""`load_model`: what a user names becomes a torch module."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from torch import nn

from epsball.common.errors import BadInput
from epsball.models.factory import make_network, make_with_weights
from epsball.models.folder import read_model_folder
from epsball.models.model_record import RECORD, WEIGHTS, is_folder, read_record
from epsball.models.registry import MODELS, canonical


def load_model(
    spec: str,
    *,
    shape: Sequence[int],
    classes: int,
    weights: str | Path | None = None,
    seed: int = 0,
    trust: bool = False,
) -> nn.Module:
    """The model that `spec` names: a built-in (see `build`), "package.module:factory", or the folder of a trained one.

    A factory is called without arguments and returns an `nn.Module`, or another callable (n, *shape) -> logits, which
    is wrapped; instead of a factory it may be an `nn.Module` itself. The current directory is searched first. `shape`
    (of one example), `classes` and `seed` are for the built-in ones; `weights` is a file for `load_weights`. A folder
    (see `read_model_folder`) has its weights and classes; `shape` must be that of its examples. A factory that a folder
    names is code: it runs only with `trust`.

    Raises `BadInput` for a name that is not found, a factory that needs arguments or makes no model, weights that do
    not fit, and a folder that is damaged, none of a model, given weights, or names a factory without `trust`.
    """
    if is_folder(spec):
        return _from_folder(Path(spec).expanduser(), tuple(shape), weights, trust)
    if ":" not in spec and canonical(spec) not in MODELS:
        raise BadInput(
            f"`model` must be one of {', '.join(MODELS)}, module:factory, or a folder that `epsball train` wrote, got "
            f"{spec!r}{_similar_name(spec)}"
        )
    if weights is None:
        return make_network(spec, shape, classes, seed=seed)
    return make_with_weights(spec, shape, classes, weights, seed=seed)


def _from_folder(folder: Path, shape: tuple[int, ...], weights: str | Path | None, trust: bool) -> nn.Module:
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
    return read_model_folder(folder, trust=trust)


def _similar_name(name: str) -> str:
    """The built-in or the folder of a model whose name is most like `name`, as the end of a message."""
    path = Path(name).expanduser()
    folders = [str(path.parent / entry.name) for entry in path.parent.glob("*") if (entry / RECORD).exists()]
    return "".join(f"; did you mean {match!r}?" for match in get_close_matches(name, [*MODELS, *folders], 1, 0.5))
