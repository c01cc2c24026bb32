"""The format of a trained model's folder: the names of its files, and the record in `model.json`.

`model.json` has the checksum of the weights and is written last: a folder that has it is complete.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from epsball.common.errors import BadInput
from epsball.common.json_files import read_json
from epsball.common.limits import check_file
from epsball.common.record import Record
from epsball.models.registry import MODELS, canonical

LABEL_NAMES = "label_names"
"""The attribute of a module that lists the names of its classes, in the order of its outputs."""
FEATURE_NAMES = "feature_names"
"""The attribute of a model that lists the columns that it was fitted to, in their order."""
WEIGHTS, RECORD, CARD = "model.safetensors", "model.json", "README.md"
CHECKPOINTS = "training"
"""The subfolder in which `epsball train` keeps the checkpoints that a resumed training needs."""
FORMAT = "epsball model 1"
PREFIXES = ("hf", "timm", "ensemble", "http", "https")
"""What stands before the colon of a model that is no factory."""
MOST_SIZE, MOST_SIDES = 1 << 24, 8
"""The greatest size of an example's side, or number of classes; and the most of them."""


@dataclass(frozen=True, kw_only=True)
class Accuracies(Record):
    """The shares of `examples` examples that are classified correctly: `clean`, after FGSM, and after PGD-10.

    `on` says in words which examples; without a ball there are no attacks, and `fgsm` and `pgd` are None.
    """

    on: str
    examples: int
    clean: float
    fgsm: float | None = None
    pgd: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelRecord(Record):
    """What `model.json` says.

    `spec` builds the network (a built-in's name, or module:factory) for examples of `shape` and `classes` logits;
    `options` are those of the training command (data, objective, ball, ...); `training` is the record of the training;
    `sha256` is the checksum of the weights' file.
    """

    spec: str
    shape: tuple[int, ...]
    classes: int
    label_names: tuple[str, ...] | None
    options: dict[str, Any]
    training: dict[str, Any]
    accuracies: tuple[Accuracies, ...]
    sha256: str


def is_folder(spec: str, within: str | Path = "") -> bool:
    """Whether `spec` names a folder, relative to the folder `within`. A built-in's name always means the built-in.

    >>> is_folder("small-mlp"), is_folder("/")
    (False, True)
    """
    built_in = canonical(spec.partition(":")[0]) in MODELS
    return bool(spec) and not built_in and (Path(within) / Path(spec).expanduser()).is_dir()


def is_factory(spec: str) -> bool:
    """Whether `spec` names a factory module:function or file.py:function, which is code of a user's.

    >>> is_factory("nets:make"), is_factory("nets.py:make"), is_factory("preact-resnet18:width=4"), is_factory("hf:a/b")
    (True, True, False, False)
    """
    base, colon, rest = spec.partition(":")
    return bool(colon) and canonical(base) not in (*MODELS, *PREFIXES) and "=" not in rest


def read_record(path: str | Path) -> ModelRecord:
    """What the `model.json` of a folder says.

    Raises `BadInput` where the folder has none, or it is damaged, or another program's.
    """
    path = Path(path).expanduser()
    file = path / RECORD
    if not file.exists():
        raise BadInput(
            f"`model` must be a folder that `epsball train` wrote, got {path}, which has no {RECORD}; {_hint(path)}"
        )
    remedy = f"copy the folder again, or name network and weights: --model small-cnn --weights {path / WEIGHTS}"
    content = read_json(file, remedy)
    found = content.pop("format", None)
    if found != FORMAT:
        raise BadInput(f"{file} must have the format {FORMAT!r}, as `epsball train` writes it, got {found!r}; {remedy}")
    try:
        record = ModelRecord.from_record(content)
    except ValueError as error:
        raise BadInput(f"{file} is damaged ({error}); {remedy}") from error
    wrong_types = json.dumps(record.to_record(), sort_keys=True) != json.dumps(content, sort_keys=True)
    sizes = (record.classes, *record.shape)
    if wrong_types or not record.shape or min(sizes) < 1 or max(sizes) > MOST_SIZE or len(sizes) > MOST_SIDES:
        raise BadInput(
            f"{file} is damaged (a value is not of its type, or a size is not in 1 to {MOST_SIZE:,}); {remedy}"
        )
    if is_folder(record.spec) or (":" not in record.spec and canonical(record.spec) not in MODELS):
        raise BadInput(
            f"{file} must name a network of epsball or module:factory, got {record.spec!r}; is it of a newer version?"
        )
    return record


def check_weights(path: Path, record: ModelRecord) -> None:
    """Raise `BadInput` unless the folder holds the weights that its record was written for."""
    file = path / WEIGHTS
    if not file.is_file():
        raise BadInput(f"{file} is missing; copy the folder again, with all of its files")
    why = "its checksum is not the one in " + RECORD
    try:
        check_file(file)
        with safe_open(file, "np"):  # a header that fits, before gigabytes are added up
            same = checksum(file) == record.sha256
    except (OSError, ValueError, SafetensorError) as error:
        same, why = False, str(error)
    if not same:
        raise BadInput(
            f"{file} is damaged, or of another training: {why}; copy the folder again, or, if it was exchanged on "
            f"purpose, write --model {record.spec} --weights {file}"
        )


def checksum(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hint(path: Path) -> str:
    """What a folder without a model.json may be, and what to do."""
    if (path / CHECKPOINTS).is_dir():
        return f"its training was not finished: `epsball train --out {path} --resume` continues it"
    weights = sorted(file.name for pattern in ("*.safetensors", "*.pt", "*.pth") for file in path.glob(pattern))
    if weights:
        return f"name the network, too: --model small-cnn --weights {path / weights[0]}"
    return "is it the right one?"
