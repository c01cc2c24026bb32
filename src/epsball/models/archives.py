"""The door of archives that are programs: TorchScript, torch.export, pickled networks, pickle and joblib.

To read one may run any code of its author's, so that without trust none is opened: its name and its kind of file are
all that is looked at. What comes out is treated as what is handed over in Python.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import nn

from epsball.common.errors import BadInput
from epsball.common.limits import check_archive, check_file
from epsball.common.printable import printable
from epsball.models.black_box import BlackBox
from epsball.models.door import Asked, Loaded
from epsball.models.factory import Wrapped, first_on_path
from epsball.models.given import as_model
from epsball.models.model_record import LABEL_NAMES

IN_TRAIN_MODE = "it was exported in train mode, which an export cannot leave; export net.eval()"


@dataclass(frozen=True)
class Kind:
    """A kind of archive: what it is, the safe way, and how it is read; `zipped` where it is a zip archive."""

    what: str
    safe: str
    read: Callable[[Path], Any]
    zipped: bool = False


def open_archive(asked: Asked) -> Loaded:
    """What an archive holds: a module, an estimator or another callable; see `given.as_model`.

    Raises `BadInput` without `asked.trust`, before the file is opened; for what is no regular file, is damaged or
    claims to unpack to far more than it has; and for what holds no model, such as weights.
    """
    path = Path(asked.spec).expanduser()
    kind = KINDS[path.suffix.lower()]
    _check_there(path)
    if not asked.trust:
        raise BadInput(
            f"`model` {str(path)!r} must be trusted to be opened: {kind.what} runs code of its author when it is read; "
            f"if you trust it, add --trust (trust=True); the safe way is {kind.safe}"
        )
    if asked.weights is not None:
        raise BadInput(f"`weights` must be left out with an archive, which has its own, got {str(asked.weights)!r}")
    try:
        if kind.zipped:
            with suppress(BadZipFile):
                check_archive(path)
        with first_on_path(Path.cwd()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of TorchScript, scikit-learn of other versions
            found = kind.read(path)
    except Exception as error:  # a file, and code in it, raises whatever it likes
        raise BadInput(
            f"`model` {str(path)!r} must be {kind.what} that can be read here, but {_reason(error)}"
        ) from error
    return _loaded(found, path, kind)


def _check_there(path: Path) -> None:
    """Raise `BadInput` unless there is a regular file."""
    try:
        check_file(path)
    except OSError as error:
        similar = get_close_matches(path.name, [entry.name for entry in path.parent.glob("*")], n=1)
        hint = "".join(f"; did you mean {name!r}?" for name in similar)
        raise BadInput(f"`model` must be an existing file, got {str(path)!r}{hint}") from error


def _loaded(found: Any, path: Path, kind: Kind) -> Loaded:
    """What was read as a model."""
    if isinstance(found, dict):
        raise BadInput(
            f"`model` must be a network, but {str(path)!r} holds a dict, such as weights alone; name the network, and "
            f"the file as its weights: --model package.module:factory --weights {path}"
        )
    notes = ()
    if isinstance(found, torch.export.ExportedProgram):
        notes = (IN_TRAIN_MODE,) if _in_train_mode(found) else ()
        found = found.module()
    try:
        model = as_model(found)
    except BadInput as error:
        raise BadInput(f"{error}, which is what {str(path)!r} holds") from error
    if isinstance(model, nn.Module):
        with suppress(NotImplementedError):  # an exported network has the mode that it was exported in
            model.eval()
    elif not isinstance(model, BlackBox):
        model = Wrapped(model)
    note = f"{kind.what} was read, which ran its code: it holds {type(found).__name__}"
    return Loaded(model=model, notes=(note, *notes), label_names=getattr(model, LABEL_NAMES, None))


def _in_train_mode(program: torch.export.ExportedProgram) -> bool:
    """Whether a dropout, or a batch norm with statistics, has the mode of training in it, which it cannot leave."""
    for node in program.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        names = [argument.name for argument in node.target._schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        training = given.get("train") is True or given.get("training") is True
        if training and 0 not in (given.get("p"), given.get("dropout")) and given.get("running_mean", True) is not None:
            return True
    return False


def _torch_file(path: Path) -> Any:
    """A TorchScript archive, or what `torch.save` wrote."""
    with suppress(BadZipFile), ZipFile(path) as file:
        if any("/code/" in name for name in file.namelist()):
            return torch.jit.load(path, map_location="cpu")
    return torch.load(path, map_location="cpu", weights_only=False)


def _exported(path: Path) -> Any:
    return torch.export.load(path)


def _pickled(path: Path) -> Any:
    with path.open("rb") as file:
        return pickle.load(file)


def _joblib(path: Path) -> Any:
    import joblib

    return joblib.load(path)


def _reason(error: Exception) -> str:
    """What an exception says, on one line."""
    if isinstance(error, BadInput):
        return str(error)
    text = " ".join(printable(str(error)[:200]).split())
    where = "; run where its classes can be imported" if isinstance(error, ImportError | AttributeError) else ""
    return f"{type(error).__name__}: {text}{where}" if text else type(error).__name__


NETWORK = Kind(
    "a TorchScript archive or a pickled network",
    "its weights with a factory of the network, --model package.module:factory --weights FILE (a .pt file of weights "
    "is such a file), or an export to ONNX",
    _torch_file,
    zipped=True,
)
ESTIMATOR = "skops.io.dump of the estimator to a .skops file, or for a network an export to ONNX"
KINDS = {
    **dict.fromkeys((".pt", ".pth", ".ts", ".torchscript"), NETWORK),
    ".pt2": Kind("an archive of torch.export", "an export of the same network to ONNX", _exported, zipped=True),
    **dict.fromkeys((".pkl", ".pickle"), Kind("a pickle", ESTIMATOR, _pickled)),
    ".joblib": Kind("a joblib file, which is a pickle,", ESTIMATOR, _joblib),
}
"""The kinds by the ending of a file."""
