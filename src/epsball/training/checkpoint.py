"""Checkpoints of a training: tensors by name, written by all processes together, there whole or not at all.

A checkpoint is a folder. `checkpoint.json` holds the counters, `NUMBER.safetensors` the tensors that process NUMBER has
and none before it: what all processes have in common is written once, and any number of processes can read it again.
Both formats hold no code, and each file has a checksum. The folder is written beside its place and renamed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from epsball.common.errors import BadInput
from epsball.common.json_files import read_json, write_json
from epsball.common.tensor_files import read_tensors, write_tensors
from epsball.training import distributed

PREFIX = "checkpoint-"
VALUES = "checkpoint.json"
FORMAT = "epsball checkpoint 2"
NEWEST = 2
"""Number of checkpoints that stay."""
MOST_PROCESSES = 100_000
REMEDY = "delete it, and the training resumes from the one before"


def save(folder: Path, number: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write the checkpoint `number` of a training, and delete older ones but the last. Called by all processes."""
    draft, place = folder / f".{PREFIX}{number:09d}", folder / f"{PREFIX}{number:09d}"
    rank, names = distributed.rank(), distributed.gather(sorted(tensors))
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
    distributed.barrier()
    before = set().union(*names[:rank])
    write_tensors(_file(draft, rank), {name: value for name, value in tensors.items() if name not in before})
    distributed.barrier()
    if rank == 0:
        index = {"format": FORMAT, "processes": len(names), "values": values}
        write_json(draft / VALUES, index, allow_nan=True)
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


def load_latest(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """The last checkpoint with its tensors and values, None where there is none; the same in all processes.

    Raises `BadInput` for one that cannot be read.
    """
    found = distributed.broadcast([str(path) for path in checkpoints_in(folder)])
    if not found:
        return None
    place = Path(found[-1])
    if (place / ".metadata").exists() and not (place / VALUES).exists():
        raise BadInput(
            f"`out` must hold checkpoints of this version, but {place} is of an earlier one: a pickle, which may run "
            "code and is not opened; choose a new directory"
        )
    try:
        index = read_json(place / VALUES, REMEDY)
        processes, values = index.get("processes"), index.get("values")
        if index.get("format") != FORMAT or not isinstance(values, dict):
            raise BadInput(f"its {VALUES} must have the format {FORMAT!r}, got {index.get('format')!r}")
        if not isinstance(processes, int) or not 1 <= processes <= MOST_PROCESSES:
            raise BadInput(f"`processes` must be a whole number >= 1, got {processes!r}")
        state: dict[str, Tensor] = {}
        for process in range(processes):
            state |= read_tensors(_file(place, process))
    except (OSError, ValueError) as error:
        raise damaged(place, error) from error
    return place, state, values


def damaged(place: Path, error: Exception) -> BadInput:
    """The error of a checkpoint that cannot be read, or does not fit the training."""
    return BadInput(f"`out` must hold readable checkpoints, but {place} is damaged ({error}); {REMEDY}")


def _file(folder: Path, process: int) -> Path:
    return folder / f"{process:05d}.safetensors"
