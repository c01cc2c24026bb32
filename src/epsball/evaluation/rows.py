"""The examples of a run as tasks, shard by shard: those in memory, or those that are read when they are needed.

A run takes its examples in the order of their ids, and a *place* is a number in that order. Data in memory are checked
and moved to the model's device and dtype once, as a whole. Lazy data (`LazyExamples`) are so treated a shard at a time,
and while one shard is attacked a thread reads the next. Rows that cannot be used stop the run, or, with `on_bad`
"skip", are left out and listed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.errors import BadInput
from epsball.common.limits import MIB
from epsball.common.shapes import flat
from epsball.data.bad_row import BadRow
from epsball.data.examples import Examples
from epsball.data.labels import labels
from epsball.data.lazy_examples import LazyExamples, listed
from epsball.diagnosis.setup_data import check_units
from epsball.engine.batches import MIN_BATCH
from epsball.evaluation.config import EvaluationConfig
from epsball.problem.inputs import examples_for
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective
from epsball.problem.task import AWAY, Task, task_of

MOST_ROWS = 1024
"""Examples of a shard, however small they are."""
FEW = 128
"""Examples of the first shard that are kept for later, of those that it was looked at by."""
SPREAD = 256
"""Examples that stand for all, where lazy data are sorted."""


def rows_of(
    model: Model, data: Examples | LazyExamples, ball: Ball, settings: EvaluationConfig, target: Any = None
) -> Rows:
    """The examples of a run of `model` in `ball`, at the largest radius of the settings.

    `target` is (n,) in the order of the data, or one class for all. Raises `BadInput` where there are no examples, an
    id is there twice, or targets and examples do not fit.
    """
    if not len(data):
        raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
    if len(data.ids.unique()) < len(data):
        raise BadInput("`ids` must be distinct, got some twice; number the rows of the unshuffled data")
    if settings.radii is not None and not settings.min_norm:
        ball = ball.with_eps(settings.radii[-1])
    size = settings.shard_size or rows_of_shard(data, settings.shard_mib)
    if isinstance(data, LazyExamples):
        return LazyRows(data, model, ball, target, seed=settings.seed, shard_size=size, on_bad=settings.on_bad)
    check_units(data.x, ball)
    return MemoryRows(data, ball, target, seed=settings.seed, shard_size=size)


def rows_of_shard(data: Examples | LazyExamples, mib: float) -> int:
    """As many examples as `mib` MiB of memory hold, from 1 to `MOST_ROWS`; a multiple of `MIN_BATCH`, so that model
    calls are full, where there are so many.

    >>> from epsball.data.arrays import from_arrays
    >>> rows_of_shard(from_arrays(torch.zeros(2, 3, 224, 224, dtype=torch.uint8), [0, 1]), 64)
    96
    """
    dtype = data.x.dtype if isinstance(data, Examples) else data.dtype
    rows = min(int(mib * MIB / max(math.prod(data.shape) * dtype.itemsize, 1)), MOST_ROWS)
    return rows - rows % MIN_BATCH if rows >= MIN_BATCH else max(rows, 1)


@dataclass(frozen=True, eq=False)
class Part:
    """The examples of a shard: the task of those that can be used, and those that cannot."""

    number: int
    task: Task
    bad: tuple[BadRow, ...] = ()


class Rows(ABC):
    """All examples of a run. `ids` (n,) are in their order, `shard_size` is the number of places of a shard.

    `first` is the task of the first examples (of all, in memory), `examples` the same before they were a task. `ball`
    is the ball of all, its rows in the order of the ids. Where rows are pickled they go without examples and `model`:
    `open_for` gives them one again.
    """

    portable: ClassVar[bool]
    """Whether a worker process can read the examples itself."""
    forwards: ClassVar[int]
    """Forward passes, in rows, that were made to see what the model answers."""
    ids: Int64[Tensor, " n"]
    shard_size: int
    first: Task
    examples: Examples
    ball: Ball

    def __len__(self) -> int:
        return len(self.ids)

    def open_for(self, model: Model) -> None:  # noqa: B027 - examples in memory have no model
        """Read the examples for this model, after they were pickled."""

    def available(self) -> bool:
        """Whether the examples can be read in this process."""
        return True

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-len(self) // self.shard_size)

    def places_of(self, ids: Any) -> Int64[Tensor, " m"]:
        """The places of examples by their ids (m,), which must be among those of the run."""
        return torch.from_numpy(np.searchsorted(self.ids.numpy(), np.asarray(ids)))

    def places(self, shard: int) -> Int64[Tensor, " m"]:
        """The places of a shard."""
        return torch.arange(shard * self.shard_size, min((shard + 1) * self.shard_size, len(self)))

    @property
    @abstractmethod
    def all_targets(self) -> Int64[Tensor, " n"]:
        """The targets in the order of the ids, -1 where there is none."""

    @property
    def has_target(self) -> bool:
        """Whether the examples have targets."""
        return bool((self.all_targets != AWAY).any())

    @property
    @abstractmethod
    def all_labels(self) -> Int64[Tensor, " n"] | None:
        """The labels in the order of the ids, where they are known without reading rows; -1 where one is none."""

    @abstractmethod
    def at(self, places: Int64[Tensor, " m"]) -> Task:
        """The task of some of the examples, without those that cannot be used."""

    @abstractmethod
    def part(self, shard: int) -> Part:
        """The examples of a shard."""

    @abstractmethod
    def parts(self, shards: Iterable[int]) -> Iterator[Part]:
        """The examples of these shards, one after the other, read ahead where that helps."""

    @abstractmethod
    def sample(self) -> Task:
        """Examples from which the set-up is read: the first ones, or some that are spread over all where these have not
        all classes."""

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Digests of the data and its labels for the run's record; see `records` for those of single examples."""


class MemoryRows(Rows):
    """Examples that are in memory, as one task."""

    portable, forwards = False, 0

    def __init__(self, examples: Examples, ball: Ball, target: Any, *, seed: int, shard_size: int) -> None:
        order = examples.ids.argsort(stable=True)
        aim = None if target is None else labels("target", target, examples.x)[order]
        bound, part = ball.bind(examples.x).rows(order), examples.rows(order)
        self.first = task_of(part.x, part.y, bound, target=aim, ids=part.ids, seed=seed)
        self.examples, self.shard_size = examples, shard_size
        self.ids, self.ball = part.ids.cpu(), bound

    @property
    def all_targets(self) -> Int64[Tensor, " n"]:
        return self.first.target

    @property
    def all_labels(self) -> Int64[Tensor, " n"]:
        return self.first.y

    def __getstate__(self) -> dict[str, Any]:
        none = self.first.rows(torch.arange(0, device=self.first.x.device))
        return self.__dict__ | {"first": none, "examples": None}

    def available(self) -> bool:
        return len(self.first.x) > 0

    def at(self, places: Int64[Tensor, " m"]) -> Task:
        return self.first.rows(places.to(self.first.x.device))

    def part(self, shard: int) -> Part:
        return Part(shard, self.at(self.places(shard)))

    def parts(self, shards: Iterable[int]) -> Iterator[Part]:
        return map(self.part, shards)

    def sample(self) -> Task:
        return self.first

    def identity(self) -> dict[str, str]:
        x, y, ids = self.first.x, self.first.y, self.first.noise.ids
        return {"digest": fingerprint.of_tensors(x, y, ids), "labels": fingerprint.of_tensors(y, ids)}


class LazyRows(Rows):
    """Examples that `source` reads when they are asked for; `ball` need not be bound, `target` is (n,) or None.

    What was read of the first shard, to see what the examples look like, is not read again.
    """

    portable, forwards = True, 1

    def __init__(
        self,
        source: LazyExamples,
        model: Model,
        ball: Ball,
        target: Any,
        *,
        seed: int,
        shard_size: int,
        on_bad: str,
    ) -> None:
        self.source, self.model, self.seed, self.shard_size, self.on_bad = source, model, seed, shard_size, on_bad
        self.order = source.ids.argsort(stable=True)
        self.ids = source.ids[self.order]
        self._units_checked = False
        self.outputs: int | None = None
        self.target = None if target is None else labels("target", target, source.ids)[self.order]
        self.ball = ball.rows(self.order)
        self._first = self._read(self.places(0))
        self.examples, _ = self._prepared(self._first)
        after = 1
        while not len(self.examples) and after < self.shards:  # a whole shard that cannot be used
            self.examples, _ = self._prepared(self._read(self.places(after)))
            after += 1
        if len(self.examples):
            self.outputs = _outputs(model, self.examples.x[:1])
            self._check_numbering()
            self.examples, _ = self._prepared((self.examples, ()))
            classes = min(self.examples.classes, self.outputs or self.examples.classes)  # the others are bad rows
            self.examples = replace(self.examples, classes=classes)
        if not len(self.examples):
            raise BadInput(f"`data` must hold an example that can be used, got none in {source.name}; look at its rows")
        self.ball = self._in_dtype(self.ball, self.examples.x)
        self.first = self._task(self.examples)
        self.none = self.first.rows(torch.arange(0, device=self.first.x.device))

    def _check_numbering(self) -> None:
        """Raise `BadInput` for labels from 1: the rows of the last class are not to blame."""
        y = self.source.y if self.source.y is not None else self.examples.y
        y = y[y >= 0]
        if len(y) and int(y.min()) == 1 and int(y.max()) == self.outputs:
            raise BadInput(
                f"`y` and `target` must be below the {self.outputs} classes of the model, got {self.outputs}; of "
                "labels from 1 write y - 1"
            )

    @property
    def all_targets(self) -> Int64[Tensor, " n"]:
        return torch.full_like(self.ids, AWAY) if self.target is None else self.target

    @property
    def all_labels(self) -> Int64[Tensor, " n"] | None:
        if self.source.y is None:
            return None
        y = self.source.y[self.order]  # -1 for a row without a usable one
        return y.masked_fill(y >= (self.outputs or math.inf), -1)

    def at(self, places: Int64[Tensor, " m"]) -> Task:
        return self._task(self._prepared(self._read(places))[0])

    def part(self, shard: int) -> Part:
        return self._part(shard, self._first if shard == 0 and self._first is not None else self._read_shard(shard))

    def parts(self, shards: Iterable[int]) -> Iterator[Part]:
        few = torch.arange(min(FEW, len(self.first.x)), device=self.first.x.device)
        self.first, self.examples = self.first.rows(few), self.examples.rows(few)
        with ThreadPoolExecutor(1, "epsball-rows") as ahead:
            waiting = iter(shards)
            number = next(waiting, None)
            read = None if number is None else ahead.submit(self._read_shard, number)
            while number is not None and read is not None:
                found, current = read.result(), number
                number = next(waiting, None)
                read = None if number is None else ahead.submit(self._read_shard, number)
                yield self._part(current, found)

    def sample(self) -> Task:
        known = self.all_labels
        if known is None or set(known[known >= 0].tolist()) <= set(self.first.y.tolist()):
            return self.first
        return self.at(torch.linspace(0, len(self) - 1, SPREAD).long().unique())

    def identity(self) -> dict[str, str]:
        return {"digest": self.source.identity(), "labels": ""}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_first": None, "first": self.none, "examples": None, "model": None}

    def open_for(self, model: Model) -> None:
        self.model = model
        first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
        if first is not None:  # it may be on a GPU here
            self.ball = self._in_dtype(self.ball, self.none.x.to(first.device))

    def available(self) -> bool:
        return self.source.available()

    def _read_shard(self, shard: int) -> tuple[Examples, tuple[BadRow, ...]]:
        first, self._first = self._first, None
        return first if shard == 0 and first is not None else self._read(self.places(shard))

    def _read(self, places: Int64[Tensor, " m"]) -> tuple[Examples, tuple[BadRow, ...]]:
        return self.source.read(self.order[places])

    def _part(self, shard: int, read: tuple[Examples, tuple[BadRow, ...]]) -> Part:
        examples, bad = self._prepared(read)
        return Part(shard, self._task(examples), bad)

    def _prepared(self, read: tuple[Examples, tuple[BadRow, ...]]) -> tuple[Examples, tuple[BadRow, ...]]:
        """Examples that were read, in the model's dtype, with its numbers of classes and on its device, and the rows
        that cannot be used. Raises `BadInput` for these where they stop the run."""
        examples, bad = read
        if len(examples):
            examples = examples_for(self.model, examples, self.ball.rows(self.places_of(examples.ids.cpu())))
            strange = dict(self._strange(examples))
            if not self._units_checked:  # where all are in other units, the rows are not to blame
                check_units(examples.x, self.ball)
                if len(strange) == len(examples):
                    self.ball.rows(self.places_of(examples.ids.cpu())).bind(examples.x)
                self._units_checked = True
            if strange:
                fine = torch.tensor([row for row in range(len(examples)) if row not in strange], dtype=torch.long)
                ids = examples.ids.tolist()
                more = [BadRow(ids[row], self.source.name_of(ids[row]), why) for row, why in strange.items()]
                examples = examples.rows(fine.to(examples.x.device))
                bad = tuple(sorted((*bad, *more), key=lambda row: row.id))
        if bad and not self.source.available():
            raise BadInput(
                f"`data` {self.source.name} is not there any more, since {bad[0].name}; bring it back, and start again "
                "with the same arguments to go on"
            )
        if bad and self.on_bad == "stop":
            raise BadInput(
                f"`data` must hold rows that can be used, but of the {len(examples) + len(bad):,} rows of "
                f"{self.source.name} that were just read {len(bad):,} cannot: {listed(bad)}; mend them and start again "
                "with the same arguments, or leave such rows out with on_bad='skip' (--on-bad skip)"
            )
        return examples, bad

    def _strange(self, examples: Examples) -> Iterator[tuple[int, str]]:
        """Rows that the source can use and the run cannot, and why: labels that the model has no output for (where
        their number is known), and values outside of the ball's box."""
        for row in (examples.y >= (self.outputs or math.inf)).nonzero().flatten().tolist():
            yield row, f"its label is {int(examples.y[row])}, and the model has {self.outputs} outputs"
        lo, hi = self.ball.lo, self.ball.hi
        if isinstance(lo, Tensor) or isinstance(hi, Tensor) or not examples.x.numel():
            return
        low, high = flat(examples.x).aminmax(dim=1)
        ends = torch.tensor([lo, hi], dtype=examples.x.dtype, device=low.device)  # as the dtype of x sees them
        for row in ((low < ends[0]) | (high > ends[1])).nonzero().flatten().tolist():
            values = f"from {low[row].item():.4g} to {high[row].item():.4g}"
            yield row, f"its values are {values}, outside of the ball's box [{lo:.4g}, {hi:.4g}]"

    def _task(self, examples: Examples) -> Task:
        """The task of prepared examples."""
        if not len(examples):
            return self.none
        places = self.places_of(examples.ids.cpu())
        target = None if self.target is None else self.target[places]
        ids = examples.ids
        return task_of(examples.x, examples.y, self.ball.rows(places), target=target, ids=ids, seed=self.seed)

    @staticmethod
    def _in_dtype(ball: Ball, x: Tensor) -> Ball:
        """The ball with its tensors as a bound one has them."""
        tensors = {
            name: part.to(x.device, torch.bool if name == "mask" else x.dtype)
            for name in ball.parts()
            if isinstance(part := getattr(ball, name), Tensor)
        }
        return replace(ball, **tensors) if tensors else ball


def _outputs(model: Model, x: Tensor) -> int | None:
    """The number of the model's logits at x (n, *shape); None for a model of labels."""
    with Objective(model, cross_entropy, needs="label") as objective:
        output = objective.forward(x)
    return output.shape[1] if output.is_floating_point() else None
