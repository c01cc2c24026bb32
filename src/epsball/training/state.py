"""What a training is made of while it runs: all that a checkpoint holds, and a resume needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from epsball.acceleration.plan import Plan
from epsball.data.examples import Examples
from epsball.training import ranks
from epsball.training.averaging import Averaged, put, tensors_of
from epsball.training.validation import Check

COUNTERS = (
    *("epoch", "batch", "done", "rollbacks", "switched", "finished"),
    *("scale", "peak", "good_count", "sums", "recent"),
)


@dataclass(eq=False)
class State:
    """The model, its optimiser and averages, and how far the training is.

    `epoch` and `batch` are what comes next, `done` counts the optimiser's steps. `scale` multiplies the learning rate,
    `switched` says that PGD training took the objective's place. `peak` is the robust accuracy to hold the next look
    against; `sums`, with the rows they are over, and `recent` are what is logged about the epoch and since the last
    check. `memory` is the objective's; `good` are the weights to come back to, `best` those to end with; `data` the
    epoch's examples, where an objective made them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: Averaged
    epoch: int = 0
    batch: int = 0
    done: int = 0
    rollbacks: int = 0
    switched: bool = False
    finished: bool = False
    scale: float = 1.0
    good_count: int = 0
    peak: float = 0.0
    seconds: float = 0.0
    plan: Plan | None = None
    data: Examples | None = None
    best_check: Check | None = None
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    memory: dict[str, Tensor] = field(default_factory=dict)
    good: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)

    def keep_good(self) -> None:
        """Remember weights and optimiser, to come back to."""
        now = self._now() | joined({"average": self.average.values})
        self.good = {name: value.detach().clone() for name, value in now.items()}
        self.good_count = self.average.count

    def back_to_good(self) -> None:
        """Weights and optimiser as they were when they were last good."""
        groups = grouped(self.good)
        put(self.model, groups["model"])
        self._put_optimizer(groups.get("optimizer", {}))
        self.average.values = {name: value.clone() for name, value in groups.get("average", {}).items()}
        self.average.count = self.good_count
        self.memory.clear()

    def keep_best(self, check: Check) -> None:
        """Remember the weights, or their averages, to end with."""
        self.best_check = check
        self.best = {name: value.detach().clone() for name, value in self._answer().items()}

    def end(self) -> None:
        """Give the model the weights to end with."""
        put(self.model, self.best or {name: value.clone() for name, value in self._answer().items()})

    def _answer(self) -> dict[str, Tensor]:
        return self.average.values or tensors_of(self.model)

    def _now(self) -> dict[str, Tensor]:
        return joined({"model": tensors_of(self.model), "optimizer": self._optimizer_tensors()})

    def packed(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All of it, as a checkpoint takes it: tensors by name, and what JSON can hold."""
        data = self.data
        groups = {"average": self.average.values, "good": self.good, "best": self.best}
        groups["memory"] = joined({str(ranks.rank()): self.memory})  # each process has its own
        groups["data"] = {} if data is None else {"x": data.x, "y": data.y, "ids": data.ids}
        words = {name: getattr(self, name) for name in COUNTERS}
        words |= {"averaged": self.average.count, "seconds": self.seconds, "history": self.history}
        words |= {"checks": [asdict(check) for check in self.checks]}
        words |= {"best_check": None if self.best_check is None else asdict(self.best_check)}
        words |= {"plan": None if self.plan is None else self.plan.to_dict()}
        return self._now() | joined(groups), words

    def unpack(self, tensors: dict[str, Tensor], words: dict[str, Any], base: Examples) -> None:
        """Take up what `packed` gave; `base` are the examples before an objective added to them."""
        groups = grouped(tensors)
        put(self.model, groups["model"])
        self._put_optimizer(groups.get("optimizer", {}))
        here = next(self.model.parameters()).device
        average, memory, good, best = (
            {name: value.to(here) for name, value in groups.get(group, {}).items()}
            for group in ("average", "memory", "good", "best")
        )
        memories = grouped(memory)
        self.average.values, self.average.count, self.good, self.best = average, words["averaged"], good, best
        self.memory.update(memories.get(str(ranks.rank()), memories.get("0", {})))
        if "data" in groups:
            self.data = replace(base, **groups["data"])
        for name in (*COUNTERS, "seconds", "history"):
            setattr(self, name, words[name])
        self.checks = [Check(**check) for check in words["checks"]]
        self.best_check = None if words["best_check"] is None else Check(**words["best_check"])
        self.plan = None if words["plan"] is None else Plan.from_dict(words["plan"])

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        state = self.optimizer.state_dict()["state"]
        return {
            f"{index}.{name}": value
            for index, parts in state.items()
            for name, value in parts.items()
            if isinstance(value, Tensor)
        }

    def _put_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {
            int(index): {name: value.clone() for name, value in parts.items()}
            for index, parts in grouped(tensors).items()
        }
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


def joined(groups: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """{"a": {"b": t}} as {"a.b": t}; `grouped` is the way back."""
    return {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}


def grouped(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{"a.b": t} as {"a": {"b": t}}."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = value
    return groups
