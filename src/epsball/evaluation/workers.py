"""Shards on several processes or machines, by Ray: the driver hands out shards, and writes what comes back.

Each unfinished shard is a Ray task. A worker process unpacks the plan once, with the model in it; where a model cannot
be pickled (an HTTP service, TorchScript) it is opened anew from what names it. Examples are read by the workers, or,
where the data are only in the driver's memory or on its disk, sent with their shard. Whatever kills a worker or a node,
the shard is handed out again; the driver alone writes, and a driver that was killed resumes as a single process does.

Ray: P. Moritz et al., "Ray: A distributed framework for emerging AI applications" (OSDI 2018).
"""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import torch

from epsball.common.errors import BadInput
from epsball.evaluation.plan import EvaluationPlan
from epsball.evaluation.stage_tables import StageTables
from epsball.evaluation.worker import TICK, Done, Job, Packed, run_job
from epsball.models.opening import OPENED_AS

log = logging.getLogger(__name__)

MOST_CRASHES = 20
"""So many workers may die of one shard: then it is the shard that kills them."""


@dataclass(frozen=True)
class Workers:
    """How many shards are run at a time, on how many GPUs each, and the address of a running Ray cluster.

    Without an address, and unless the caller has called `ray.init`, Ray is started on this machine and stopped again.
    """

    count: int
    gpus_each: float = 0.0
    address: str | None = None


def run_on_workers(
    plan: EvaluationPlan,
    tables: StageTables,
    shards: Iterable[int],
    workers: Workers,
    report: Callable[[str, int], None],
) -> Iterator[tuple[int, pa.Table]]:
    """Run these shards, keep their stages in `tables`, and give the records of each as it is done, in any order.

    `report` is told the stage of the shard that spoke last, and the robust examples so far of all that are in work.

    Raises `BadInput` where Ray is not installed or the model cannot be sent, and what a shard raises.
    """
    with _cluster(workers) as ray:
        yield from _Driver(ray, plan, tables, workers, report).run(shards)


class _Driver:
    """The driver of a run: which shard is where, and how often its worker has died."""

    def __init__(
        self, ray: Any, plan: EvaluationPlan, tables: StageTables, workers: Workers, report: Callable[[str, int], None]
    ) -> None:
        self.ray, self.plan, self.tables, self.workers, self.report = ray, plan, tables, workers, report
        self.key = uuid.uuid4().hex
        threads = torch.get_num_threads()
        self.packed = ray.put(packed(plan, threads, "cuda" if workers.gpus_each else None))
        self.board = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=_here(ray)).remote()
        self.task = ray.remote(num_cpus=1, num_gpus=workers.gpus_each, max_retries=0)(_task)
        self.sends = not plan.rows.portable
        self.waiting: dict[Any, int] = {}
        self.crashes: Counter[int] = Counter()
        self.warned: set[tuple[type[Warning], str]] = set()

    def run(self, shards: Iterable[int]) -> Iterator[tuple[int, pa.Table]]:
        todo = iter(shards)
        for shard in todo:
            self.submit(shard)
            if len(self.waiting) == self.workers.count:
                break
        while self.waiting:
            ready, _ = self.ray.wait(list(self.waiting), num_returns=1, timeout=TICK)
            self.tell()
            for one in ready:
                shard = self.waiting.pop(one)
                done = self.result(one, shard)
                if done is None:
                    self.submit(shard)
                    continue
                following = next(todo, None)
                if following is not None:  # a worker is not kept waiting for the disk
                    self.submit(following)
                yield shard, self.kept(done)

    def submit(self, shard: int) -> None:
        names = ["clean", *(stage.name for stage in self.plan.stages)]
        part = self.plan.rows.part(shard) if self.sends else None
        job = Job(shard, self.tables.of_shard(shard, names), part)
        # in a list, Ray does not unpack the plan for every task
        self.waiting[self.task.remote(self.key, [self.packed], job, self.board)] = shard

    def result(self, one: Any, shard: int) -> Done | None:
        """What became of a shard; None where it is to be handed out again."""
        errors = self.ray.exceptions
        try:
            done = self.ray.get(one)
        except errors.RayTaskError as error:
            raise error.cause from None
        except (errors.WorkerCrashedError, errors.ObjectLostError, errors.RayActorError, errors.RayError) as error:
            self.crashes[shard] += 1
            why = str(error).strip().partition("\n")[0]
            log.warning("a worker with shard %d was lost, and the shard is handed out again: %s", shard, why)
            if self.crashes[shard] >= MOST_CRASHES:
                raise RuntimeError(f"shard {shard} has lost {MOST_CRASHES} workers; the last: {why}") from error
            return None
        if done.made is None:
            log.info("the data are not on the workers' machines, and are sent with each shard")
            self.sends = True
            return None
        return done

    def kept(self, done: Done) -> pa.Table:
        """The records of a shard, whose stages are kept now."""
        assert done.made is not None, "its shard was run"
        assert done.records is not None, "its shard was run"
        for name, table in done.made.items():
            self.tables.keep(done.shard, name, table)
        for category, text in done.warned:
            if (category, text) not in self.warned:
                self.warned.add((category, text))
                warnings.warn(text, category, stacklevel=2)
        return done.records

    def tell(self) -> None:
        try:
            reports = self.ray.get(self.board.read.remote(), timeout=10)
        except self.ray.exceptions.RayError:  # progress is not worth a run
            return
        mine = [reports[shard] for shard in self.waiting.values() if shard in reports]
        if mine:
            self.report(mine[-1][0], sum(robust for _, robust in mine))


class _Board:
    """The actor to which workers report."""

    def __init__(self) -> None:
        self.reports: dict[int, tuple[str, int]] = {}

    def report(self, shard: int, stage: str, robust: int) -> None:
        self.reports.pop(shard, None)
        self.reports[shard] = stage, robust

    def read(self) -> dict[int, tuple[str, int]]:
        return self.reports


def _task(key: str, held: list[Any], job: Job, board: Any) -> Done:
    """The Ray task: `held` is a reference to the packed plan, in a list."""
    import ray

    return run_job(key, lambda: ray.get(held[0]), job, lambda stage, n: board.report.remote(job.shard, stage, n))


def packed(plan: EvaluationPlan, threads: int, device: str | None) -> bytes:
    """The plan as it is sent to workers. Raises `BadInput` where a part of it cannot be pickled."""
    from ray.cloudpickle import dumps  # type: ignore[reportPrivateImportUsage]

    bare = replace(plan, accelerated=None)
    try:
        return dumps(Packed(bare, None, threads, device))
    except Exception as error:  # whatever the parts of somebody's model raise
        opened = getattr(plan.model, OPENED_AS, None)
        why = f"{type(error).__name__}: {error}"
    if opened is not None:
        nameless = replace(bare, model=None)  # type: ignore[arg-type]
        try:
            return dumps(Packed(nameless, opened, threads, device))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
    raise BadInput(
        f"`workers` need a model, attacks and data that can be pickled, which these cannot ({why}); name the model by "
        "what epsball.load takes, or run in one process with workers=None"
    )


@contextmanager
def _cluster(workers: Workers) -> Iterator[Any]:
    """Ray, started here and stopped again unless it runs already. Raises `BadInput` where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise BadInput(
            f"`workers` need Ray, which is not installed ({error}); write pip install 'epsball[ray]', or leave "
            "`workers` out"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    if workers.address is None:
        options: dict[str, Any] = {
            "num_cpus": workers.count,
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options = {"address": workers.address}
    try:
        ray.init(**options, configure_logging=True, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise BadInput(f"`ray` must be the address of a running cluster, got {workers.address!r}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _here(ray: Any) -> Any:
    """On the driver's own node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
