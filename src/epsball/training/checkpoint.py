"""Checkpoints of a training: tensors by name, written by all processes together, there whole or not at all.

A checkpoint is a folder of torch.distributed.checkpoint, so it can be read by another number of processes than wrote
it. Words and numbers are kept as the bytes of a JSON text. It is written beside its place and renamed. torch's reader
unpickles the folder's index: go on from your own checkpoints only.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load as load_together
from torch.distributed.checkpoint.state_dict_saver import save as save_together

from epsball.common.errors import BadInput
from epsball.training import ranks

PREFIX = "checkpoint-"
WORDS = "words"
KEPT = 2


def save(folder: Path, number: int, tensors: dict[str, Tensor], words: dict[str, Any]) -> None:
    """Write the checkpoint `number` of a training; older ones but the last go. UserAttack by all processes."""
    text = torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)
    state = {WORDS: text} | {name: value.detach().cpu() for name, value in tensors.items()}
    draft, place = folder / f".{PREFIX}{number:09d}", folder / f"{PREFIX}{number:09d}"
    if ranks.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
    ranks.together()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        save_together(state, checkpoint_id=draft, no_dist=ranks.world() == 1)
    ranks.together()
    if ranks.rank() == 0:
        os.replace(draft, place)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        for old in written(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)


def written(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    return sorted(folder.glob(f"{PREFIX}*"))


def latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and words of the last checkpoint, None where there is none; the same in all processes.

    Raises `BadInput` for one that cannot be read.
    """
    found = ranks.agreed([str(path) for path in written(folder)])
    if not found:
        return None
    place = Path(found[-1])
    try:
        kinds = FileSystemReader(place).read_metadata().state_dict_metadata
        state = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in kinds.items()}  # type: ignore[union-attr]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_together(state, checkpoint_id=place, no_dist=ranks.world() == 1)
        words = json.loads(bytes(state.pop(WORDS).tolist()))
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        raise BadInput(
            f"`out` must hold readable checkpoints, but {place} is damaged ({type(error).__name__}: {error}); "
            "delete it, and the training goes on from the one before"
        ) from error
    return state, words
