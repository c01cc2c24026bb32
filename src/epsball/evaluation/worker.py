"""What runs in a worker process: a shard at a time, on a plan that it unpacks once.

The driver (workers.py) has the run directory and writes what comes back: a worker needs neither it nor a shared file
system. Records are those that the driver would have made itself.
"""

from __future__ import annotations

import pickle
import socket
import time
import traceback
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
from epsball.common.errors import BadInput
from epsball.evaluation.certify_stage import certifier_of
from epsball.evaluation.counts import Counts
from epsball.evaluation.packing import unpacked
from epsball.evaluation.plan import EvaluationPlan
from epsball.evaluation.rows import Part
from epsball.evaluation.shard import OnStage, Shard
from epsball.evaluation.stage_tables import StageTables
from epsball.models.frozen import frozen
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
    """A shard that was run: the tables of the stages that were finished, its records, and the warnings that were given.

    `records` are None where the shard raised an `error`, or, without one, where the data are not there for this worker
    to read.
    """

    shard: int
    made: dict[str, pa.Table]
    records: pa.Table | None = None
    warned: tuple[tuple[type[Warning], str], ...] = ()
    error: Exception | None = None


_unpacked: dict[str, EvaluationPlan] = {}
"""The plan of the run that this process works for, by the run's key."""


def run_job(key: str, packed: Callable[[], bytes], job: Job, report: OnStage) -> Done:
    """Run a shard of the run `key`, whose plan is `packed`. What it raises is in what comes back."""
    made: dict[str, pa.Table] = {}
    records, error = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            records = _run(key, packed, job, made, report)
        except Exception as raised:  # a model's own, too
            error = _portable(raised)
    warned = tuple(dict.fromkeys((one.category, str(one.message)) for one in caught))
    return Done(job.shard, made, records, warned, error)


def _run(
    key: str, packed: Callable[[], bytes], job: Job, made: dict[str, pa.Table], report: OnStage
) -> pa.Table | None:
    """The records, or None where the data are not there; the stages that are finished are put into `made`."""
    if key not in _unpacked:
        _unpacked.clear()
        _unpacked[key] = unpacked(packed())
    plan = _unpacked[key]
    if job.part is None and not plan.rows.available():
        return None
    part = plan.rows.part(job.shard) if job.part is None else moved(job.part, device_of(plan.model))
    plan = _unpacked[key] = _accelerated(plan, part.task)
    tables = StageTables()
    for name, table in job.kept.items():
        tables.keep(job.shard, name, table)
    with ExitStack() as stack:
        stack.enter_context(frozen(plan.model))
        if plan.source is not None:
            stack.enter_context(frozen(plan.source))
        objectives = plan.objectives()
        try:
            certifier = certifier_of(plan)
            return Shard(plan, job.shard, part.task, part.bad, objectives, tables, certifier).run(_seldom(report))
        finally:
            names = [name for name in ("clean", *(stage.name for stage in plan.stages)) if name not in job.kept]
            made.update(tables.of_shard(job.shard, names))


def _portable(error: Exception) -> Exception:
    """An error as the driver can raise it, with a note of where it was raised, unless it is one of the input."""
    from ray.cloudpickle import dumps  # type: ignore[reportPrivateImportUsage]

    if not isinstance(error, BadInput):
        error.add_note(f"In a worker on {socket.gethostname()}:\n{traceback.format_exc()}")
    try:
        pickle.loads(dumps(error))
        return error
    except Exception:  # whatever an exception raises whose parts cannot be sent
        told = RuntimeError(f"{type(error).__name__}: {error}")
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        return told


def device_of(model: Any) -> torch.device | None:
    """Where the parameters of a model are; None where it has none."""
    first = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    return None if first is None else first.device


def moved(part: Part, device: torch.device | None) -> Part:
    """The part with its examples on a device; None is the one where they are."""
    if device is None or device == part.task.x.device:
        return part
    return replace(part, task=_on(part.task, device))


def _on(task: Task, device: torch.device) -> Task:
    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    ball = replace(task.ball, **{name: there(getattr(task.ball, name)) for name in task.ball.parts()})
    noise = replace(task.noise, ids=there(task.noise.ids), restart=there(task.noise.restart))
    parts = {name: there(getattr(task, name)) for name in ("x", "y", "target", "aim", "clean", "warm_start", "rivals")}
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


def _seldom(report: OnStage) -> OnStage:
    """The report, at most once in `TICK` seconds."""
    last = -TICK

    def tell(stage: str, counts: Counts) -> None:
        nonlocal last
        if time.monotonic() - last >= TICK:
            last = time.monotonic()
            report(stage, counts)

    return tell
