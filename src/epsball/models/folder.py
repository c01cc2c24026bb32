"""The folder of a trained model: its weights, what they are of and how they were trained, and a card for people.

`model.safetensors` holds the weights, `model.json` what builds the network and the record of its training, `README.md`
says it in words, with the header that the Hugging Face Hub reads. `model.json` has the checksum of the weights and is
written last: a folder that has it is whole. None of the files holds code. A network of the user's own is named, as in
`--model module:factory`, and imported as it is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.models.card import markdown
from epsball.models.registry import MODELS, spelled

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, RECORD, CARD = "model.safetensors", "model.json", "README.md"
CHECKPOINTS = "training"
"""The folder in it, in which `epsball train` keeps what it needs to go on."""
FORMAT = "epsball model 1"


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """The shares of `examples` examples that are classified correctly: `clean`, after FGSM, and after PGD-10.

    `on` says in words which examples; without a ball there are no attacks, and `fgsm` and `pgd` are None.
    """

    on: str
    examples: int
    clean: float
    fgsm: float | None = None
    pgd: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """What `model.json` says.

    `spec` builds the network (a built-in's name, or module:factory) for examples of `shape` and `classes` logits;
    `asked` is what the training was asked for, in the words of the command line (data, objective, ball, ...);
    `training` what it was and logged; `sha256` is the checksum of the weights' file.
    """

    spec: str
    shape: tuple[int, ...]
    classes: int
    label_names: tuple[str, ...] | None
    asked: dict[str, Any]
    training: dict[str, Any]
    accuracies: tuple[Accuracies, ...]
    sha256: str


def is_folder(spec: str, within: str | Path = "") -> bool:
    """Whether `spec` names a folder, seen from the folder `within`. A built-in's name always is the built-in's.

    >>> is_folder("small-mlp"), is_folder("/")
    (False, True)
    """
    own = spelled(spec.partition(":")[0]) in MODELS
    return bool(spec) and not own and (Path(within) / Path(spec).expanduser()).is_dir()


def write_model_folder(
    path: str | Path,
    model: nn.Module,
    *,
    spec: str,
    shape: Sequence[int],
    classes: int,
    training: Mapping[str, Any],
    label_names: Sequence[str] | None = None,
    asked: Mapping[str, Any] | None = None,
    accuracies: Sequence[Accuracies] = (),
) -> None:
    """Keep a trained model in the folder `path`, for `read_model_folder` and `--model PATH`.

    `spec` is what builds the network: the name of a built-in with its options, or module:factory; `shape` is that of
    one example, `classes` the number that the network was built for. `training` is the record of the training
    (`FitResult.to_record`), `asked` (of the command line: data, ball, objective, and so on) is for the card as well.
    Files of an earlier model are written over.
    """
    from epsball.models.load import save_weights

    path = Path(path).expanduser()
    save_weights(model, path / WEIGHTS)
    record = ModelRecord(
        spec=spec,
        shape=tuple(shape),
        classes=classes,
        label_names=None if label_names is None else tuple(label_names),
        asked=dict(asked or {}),
        training=dict(training),
        accuracies=tuple(accuracies),
        sha256=_checksum(path / WEIGHTS),
    )
    write_whole(path / CARD, lambda draft: draft.write_text(markdown(record, path), encoding="utf-8"))
    text = json.dumps({"format": FORMAT} | _finite(asdict(record)), indent=1, allow_nan=False, default=str)
    write_whole(path / RECORD, lambda draft: draft.write_text(text))


def read_model_folder(path: str | Path) -> nn.Module:
    """The model that a folder keeps, with its weights.

    No code is run from its files; but a network of module:factory is imported, the current directory first.

    Raises `BadInput` for a folder that is none, or not finished, and for one that is damaged.
    """
    from epsball.models.load import load_model

    path = Path(path).expanduser()
    record = read_record(path)
    check_weights(path, record)
    try:
        return load_model(record.spec, shape=record.shape, classes=record.classes, weights=path / WEIGHTS)
    except BadInput as error:
        raise BadInput(f"{path / RECORD} names the model {record.spec!r}: {error}") from error


def read_record(path: str | Path) -> ModelRecord:
    """What the `model.json` of a folder says.

    Raises `BadInput` where the folder has none, or it is damaged, or another program's.
    """
    path = Path(path).expanduser()
    file = path / RECORD
    if not file.exists():
        raise BadInput(
            f"`model` must be a folder that `epsball train` wrote, got {path}, which has no {RECORD}; {_why(path)}"
        )
    by_hand = f"copy the folder again, or name network and weights: --model small-cnn --weights {path / WEIGHTS}"
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} is damaged ({error}); {by_hand}") from error
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        says = repr(told.get("format")) if isinstance(told, dict) else "no named values"
        raise BadInput(f"{file} must have the format {FORMAT!r}, as `epsball train` writes it, got {says}; {by_hand}")
    try:
        names = told["label_names"]
        record = ModelRecord(
            spec=told["spec"],
            shape=tuple(told["shape"]),
            classes=told["classes"],
            label_names=None if names is None else tuple(names),
            asked=dict(told["asked"]),
            training=dict(told["training"]),
            accuracies=tuple(Accuracies(**part) for part in told["accuracies"]),
            sha256=told["sha256"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{file} is damaged ({type(error).__name__}: {error}); {by_hand}") from error
    numbers = (record.classes, *record.shape)
    whole = all(isinstance(number, int) and not isinstance(number, bool) and number > 0 for number in numbers)
    if not whole or not isinstance(record.spec, str) or not isinstance(record.sha256, str):
        raise BadInput(f"{file} is damaged (spec, shape, classes or sha256 are not what they must be); {by_hand}")
    if is_folder(record.spec) or (":" not in record.spec and spelled(record.spec) not in MODELS):
        raise BadInput(
            f"{file} must name a network of epsball or module:factory, got {record.spec!r}; is it of a newer version?"
        )
    return record


def check_weights(path: Path, record: ModelRecord) -> None:
    """Raise `BadInput` unless the folder's weights are there, and those that its record was written for."""
    file = path / WEIGHTS
    if not file.is_file():
        raise BadInput(f"{file} is missing; copy the folder again, with all of its files")
    if _checksum(file) != record.sha256:
        raise BadInput(
            f"{file} is damaged, or of another training: its checksum is not the one in {RECORD}; copy the folder "
            f"again, or, if it was exchanged on purpose, write --model {record.spec} --weights {file}"
        )


def _why(path: Path) -> str:
    """What a folder without a model.json may be, and what to do."""
    if (path / CHECKPOINTS).is_dir():
        return f"its training was not finished: `epsball train --out {path} --resume` goes on with it"
    found = sorted(file.name for kind in ("*.safetensors", "*.pt", "*.pth") for file in path.glob(kind))
    if found:
        return f"name the network, too: --model small-cnn --weights {path / found[0]}"
    return "is it the right one?"


def _checksum(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value
