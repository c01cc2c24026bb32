"""One shard on its way through the stages of an evaluation: clean pass, attacks at each radius, records."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from epsball.acceleration.accelerate import Accelerated
from epsball.acceleration.draft import Draft
from epsball.attacks.attack import Attack
from epsball.balls.ball import Ball
from epsball.balls.registry import distances
from epsball.diagnosis.probes import everywhere
from epsball.engine import queue, user_attack
from epsball.engine.batches import forward_rows
from epsball.engine.outcome import AttackOutcome
from epsball.engine.queue import OnTurn, QueueOptions, SuccessCheck
from epsball.engine.stages import PlannedStage
from epsball.engine.user_attack import UserAttack
from epsball.evaluation import run_directory
from epsball.evaluation.boundary_search import shrunk
from epsball.evaluation.point_storage import Storage, checksums
from epsball.evaluation.result import Stage
from epsball.evaluation.run_directory import RunDir
from epsball.problem.black_box import objective_for
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import Model, Objective, Success, check_labels, prediction
from epsball.problem.task import AWAY, Task

log = logging.getLogger(__name__)

PROBED = 32
FOUND = {
    "eps": np.float64,
    "adversarial_prediction": np.int64,
    "adversarial_confidence": np.float64,
    "distance": np.float64,
}
"""What a record says of a fooled example, beside its distance in each norm; null for the others."""
COUNTS = (
    "forwards",
    "backwards",
    "speculative_forwards",
    "speculative_backwards",
    "padding_forwards",
    "padding_backwards",
)


@dataclass(frozen=True, eq=False)
class Plan:
    """The checked arguments of an evaluation, its examples in the order of their ids."""

    model: Model
    task: Task
    attacks: tuple[Attack | UserAttack, ...]
    stages: tuple[PlannedStage, ...]
    batch_size: int
    success: Success
    shard_size: int
    config: dict[str, Any]
    storage: Storage
    source: Model | None = None
    eot: int = 1
    min_norm: bool = False
    """Whether each example's nearest fooling point is sought, and not one inside the ball."""
    classes: int = 0
    """Those of the data, where that is known."""
    looked: int = 0
    """Forwards of the look that a protocol reacts to."""
    fast: Accelerated | None = None
    """What attacks climb on in the place of the model (or source): the same function, at less cost."""

    @property
    def uses_warm_start(self) -> bool:
        """Whether an attack starts from what those before it found; a transfer may not know what that is."""
        return self.source is None and any(isinstance(a, Attack) and a.uses_warm_start for a in self.attacks)

    def objective(self, stage: PlannedStage) -> Objective:
        """The question that an attack asks: of the source where there is one, else of the model."""
        attack = stage.attack
        if isinstance(attack, UserAttack):
            return self.evaluator(cross_entropy)
        model = self.faster_for(attack) or self.source or self.model
        if stage.draft:
            model = Draft(model)
        return objective_for(model, attack.loss, needs=attack.needs, success=self.success, careful=True, eot=self.eot)

    def faster_for(self, attack: Attack | UserAttack) -> Accelerated | None:
        """The accelerated network, where it saves this attack time: without gradients its forward has to be faster."""
        if self.fast is None or isinstance(attack, UserAttack):
            return None
        return self.fast if attack.needs == "grad" or self.fast.plan.forwards_too else None

    def elsewhere(self, stage: PlannedStage) -> bool:
        """Whether an attack climbs on another network than the one that judges."""
        return stage.draft or self.source is not None or self.faster_for(stage.attack) is not None

    def read(self, stored: np.ndarray) -> Tensor:
        """The points that stand behind what is kept."""
        return torch.from_numpy(self.storage.read(stored))

    def look(self, evaluator: Objective, stage: PlannedStage) -> SuccessCheck | None:
        """How successes are looked at before they end a job: not at all where that can make no difference."""
        if self.storage.x_adv != "8bit" and not stage.draft and self.faster_for(stage.attack) is None:
            return None
        return SuccessCheck(
            evaluator, (lambda z, x: z) if self.min_norm else self.stored
        )  # the nearest are carried out of rounding

    def stored(self, z: Tensor, x: Tensor) -> Tensor:
        """What is left of points when they are kept."""
        return self.read(self.storage.keep(numbers(z), numbers(x))).to(x)

    def evaluator(self, loss: Loss) -> Objective:
        """The model itself, to look with."""
        return objective_for(self.model, loss, needs="label", success=self.success, eot=self.eot)


@dataclass(eq=False)
class Shard:
    """One shard on its way through the stages."""

    plan: Plan
    number: int
    task: Task
    kept: RunDir | None
    memory: dict[tuple[int, str], pa.Table]
    objectives: list[Objective]

    def __post_init__(self) -> None:
        self.known = np.full(len(self.task.x), np.inf)
        """The distance at which each example is known to be fooled, where the nearest point is sought."""

    def finish(self, on_left: Callable[[str, int], None]) -> pa.Table:
        """Run what is not on disk yet; the shard's records."""
        ids, y = self.task.noise.ids.cpu().numpy(), self.task.y.cpu().numpy()
        clean = self.stage("clean", self.clean)
        logits = run_directory.points(clean["logits"], (-1,)) if "logits" in clean.column_names else None
        if logits is not None:
            self.task = replace(self.task, clean=torch.tensor(logits).to(self.task.x))
        at = clean["prediction"].to_numpy()
        valid = clean["valid"].to_numpy(zero_copy_only=False)
        target = self.task.target.cpu().numpy()
        status = np.full(len(ids), "robust", dtype=object)
        status[at != y] = "wrong"
        status[(target != AWAY) & ((target == y) | (target == at))] = "at-target"
        status[~valid] = "invalid"
        norms = distances(self.plan.config["norms"])
        kinds = FOUND | {name: np.int64 if "count" in norm.traits else np.float64 for name, norm in norms.items()}
        columns = {name: np.zeros(len(ids), kind) for name, kind in kinds.items()}
        passes = {name: np.zeros(len(ids), np.int64) for name in ("forwards", "backwards")}
        attack = np.full(len(ids), None, dtype=object)
        overflow, overflowed = np.full(len(ids), np.nan), np.zeros(len(ids), dtype=bool)
        ahead = np.full(len(ids), -np.inf)
        names = ["clean"]
        for number, stage in enumerate(self.plan.stages):
            open_rows = np.flatnonzero(self.to_attack(stage, status))
            on_left(_label(stage), int((status == "robust").sum()))
            if not len(open_rows):
                continue
            table = self.stage(stage.name, partial(self.attacked, number, open_rows, on_left))
            names.append(stage.name)
            self.approach(open_rows, table, ahead)
            fooled = table["fooled"].to_numpy(zero_copy_only=False)
            rows = open_rows[fooled]
            for name, count in passes.items():
                count[open_rows] += table[name].to_numpy()
            lost = open_rows[table["invalid"].to_numpy(zero_copy_only=False) & ~fooled]
            overflowed[lost] = True  # also where a radius per feature is no number
            radii = self.radii(stage)
            overflow[lost] = np.fmin(overflow[lost], radii[lost])
            status[rows], attack[rows] = "fooled", stage.label
            for name in ("adversarial_prediction", "adversarial_confidence"):
                columns[name][rows] = table[name].drop_null().to_numpy()
            x = self.task.x[torch.from_numpy(rows)].cpu()
            z = torch.from_numpy(self.plan.storage.points(table["x_adv"], tuple(x.shape[1:])).copy())
            ball = self.ball(stage).rows(torch.from_numpy(rows))
            for name, norm in (("distance", ball), *norms.items()):
                columns[name][rows] = norm.norm(z.double() - x.double()).numpy()
            self.known[rows] = columns["distance"][rows]
            columns["eps"][rows] = np.fmin(self.known, radii)[rows] if self.plan.min_norm else radii[rows]
        status[overflowed & (status == "robust")] = "invalid"
        table = run_directory.table(
            {
                "id": ids,
                "label": y,
                "target": pa.array(target, mask=target == AWAY),
                "clean_prediction": pa.array(at, mask=~valid),
                "clean_confidence": clean["confidence"],
                "status": pa.array(status, pa.string()),
                "attack": pa.array(attack, pa.string()),
                **{
                    name: pa.array(column, mask=(status != "fooled") | np.isnan(column))
                    for name, column in columns.items()
                },
                "overflow_eps": pa.array(overflow, mask=np.isnan(overflow)),
                **passes,
            }
        )
        return run_directory.with_notes(table, {"stages": names})

    def to_attack(self, stage: PlannedStage, status: np.ndarray) -> np.ndarray:
        """Where a stage may change the verdict: what stands; in search of the nearest point, what may be nearer."""
        if not self.plan.min_norm:
            return status == "robust"
        may = np.isin(status, ("robust", "fooled")) & (self.known > 0)
        return may if stage.minimises or stage.within is not None else may & (self.known > self.radii(stage))

    def approach(self, rows: np.ndarray, table: pa.Table, ahead: np.ndarray) -> None:
        """Note where an attack came nearer to a wrong class, for those after it that go on from there."""
        if "warm_start" not in table.column_names:
            return
        lead = table["margin"].to_numpy(zero_copy_only=False)  # not a number where there is no point
        points = torch.from_numpy(run_directory.points(table["warm_start"], tuple(self.task.x.shape[1:])).copy())
        better = lead > ahead[rows]
        near = self.task.x.clone() if self.task.warm_start is None else self.task.warm_start
        near[torch.from_numpy(rows[better])] = points[torch.from_numpy(better[~np.isnan(lead)])].to(near)
        ahead[rows[better]] = lead[better]
        self.task = replace(self.task, warm_start=near)

    def stage(self, name: str, make: Callable[[], pa.Table]) -> pa.Table:
        """The stage's table, from where it is kept, or made and kept now."""
        if self.kept is None:
            self.memory[self.number, name] = made = make()
            return made
        path = self.kept.stage(self.number, name)
        if not path.exists():
            run_directory.save(path, make())
        return run_directory.load(path)

    def clean(self) -> pa.Table:
        """The clean pass, and a second look at a few rows: does the model answer twice the same?"""
        began = time.perf_counter()
        with self.plan.evaluator(cross_entropy) as objective:
            output = forward_rows(objective, self.task, self.task.x, self.plan.batch_size)
            if output.is_floating_point():
                check_labels(output, self.task)
            if self.number == 0 and self.plan.eot == 1:
                objective.check_deterministic(self.task.x[:PROBED])
        n, eot = len(output), self.plan.eot
        padding = objective.forwards - n * eot
        stage = _stage("clean", "clean", None, n, 0, 0, began, forwards=n * eot, padding_forwards=padding)
        columns = {"id": self.task.noise.ids.cpu().numpy(), "label": self.task.y.cpu().numpy(), **_said(output)}
        if output.is_floating_point():
            columns["logits"] = run_directory.nested(numbers(output), np.full(n, True))
        return run_directory.with_notes(
            run_directory.table(columns),
            {"stage": vars(stage), "probes": objective.probes + self.plan.looked * (self.number == 0)},
        )

    def attacked(self, number: int, open_rows: np.ndarray, on_left: Callable[[str, int], None]) -> pa.Table:
        """One attack at one radius on the rows that still stand; its successes verified as they are stored."""
        began = time.perf_counter()
        stage, objective = self.plan.stages[number], self.objectives[number]
        rows = torch.from_numpy(open_rows).to(self.task.x.device)
        task = replace(self.task, ball=self.ball(stage)).rows(rows)
        label = _label(stage)
        with ExitStack() as stack:
            stack.enter_context(objective)
            evaluator = objective
            if self.plan.elsewhere(stage):
                evaluator = stack.enter_context(self.plan.evaluator(cross_entropy))
            standing = int(np.isinf(self.known[open_rows]).sum())
            found = self.found(
                stage, objective, evaluator, task, lambda fallen: on_left(label, max(standing - fallen, 0))
            )
            hit = found.fooled.nonzero().squeeze(1).to(rows.device)
            hits = task.rows(hit)
            x, x_adv, before = numbers(hits.x), found.x_adv[hit], evaluator.forwards
            if self.plan.min_norm and len(hit):
                x_adv = shrunk(evaluator, hits, x_adv, kept=self.plan.stored, batch_size=self.plan.batch_size)
            stored = self.plan.storage.keep(numbers(x_adv), x)
            point = self.plan.read(stored).to(task.x)
            output = forward_rows(evaluator, hits, point, self.plan.batch_size) if len(hit) else point.new_zeros(0, 2)
            verification = evaluator.forwards - before
        good = evaluator.succeeds(output, hits) & hits.ball.contains(point, hits.x)
        if not bool(good.all()):
            level = logging.INFO if self.plan.storage.x_adv == "8bit" else logging.WARNING  # rounding costs some
            log.log(level, "%s: %d successes did not stand when verified, and do not count", label, int((~good).sum()))
        unconfirmed = found.unconfirmed + int((~good).sum())
        stood, distance = good.cpu().numpy(), hits.ball.norm(point.double() - hits.x.double()).cpu().numpy()
        if self.plan.min_norm:
            stood &= distance < self.known[open_rows][hit.cpu().numpy()]
        fooled = np.zeros(len(open_rows), dtype=bool)
        fooled[hit.cpu().numpy()] = stood
        points = {"x_adv": stored[stood], "x": self.plan.storage.keep_x(x[stood])}
        columns = {"id": task.noise.ids.cpu().numpy(), "fooled": fooled, "invalid": found.invalid.numpy()}
        for name, values in _said(output).items():
            if name != "valid":
                columns[f"adversarial_{name}"] = run_directory.nested(values[stood], fooled)
        if self.plan.min_norm:
            columns["distance"] = run_directory.nested(distance[stood], fooled)
        columns["restart"] = found.restart.numpy()
        columns["forwards"], columns["backwards"] = found.forwards.numpy(), found.backwards.numpy()
        kept = points | {"crc32": checksums(*points.values())}
        columns |= {name: run_directory.nested(part, fooled) for name, part in kept.items()}
        summed = {
            name: int(getattr(found, name).sum() if name in ("forwards", "backwards") else getattr(found, name))
            for name in COUNTS
        }
        summary = _stage(
            stage.name,
            stage.label,
            stage.eps,
            len(open_rows),
            int(fooled.sum()),
            unconfirmed,
            began,
            verification=verification,
            **summed,
        )
        if self.plan.uses_warm_start:
            ended = np.isfinite(found.margin.numpy()) & ~found.fooled.numpy()
            columns["margin"] = pa.array(found.margin.numpy(), mask=~ended)
            columns["warm_start"] = run_directory.nested(numbers(found.warm_start[torch.from_numpy(ended)]), ended)
        table = run_directory.table(columns, {name: part.shape[1:] for name, part in points.items()})
        return run_directory.with_notes(table, {"stage": vars(summary)})

    def found(
        self, stage: PlannedStage, objective: Objective, evaluator: Objective, task: Task, on_turn: OnTurn
    ) -> AttackOutcome:
        """What an attack did; a transfer climbs on the source, whose own logits restart the classes, and `evaluator` looks."""
        plan, attack = self.plan, stage.attack
        if isinstance(attack, UserAttack):
            model = plan.model if plan.source is None else plan.source
            return user_attack.run(attack, model, evaluator, task, batch_size=plan.batch_size, on_turn=on_turn)
        options = QueueOptions(
            batch_size=plan.batch_size,
            check=plan.look(evaluator, stage),
            warm_start=plan.uses_warm_start,
            on_turn=on_turn,
        )
        if plan.source is None:
            return queue.run(attack, objective, task, options)
        before = objective.forwards
        clean = forward_rows(objective, task, task.x, plan.batch_size)
        if clean.is_floating_point():
            check_labels(clean, task)
        looked = objective.forwards - before
        task = replace(task, clean=clean if clean.is_floating_point() else None)
        found = queue.run(attack, objective, task, replace(options, evaluator=evaluator))
        padding = looked - plan.eot * len(clean)
        return replace(found, forwards=found.forwards + plan.eot, padding_forwards=found.padding_forwards + padding)

    def ball(self, stage: PlannedStage) -> Ball:
        """The bound ball of a stage."""
        if stage.within is not None:
            eps = torch.from_numpy(stage.within * self.known).to(self.task.x)
            reach = torch.as_tensor(everywhere(self.task.ball, self.task.x).eps).to(eps)  # of what nothing fooled yet
            return self.task.ball.with_eps(torch.where(eps.isinf(), reach, eps)).bind(self.task.x)
        if stage.eps is None:
            return self.task.ball
        return self.task.ball.with_eps(stage.eps).bind(self.task.x)

    def radii(self, stage: PlannedStage) -> np.ndarray:
        """The radius of each row at a stage; not a number where it is one per feature."""
        if stage.within is not None:
            return stage.within * self.known
        eps = torch.as_tensor(self.ball(stage).eps, dtype=torch.float64).cpu()
        return np.broadcast_to(eps.numpy() if eps.ndim <= 1 else np.nan, len(self.task.x))


def _said(output: Tensor) -> dict[str, np.ndarray]:
    """Prediction, its confidence (softmax; not a number for a model of labels), and whether the logits are finite."""
    n, logits = len(output), output.is_floating_point()
    return {
        "prediction": prediction(output).cpu().numpy(),
        "confidence": output.double().softmax(1).amax(1).cpu().numpy() if logits else np.full(n, np.nan),
        "valid": output.isfinite().all(1).cpu().numpy() if logits else np.full(n, True),
    }


def _stage(
    name: str, attack: str, eps: float | None, attacked: int, fooled: int, unconfirmed: int, began: float, **passes: int
) -> Stage:
    counts = dict.fromkeys((*COUNTS, "verification"), 0) | passes
    return Stage(name, attack, eps, attacked, fooled, unconfirmed, **counts, seconds=time.perf_counter() - began)


def _label(stage: PlannedStage) -> str:
    if stage.within is not None:
        return f"{stage.label}, nearer"
    return stage.label if stage.eps is None else f"{stage.label} at {stage.eps:.4g}"


def numbers(values: Tensor) -> np.ndarray:
    """As stored: single precision, double where the values are."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32)).cpu().numpy()
