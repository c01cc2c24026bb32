"""The protocol: clean pass, a cascade of attacks over what still stands, and a record per example.

Success and containment are recomputed from the point as it is stored, never taken from the attack's word. Examples
that are wrong before any attack, or whose logits are not finite, are counted apart. With a list of radii an example
that fell at one is carried to the larger ones and not attacked again: the whole curve for little more than its last
point. Shards of consecutive ids and stages are the units of work that a resumed run does not repeat.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Int64
from torch import Tensor

import epsball
from epsball import engine, fingerprint, run_dir
from epsball.attacks import parse
from epsball.attacks.attack import Attack, whole
from epsball.ball import Ball
from epsball.data import Examples, from_arrays
from epsball.errors import BadInput
from epsball.evaluation import Evaluation, gathered
from epsball.losses import cross_entropy
from epsball.objective import Model, Objective, Success, changes_prediction, frozen
from epsball.run_dir import RunDir
from epsball.shard import PROBED, Plan, Shard
from epsball.task import labels, task_of

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
    attacks: str | Attack | Sequence[str | Attack] = ("fgsm", "pgd"),
    *,
    eps: Sequence[float] | None = None,
    target: Int64[Tensor, " n"] | int | None = None,
    seed: int = 0,
    width: int = 128,
    run_dir: str | Path | None = None,
    success: Success = changes_prediction,
    shard_size: int = SHARD,
    on_progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """How robust is `model` on `data` in `ball`? The worst case over all `attacks`, per example, re-verified.

    `model` is a torch module, or a callable x -> logits; `data` are Examples, or (x, y) with x (n, *shape) in the
    units of the ball and y (n,). `attacks` are run in order, by name ("pgd", "pgd:steps=100") or as objects, each on
    what still stands. `eps` gives several radii, for the robustness curve; `target` (n,) or one class asks for that
    class. `width` rows share a pass and do not change the records (from 32 up, on CPU). With `run_dir` the run is kept
    there, and goes on from there if it was interrupted.

    Raises `BadInput` for arguments that do not fit. The model comes back as it was.
    """
    examples = data if isinstance(data, Examples) else from_arrays(*data)
    plan = plan_of(model, examples, ball, attacks, eps, target, seed, width, success, shard_size)
    with ExitStack() as stack:
        kept = stack.enter_context(RunDir(run_dir, plan.config)) if run_dir is not None else None
        stack.enter_context(frozen(model))
        return _run(plan, kept, on_progress or (lambda progress: None))


def plan_of(
    model: Model,
    examples: Examples,
    ball: Ball,
    attacks: str | Attack | Sequence[str | Attack],
    eps: Sequence[float] | None,
    target: object,
    seed: int,
    width: int,
    success: Success,
    shard_size: int,
) -> Plan:
    """The checked arguments of `evaluate`, and the configuration that a resume is held against."""
    whole("width", width, 1)
    whole("shard_size", shard_size, 1)
    seed = index(seed)
    listed = [attacks] if isinstance(attacks, str | Attack) else list(attacks)
    if not listed:
        raise BadInput("`attacks` must name at least one attack, got none; as in attacks=['fgsm', 'pgd']")
    chosen = tuple(parse(attack) if isinstance(attack, str) else attack for attack in listed)
    radii = None if eps is None else tuple(sorted(float(radius) for radius in eps))
    if radii is not None and (not radii or len(set(radii)) < len(radii)):
        raise BadInput(f"`eps` must be distinct radii, at least one, got {list(radii)}; or leave it out")
    for radius in radii or ():
        ball.with_eps(radius)
    if not len(examples):
        raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
    order = examples.ids.argsort(stable=True)
    if len(examples.ids.unique()) < len(order):
        raise BadInput("`ids` must be distinct, got some twice; number the rows of the unshuffled data")
    goal = None if target is None else labels("target", target, examples.x)[order]
    bound = ball.bind(examples.x).rows(order)
    task = task_of(examples.x[order], examples.y[order], bound, target=goal, ids=examples.ids[order], seed=seed)
    one_radius = None if isinstance(ball.eps, Tensor) else float(ball.eps)
    config = {
        "epsball": epsball.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "data": {
            "name": examples.name,
            "n": len(order),
            "shape": list(task.x.shape[1:]),
            "dtype": str(task.x.dtype).removeprefix("torch."),
            "digest": fingerprint.of_tensors(task.x, task.y, task.noise.ids),
        },
        "model": fingerprint.of_model(model),
        "ball": fingerprint.described(bound),
        "radii": list(radii) if radii else [one_radius],
        "attacks": [fingerprint.described(attack) for attack in chosen],
        "stages": [
            {"name": f"{i:02d}-{type(attack).__name__.lower()}", "attack": name, "eps": radius}
            for i, (radius, (name, attack)) in enumerate(
                (radius, pair)
                for radius in (radii or (one_radius,))
                for pair in zip(_names(listed), chosen, strict=True)
            )
        ],
        "target": None if goal is None else fingerprint.of_tensors(goal),
        "success": fingerprint.described(success),
        "seed": seed,
        "shard_size": shard_size,
        "width": width,
    }
    return Plan(model, task, chosen, radii, width, success, shard_size, json.loads(json.dumps(config)))


def _run(plan: Plan, kept: RunDir | None, on_progress: Callable[[Progress], None]) -> Evaluation:
    n = len(plan.task.x)
    records: list[pa.Table] = []
    memory: dict[tuple[int, str], pa.Table] = {}
    objectives = [
        Objective(plan.model, a.loss, needs=a.needs, success=plan.success, careful=True) for a in plan.attacks
    ]
    standing = 0
    if kept is not None and kept.stage(0, "clean").exists():
        _same_model(plan, run_dir.load(kept.stage(0, "clean")))
    for shard, start in enumerate(range(0, n, plan.shard_size)):
        index = torch.arange(start, min(start + plan.shard_size, n), device=plan.task.x.device)
        if kept is not None and kept.records(shard).exists():
            records.append(run_dir.load(kept.records(shard)))
        else:
            work = Shard(plan, shard, plan.task.rows(index), kept, memory, objectives)
            told = partial(_tell, on_progress, start, standing, n)
            records.append(work.finish(told))
            if kept is not None:
                run_dir.save(kept.records(shard), records[-1])
        standing += int((records[-1]["status"].to_numpy(zero_copy_only=False) == "robust").sum())
        on_progress(Progress("", start + len(index), standing, n))
    find = (
        (lambda shard, name: memory[shard, name])
        if kept is None
        else (lambda shard, name: run_dir.load(kept.stage(shard, name)))
    )
    return gathered(kept.config if kept is not None else plan.config, records, find)


def _same_model(plan: Plan, clean: pa.Table) -> None:
    """Refuse a resume with a model that answers differently: a digest does not see all that a model is made of."""
    if "logits" not in clean.column_names:
        return
    with Objective(plan.model, cross_entropy) as objective:
        now = engine.forward_rows(objective, plan.task.x[:PROBED], plan.width).cpu()
    before = torch.tensor(run_dir.points(clean["logits"], (-1,))[: len(now)])
    if now.shape != before.shape or not torch.allclose(now.to(before), before, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise BadInput(
            "`run_dir` holds a run with another `model`: its first logits are not those of this one; resume with the "
            "same model (a factory that draws its weights anew needs them from a file), or choose a new directory"
        )


def _tell(on_progress: Callable[[Progress], None], done: int, robust: int, total: int, stage: str, left: int) -> None:
    on_progress(Progress(stage, done, robust + left, total))


def _names(attacks: Sequence[str | Attack]) -> list[str]:
    """What each attack is called in the records: as the user wrote it, else by its class."""
    return [attack if isinstance(attack, str) else type(attack).__name__.lower() for attack in attacks]
