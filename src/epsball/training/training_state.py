"""What changes while a training runs: all that a checkpoint holds, and a resume needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from cattrs import structure, unstructure
from cattrs.errors import BaseValidationError
from torch import Tensor, nn

from epsball.data.examples import Examples
from epsball.training import distributed
from epsball.training.averaging import WeightAverage, load_tensors, model_tensors
from epsball.training.validation import Check


@dataclass(eq=False, kw_only=True)
class Counters:
    """The part of the state that JSON can hold.

    `epoch` and `batch` come next; `step` counts the optimiser's steps. `lr_scale` multiplies the learning rate;
    `switched` says that PGD training has replaced the objective. `reference` is the robust accuracy that the next check
    is compared with. `averaged` and `good_averaged` count the steps in the averaged weights, now and in the good ones.
    `epoch_sums` are sums of the logged scalars over the epoch's rows, with the number of rows; `recent` the training's
    own adversarial accuracies since the last check; `plan` is that of the accelerated network, by its `to_dict`.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    rollbacks: int = 0
    switched: bool = False
    finished: bool = False
    lr_scale: float = 1.0
    reference: float = 0.0
    averaged: int = 0
    good_averaged: int = 0
    seconds: float = 0.0
    plan: dict[str, Any] | None = None
    best_check: Check | None = None
    epoch_sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


@dataclass(eq=False, kw_only=True)
class TrainingState(Counters):
    """The model, its optimiser and averaged weights, and how far the training is.

    `data` are the epoch's examples, where the objective made them, `memory` its tensors; `good` are weights and
    optimiser to roll back to, `best` the weights to end with.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    data: Examples | None = None
    memory: dict[str, Tensor] = field(default_factory=dict)
    good: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)

    def save_good(self) -> None:
        """Remember weights and optimiser, to roll back to."""
        now = self._current() | _joined({"average": self.average.values})
        self.good = {name: value.detach().clone() for name, value in now.items()}
        self.good_averaged = self.average.count

    def roll_back(self) -> None:
        """Restore the weights and the optimiser that were last good."""
        groups = _grouped(self.good)
        load_tensors(self.model, groups["model"])
        self._load_optimizer(groups.get("optimizer", {}))
        self.average.values = {name: value.clone() for name, value in groups.get("average", {}).items()}
        self.average.count = self.good_averaged
        self.memory.clear()

    def save_best(self, check: Check) -> None:
        """Remember the weights, or their averages, to end with."""
        self.best_check = check
        self.best = {name: value.detach().clone() for name, value in self._final().items()}

    def load_best(self) -> None:
        """Give the model the weights to end with."""
        load_tensors(self.model, self.best or {name: value.clone() for name, value in self._final().items()})

    def _final(self) -> dict[str, Tensor]:
        return self.average.values or model_tensors(self.model)

    def _current(self) -> dict[str, Tensor]:
        return _joined({"model": model_tensors(self.model), "optimizer": self._optimizer_tensors()})

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it, as a checkpoint takes it: tensors by name, and the counters as JSON can hold them."""
        data, self.averaged = self.data, self.average.count
        groups = {"average": self.average.values, "good": self.good, "best": self.best}
        groups["memory"] = _joined({str(distributed.rank()): self.memory})  # each process has its own
        groups["data"] = {} if data is None else {"x": data.x, "y": data.y, "ids": data.ids}
        return self._current() | _joined(groups), unstructure(self, unstructure_as=Counters)

    def unpack(self, tensors: dict[str, Tensor], counters: dict[str, Any], original: Examples) -> None:
        """Load what `pack` gave; `original` are the examples before an objective added to them.

        Raises `ValueError`, before anything is loaded, for what is not of this training.
        """
        groups = _grouped(tensors)
        self._check(groups, original)
        vars(self).update(vars(_counters(counters)))
        load_tensors(self.model, groups["model"])
        self._load_optimizer(groups.get("optimizer", {}))
        device = next(self.model.parameters()).device
        self.average.values, self.good, self.best, memory = (
            {name: value.to(device) for name, value in groups.get(group, {}).items()}
            for group in ("average", "good", "best", "memory")
        )
        self.average.count = self.averaged
        memories = _grouped(memory)
        self.memory.update(memories.get(str(distributed.rank()), memories.get("0", {})))
        if "data" in groups:
            self.data = replace(original, **groups["data"])

    def _check(self, groups: dict[str, dict[str, Tensor]], original: Examples) -> None:
        """Raise `ValueError` for tensors that are not, name by name and shape by shape, those of this training."""
        model, good = model_tensors(self.model), _grouped(groups.get("good", {}))
        for found in (groups.get("model", {}), groups.get("best"), groups.get("average"), good.get("model")):
            shapes = None if found is None else {name: value.shape for name, value in found.items()}
            if shapes is not None and shapes != {name: value.shape for name, value in model.items()}:
                raise ValueError("it holds the weights of another network")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for states in (groups.get("optimizer", {}), good.get("optimizer", {})):
            for index, parts in _grouped(states).items():
                known = index.isdecimal() and int(index) < len(parameters)
                if not known or any(part.shape not in ((), parameters[int(index)].shape) for part in parts.values()):
                    raise ValueError("it holds the state of another optimiser")
        if data := groups.get("data"):
            n = len(data["x"]) if set(data) == {"x", "y", "ids"} and data["x"].ndim else -1
            if any(data[part].shape != (n,) or data[part].dtype != torch.int64 for part in ("y", "ids") if n >= 0) or (
                n < 0 or data["x"].shape[1:] != original.x.shape[1:]
            ):
                raise ValueError("it holds examples of another shape")

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        return {name: value for name, value in _joined(state).items() if isinstance(value, Tensor)}

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state = {
            int(index): {name: value.clone() for name, value in parts.items()}
            for index, parts in _grouped(tensors).items()
        }
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def _counters(values: dict[str, Any]) -> Counters:
    """The counters out of JSON. Raises `ValueError` for what are none."""
    try:
        found = structure(values, Counters)
    except BaseValidationError as error:
        raise ValueError(f"no counters: {error.exceptions[0]!r}") from error
    whole = (found.epoch, found.batch, found.step, found.rollbacks, found.averaged, found.good_averaged)
    if not all(0 <= value < 1 << 40 for value in whole):
        raise ValueError(f"its counters must be whole numbers >= 0, got {whole}")
    return found


def _joined(groups: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """{"a": {"b": t}} as {"a.b": t}; `_grouped` is the inverse."""
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def _grouped(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{"a.b": t} as {"a": {"b": t}}."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = value
    return groups
