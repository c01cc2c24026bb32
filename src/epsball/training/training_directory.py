"""The directory of a training: checkpoints to resume from, and `training.json`, the record so far."""

from __future__ import annotations

import json
import logging
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball.common import fingerprint
from epsball.common.errors import BadInput
from epsball.training import checkpoint, distributed
from epsball.training.averaging import model_tensors
from epsball.training.config import TrainingConfig
from epsball.training.fit_result import FitResult
from epsball.training.training_data import TrainingData
from epsball.training.training_objective import ObjectiveLike
from epsball.training.training_state import TrainingState

log = logging.getLogger(__name__)

SAVE_EVERY = 10.0
"""Seconds between two checkpoints within an epoch, at least; there is always one at an epoch's end."""
MACHINE = ("threads", "device", "processes", "versions")
"""What may differ between a training and its resume."""
IN_WORDS = ("objective", "ball", "data")
"""What is described in words and compared by fingerprints, after the settings."""


@dataclass(eq=False)
class TrainingDirectory:
    """Where a training is saved; nowhere if `path` is None. `identity` is what a resume must have in common with it."""

    path: Path | None
    identity: dict[str, Any]
    saved_at: float = field(default_factory=time.perf_counter)

    def is_due(self) -> bool:
        """Whether a checkpoint within an epoch is due; the same in all processes."""
        return self.path is not None and bool(distributed.broadcast(time.perf_counter() - self.saved_at >= SAVE_EVERY))

    def save(self, state: TrainingState, result: FitResult) -> None:
        """Write a checkpoint of the state, and the record."""
        if self.path is None:
            return
        tensors, counters = state.pack()
        # A training that finished without another step has a number of its own.
        number = 2 * state.step + state.finished
        checkpoint.save(self.path, number, tensors, {"identity": self.identity, "counters": counters})
        if distributed.rank() == 0:
            result.save(self.path / "training.json")
        self.saved_at = time.perf_counter()

    def resume(self, state: TrainingState, data: TrainingData) -> bool:
        """Load the last checkpoint, if there is one. Raises `BadInput` where it is of another training."""
        found = None if self.path is None else checkpoint.load_latest(self.path)
        if found is None:
            return False
        place, tensors, values = found
        identity, counters = values.get("identity"), values.get("counters")
        if not isinstance(identity, dict) or not isinstance(counters, dict):
            raise checkpoint.damaged(place, BadInput("it has no identity or no counters"))
        for name, value in self.identity.items():
            if (before := identity.get(name)) != value:
                raise BadInput(
                    f"`out` must be a training with the same {name}, but {self.path} was begun with {before!r} and not "
                    f"{value!r}; choose a new directory, or the same {name}"
                )
        try:
            state.unpack(tensors, counters, data.train)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # tensors of another training
            raise checkpoint.damaged(place, error) from error
        log.info("resumed from step %d, in epoch %d", state.step, state.epoch + 1)
        return True


def description_of(
    data: TrainingData, objective: ObjectiveLike, config: TrainingConfig, model: nn.Module
) -> dict[str, Any]:
    """The training in words and numbers, for its record."""
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "data": data.train.name,
        "examples": len(data.train),
        "held_out": 0 if data.held_out is None else len(data.held_out),
        "ball": None if data.ball is None else repr(data.ball),
        "objective": re.sub(r" at 0x[0-9a-f]+", "", repr(objective)),
        **config.to_record(),
        "threads": torch.get_num_threads(),
        "device": str(next(model.parameters()).device),
        "processes": distributed.world_size(),
    }


def identity_of(
    description: dict[str, Any], data: TrainingData, objective: ObjectiveLike, model: nn.Module
) -> dict[str, Any]:
    """What a resume must have in common with the training, as JSON gives it back: the description without the machine.

    Model, data, objective and ball are compared by fingerprints.
    """
    tensors = [tensor for part in data.parts for tensor in (part.x, part.y, part.ids)]
    fingerprints = {
        "model": fingerprint.described([[name, list(part.shape)] for name, part in model_tensors(model).items()]),
        "objective": fingerprint.described(objective),
        "ball": fingerprint.described(data.ball),
        "data": fingerprint.of_tensors(*tensors),
    }
    settings = {name: value for name, value in description.items() if name not in (*MACHINE, *IN_WORDS)}
    return json.loads(json.dumps(settings | fingerprints))
