"""`batch_size="auto"`: the plan of a run with the batch size that was found for the model call of its attacks."""

from __future__ import annotations

import json
from dataclasses import replace

from epsball.attacks.attack import Attack
from epsball.common.undo import without_warnings
from epsball.engine.batch_size import found_batch_size
from epsball.engine.stages import PlannedStage
from epsball.evaluation.plan import EvaluationPlan


def with_batch_size(plan: EvaluationPlan) -> EvaluationPlan:
    """The plan with a number as its batch size, found where it is "auto".

    The call is that of the first attack that takes gradients, or else of the first one, in full precision. A compiled
    network is not measured, as it would be compiled for every size: the model itself is, in its place.
    """
    if plan.settings.batch_size != "auto":
        return plan
    stages = plan.attack_stages
    stage = next(filter(_takes_gradients, stages), stages[0])
    jobs = max((one.attack.jobs for one in stages if isinstance(one.attack, Attack)), default=1)
    measured = replace(plan, accelerated=None) if plan.settings.compile else plan
    with without_warnings(), measured.objective(stage) as objective:  # the run itself gives them
        found = found_batch_size(objective, plan.rows.first, min(len(plan.rows), plan.rows.shard_size) * jobs)
    plan.record.update(batch_size=found.rows, batch_size_found=json.loads(found.to_json()))
    return replace(
        plan,
        settings=replace(plan.settings, batch_size=found.rows),
        probe_forwards=plan.probe_forwards + found.forwards,
    )


def _takes_gradients(stage: PlannedStage) -> bool:
    return isinstance(stage.attack, Attack) and stage.attack.needs == "grad" and not stage.draft
