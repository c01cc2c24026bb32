"""The folder of a trained model: its weights, how the network is built, how it was trained, and a card for people.

`model.safetensors` holds the weights, `model.json` what builds the network and the record of its training, `README.md`
says it in words, with the header that the Hugging Face Hub reads. None of the files holds code. A network of the user's
own is named, as in `--model module:factory`, and imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.models.card import markdown
from epsball.models.factory import make_network
from epsball.models.model_record import (
    CARD,
    FORMAT,
    RECORD,
    WEIGHTS,
    Accuracies,
    ModelRecord,
    check_weights,
    checksum,
    read_record,
)
from epsball.models.weights import load_weights, save_weights


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
    text = json.dumps({"format": FORMAT} | record.to_record(), indent=1, allow_nan=False, default=str)
    write_whole(path / RECORD, lambda draft: draft.write_text(text))


def read_model_folder(path: str | Path) -> nn.Module:
    """The model that a folder keeps, with its weights.

    No code is run from its files; but a network of module:factory is imported, the current directory first.

    Raises `BadInput` for a folder that is none, or not finished, and for one that is damaged.
    """
    path = Path(path).expanduser()
    record = read_record(path)
    check_weights(path, record)
    try:
        model = make_network(record.spec, record.shape, record.classes)
        load_weights(model, path / WEIGHTS)
    except BadInput as error:
        raise BadInput(f"{path / RECORD} names the model {record.spec!r}: {error}") from error
    return model
