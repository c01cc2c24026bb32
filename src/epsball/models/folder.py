"""The folder of a trained model: its weights, how the network is built, how it was trained, and a card for people.

`model.safetensors` holds the weights, `model.json` what builds the network and the record of its training, `README.md`
says it in words, with the header that the Hugging Face Hub reads. None of the files holds code. A network of the user's
own is named, as in `--model module:factory`, and imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.common.json_files import write_json
from epsball.models.card import markdown
from epsball.models.door import Asked, Loaded
from epsball.models.factory import make_with_weights
from epsball.models.model_record import (
    CARD,
    FORMAT,
    LABEL_NAMES,
    RECORD,
    WEIGHTS,
    Accuracies,
    ModelRecord,
    check_weights,
    checksum,
    is_factory,
    read_record,
)
from epsball.models.weights import save_weights


def write_model_folder(
    path: str | Path,
    model: nn.Module,
    *,
    spec: str,
    shape: Sequence[int],
    classes: int,
    training: Mapping[str, Any],
    label_names: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    accuracies: Sequence[Accuracies] = (),
) -> None:
    """Keep a trained model in the folder `path`, for `read_model_folder` and `--model PATH`.

    `spec` is what builds the network: the name of a built-in with its options, or module:factory; `shape` is that of
    one example, `classes` the number that the network was built for. `training` is the record of the training
    (`FitResult.to_record`), `options` (of the command line: data, ball, objective, and so on) is for the card as well.
    Files of an earlier model are overwritten.
    """
    path = Path(path).expanduser()
    save_weights(model, path / WEIGHTS)
    record = ModelRecord(
        spec=spec,
        shape=tuple(shape),
        classes=classes,
        label_names=None if label_names is None else tuple(label_names),
        options=dict(options or {}),
        training=dict(training),
        accuracies=tuple(accuracies),
        sha256=checksum(path / WEIGHTS),
    )
    write_whole(path / CARD, lambda draft: draft.write_text(markdown(record, path), encoding="utf-8"))
    write_json(path / RECORD, {"format": FORMAT} | record.to_record(), default=str)


def read_model_folder(path: str | Path, *, trust: bool = False) -> nn.Module:
    """The model that a folder keeps, with its weights, and the names of its classes as `label_names`.

    Nothing that its files name is run, unless `trust` is true: then a network module:factory is imported, the current
    directory first.

    Raises `BadInput` for a folder that is none, or not finished, for one that is damaged, and, without `trust`, for one
    that names a factory.
    """
    path = Path(path).expanduser()
    record = read_record(path)
    if is_factory(record.spec) and not trust:
        raise BadInput(
            f"{path / RECORD} names the network {record.spec}, which is code that was not run; where you trust it, "
            f"write --model {record.spec} --weights {path / WEIGHTS}, or add --trust (in Python trust=True)"
        )
    check_weights(path, record)
    try:
        model, _ = make_with_weights(record.spec, record.shape, record.classes, path / WEIGHTS)
    except BadInput as error:
        raise BadInput(f"{path / RECORD} names the model {record.spec!r}: {error}") from error
    if record.label_names is not None:
        setattr(model, LABEL_NAMES, record.label_names)
    return model


def open_folder(asked: Asked) -> Loaded:
    """The model of a folder that `epsball train` wrote."""
    folder = Path(asked.spec).expanduser()
    record = read_record(folder)
    if asked.weights is not None:
        raise BadInput(
            f"`weights` must be left out with the folder {folder}, which has its own, got {asked.weights}; for others "
            f"name the network: {record.spec}"
        )
    if asked.shape is not None and record.shape != asked.shape:
        raise BadInput(
            f"`data` must have examples of shape {record.shape} for the model in {folder}, got {asked.shape}; where "
            f"the network takes other shapes, write --model {record.spec} --weights {folder / WEIGHTS}"
        )
    model = read_model_folder(folder, trust=asked.trust)
    return Loaded(model=model, label_names=record.label_names, shape=record.shape)
