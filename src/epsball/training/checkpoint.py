"""Checkpoints of a training: tensors by name, written by all processes together, there whole or not at all.

A checkpoint is a folder of torch.distributed.checkpoint, so it can be read by another number of processes than wrote
it; the counters in it are the bytes of a JSON text. It is written beside its place and renamed. torch's reader
unpickles the folder's index: resume from your own checkpoints only.
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
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from epsball.common.errors import BadInput
from epsball.training import distributed

PREFIX = "checkpoint-"
JSON = "json"
NEWEST = 2
"""Number of checkpoints that stay."""


def save(folder: Path, number: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write the checkpoint `number` of a training, and delete older ones but the last. Called by all processes."""
    text = torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)
    state = {JSON: text} | {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    draft, place = folder / f".{PREFIX}{number:09d}", folder / f"{PREFIX}{number:09d}"
    if distributed.rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
    distributed.barrier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process only
        save_distributed(state, checkpoint_id=draft, no_dist=distributed.world_size() == 1)
    distributed.barrier()
    if distributed.rank() == 0:
        os.replace(draft, place)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        for old in checkpoints_in(folder)[:-NEWEST]:
            shutil.rmtree(old, ignore_errors=True)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the oldest first."""
    return sorted(folder.glob(f"{PREFIX}*"))


def load_latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and values of the last checkpoint, None where there is none; the same in all processes.

    Raises `BadInput` for one that cannot be read.
    """
    found = distributed.broadcast([str(path) for path in checkpoints_in(folder)])
    if not found:
        return None
    place = Path(found[-1])
    try:
        kinds = FileSystemReader(place).read_metadata().state_dict_metadata
        state = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in kinds.items()}  # type: ignore[union-attr]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_distributed(state, checkpoint_id=place, no_dist=distributed.world_size() == 1)
        values = json.loads(bytes(state.pop(JSON).tolist()))
    except Exception as error:  # a damaged file raises whatever its reader comes across
        raise BadInput(
            f"`out` must hold readable checkpoints, but {place} is damaged ({type(error).__name__}: {error}); "
            "delete it, and the training resumes from the one before"
        ) from error
    return state, values
