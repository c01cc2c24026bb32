"""One shard on its way through the stages of an evaluation: clean pass, attacks at each radius, records."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from epsball import engine, run_dir
from epsball.attacks.attack import Attack
from epsball.ball import Ball
from epsball.balls import L0, L1, L2, Linf
from epsball.evaluation import Stage
from epsball.losses import cross_entropy
from epsball.objective import Model, Objective, Success, check_labels, prediction
from epsball.run_dir import RunDir
from epsball.task import AWAY, Task

log = logging.getLogger(__name__)

PROBED = 32
NORMS: dict[str, Ball] = {"linf": Linf(eps=0), "l2": L2(eps=0), "l1": L1(eps=0), "l0": L0(eps=0, lo=0, hi=0)}
FOUND = {
    "eps": np.float64,
    "adversarial_prediction": np.int64,
    "adversarial_confidence": np.float64,
    "distance": np.float64,
    "linf": np.float64,
    "l2": np.float64,
    "l1": np.float64,
    "l0": np.int64,
}
"""What a record says of a fooled example; null for the others."""
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
    attacks: tuple[Attack, ...]
    radii: tuple[float, ...] | None
    width: int
    success: Success
    shard_size: int
    config: dict[str, Any]


@dataclass(eq=False)
class Shard:
    """One shard on its way through the stages."""

    plan: Plan
    number: int
    task: Task
    kept: RunDir | None
    memory: dict[tuple[int, str], pa.Table]
    objectives: list[Objective]

    def finish(self, on_left: Callable[[str, int], None]) -> pa.Table:
        """Run what is not on disk yet; the shard's records."""
        ids, y = self.task.noise.ids.cpu().numpy(), self.task.y.cpu().numpy()
        clean = self.stage("clean", self.clean)
        logits = run_dir.points(clean["logits"], (-1,)) if "logits" in clean.column_names else None
        if logits is not None:
            self.task = replace(self.task, clean=torch.tensor(logits).to(self.task.x))
        at = clean["prediction"].to_numpy()
        valid = clean["valid"].to_numpy(zero_copy_only=False)
        target = self.task.target.cpu().numpy()
        status = np.full(len(ids), "robust", dtype=object)
        status[at != y] = "wrong"
        status[(target != AWAY) & ((target == y) | (target == at))] = "at-target"
        status[~valid] = "invalid"
        columns = {name: np.zeros(len(ids), kind) for name, kind in FOUND.items()}
        passes = {name: np.zeros(len(ids), np.int64) for name in ("forwards", "backwards")}
        attack = np.full(len(ids), None, dtype=object)
        overflow, overflowed = np.full(len(ids), np.nan), np.zeros(len(ids), dtype=bool)
        names = ["clean"]
        stages = self.plan.config["stages"]
        for number, stage in enumerate(stages):
            open_rows = np.flatnonzero(status == "robust")
            on_left(_label(stage), len(open_rows))
            if not len(open_rows):
                continue
            table = self.stage(stage["name"], partial(self.attacked, number, stage, open_rows, on_left))
            names.append(stage["name"])
            fooled = table["fooled"].to_numpy(zero_copy_only=False)
            rows = open_rows[fooled]
            for name, count in passes.items():
                count[open_rows] += table[name].to_numpy()
            lost = open_rows[table["invalid"].to_numpy(zero_copy_only=False) & ~fooled]
            overflowed[lost] = True  # also where a radius per feature is no number
            overflow[lost] = np.fmin(overflow[lost], self.radii(number)[lost])
            status[rows], attack[rows] = "fooled", stage["attack"]
            columns["eps"][rows] = self.radii(number)[rows]
            for name in ("adversarial_prediction", "adversarial_confidence"):
                columns[name][rows] = table[name].drop_null().to_numpy()
            x = self.task.x[torch.from_numpy(rows)].cpu()
            z = torch.tensor(run_dir.points(table["x_adv"], tuple(x.shape[1:])))
            ball = self.ball(number).rows(torch.from_numpy(rows))
            for name, norm in (("distance", ball), *NORMS.items()):
                columns[name][rows] = norm.norm(z.double() - x.double()).numpy()
        status[overflowed & (status == "robust")] = "invalid"
        table = run_dir.table(
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
        return run_dir.with_notes(table, {"stages": names})

    def stage(self, name: str, make: Callable[[], pa.Table]) -> pa.Table:
        """The stage's table, from where it is kept, or made and kept now."""
        if self.kept is None:
            self.memory[self.number, name] = made = make()
            return made
        path = self.kept.stage(self.number, name)
        if not path.exists():
            run_dir.save(path, make())
        return run_dir.load(path)

    def clean(self) -> pa.Table:
        """The clean pass, and a second look at a few rows: does the model answer twice the same?"""
        began = time.perf_counter()
        with Objective(self.plan.model, cross_entropy, success=self.plan.success) as objective:
            output = engine.forward_rows(objective, self.task.x, self.plan.width)
            if output.is_floating_point():
                check_labels(output, self.task)
            if self.number == 0:
                objective.check_deterministic(self.task.x[:PROBED])
        n = len(output)
        stage = _stage("clean", "clean", None, n, 0, 0, began, forwards=n, padding_forwards=objective.forwards - n)
        columns = {"id": self.task.noise.ids.cpu().numpy(), **_said(output)}
        if output.is_floating_point():
            columns["logits"] = run_dir.nested(output.to(_stored(output.dtype)).cpu().numpy(), np.full(n, True))
        return run_dir.with_notes(run_dir.table(columns), {"stage": vars(stage), "probes": objective.probes})

    def attacked(
        self, number: int, stage: dict[str, Any], open_rows: np.ndarray, on_left: Callable[[str, int], None]
    ) -> pa.Table:
        """One attack at one radius on the rows that still stand; its successes verified as they are stored."""
        began = time.perf_counter()
        attack = self.plan.attacks[number % len(self.plan.attacks)]
        objective = self.objectives[number % len(self.plan.attacks)]
        rows = torch.from_numpy(open_rows).to(self.task.x.device)
        task = replace(self.task, ball=self.ball(number)).rows(rows)
        label = _label(stage)
        with objective:
            found = engine.run(
                attack,
                objective,
                task,
                width=self.plan.width,
                on_turn=lambda fallen: on_left(label, len(open_rows) - fallen),
            )
            hit = found.fooled.nonzero().squeeze(1).to(rows.device)
            stored = found.x_adv[hit].to(_stored(task.x.dtype))
            before = objective.forwards
            point = stored.to(task.x.dtype)
            hits = task.rows(hit)
            output = engine.forward_rows(objective, point, self.plan.width) if len(hit) else point.new_zeros(0, 2)
            verification = objective.forwards - before
        good = objective.verdict(output, hits) & hits.ball.contains(point, hits.x)
        if not bool(good.all()):
            log.warning("%s: %d successes did not stand when verified, and do not count", label, int((~good).sum()))
        fooled = np.zeros(len(open_rows), dtype=bool)
        fooled[hit.cpu().numpy()] = good.cpu().numpy()
        x_adv = np.zeros((len(open_rows), *stored.shape[1:]), dtype=str(stored.dtype).removeprefix("torch."))
        x_adv[hit.cpu().numpy()] = stored.cpu().numpy()
        columns = {"id": task.noise.ids.cpu().numpy(), "fooled": fooled, "invalid": found.invalid.numpy()}
        for name, values in _said(output).items():
            if name != "valid":
                spread = np.zeros(len(open_rows), values.dtype)
                spread[hit.cpu().numpy()] = values
                columns[f"adversarial_{name}"] = pa.array(spread, mask=~fooled)
        columns["rank"] = found.rank.numpy()
        columns["forwards"], columns["backwards"] = found.forwards.numpy(), found.backwards.numpy()
        columns["x_adv"] = run_dir.nested(x_adv, fooled)
        summed = {
            name: int(getattr(found, name).sum() if name in ("forwards", "backwards") else getattr(found, name))
            for name in COUNTS
        }
        unconfirmed = len(hit) - int(fooled.sum())
        summary = _stage(
            stage["name"],
            stage["attack"],
            stage["eps"],
            len(open_rows),
            int(fooled.sum()),
            unconfirmed,
            began,
            verification=verification,
            **summed,
        )
        return run_dir.with_notes(run_dir.table(columns, {"x_adv": x_adv.shape[1:]}), {"stage": vars(summary)})

    def ball(self, number: int) -> Ball:
        """The bound ball of a stage."""
        if self.plan.radii is None:
            return self.task.ball
        radius = self.plan.radii[number // len(self.plan.attacks)]
        return self.task.ball.with_eps(radius).bind(self.task.x)

    def radii(self, number: int) -> np.ndarray:
        """The radius of each row at a stage; not a number where it is one per feature."""
        eps = torch.as_tensor(self.ball(number).eps, dtype=torch.float64).cpu()
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


def _label(stage: dict[str, Any]) -> str:
    return stage["attack"] if stage["eps"] is None else f"{stage['attack']} at {stage['eps']:.4g}"


def _stored(dtype: torch.dtype) -> torch.dtype:
    """The dtype of stored points: single precision, double where the data is."""
    return torch.float64 if dtype == torch.float64 else torch.float32
