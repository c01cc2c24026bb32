"""One attack at one radius on some rows of a shard: search, verification of what is found, and the stage's table.

An attack's word is not taken: each success is stored, read back, put to the model once more, and measured against the
ball. Only what passes counts.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from epsball.engine import queue, user_attack
from epsball.engine.batches import forward_rows
from epsball.engine.outcome import AttackOutcome
from epsball.engine.queue import OnTurn, QueueOptions
from epsball.engine.stages import Planned, PlannedStage
from epsball.engine.user_attack import UserAttack
from epsball.evaluation import run_directory
from epsball.evaluation.boundary_search import boundary_search
from epsball.evaluation.plan import EvaluationPlan, numbers
from epsball.evaluation.point_storage import checksums
from epsball.evaluation.stage_record import Stage
from epsball.problem.objective import Objective, check_labels, prediction
from epsball.problem.task import Task

log = logging.getLogger(__name__)

SUMS = ("speculative_forwards", "speculative_backwards", "padding_forwards", "padding_backwards", "unconfirmed")


@dataclass(frozen=True, eq=False)
class AttackStage:
    """An attack at one radius on the rows of `task`, whose ball has that radius.

    `objective` is the one that the attack climbs, `known` (n,) are the distances at which the rows are known to be
    fooled (infinite for none), which a run with `min_norm` goes below. `spent` (n,) are the queries to a black box that
    earlier stages at this radius have made.
    """

    plan: EvaluationPlan
    stage: PlannedStage
    objective: Objective
    task: Task
    known: np.ndarray
    spent: np.ndarray

    def run(self, on_turn: OnTurn) -> pa.Table:
        """The stage's table: a row per attacked example, with the adversarial examples that were verified."""
        began = time.perf_counter()
        if self.plan.black_box is not None:
            self.plan.black_box.begin_search(self.task.noise.ids, torch.from_numpy(self.spent))
        with ExitStack() as stack:
            stack.enter_context(self.objective)
            evaluator = self.objective
            if self.plan.needs_evaluator(self.stage):
                evaluator = stack.enter_context(self.plan.evaluator())
            outcome = self.search(evaluator, on_turn)
            verified = self.verify(outcome, evaluator)
        return self.table(outcome, verified, began)

    def search(self, evaluator: Objective, on_turn: OnTurn) -> AttackOutcome:
        """Run the attack. A transfer climbs on the source, whose own logits rank the classes; the evaluator judges."""
        plan, attack, task = self.plan, self.stage.attack, self.task
        if isinstance(attack, UserAttack):
            model = plan.model if plan.source is None else plan.source
            return user_attack.run(attack, model, evaluator, task, batch_size=plan.batch_size, on_turn=on_turn)
        options = QueueOptions(
            batch_size=plan.batch_size,
            check=plan.success_check(evaluator, self.stage),
            warm_start=plan.uses_warm_start,
            on_turn=on_turn,
        )
        if plan.source is None:
            return queue.run(attack, self.objective, task, options)
        before = self.objective.forwards
        clean = forward_rows(self.objective, task, task.x, plan.batch_size)
        if clean.is_floating_point():
            check_labels(clean, task)
        padding = self.objective.forwards - before - plan.eot * len(clean)
        task = replace(task, clean=clean if clean.is_floating_point() else None)
        found = queue.run(attack, self.objective, task, replace(options, evaluator=evaluator))
        return replace(found, forwards=found.forwards + plan.eot, padding_forwards=found.padding_forwards + padding)

    def verify(self, outcome: AttackOutcome, evaluator: Objective) -> Verified:
        """Store each success, read it back, and ask the model once more whether it is one, inside the ball."""
        hit = outcome.fooled.nonzero().squeeze(1).to(self.task.x.device)
        found = verified(self.plan, self.task, hit, outcome.x_adv[hit], self.known, evaluator)
        if found.unconfirmed:
            level = logging.INFO if self.plan.storage.x_adv == "8bit" else logging.WARNING  # rounding costs some
            log.log(
                level,
                "%s: %d successes were not reproduced when verified, and do not count",
                label(self.stage),
                found.unconfirmed,
            )
        return found

    def queries(self) -> np.ndarray:
        """The queries to a black box that each row has made in this stage, (n,); 0 for any other model."""
        box = self.plan.black_box
        if box is None:
            return np.zeros(len(self.task.x), dtype=np.int64)
        return box.spent(self.task.noise.ids).cpu().numpy() - self.spent

    def table(self, outcome: AttackOutcome, verified: Verified, began: float) -> pa.Table:
        """The table of the stage, with its summary in the notes."""
        fooled = np.zeros(len(self.task.x), dtype=bool)
        fooled[verified.rows] = True
        exhausted = outcome.exhausted.numpy() & (~fooled | self.plan.min_norm)
        columns: dict[str, Any] = {
            "id": self.task.noise.ids.cpu().numpy(),
            "fooled": fooled,
            "invalid": outcome.invalid.numpy(),
            "exhausted": exhausted,
            "adversarial_prediction": run_directory.nested(verified.answers["prediction"], fooled),
            "adversarial_confidence": run_directory.nested(verified.answers["confidence"], fooled),
        }
        if self.plan.min_norm:
            columns["distance"] = run_directory.nested(verified.distance, fooled)
        columns |= {name: getattr(outcome, name).numpy() for name in ("restart", "forwards", "backwards")}
        columns["queries"] = self.queries()
        columns["crc32"] = run_directory.nested(checksums(*verified.points.values()), fooled)
        columns |= {name: run_directory.stored(part, fooled) for name, part in verified.points.items()}
        if self.plan.uses_warm_start:
            margin = outcome.margin.numpy()
            ended = np.isfinite(margin) & ~outcome.fooled.numpy()
            columns["margin"] = pa.array(margin, mask=~ended)
            columns["warm_start"] = run_directory.nested(numbers(outcome.warm_start[torch.from_numpy(ended)]), ended)
        counts = {name: int(getattr(outcome, name)) for name in SUMS}
        counts["unconfirmed"] += verified.unconfirmed
        summary = Stage(
            name=self.stage.name,
            attack=self.stage.label,
            eps=self.stage.eps,
            attacked=len(fooled),
            fooled=int(fooled.sum()),
            exhausted=int(exhausted.sum()),
            queries=int(columns["queries"].sum()),
            forwards=int(outcome.forwards.sum()),
            backwards=int(outcome.backwards.sum()),
            verification=verified.forwards,
            seconds=time.perf_counter() - began,
            **counts,
        )
        table = run_directory.table(columns, {name: part.shape[1:] for name, part in verified.points.items()})
        return run_directory.with_notes(table, {"stage": vars(summary)})


@dataclass(frozen=True, eq=False)
class Verified:
    """The successes of an attack that were reproduced: `rows` of the stage's task, and what is stored of them.

    `points` are the adversarial examples and their examples as stored, `answers` the model's there, `distance` (m,) in
    the ball's norm. `unconfirmed` successes were not reproduced; the verification took so many `forwards`.
    """

    rows: np.ndarray
    points: dict[str, np.ndarray]
    answers: dict[str, np.ndarray]
    distance: np.ndarray
    unconfirmed: int
    forwards: int


def verified(
    plan: EvaluationPlan, task: Task, hit: Tensor, x_adv: Tensor, known: np.ndarray, evaluator: Objective
) -> Verified:
    """What of the points `x_adv` (m, *shape) of the rows `hit` (m,) of `task` is a success as it is stored.

    `known` (n,) are distances at which rows are known to be fooled, which a run with `min_norm` goes below.
    """
    task, before = task.rows(hit), evaluator.forwards
    x = numbers(task.x)
    if plan.min_norm and len(hit):
        x_adv = boundary_search(evaluator, task, x_adv, stored=plan.stored, batch_size=plan.batch_size)
    stored = plan.storage.keep(numbers(x_adv), x)
    z = plan.decoded(stored).to(task.x)
    output = forward_rows(evaluator, task, z, plan.batch_size) if len(hit) else z.new_zeros(0, 2)
    good = evaluator.succeeds(output, task) & task.ball.contains(z, task.x)
    distance = task.ball.exact_distance(z, task.x).cpu().numpy()
    confirmed, rows = good.cpu().numpy(), hit.cpu().numpy()
    unconfirmed = int((~confirmed).sum())
    if plan.min_norm:
        confirmed &= distance < known[rows]
    points = {"x_adv": stored[confirmed], "x": plan.storage.keep_x(x[confirmed])}
    answers = {name: column[confirmed] for name, column in answers_of(output).items()}
    return Verified(rows[confirmed], points, answers, distance[confirmed], unconfirmed, evaluator.forwards - before)


def answers_of(output: Tensor) -> dict[str, np.ndarray]:
    """Prediction, its confidence (softmax; not a number for a model of labels), and whether the logits are finite."""
    n, logits = len(output), output.is_floating_point()
    return {
        "prediction": prediction(output).cpu().numpy(),
        "confidence": output.double().softmax(1).amax(1).cpu().numpy() if logits else np.full(n, np.nan),
        "valid": output.isfinite().all(1).cpu().numpy() if logits else np.full(n, True),
    }


def label(stage: Planned) -> str:
    """The stage in a line of progress."""
    if stage.within is not None:
        return f"{stage.label}, nearer"
    return stage.label if stage.eps is None else f"{stage.label} at {stage.eps:.4g}"
