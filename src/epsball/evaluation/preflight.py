"""A look before a run, which its protocol reacts to, and the diagnosis beside its verdict."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.diagnosis.reaction import Reaction, react
from epsball.diagnosis.record import Diagnosis
from epsball.diagnosis.whole import diagnosed, probe, with_active
from epsball.engine.stages import Asked, listed
from epsball.evaluation.result import Evaluation
from epsball.evaluation.run_directory import RunDir, read_config
from epsball.evaluation.shard import Plan
from epsball.problem.objective import Model

log = logging.getLogger(__name__)

REACTING = ("standard", "fast")
"""The protocols that react to what a first look shows."""
LOOKED = 32
"""Examples of that look."""
DIAGNOSED = 1275
"""Forwards and backwards that a diagnosis makes for an example that stands."""
FEWEST, MOST = 16, 128
"""Examples of a diagnosis that a run makes by itself: so many that it costs no more than a quarter of the run."""


def reaction_to(
    model: Model,
    examples: Examples,
    ball: Ball,
    attacks: Asked | Sequence[Asked],
    source: Model | None,
    eot: int,
    seed: int,
    batch_size: int,
    run_dir: str | Path | None,
) -> tuple[Reaction, int]:
    """What the protocols that react do about this model, and the forwards of the look at it.

    A run that goes on does what it did.
    """
    reacting = any(isinstance(one, str) and one.strip().lower() in REACTING for one in listed(attacks))
    if source is not None or not reacting:
        return Reaction(), 0
    if run_dir is not None and (Path(run_dir) / "config.json").exists():
        return Reaction.from_dict(read_config(Path(run_dir)).get("reaction")), 0
    try:
        found = probe(model, examples, ball, n=LOOKED, seed=seed, eot=eot, batch_size=batch_size)
    except (BadInput, RuntimeError, ValueError, TypeError) as error:  # the run itself says it
        log.info("no look before the attacks: %s", error)
        return Reaction(), 0
    return react(found, ball, eot), found.forwards


def diagnosis_of(plan: Plan, kept: RunDir | None, found: Evaluation, n: int | None) -> Diagnosis | None:
    """The diagnosis of the run: the one that its directory holds, or made now; None where there is none to make."""
    before = None if kept is None else Diagnosis.load(kept.path)
    if n == 0 or plan.source is not None:
        return None
    if before is not None and (n is None or min(n, len(plan.task.x)) == before.examples):
        return replace(before, indicators=with_active(before.indicators, found.binarization_test))
    if n is None:
        n = min(int((found.forwards + found.backwards) / 4 / DIAGNOSED), MOST)
        if n < FEWEST:
            return None
    attacks = list({stage.label: (stage.label, stage.attack) for stage in plan.stages if not stage.draft}.values())
    reaction = Reaction.from_dict(plan.config["reaction"])
    options = {"eot": plan.eot, "batch_size": plan.batch_size, "classes": plan.classes}
    made = diagnosed(plan.model, plan.task, attacks, n=n, evaluation=found, reaction=reaction, **options)
    if kept is not None and made is not None:
        made.save(kept.path)
    return made
