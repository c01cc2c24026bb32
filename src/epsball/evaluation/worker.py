"""What runs in a worker process: a shard at a time, on a plan that it unpacks once.

The driver (workers.py) has the run directory and writes what comes back: a worker needs neither it nor a shared file
system. Records are those that the driver would have made itself.
"""

from __future__ import annotations

import pickle
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from epsball.acceleration.accelerate import accelerate
from epsball.acceleration.plan import AccelerationPlan
from epsball.evaluation.plan import EvaluationPlan
from epsball.evaluation.rows import Part
from epsball.evaluation.shard import Shard
from epsball.evaluation.stage_tables import StageTables
from epsball.models.door import Asked
from epsball.models.frozen import frozen
from epsball.models.given import as_model
from epsball.models.opening import open_model
from epsball.problem.task import Task

TICK = 0.5
"""Seconds between two reports of a worker."""


@dataclass(frozen=True, eq=False)
class Job:
    """A shard to be run: its number, the tables of its stages that are there, and its examples, or None where the
    worker reads them."""

    shard: int
    kept: dict[str, pa.Table]
    part: Part | None


@dataclass(frozen=True, eq=False)
class Done:
    """A shard that was run: the tables that were made, its records, and the warnings that were given.

    `made` is None where the data are not there for this worker to read.
    """

    shard: int
    made: dict[str, pa.Table] | None
    records: pa.Table | None = None
    warned: tuple[tuple[type[Warning], str], ...] = ()


@dataclass(frozen=True, eq=False)
class Packed:
    """A plan without its examples, to be sent to workers: `opened` says how its model is opened anew, where it was not
    put in; `threads` of torch and the `device` of the model are those that a worker takes."""

    plan: EvaluationPlan
    opened: Asked | None
    threads: int
    device: str | None

    def unpacked(self) -> EvaluationPlan:
        """The plan, with the model on its device."""
        torch.set_num_threads(self.threads)
        plan = self.plan
        if self.opened is not None:
            plan = replace(plan, model=as_model(open_model(self.opened).model))
        plan.rows.open_for(plan.model)
        for model in (plan.model, plan.source):
            if isinstance(model, nn.Module) and self.device is not None:
                model.to(self.device)
        return plan


_unpacked: dict[str, EvaluationPlan] = {}
"""The plan of the run that this process works for, by the run's key."""


def run_job(key: str, packed: Callable[[], bytes], job: Job, report: Callable[[str, int], None]) -> Done:
    """Run a shard of the run `key`, whose plan is `packed`."""
    if key not in _unpacked:
        _unpacked.clear()
        _unpacked[key] = pickle.loads(packed()).unpacked()
    plan = _unpacked[key]
    if job.part is None and not plan.rows.available():
        return Done(job.shard, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        part = plan.rows.part(job.shard) if job.part is None else moved(job.part, plan.model)
        plan = _unpacked[key] = _accelerated(plan, part.task)
        tables = StageTables()
        for name, table in job.kept.items():
            tables.keep(job.shard, name, table)
        with ExitStack() as stack:
            stack.enter_context(frozen(plan.model))
            if plan.source is not None:
                stack.enter_context(frozen(plan.source))
            objectives = [plan.objective(stage) for stage in plan.stages]
            records = Shard(plan, job.shard, part.task, part.bad, objectives, tables).run(_seldom(report))
    names = ["clean", *(stage.name for stage in plan.stages)]
    made = {name: table for name, table in tables.of_shard(job.shard, names).items() if name not in job.kept}
    warned = tuple(dict.fromkeys((one.category, str(one.message)) for one in caught))
    return Done(job.shard, made, records, warned)


def moved(part: Part, model: Any) -> Part:
    """The part with its examples on the device of the model."""
    first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    if first is None or first.device == part.task.x.device:
        return part
    return replace(part, task=_on(part.task, first.device))


def _on(task: Task, device: torch.device) -> Task:
    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    ball = replace(task.ball, **{name: there(getattr(task.ball, name)) for name in task.ball.parts()})
    noise = replace(task.noise, ids=there(task.noise.ids), restart=there(task.noise.restart))
    parts = {name: there(getattr(task, name)) for name in ("x", "y", "target", "aim", "clean", "warm_start")}
    return replace(task, ball=ball, noise=noise, **parts)


def _accelerated(plan: EvaluationPlan, task: Task) -> EvaluationPlan:
    """The plan with the accelerated network that its record describes, which is not sent but made anew."""
    record = plan.record.get("acceleration")
    model = plan.model if plan.source is None else plan.source
    if plan.accelerated is not None or record is None or not isinstance(model, nn.Module) or not len(task.x):
        return plan
    described = AccelerationPlan.from_record(record)
    if described.rewriting == "none":
        return plan
    return replace(plan, accelerated=accelerate(model, task.x[: plan.batch_size], plan=described))


def _seldom(report: Callable[[str, int], None]) -> Callable[[str, int], None]:
    """The report, at most once in `TICK` seconds."""
    last = -TICK

    def tell(stage: str, robust: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TICK:
            last = time.monotonic()
            report(stage, robust)

    return tell
