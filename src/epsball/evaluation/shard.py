"""One shard of examples on its way through an evaluation.

From a finished attack to a record, in this order:

1. `AttackStage.run` (attack_stage.py): the queue runs the attack (`queue.turn`), and `JobResults.outcome`
   (engine/outcome.py) is an outcome per row.
2. `AttackStage.verify`: with `min_norm` the boundary search shortens each perturbation; each point is stored, read
   back, and put to the model once more; what is no success, or not in the ball, does not count.
3. `AttackStage.table`: the stage's table, a row per attacked example. `StageTables.keep` writes it to the run
   directory.
4. `ShardRecords.add_stage` (records.py): status, attack, radius, answers and cost of each example so far.
   `Shard.measure` enters the distances. `ShardProofs.add` enters the table of a stage that certifies
   (`CertifyStage.run`).
5. After the last stage `ShardRecords.table`: the records, which `evaluate` writes. `verify` computes them again from
   the same tables.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.registry import distances
from epsball.certify.certifier import Certifier
from epsball.common.errors import BadInput
from epsball.data.bad_row import BadRow
from epsball.diagnosis.sample import everywhere
from epsball.engine.batches import forward_rows
from epsball.engine.stages import Planned, PlannedCertificate
from epsball.evaluation import run_directory
from epsball.evaluation.attack_stage import AttackStage, answers_of, label
from epsball.evaluation.certify_stage import CertifyStage
from epsball.evaluation.counts import Counts
from epsball.evaluation.plan import EvaluationPlan, numbers
from epsball.evaluation.point_storage import checksums
from epsball.evaluation.records import ShardRecords
from epsball.evaluation.stage_record import Stage
from epsball.evaluation.stage_tables import StageTables
from epsball.problem.objective import Objective, check_labels
from epsball.problem.task import Task

PROBED = 32
"""Examples that are shown to the model twice: is it deterministic?"""

OnStage = Callable[[str, Counts], None]
"""Called with a stage's label and how many examples are broken, robust and proved at its radius so far."""


@dataclass(eq=False)
class Shard:
    """One shard: its examples, the objectives of the plan's attacks by stage, and where its tables are kept.

    `bad` are the rows of the shard that cannot be used, and are not in its task. The `certifier` is there where the run
    certifies.
    """

    plan: EvaluationPlan
    number: int
    task: Task
    bad: tuple[BadRow, ...]
    objectives: dict[str, Objective]
    tables: StageTables
    certifier: Certifier | None = None

    def run(self, on_stage: OnStage) -> pa.Table:
        """Run the stages that are not kept yet; the shard's records."""
        clean = self.tables.kept(self.number, "clean", self.clean)
        check_same_rows(self.task, clean, self.number)
        if "logits" in clean.column_names:
            logits = torch.tensor(run_directory.points(clean["logits"], (-1,)))
            self.task = replace(self.task, clean=logits.to(self.task.x))
        ids, labels, target = (part.cpu().numpy() for part in (self.task.noise.ids, self.task.y, self.task.target))
        records = ShardRecords(
            ids,
            labels,
            target,
            (clean["prediction"].to_numpy(), clean["valid"].to_numpy(zero_copy_only=False)),
            self.plan.record,
        )
        best_margin = np.full(len(self.task.x), -np.inf)
        names, radius, spent = ["clean"], math.nan, np.zeros(len(self.task.x), dtype=np.int64)
        stages = self.plan.stages if len(self.task.x) else ()  # none of its rows could be used
        for stage in stages:
            if stage.eps != radius:  # a query budget is one for each radius
                radius, spent = stage.eps, np.zeros_like(spent)
                if self.plan.settings.certifies:  # the radius before may be a larger one
                    best_margin[:] = -np.inf
            at, radii = records.place(stage.eps), self.radii(stage, records.known)
            on_stage(label(stage), records.counts(at))
            rows = records.rows(stage.described(), radii, at)
            if not len(rows):
                continue
            names.append(stage.name)
            ball = self.ball(stage, records.known)
            task = replace(self.task, ball=ball, rivals=self.rivals(records, at))
            task = task.rows(torch.from_numpy(rows).to(self.task.x.device))
            tell = partial(on_stage, label(stage))
            if isinstance(stage, PlannedCertificate):
                table = self.certified(stage, task, tell, records.counts(at))
                records.proofs.add(table, rows, at, radii)
                records.proofs.add_rivals(table, rows, at)
            else:
                objective = self.objectives[stage.name]
                attack = AttackStage(self.plan, stage, objective, task, records.known[rows], spent[rows])
                run = partial(attack.run, _with_broken(records.counts(at), tell))
                table = self.tables.kept(self.number, stage.name, run)
            spent[rows] += table["queries"].to_numpy()
            self.keep_warm_starts(rows, table, best_margin)
            broken = rows[records.add_stage(table, rows, stage.label, radii, at)]
            self.measure(broken, table, ball, records)
        records.finish()
        return run_directory.with_notes(records.table(clean["confidence"]), {"stages": names})

    def certified(
        self, stage: PlannedCertificate, task: Task, tell: Callable[[Counts], None], so_far: Counts
    ) -> pa.Table:
        """The table of a stage that certifies the rows of `task`, as it is kept, or made now."""
        assert self.certifier is not None, "the run certifies"
        bounds = self.tables.stage(self.number, stage.bounds) if stage.bounds else None
        certify = CertifyStage(self.plan, stage, self.certifier, task, bounds)
        return self.tables.kept(
            self.number, stage.name, lambda: certify.run(lambda proved: tell(so_far + Counts(proved=proved)))
        )

    def rivals(self, records: ShardRecords, at: int) -> Tensor | None:
        """The classes that are not proved out of reach at the radius of place `at`, (n, classes); None for all."""
        rivals = records.proofs.rivals(at)
        return None if rivals is None or rivals.shape[1] == 1 else torch.from_numpy(rivals).to(self.task.x.device)

    def clean(self) -> pa.Table:
        """The predictions without attack; a few are made twice: is the model deterministic?"""
        began = time.perf_counter()
        with self.plan.evaluator() as evaluator:
            output = self.outputs(evaluator)
            if output.is_floating_point():
                check_labels(output, self.task)
            checked = self.number == 0 and self.plan.eot == 1 and len(output) > 0
            deterministic = evaluator.check_deterministic(self.task.x[:PROBED]) if checked else None
        n, forwards = len(output), len(output) * self.plan.eot
        stage = Stage(
            name="clean",
            attack="clean",
            eps=None,
            attacked=n,
            fooled=0,
            queries=0 if self.plan.black_box is None else forwards,
            forwards=forwards,
            padding_forwards=evaluator.forwards - forwards,
            seconds=time.perf_counter() - began,
        )
        columns = {"id": self.task.noise.ids.cpu().numpy(), "label": self.task.y.cpu().numpy(), **answers_of(output)}
        columns["crc32"] = checksums(numbers(self.task.x))
        if output.is_floating_point():
            columns["logits"] = run_directory.nested(numbers(output), np.full(n, True))
        probes = evaluator.probes + self.plan.probe_forwards * (self.number == 0)
        notes = {"stage": vars(stage), "probes": probes, "deterministic": deterministic, "ends_in": evaluator.ends_in}
        notes["bad"] = [row.to_record() for row in self.bad]
        return run_directory.with_notes(run_directory.table(columns), notes)

    def outputs(self, evaluator: Objective) -> Tensor:
        """What the model answers at the examples; where there are none, an empty answer of its kind."""
        if len(self.task.x):
            return forward_rows(evaluator, self.task, self.task.x, self.plan.batch_size)
        return self.task.x.new_zeros(0, max(self.plan.classes, 2))

    def measure(self, rows: np.ndarray, table: pa.Table, ball: Ball, records: ShardRecords) -> None:
        """Enter the distances of the adversarial examples of a stage, as they are stored, in every norm."""
        index = torch.from_numpy(rows)
        x = self.task.x[index].cpu()
        z = torch.from_numpy(self.plan.storage.points(table["x_adv"], tuple(x.shape[1:])).copy())
        for name, norm in {"distance": ball.rows(index), **distances(self.plan.record["norms"])}.items():
            records.distances[name][rows] = norm.exact_distance(z, x).numpy()

    def keep_warm_starts(self, rows: np.ndarray, table: pa.Table, best_margin: np.ndarray) -> None:
        """Keep the points of an attack with a larger margin than those before, for attacks that start from them."""
        if "warm_start" not in table.column_names:
            return
        margin = table["margin"].to_numpy(zero_copy_only=False)  # not a number where there is no point
        points = torch.from_numpy(run_directory.points(table["warm_start"], tuple(self.task.x.shape[1:])).copy())
        better = margin > best_margin[rows]
        start = self.task.x.clone() if self.task.warm_start is None else self.task.warm_start
        start[torch.from_numpy(rows[better])] = points[torch.from_numpy(better[~np.isnan(margin)])].to(start)
        best_margin[rows[better]] = margin[better]
        self.task = replace(self.task, warm_start=start)

    def ball(self, stage: Planned, known: np.ndarray) -> Ball:
        """The bound ball of a stage; `known` (n,) are the distances at which examples are known to be fooled."""
        if stage.within is not None:
            eps = torch.from_numpy(stage.within * known).to(self.task.x)
            largest = torch.as_tensor(everywhere(self.task.ball, self.task.x).eps).to(eps)  # where nothing is known
            return self.task.ball.with_eps(torch.where(eps.isinf(), largest, eps)).bind(self.task.x)
        if stage.eps is None:
            return self.task.ball
        return self.task.ball.with_eps(stage.eps).bind(self.task.x)

    def radii(self, stage: Planned, known: np.ndarray) -> np.ndarray:
        """The radius of each row at a stage; not a number where it is one per feature."""
        if stage.within is not None:
            return stage.within * known
        eps: Tensor = torch.as_tensor(self.ball(stage, known).eps, dtype=torch.float64).cpu()
        return np.broadcast_to(eps.numpy() if eps.ndim <= 1 else np.nan, len(self.task.x))


def check_same_rows(task: Task, clean: pa.Table, shard: int) -> None:
    """Raise `BadInput` where the examples are not those that a shard's clean stage was made with.

    Runs of 0.2.0 have no checksums there.
    """
    ids = task.noise.ids.cpu().numpy()
    same = np.array_equal(ids, clean["id"].to_numpy())
    if same and "crc32" in clean.column_names:
        same = np.array_equal(checksums(numbers(task.x)), clean["crc32"].to_numpy())
    if not same:
        raise BadInput(
            f"`run_dir` holds a run with other `data`: examples of its shard {shard} have changed since; resume with "
            "the same data, or choose a new directory"
        )


def _with_broken(so_far: Counts, tell: Callable[[Counts], None]) -> Callable[[int], None]:
    """Report after every step of the queue how many examples it has broken beside those before."""
    return lambda broken: tell(so_far + Counts(robust=-min(broken, so_far.undecided), broken=broken))
