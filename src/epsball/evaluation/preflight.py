"""Around the shards of a run: what is stated of its set-up, the probe that its protocol reacts to, and the reliability
checks of its result."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.diagnosis.diagnose import Known, probe, run_diagnosis, with_binarization_test
from epsball.diagnosis.diagnosis_record import Diagnosis
from epsball.diagnosis.reaction import Reaction, react
from epsball.diagnosis.setup import AllExamples, CleanPass, check_targets, make_setup
from epsball.diagnosis.setup_record import Setup
from epsball.engine.batches import forward_rows
from epsball.engine.stages import listed
from epsball.evaluation import run_directory
from epsball.evaluation.config import EvaluationConfig
from epsball.evaluation.plan import EvaluationInputs, EvaluationPlan
from epsball.evaluation.result import Evaluation
from epsball.evaluation.run_directory import RunDir, read_config
from epsball.evaluation.shard import Shard
from epsball.evaluation.stage_tables import StageTables
from epsball.models.black_box import BlackBox
from epsball.problem.objective import Objective
from epsball.problem.rows import ROWS, rows_independent

log = logging.getLogger(__name__)

REACTING = ("standard", "fast")
"""The protocols that react to the probe."""
PROBED = 32
"""Examples of the probe."""
SAMPLED = 256
"""Examples that the set-up is read from where those of the first shard do not have all classes."""
COST, COST_BROKEN = 1530, 300
"""Forward and backward passes of the reliability checks for an example that is robust (under `fast`), and for one that
is not."""
FEWEST, MOST = 16, 128
"""Examples of reliability checks that nobody asked for."""
ALLOWANCE = 40
"""Passes per example of the run that these checks may take in any case: half of one pgd."""


def reaction_to(
    inputs: EvaluationInputs, settings: EvaluationConfig, run_dir: str | Path | None
) -> tuple[Reaction, int]:
    """What the protocols that react change for this model, and the model calls of the probe.

    A resumed run changes what it changed before.
    """
    reacting = any(isinstance(one, str) and one.strip().lower() in REACTING for one in listed(inputs.attacks))
    if inputs.source is not None or not reacting:
        return Reaction(), 0
    if run_dir is not None and (Path(run_dir) / "config.json").exists():
        return Reaction.from_record(read_config(Path(run_dir)).get("reaction") or {}), 0
    options = {"seed": settings.seed, "eot": settings.eot, "batch_size": settings.first_batch_size}
    try:
        found = probe(inputs.model, inputs.rows.examples, inputs.ball, n=PROBED, **options)
    except (BadInput, RuntimeError, ValueError, TypeError) as error:  # the run itself raises it
        log.info("no probe before the attacks: %s", error)
        return Reaction(), 0
    return react(found, inputs.ball, settings.eot), found.forwards


def setup_of(plan: EvaluationPlan, mode: str, directory: RunDir | None, tables: StageTables) -> Setup:
    """The set-up of the run: the one that its directory holds, or made now, from the clean pass of the first shard.

    Where that has not all classes (the data are sorted), `SAMPLED` examples spread over all are asked instead. `mode`
    is that of the model as it came. Raises `BadInput` for what is certainly wrong.
    """
    before = None if directory is None else Setup.kept(directory.path)
    if before is not None:
        return before
    first = plan.rows.part(0)
    shard = Shard(plan, 0, first.task, first.bad, {}, tables)
    table = tables.kept(0, "clean", shard.clean)
    notes = run_directory.notes(table)
    seen = plan.rows.sample()
    check_targets(seen)
    labels = plan.rows.all_labels
    rows = torch.arange(min(len(first.task.x), len(seen.x)), device=seen.y.device)
    with plan.evaluator() as evaluator:
        same = torch.equal(first.task.noise.ids, seen.noise.ids[rows])
        if not same or len(seen.y[rows].unique()) < len(seen.y.unique()):
            rows = torch.linspace(0, len(seen.y) - 1, SAMPLED, device=seen.y.device).long().unique()
            spread = seen if len(rows) == len(seen.y) else seen.rows(rows)
            output = forward_rows(evaluator, spread, spread.x, plan.batch_size)
        elif "logits" in table.column_names:
            output = torch.from_numpy(run_directory.points(table["logits"], (-1,)).copy()).to(seen.y.device)
        else:
            output = torch.from_numpy(table["prediction"].to_numpy().copy()).to(seen.y.device)
        deterministic = notes.get("deterministic")
        few = rows[:PROBED]
        independent = _independent(evaluator, seen.x[few]) if deterministic else None
        clean = CleanPass(rows, output, mode, deterministic, independent, notes.get("ends_in"))
        radii = plan.settings.radii if not plan.settings.min_norm else None
        every = AllExamples(plan.rows.ids, None if labels is None else labels[labels >= 0].cpu())
        made = make_setup(seen, plan.rows.examples, every, radii, clean, evaluator)
    if directory is not None:
        made.keep(directory.path)
    return made


def looked_at(plan: EvaluationPlan, rows: np.ndarray, n: int) -> np.ndarray:
    """At most `n` of the rows: the first ones, as `diagnose` takes them; of lazy data, which are mostly files in the
    order of their classes, some from all over."""
    if not plan.rows.portable or len(rows) <= n:
        return rows[:n]
    return rows[np.linspace(0, len(rows) - 1, n).astype(int)]


def affordable(found: Evaluation) -> int:
    """The examples of checks that cost no more than a quarter of the run, or `ALLOWANCE` passes per example of it.

    From `FEWEST` to `MOST`; 0 where it is fewer.
    """
    n, robust = len(found), found.count("robust")
    each = (robust * COST + (n - robust) * COST_BROKEN) / n
    allowed = int(max((found.forwards + found.backwards) / 4, ALLOWANCE * n) / each)
    return 0 if allowed < FEWEST else min(allowed, MOST)


def _independent(evaluator: Objective, x: Tensor) -> bool | None:
    """Whether a row's output depends on that row alone; None for one example, for a black box, which is asked row by
    row, and where 32 rows are more than a model call may have. Five forward passes of 32 rows, of the deterministic
    model that `evaluator` asks."""
    if len(x) < 2 or isinstance(evaluator.model, BlackBox) or evaluator.limit.rows < ROWS:
        return None
    return rows_independent(evaluator.forward, x)


def diagnosis_of(plan: EvaluationPlan, directory: RunDir | None, found: Evaluation) -> Diagnosis | None:
    """The reliability checks of the run: those that its directory holds, or made now; None where there are none."""
    before = None if directory is None else Diagnosis.kept(directory.path)
    n = plan.settings.diagnose
    if n == 0 or plan.source is not None:
        return None
    if before is not None and (n is None or min(n, len(found)) == before.examples):
        return with_binarization_test(before, found.binarization_test)
    if n is None:
        n = affordable(found)
        if n == 0 or (isinstance(plan.model, BlackBox) and plan.model.budget is not None):
            return None
    stages = [stage for stage in plan.attack_stages if not stage.draft]
    attacks = list({stage.label: (stage.label, stage.attack) for stage in stages}.values())
    reaction = Reaction.from_record(plan.record["reaction"] or {})
    known = Known(evaluation=found, labels=found.records["label"].to_numpy(), classes=plan.classes, reaction=reaction)
    ids = looked_at(plan, found.records["id"].to_numpy(), n)
    task = plan.rows.at(plan.rows.places_of(ids))
    made = run_diagnosis(plan.model, task, attacks, n=n, eot=plan.eot, batch_size=plan.batch_size, known=known)
    if directory is not None and made is not None:
        made.keep(directory.path)
    return made
