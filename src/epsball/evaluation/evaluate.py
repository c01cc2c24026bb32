"""The protocol: clean pass, a cascade of attacks over what still stands, and a record per example.

Success and containment are recomputed from the point as it is stored, never taken from the attack's word. Examples
that are wrong before any attack, or whose logits are not finite, are counted apart. With a list of radii an example
that fell at one is carried to the larger ones and not attacked again: the whole curve for little more than its last
point. Shards of consecutive ids and stages are the units of work that a resumed run does not repeat.
"""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

from epsball.acceleration.draft import Precision, check_draft
from epsball.acceleration.plan import Plan as Acceleration
from epsball.balls.ball import Ball
from epsball.balls.ball_file import describe_ball, save_ball
from epsball.balls.registry import BALLS
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.version import __version__
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.data.labels import labels
from epsball.diagnosis.binarization_record import BinarizationTest
from epsball.diagnosis.binarization_test import examined
from epsball.diagnosis.reaction import Reaction
from epsball.engine.batches import forward_rows
from epsball.engine.stages import Asked, listed, name_of, named, nearest_stages, stages_of
from epsball.engine.user_attack import UserAttack
from epsball.evaluation import run_directory
from epsball.evaluation.acceleration_policy import accelerated
from epsball.evaluation.point_storage import Kind, Storage
from epsball.evaluation.preflight import diagnosis_of, reaction_to
from epsball.evaluation.result import Evaluation, gathered
from epsball.evaluation.run_directory import RunDir, read_config
from epsball.evaluation.shard import PROBED, Plan, Shard, numbers
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective, Success, changes_prediction, frozen
from epsball.problem.task import AWAY, task_of

log = logging.getLogger(__name__)

SHARD = 1024


@dataclass(frozen=True)
class Progress:
    """How far a run is: what it works on, how many of the examples are done with, and how many stand so far."""

    stage: str
    done: int
    standing: int
    total: int


def evaluate(
    model: Model,
    data: Examples | tuple[Any, Any],
    ball: Ball,
    attacks: Asked | Sequence[Asked] = ("fgsm", "pgd"),
    *,
    eps: Sequence[float] | None = None,
    min_norm: bool = False,
    target: Int64[Tensor, " n"] | int | None = None,
    source: Model | None = None,
    eot: int = 1,
    seed: int = 0,
    batch_size: int = 128,
    run_dir: str | Path | None = None,
    success: Success = changes_prediction,
    storage: Kind = "float",
    binarization_test: int = 0,
    diagnose: int | None = None,
    accelerate: bool | Acceleration | None = None,
    compile: bool = False,
    draft: Precision | None = None,
    shard_size: int = SHARD,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """How robust is `model` on `data` in `ball`? The worst case over all `attacks`, per example, re-verified.

    `model` is a torch module, or a callable x -> logits; `data` are Examples, or (x, y) with x (n, *shape) in the
    units of the ball and y (n,). `attacks` are run in order, each on what still stands: by name ("pgd",
    "pgd:steps=100"), as objects, as callables (model, x, y, ball) -> x_adv, or as protocols of several attacks
    ("standard", "fast": see `epsball.engine.protocols`). With a `source`, another model, they are transfers: they see the
    source alone, and `model` judges where they end. `eot` passes are averaged, for a stochastic model. `eps` gives
    several radii, for the robustness curve. With `min_norm` the nearest fooling point of each example is sought,
    whatever the ball's radius: by those of the `attacks` that seek one ("min-norm" is a protocol of such); the others
    then look for something nearer, at each radius of `eps`, or else within 95 % of the distances found.
    `target` (n,) or one class asks for that class. `batch_size` rows share a pass and do not change the records (from 32
    up, on CPU). With `run_dir` the run is kept there, and goes on from there if
    it was interrupted. With `storage` "8bit" adversarial examples are kept, and judged, in the 256 levels of an image
    from lo to hi of the ball, rounded towards x; a success that does not survive it does not count. With `binarization_test`
    the same attacks are also set on so many hidden adversarial examples, at the largest radius: are they strong enough
    for this model (see `epsball.binarization_test`)? A diagnosis (`epsball.diagnose`) of so many examples as `diagnose` says
    goes with the verdict: 0 for none; None for 16 to 128 where that costs no more than a quarter of the run. The
    protocols "standard" and "fast" react to what a look at 32 examples shows: saturated logits, a stochastic forward,
    masked gradients; what they did is in the result's `config`. The attacks climb on the model `accelerate`d (None:
    where a short trial is likely to pay; or a plan to go by), also `compile`d; with a `draft` "bf16", on a GPU, each
    attack that takes gradients is first run in that precision. What counts is what the model itself says.

    Raises `BadInput` for arguments that do not fit. The model comes back as it was.
    """
    check_whole("binarization_test", binarization_test, 0)
    if binarization_test and source is not None:
        raise BadInput(
            "`binarization_test` must be 0 with a `source`: a transfer does not see the head that hides a point"
        )
    examples = data if isinstance(data, Examples) else from_arrays(*data)
    check_draft(draft, examples.x.device)
    check_whole("eot", eot, 1)
    if min_norm:
        ball = unbounded(ball, binarization_test, eot)
    reaction, looked = reaction_to(model, examples, ball, attacks, source, eot, seed, batch_size, run_dir)
    plan = plan_of(
        model,
        examples,
        ball,
        attacks,
        reaction,
        eps,
        min_norm,
        target,
        source,
        max(eot, reaction.eot),
        seed,
        batch_size,
        success,
        shard_size,
        storage,
        draft,
    )
    plan = _accelerated(replace(plan, looked=looked), accelerate, compile, None if run_dir is None else Path(run_dir))
    with ExitStack() as stack:
        kept = stack.enter_context(RunDir(run_dir, plan.config)) if run_dir is not None else None
        if kept is not None:
            save_ball(plan.task.ball, kept.ball)
        stack.enter_context(frozen(model))
        if source is not None:
            stack.enter_context(frozen(source))
        found = _run(plan, kept, on_progress or (lambda progress: None))
        found = replace(found, binarization_test=_active(plan, kept, binarization_test))
        return replace(found, diagnosis=diagnosis_of(plan, kept, found, diagnose))


def plan_of(
    model: Model,
    examples: Examples,
    ball: Ball,
    attacks: Asked | Sequence[Asked],
    reaction: Reaction,
    eps: Sequence[float] | None,
    min_norm: bool,
    target: object,
    source: Model | None,
    eot: int,
    seed: int,
    batch_size: int,
    success: Success,
    shard_size: int,
    storage: str,
    draft: Precision | None,
) -> Plan:
    """The checked arguments of `evaluate`, and the configuration that a resume is held against."""
    check_whole("batch_size", batch_size, 1)
    check_whole("shard_size", shard_size, 1)
    check_whole("eot", eot, 1)
    seed = index(seed)
    pairs = reaction.applied(named(attacks, ball))
    callables = [name for name, attack in pairs if isinstance(attack, UserAttack)]
    if target is not None and callables:
        raise BadInput(f"`target` must be left out with {callables[0]}: a callable is not told of it")
    if source is not None and not callable(source):
        raise BadInput(f"`source` must be a model, callable, x -> logits, got {type(source).__name__}")
    radii = radii_of(eps, ball)
    if radii is not None and not min_norm:
        ball = ball.with_eps(radii[-1])
    if not len(examples):
        raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
    order = examples.ids.argsort(stable=True)
    if len(examples.ids.unique()) < len(order):
        raise BadInput("`ids` must be distinct, got some twice; number the rows of the unshuffled data")
    goal = None if target is None else labels("target", target, examples.x)[order]
    bound = ball.bind(examples.x).rows(order)
    task = task_of(examples.x[order], examples.y[order], bound, target=goal, ids=examples.ids[order], seed=seed)
    kept = _storage(storage, bound, task.x)
    one_radius = None if isinstance(ball.eps, Tensor) else float(ball.eps)
    stages = nearest_stages(pairs, radii, draft) if min_norm else stages_of(pairs, radii or (one_radius,), draft)
    threads = torch.get_num_threads()
    config = {
        "epsball": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {threads} thread{'s' if threads > 1 else ''}",
        "data": {
            "name": examples.name,
            "n": len(order),
            "shape": list(task.x.shape[1:]),
            "dtype": kept.dtype,
            "digest": fingerprint.of_tensors(task.x, task.y, task.noise.ids),
            "labels": fingerprint.of_tensors(task.y, task.noise.ids),
            "class_names": None if examples.label_names is None else list(examples.label_names),
        },
        "model": fingerprint.of_model(model),
        "source": None if source is None else fingerprint.of_model(source),
        "eot": eot,
        "ball": describe_ball(bound),
        "norms": {name: cls.symbol for name, cls in BALLS.items()},
        "radii": list(radii) if radii else [one_radius],
        "protocol": [name_of(one) for one in listed(attacks)],
        "attacks": [fingerprint.described(attack) for _, attack in pairs],
        "stages": [stage.described() for stage in stages],
        "draft": draft,
        "min_norm": min_norm,
        "reaction": asdict(reaction) if reaction.because else None,
        "target": None if goal is None else fingerprint.of_tensors(goal),
        "success": fingerprint.described(success),
        "storage": asdict(kept),
        "seed": seed,
        "shard_size": shard_size,
        "batch_size": batch_size,
    }
    return Plan(
        model,
        task,
        tuple(attack for _, attack in pairs),
        stages,
        batch_size,
        success,
        shard_size,
        json.loads(json.dumps(config)),
        kept,
        source,
        eot,
        min_norm,
        examples.classes,
    )


def unbounded(ball: Ball, binarization_test: int = 0, eot: int = 1) -> Ball:
    """The ball with an infinite radius, in which nearest points are sought."""
    if isinstance(ball.eps, Tensor):
        raise BadInput("`ball` must have one number as `eps` with `min_norm`, got a tensor; it plays no part there")
    if binarization_test:
        raise BadInput(
            "`binarization_test` must be 0 with `min_norm`: it hides points in balls of one radius; run it at one"
        )
    if eot > 1:
        raise BadInput(
            f"`eot` must be 1 with `min_norm`, got {eot}: a stochastic model has no border to draw a point to; "
            "evaluate it at a radius, or fix its random numbers"
        )
    return ball.with_eps(math.inf)


def radii_of(eps: Sequence[float] | None, ball: Ball) -> tuple[float, ...] | None:
    """The radii of a curve, smallest first. Raises `BadInput` where one is there twice, or none of the ball's kind."""
    if eps is None:
        return None
    radii = tuple(sorted(float(radius) for radius in eps))
    if not radii or len(set(radii)) < len(radii):
        raise BadInput(f"`eps` must be distinct radii, at least one, got {list(radii)}; or leave it out")
    for radius in radii:
        ball.with_eps(radius)
    return radii


def _accelerated(plan: Plan, asked: bool | Acceleration | None, compile: bool, run_dir: Path | None) -> Plan:
    """The plan with an accelerated model, where that is asked for or worth while; a run that goes on keeps its own."""
    before, going_on = None, run_dir is not None and (run_dir / "config.json").exists()
    if going_on and run_dir is not None:
        record = read_config(run_dir).get("acceleration")
        before = None if record is None else Acceleration.from_dict(record)
        asked = False if asked is None and record is None else asked
    model = plan.model if plan.source is None else plan.source
    made = accelerated(
        model, plan.task, plan.attacks, asked=asked, compile=compile, before=before, batch_size=plan.batch_size
    )
    plan.config["acceleration"] = None if made is None else made.plan.to_dict()
    return replace(plan, fast=None if made is None or made.plan.rewriting == "none" else made)


def _storage(asked: str, ball: Ball, x: Tensor) -> Storage:
    """How the points of a run on `x` in the bound `ball` are kept."""
    lo, hi = (None if isinstance(side, Tensor) else float(side) for side in (ball.lo, ball.hi))
    dtype = str(x.dtype).removeprefix("torch.")
    storage = Storage.chosen(asked, dtype, lo, hi, map(numbers, x.split(SHARD)))
    if storage.x_adv == "8bit" and storage.x != "8bit":
        log.warning(
            "`storage` '8bit': the data is not on the 256 levels from %g to %g, so that keeping a point may move every "
            "number by up to half a level; successes that this carries out of the ball do not count",
            lo,
            hi,
        )
    return storage


def _run(plan: Plan, kept: RunDir | None, on_progress: Callable[[Progress], None]) -> Evaluation:
    n = len(plan.task.x)
    records: list[pa.Table] = []
    memory: dict[tuple[int, str], pa.Table] = {}
    objectives = [plan.objective(stage) for stage in plan.stages]
    standing = 0
    if kept is not None and kept.stage(0, "clean").exists():
        _same_model(plan, run_directory.load(kept.stage(0, "clean")))
    for shard, start in enumerate(range(0, n, plan.shard_size)):
        index = torch.arange(start, min(start + plan.shard_size, n), device=plan.task.x.device)
        before = None if kept is None else kept.finished(shard)
        if before is not None:
            records.append(before)
        else:
            work = Shard(plan, shard, plan.task.rows(index), kept, memory, objectives)
            told = partial(_tell, on_progress, start, standing, n)
            records.append(work.finish(told))
            if kept is not None:
                run_directory.save(kept.records(shard), records[-1])
        standing += int((records[-1]["status"].to_numpy(zero_copy_only=False) == "robust").sum())
        on_progress(Progress("", start + len(index), standing, n))
    find = (
        (lambda shard, name: memory[shard, name])
        if kept is None
        else (lambda shard, name: run_directory.load(kept.stage(shard, name)))
    )
    return gathered(kept.config if kept is not None else plan.config, records, find)


def _active(plan: Plan, kept: RunDir | None, n: int) -> BinarizationTest | None:
    """The active test of `n` examples at the largest radius: the one that the run's directory holds, or made now."""
    before = None if kept is None else BinarizationTest.load(kept.path)
    if not n or (before is not None and before.asked == n):
        return before
    away = torch.full_like(plan.task.y, AWAY)  # what is hidden is another class, whatever the run's target is
    task = replace(plan.task, target=away, aim=away)  # its ball is that of the largest radius
    last = plan.stages[-1].eps
    attacks = [(stage.label, stage.attack) for stage in plan.stages if stage.eps == last and not stage.draft]
    found = examined(plan.model, task, attacks, n=n, eot=plan.eot, batch_size=plan.batch_size)
    if kept is not None:
        found.save(kept.path)
    return found


def _same_model(plan: Plan, clean: pa.Table) -> None:
    """Refuse a resume with a model that answers differently: a digest does not see all that a model is made of."""
    if "logits" not in clean.column_names or plan.eot > 1:  # the logits of a stochastic model are never the same
        return
    with Objective(plan.model, cross_entropy) as objective:
        now = forward_rows(objective, plan.task, plan.task.x[: min(PROBED, len(clean))], plan.batch_size).cpu()
    before = torch.tensor(run_directory.points(clean["logits"], (-1,))[: len(now)])
    if now.shape != before.shape or not torch.allclose(now.to(before), before, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise BadInput(
            "`run_dir` holds a run with another `model`: its first logits are not those of this one; resume with the "
            "same model (a factory that draws its weights anew needs them from a file), or choose a new directory"
        )


def _tell(on_progress: Callable[[Progress], None], done: int, robust: int, total: int, stage: str, left: int) -> None:
    on_progress(Progress(stage, done, robust + left, total))
