"""Had a search without gradients converged? The same attacks again, with twice the queries, on a sample.

A gradient attack that has stopped too early betrays itself in its loss; random search does not: with too few queries it
reports what it did not find. So its attacks run once more, with other random numbers and twice the queries (and twice
the budget of a black box), on some examples that they had not broken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from epsball.attacks.attack import Attack
from epsball.engine.batches import forward_rows
from epsball.engine.stages import PlannedStage
from epsball.engine.user_attack import UserAttack
from epsball.evaluation.attack_stage import AttackStage
from epsball.evaluation.convergence_record import NEARER, Convergence, Look
from epsball.evaluation.plan import EvaluationPlan
from epsball.evaluation.result import Evaluation
from epsball.evaluation.run_directory import RunDir
from epsball.models.black_box import BlackBox
from epsball.problem.task import Task

FEWEST = 8
"""Examples of each radius, where so many are not broken."""


def convergence_of(plan: EvaluationPlan, directory: RunDir | None, found: Evaluation) -> Convergence | None:
    """The look of a run: the one that its directory holds, or made now; None where gradients had a part in the run."""
    requested = plan.settings.convergence
    if not requested or plan.source is not None or not _by_queries(plan):
        return None
    before = None if directory is None else Convergence.kept(directory.path)
    if before is not None and before.requested == requested:
        return before
    made = _looks(plan, found, requested)
    if directory is not None:
        made.keep(directory.path)
    return made


def _by_queries(plan: EvaluationPlan) -> bool:
    """Whether some attack searches without gradients, and none takes gradients. A random point is no search."""
    attacks = [attack for attack in plan.attacks if isinstance(attack, Attack)]
    return all(attack.needs != "grad" for attack in attacks) and any(map(_searches, attacks))


def _searches(attack: Attack | UserAttack) -> bool:
    return isinstance(attack, Attack) and attack.queries > 1


def _looks(plan: EvaluationPlan, found: Evaluation, requested: int) -> Convergence:
    began, looks, queries = time.perf_counter(), [], 0
    if plan.min_norm:
        known = found.distances
        targets = [(None, ~np.isnan(known) & (known > 0), NEARER * known)]
    else:
        far = np.full(len(found), np.inf)
        targets = [(eps, rows, far) for eps, rows in zip(found.config["radii"], found.not_broken(), strict=True)]
    ids_of_run = found.records["id"].to_numpy()
    most = max(requested // len(targets), min(FEWEST, requested))
    for eps, rows, known in targets:
        sample = _sample(np.flatnonzero(rows), most, plan.settings.seed)
        stages = [stage for stage in plan.attack_stages if (stage.minimises if plan.min_norm else stage.eps == eps)]
        stages = [stage for stage in stages if _searches(stage.attack)]
        broken, cost = _search(plan, stages, ids_of_run[sample], known[sample])
        ids = ids_of_run[sample[broken]].tolist()
        looks.append(Look(eps, int(rows.sum()), len(sample), len(ids), tuple(ids)))
        queries += cost
    return Convergence(tuple(looks), plan.min_norm, requested, queries, time.perf_counter() - began)


def _sample(rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the rows, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])


def _search(
    plan: EvaluationPlan, stages: list[PlannedStage], ids: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, int]:
    """Which of the examples with these ids the attacks break with twice the queries, (m,), and how many they made."""
    broken, queries = np.zeros(len(ids), dtype=bool), 0
    spent = np.zeros(len(ids), dtype=np.int64)
    if not len(ids):
        return broken, queries
    task = _task(plan, ids)
    with _doubled_budget(plan.black_box):
        for stage in stages:
            assert isinstance(stage.attack, Attack)
            again = replace(stage, attack=stage.attack.with_queries(2 * stage.attack.queries))
            rows = np.flatnonzero(~broken)
            part = task.rows(torch.from_numpy(rows).to(task.x.device))
            if stage.eps is not None:
                part = replace(part, ball=part.ball.with_eps(stage.eps).bind(part.x))
            attack = AttackStage(plan, again, plan.objective(again), part, known[rows], spent[rows])
            table = attack.run(lambda broken: None)
            spent[rows] += table["queries"].to_numpy()
            queries += int(table["queries" if plan.black_box is not None else "forwards"].to_numpy().sum())
            broken[rows] = table["fooled"].to_numpy(zero_copy_only=False)
            if broken.all():
                break
    return broken, queries


def _task(plan: EvaluationPlan, ids: np.ndarray) -> Task:
    """The task of a sample, with other random numbers than the run's and the logits of the examples."""
    task = plan.rows.at(plan.rows.places_of(ids))
    task = replace(task, noise=replace(task.noise, seed=plan.settings.seed + 1), warm_start=None)
    with plan.evaluator() as evaluator:
        output = forward_rows(evaluator, task, task.x, plan.batch_size)
    return replace(task, clean=output if output.is_floating_point() else None)


@contextmanager
def _doubled_budget(box: BlackBox | None) -> Iterator[None]:
    if box is None or box.budget is None:
        yield
        return
    before = box.budget
    box.budget = 2 * before
    try:
        yield
    finally:
        box.budget = before
