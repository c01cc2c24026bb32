"""`evaluate`: a probe, a plan, the shards of the examples through its stages, and what goes with the result.

Attacks run one after the other, each on the examples that are robust so far. Success and containment are recomputed
from the adversarial example as it is stored, never taken from the attack. Examples that are misclassified without
attack, or whose logits are not finite, are counted apart. With several radii an example that was broken at one counts
as broken at the larger ones and is not attacked again: the curve costs little more than its last point. Shards and
stages are the units of work that a resumed run does not repeat.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from epsball.acceleration.draft import Precision, check_draft
from epsball.acceleration.plan import AccelerationPlan
from epsball.balls.ball import Ball
from epsball.balls.ball_file import save_ball
from epsball.balls.registry import ball_of
from epsball.common.errors import BadInput
from epsball.data.box import ball_for, check_scale
from epsball.data.examples import Examples
from epsball.data.lazy_examples import LazyExamples
from epsball.diagnosis.binarization_record import BinarizationTest
from epsball.diagnosis.binarization_test import run_binarization_test
from epsball.diagnosis.setup import SAID_ELSEWHERE, mode_of
from epsball.diagnosis.setup_record import Setup, SetupWarning
from epsball.engine.batches import forward_rows
from epsball.engine.default_attacks import answers, default_attacks
from epsball.engine.stages import Asked
from epsball.evaluation import run_directory
from epsball.evaluation.batch_policy import with_batch_size
from epsball.evaluation.certify_stage import certifier_of, check_certifiable
from epsball.evaluation.config import EvaluationConfig, radii_of
from epsball.evaluation.convergence import convergence_of
from epsball.evaluation.counts import Counts
from epsball.evaluation.figures import optional
from epsball.evaluation.plan import EvaluationInputs, EvaluationPlan, make_plan, unbounded, with_acceleration
from epsball.evaluation.point_storage import Kind
from epsball.evaluation.preflight import diagnosis_of, looked_at, reaction_to, setup_of
from epsball.evaluation.result import Evaluation, gathered
from epsball.evaluation.rows import rows_of
from epsball.evaluation.run_directory import RunDir
from epsball.evaluation.shard import PROBED, OnStage, Shard, check_same_rows
from epsball.evaluation.stage_tables import StageTables
from epsball.models.frozen import frozen
from epsball.models.given import as_model
from epsball.problem.inputs import data_for, examples_for
from epsball.problem.objective import Model, SearchWarning, Success, changes_prediction
from epsball.problem.task import AWAY

SPARE = 2
"""So many times the examples that a binarization test asks for are read: of a stochastic model some are wrong now."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: the stage, examples that are finished, examples that are robust so far, and all examples.

    An attack has `broken` so many, and so many of the robust are `proved` to be so; in a run that certifies the others
    of the robust are undecided. The first report of a run comes before its attacks and holds the `setup`, what was
    understood of the arguments.
    """

    stage: str
    done: int
    robust: int
    total: int
    setup: Setup | None = None
    proved: int = 0
    broken: int = 0


OnProgress = Callable[[Progress], None]


def evaluate(
    model: Model,
    data: Examples | tuple[Any, Any] | Any,
    ball: Ball | str,
    attacks: Asked | Sequence[Asked] | None = None,
    *,
    eps: Sequence[float | str] | float | str | None = None,
    min_norm: bool = False,
    target: Int64[Tensor, " n"] | int | None = None,
    source: Model | None = None,
    eot: int = 1,
    seed: int = 0,
    batch_size: int | Literal["auto"] = 128,
    run_dir: str | Path | None = None,
    success: Success = changes_prediction,
    storage: Kind = "float",
    binarization_test: int = 0,
    diagnose: int | None = None,
    convergence: int = 32,
    certify: bool | float | None = None,
    accelerate: bool | AccelerationPlan | None = None,
    compile: bool = False,
    draft: Precision | None = None,
    shard_size: int | None = None,
    shard_mib: float = 64.0,
    on_bad: Literal["stop", "skip"] = "stop",
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    ray: str | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Robust accuracy of `model` on `data` in `ball`: per example the worst case over all `attacks`, re-verified.

    `model` is a torch module, or a callable x -> logits; `data` are Examples, (x, y) with x (n, *shape) in the
    units of the ball and y (n,), or whatever else `epsball.data.examples_of` takes: a Dataset, a DataLoader, an
    image folder by `epsball.data.open_data`, whose rows are read shard by shard, so that any number of them fits.
    `ball` may be text, "linf:8/255"; where it has no box it is in that of the Examples (0 to 1 for images by name
    and uint8). x goes to the device and the dtype of the model's parameters. `attacks` are run in order, each on
    the examples that are robust so far: by name ("pgd", "pgd:steps=100"), as objects, as callables (model, x, y,
    ball) -> x_adv, or as protocols of several attacks ("standard", "fast": see `epsball.engine.protocols`).
    Default: fast; min-norm in L0 and with `min_norm`; on a model without gradients square, on one of labels
    hopskipjump.

    The settings, with their defaults and rules, are those of `EvaluationConfig`:
    `eps` gives several radii, for the robustness curve. With `min_norm` the minimum-norm adversarial example of each
    example is searched, whatever the ball's radius, by those of the `attacks` that search one; the others then look for
    something nearer, at each radius of `eps`, or else within 95 % of the distances found. `eot` model calls are
    averaged, for a stochastic model. `batch_size` rows share a model call and do not change the records (from 32 up,
    on CPU); "auto" measures, for a few seconds, which number is fast.
    With `storage` "8bit" adversarial examples are stored, and evaluated, in the 256 levels of an image from lo
    to hi of the ball, rounded towards x; a success that the rounding undoes does not count. With `binarization_test`
    the same attacks also search so many hidden adversarial examples, at the largest radius: are they strong enough for
    this model (see `epsball.binarization_test`)? The reliability checks (`epsball.diagnose`) run on `diagnose`
    examples: 0 for none; None for 16 to 128, as many as cost no more than a quarter of the run or 40 model calls per
    example; `Evaluation.reliability` says what they found, or why there are none. Where no attack takes
    gradients, `convergence` examples that were not broken are searched again with twice the queries, which are counted
    apart: a warning says where that breaks more. With `certify` examples are also proved robust: by bounds where ten
    steps of PGD found nothing, and, behind the attacks and many restarts of PGD, by a search of so many seconds per
    example (True: 10; 0: none). What is proved is not attacked, and the result has both ends, `certified_accuracy` and
    `robust_accuracy`, with the `undecided` between them. The attacks climb on
    the model `accelerate`d (None: where a short trial is likely to pay; or a plan to go by), also `compile`d; with a
    `draft` "bf16", on a GPU, each attack that takes gradients is first run in that precision. Results always come from
    the model itself.

    With a `source`, another model, the attacks are transfers: they see the source alone, and are evaluated on `model`.
    `target` (n,) or one class for all asks for that class; examples whose label it is are left out (status at-target),
    and robust accuracy is a share of the others. `success` says when an attack succeeds. With `run_dir` the run is kept
    there; the same directory resumes it. `on_progress` is called after every step of an attack.

    Before the attacks the result's `setup` states what was understood: the range of the data, box and radius, classes,
    clean accuracy beside chance, the model's mode. What is likely to be wrong is a `SetupWarning`.

    The protocols "standard" and "fast" react to a probe of 32 examples: saturated logits, a stochastic model, masked
    gradients; what they changed is in the result's `config`.

    Where `model` is a `BlackBox` with a budget, that is one for each example at each radius. Examples for which it ran
    out before the attacks had ended are `exhausted`: they do not count as robust, and a warning says so.

    Raises `BadInput` for arguments that do not fit. The model comes back as it was.
    """
    settings = EvaluationConfig(
        eps=radii_of(eps),
        min_norm=min_norm,
        eot=eot,
        storage=storage,
        seed=index(seed),
        batch_size=batch_size,
        shard_size=shard_size,
        shard_mib=shard_mib,
        on_bad=on_bad,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        ray=ray,
        binarization_test=binarization_test,
        diagnose=diagnose,
        convergence=convergence,
        certify=certify,
        accelerate=None if isinstance(accelerate, AccelerationPlan) else accelerate,
        compile=compile,
        draft=draft,
    )
    if binarization_test and source is not None:
        raise BadInput(
            "`binarization_test` must be 0 with a `source`: a transfer does not see the head that hides an adversarial "
            "example"
        )
    ball = unbounded(ball_of(ball)) if min_norm else ball_of(ball)
    model = as_model(model)
    data = data_for(model, data, None if run_dir is None else Path(run_dir) / "data")
    ball = ball_for(ball, data)
    data = data if isinstance(data, LazyExamples) else examples_for(model, data, ball)
    source = None if source is None else as_model(source, "source")
    if settings.radii is not None:
        check_scale(ball.with_eps(settings.radii[-1]), data)
    rows = rows_of(model, data, ball, settings, target)
    check_draft(draft, rows.first.x.device)
    if attacks is None:
        seen = model if source is None else source
        attacks = default_attacks(ball, answers(seen, rows.first.x), min_norm=min_norm)
    inputs = EvaluationInputs(model, rows, ball, attacks, source, success)
    mode = mode_of(model)
    reaction, probe_forwards = reaction_to(inputs, settings, run_dir)
    plan = replace(make_plan(inputs, settings, reaction), probe_forwards=probe_forwards + rows.forwards)
    check_certifiable(plan)
    plan = with_acceleration(plan, accelerate, run_dir)
    plan = with_batch_size(plan)
    with ExitStack() as stack:
        directory = stack.enter_context(RunDir(run_dir, plan.record)) if run_dir is not None else None
        if directory is not None:
            save_ball(plan.rows.ball, directory.ball)
        tables = StageTables.of_run(None if directory is None else directory.path, in_files=rows.portable)
        stack.enter_context(frozen(model))
        if source is not None:
            stack.enter_context(frozen(source))
        on_progress = on_progress or (lambda progress: None)
        _check_same_model(plan, tables)
        setup = setup_of(plan, mode, directory, tables)
        on_progress(Progress("", 0, 0, len(rows), setup))
        for finding in setup.warnings:
            if finding.name not in SAID_ELSEWHERE:
                warnings.warn(finding.text, SetupWarning, stacklevel=2)
        found = _run_shards(plan, plan.record if directory is None else directory.config, tables, on_progress)
        found = replace(found, setup=setup)
        found = replace(found, binarization_test=_binarization_test(plan, directory, found))
        found = replace(found, diagnosis=diagnosis_of(plan, directory, found))
        found = replace(found, convergence=convergence_of(plan, directory, found))
    if found.budget_sentence is not None:
        warnings.warn(found.budget_sentence, SearchWarning, stacklevel=2)
    if found.convergence is not None and not found.convergence.converged:
        warnings.warn(found.convergence.sentence, SearchWarning, stacklevel=2)
    return found


def _run_shards(
    plan: EvaluationPlan, config: dict[str, Any], tables: StageTables, on_progress: OnProgress
) -> Evaluation:
    """Run the shards that are not finished yet, and gather the records and stages of all in the order of the ids."""
    rows = plan.rows
    records = [tables.records(shard) for shard in range(rows.shards)]
    counts = sum((_counts(table) for table in records if table is not None), Counts())
    done = sum(len(rows.places(shard)) for shard, table in enumerate(records) if table is not None)
    unfinished = [shard for shard, table in enumerate(records) if table is None]

    def report(stage: str, more: Counts) -> None:
        now = counts + more
        on_progress(Progress(stage, done, now.robust, len(rows), proved=now.proved, broken=now.broken))

    with closing(_made(plan, tables, unfinished, report)) as made:  # an error here ends the workers, too
        for shard, table in made:
            tables.keep_records(shard, table)
            records[shard] = table
            counts, done = counts + _counts(table), done + len(rows.places(shard))
            report("", Counts())
    return gathered(config, {shard: table for shard, table in enumerate(records) if table is not None}, tables)


def _counts(records: pa.Table) -> Counts:
    """Those of a finished shard, at the largest radius."""
    status = records["status"].to_numpy(zero_copy_only=False)
    proved = optional(records, "certified") == 1
    return Counts(int((status == "robust").sum()), int(proved.sum()), int((status == "fooled").sum()))


def _made(
    plan: EvaluationPlan, tables: StageTables, shards: Sequence[int], report: OnStage
) -> Generator[tuple[int, pa.Table]]:
    """The records of these shards, as they are finished, by workers or here; their stages are in `tables`.

    `report` is told of a stage and the counts so far in the shards that are not finished.
    """
    settings = plan.settings
    if settings.workers is not None and shards:
        from epsball.evaluation.workers import Workers, run_on_workers

        workers = Workers(settings.workers, settings.gpus_per_worker, settings.ray)
        yield from run_on_workers(plan, tables, shards, workers, report)
        return
    objectives = plan.objectives()
    certifier = certifier_of(plan) if shards else None
    for part in plan.rows.parts(shards):
        yield part.number, Shard(plan, part.number, part.task, part.bad, objectives, tables, certifier).run(report)


def _binarization_test(plan: EvaluationPlan, directory: RunDir | None, found: Evaluation) -> BinarizationTest | None:
    """The binarization test at the largest radius: the one that the run's directory holds, or made now."""
    n = plan.settings.binarization_test
    before = None if directory is None else BinarizationTest.kept(directory.path)
    if not n or (before is not None and before.requested == n):
        return before
    clean = found.records["clean_prediction"].to_numpy(zero_copy_only=False)  # not a number where there was none
    correct = np.flatnonzero(clean == found.records["label"].to_numpy())
    few = looked_at(plan, correct if len(correct) else np.arange(len(found)), SPARE * n)
    task = plan.rows.at(plan.rows.places_of(found.records["id"].to_numpy()[few]))
    away = torch.full_like(task.y, AWAY)  # what is planted is another class, whatever the run's target is
    task = replace(task, target=away, aim=away)  # its ball is that of the largest radius
    last = plan.attack_stages[-1].eps
    attacks = [(stage.label, stage.attack) for stage in plan.attack_stages if stage.eps == last and not stage.draft]
    made = run_binarization_test(plan.model, task, attacks, n=n, eot=plan.eot, batch_size=plan.batch_size)
    if directory is not None:
        made.keep(directory.path)
    return made


def _check_same_model(plan: EvaluationPlan, tables: StageTables) -> None:
    """Refuse to resume with a model that answers differently, or with other data, as far as the first rows tell.

    A fingerprint does not see all that a model is made of.
    """
    if not tables.has(0, "clean"):
        return
    clean, first = tables.stage(0, "clean"), plan.rows.first
    few = min(PROBED, len(clean), len(first.x))
    if not few:
        return
    rows = first.rows(torch.arange(few, device=first.x.device))
    check_same_rows(rows, clean.slice(0, few), 0)
    if "logits" not in clean.column_names or plan.eot > 1:  # the logits of a stochastic model are never the same
        return
    with plan.evaluator() as evaluator:
        now = forward_rows(evaluator, rows, rows.x, plan.batch_size).cpu()
    before = torch.tensor(run_directory.points(clean["logits"], (-1,))[:few])
    if now.shape != before.shape or not torch.allclose(now.to(before), before, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise BadInput(
            "`run_dir` holds a run with another `model`: its first logits are not those of this one; resume with the "
            "same model (a factory that draws its weights anew needs them from a file), or choose a new directory"
        )
