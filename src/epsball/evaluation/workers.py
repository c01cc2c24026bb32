"""Shards on several processes or machines, by Ray: the driver hands out shards, and writes what comes back.

Each unfinished shard is a Ray task. A worker process unpacks the plan once, with the model in it (packing.py). Examples
are read by the workers, or, where the data are only in the driver's memory or on its disk, sent with their shard.
Whatever kills a worker or a node, the shard is handed out again. Where a shard raises, those in work end first, and the
stages that it had finished are kept. The driver alone writes, and one that was killed resumes as a single process does.

Ray: P. Moritz et al., "Ray: A distributed framework for emerging AI applications" (OSDI 2018).
"""

from __future__ import annotations

import logging
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from epsball.common.errors import BadInput
from epsball.evaluation.board import Board
from epsball.evaluation.counts import Counts
from epsball.evaluation.packing import packed
from epsball.evaluation.plan import EvaluationPlan
from epsball.evaluation.ray_cluster import cluster, here
from epsball.evaluation.shard import OnStage
from epsball.evaluation.stage_tables import StageTables
from epsball.evaluation.worker import TICK, Done, Job, device_of, moved, run_job

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
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
    report: OnStage,
) -> Iterator[tuple[int, pa.Table]]:
    """Run these shards, keep their stages in `tables`, and give the records of each as it is done, in any order.

    `report` is told the stage of the shard that spoke last, and the counts so far of all that are in work.

    Raises `BadInput` where Ray is not installed or the model cannot be sent, and, when the shards in work have ended,
    what a shard raised.
    """
    on_gpu = device_of(plan.model)
    if on_gpu is not None and on_gpu.type == "cuda" and not workers.gpus_each:
        raise BadInput(
            "`gpus_per_worker` must be more than 0 for a model on a GPU, got 0; 1 is a GPU a worker, 0.5 one for two"
        )
    with cluster(workers.count, workers.gpus_each, workers.address) as ray:
        driver = Driver(ray, plan, tables, workers, report)
        try:
            yield from driver.run(shards)
        finally:
            driver.close()


class Driver:
    """The driver of a run: which shard is where, and how often its worker has died."""

    def __init__(self, ray: Any, plan: EvaluationPlan, tables: StageTables, workers: Workers, report: OnStage) -> None:
        self.ray, self.plan, self.tables, self.workers, self.report = ray, plan, tables, workers, report
        self.key = uuid.uuid4().hex
        self.packed = ray.put(packed(plan, on_gpu=workers.gpus_each > 0))
        self.board = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here(ray)).remote()
        self.task = ray.remote(num_cpus=1, num_gpus=workers.gpus_each, max_retries=0)(_task)
        self.asked: Any = None
        self.todo: deque[int] = deque()
        self.failed: Exception | None = None
        self.sends = not plan.rows.portable
        self.waiting: dict[Any, int] = {}
        self.crashes: Counter[int] = Counter()
        self.warned: set[tuple[type[Warning], str]] = set()

    def run(self, shards: Iterable[int]) -> Iterator[tuple[int, pa.Table]]:
        """The records of these shards; the first error is raised when the shards in work have ended."""
        self.todo.extend(shards)
        self.hand_out()
        while self.waiting:
            ready, _ = self.ray.wait(list(self.waiting), num_returns=1, timeout=TICK)
            self.tell()
            for one in ready:
                shard = self.waiting.pop(one)
                try:
                    done = self.result(one, shard)
                except Exception as error:  # a model's own, too
                    self.fail(shard, error)
                    continue
                if done is None:
                    self.todo.appendleft(shard)
                self.hand_out()  # a worker is not kept waiting for the disk
                if done is not None:
                    yield shard, self.kept(done)
        if self.failed is not None:
            raise self.failed

    def hand_out(self) -> None:
        """Give each free worker a shard, unless one has failed."""
        while self.todo and self.failed is None and len(self.waiting) < self.workers.count:
            shard = self.todo.popleft()
            try:
                self.submit(shard)
            except Exception as error:  # what reading its examples raises
                self.fail(shard, error)

    def fail(self, shard: int, error: Exception) -> None:
        """Keep the first error to be raised at the end, and log those that are not raised at once."""
        if self.waiting or self.failed is not None:
            log.warning("shard %d failed, and the run ends when the shards in work have ended: %s", shard, error)
        self.failed = self.failed or error

    def submit(self, shard: int) -> None:
        names = ["clean", *(stage.name for stage in self.plan.stages)]
        part = moved(self.plan.rows.part(shard), CPU) if self.sends else None
        job = Job(shard, self.tables.of_shard(shard, names), part)
        # in a list, Ray does not unpack the plan for every task
        self.waiting[self.task.remote(self.key, [self.packed], job, self.board)] = shard

    def result(self, one: Any, shard: int) -> Done | None:
        """What became of a shard; None where it is to be handed out again. Raises what the shard raised."""
        errors = self.ray.exceptions
        try:
            done = self.ray.get(one)
        except errors.RayTaskError as error:  # not of the shard, which tells: of the way there and back
            why = str(error).strip().rpartition("\n")[2]
            raise BadInput(
                f"`workers` must have epsball installed as it is here, got {why}; install the same"
            ) from error
        except errors.RayError as error:
            self.crashes[shard] += 1
            why = str(error).strip().partition("\n")[0]
            log.warning("a worker with shard %d was lost, and the shard is handed out again: %s", shard, why)
            if self.crashes[shard] >= MOST_CRASHES:
                raise RuntimeError(f"shard {shard} has lost {MOST_CRASHES} workers; the last: {why}") from error
            return None
        self.warn(done.warned)
        if done.error is not None:
            self.keep(done)
            raise done.error
        if done.records is None:
            log.info("the data are not on the workers' machines, and are sent with each shard")
            self.sends = True
            return None
        return done

    def warn(self, warned: Iterable[tuple[type[Warning], str]]) -> None:
        """Give the warnings of a worker here, each once a run."""
        for category, text in warned:
            if (category, text) not in self.warned:
                self.warned.add((category, text))
                warnings.warn(text, category, stacklevel=2)

    def kept(self, done: Done) -> pa.Table:
        """The records of a shard, whose stages are kept now."""
        assert done.records is not None, "its shard was run"
        self.keep(done)
        return done.records

    def keep(self, done: Done) -> None:
        """Keep the stages that a worker made."""
        for name, table in done.made.items():
            self.tables.keep(done.shard, name, table)

    def tell(self) -> None:
        """Pass on what the board said when it was last asked, and ask again; never wait for it."""
        asked = self.asked
        if asked is not None and not self.ray.wait([asked], timeout=0)[0]:
            return
        self.asked = self.board.read.remote()
        try:
            reports = {} if asked is None else self.ray.get(asked)
        except self.ray.exceptions.RayError:  # progress is not worth a run
            return
        mine = [report for shard, report in reports.items() if shard in self.waiting.values()]
        if mine:
            self.report(mine[-1][0], sum((counts for _, counts in mine), Counts()))

    def close(self) -> None:
        """Stop what is in work, where Ray runs on."""
        for one in self.waiting:
            with suppress(Exception):
                self.ray.cancel(one)
        with suppress(Exception):
            self.ray.kill(self.board)


def _task(key: str, held: list[Any], job: Job, board: Any) -> Done:
    """The Ray task: `held` is a reference to the packed plan, in a list."""
    import ray

    return run_job(key, lambda: ray.get(held[0]), job, lambda stage, n: board.report.remote(job.shard, stage, n))
