"""Whether to accelerate the model of a run: a trial costs about as much as fifty model calls.

It pays where the model has convolutions or BatchNorm, and the attacks are likely to make many model calls: as many as
they may make on the examples that are still robust after a few. Those of an undefended network are broken at once, and
the run is over before the trial.
"""

from __future__ import annotations

import torch
from torch import nn

from epsball.acceleration.accelerate import Accelerated, accelerate
from epsball.acceleration.plan import AccelerationPlan
from epsball.acceleration.rewriting import NORMS
from epsball.attacks.attack import Attack
from epsball.attacks.pgd import PGD
from epsball.common.undo import without_warnings
from epsball.engine.user_attack import UserAttack
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective
from epsball.problem.task import Task

LONG = 1 << 15
"""The model calls, in rows, that the attacks of a run must be likely to make."""
TYPICAL = 100
"""Steps of a job without `max_steps`."""
SAMPLED, STEPS = 32, 8
"""So many examples are attacked for so many steps first, to estimate the share that stays robust."""


def accelerated(
    model: Model,
    task: Task,
    attacks: tuple[Attack | UserAttack, ...],
    *,
    requested: bool | AccelerationPlan | None,
    compile: bool,
    before: AccelerationPlan | None,
    batch_size: int,
) -> Accelerated | None:
    """`model` accelerated for a run of `attacks` on `task`, None where that is not `requested` or unlikely to pay.

    `before` is the plan of a resumed run, which is used again. `requested` None leaves the choice to `likely_to_pay`.
    """
    plan = requested if isinstance(requested, AccelerationPlan) else before
    if requested is False or (plan is None and not requested and not likely_to_pay(model, task, attacks)):
        return None
    if not isinstance(model, nn.Module) and requested is None:
        return None
    return accelerate(model, task.x[:batch_size], plan=plan, compile=compile and before is None)  # type: ignore[arg-type]


def likely_to_pay(model: Model, task: Task, attacks: tuple[Attack | UserAttack, ...]) -> bool:
    """Whether a trial is likely to pay for itself."""
    if not isinstance(model, nn.Module) or not any(isinstance(m, (nn.Conv2d, *NORMS)) for m in model.modules()):
        return False
    own = [attack for attack in attacks if isinstance(attack, Attack) and attack.needs != "label"]
    rows = len(task.x) * sum(attack.jobs * (attack.max_steps or TYPICAL) for attack in own)
    if rows < LONG:
        return False
    few = task.rows(torch.arange(min(SAMPLED, len(task.x)), device=task.x.device))
    try:
        with without_warnings(), Objective(model, cross_entropy) as objective:  # the run itself gives them
            right = ~objective.evaluate_at(few.x, few).fooled
            found = PGD(steps=STEPS)(model, few.x, few.y, few.ball, ids=few.noise.ids)
            robust = right & ~objective.evaluate_at(found, few).fooled
    except Exception:  # the run itself raises what is wrong with the model
        return False
    return rows * int(robust.sum()) >= LONG * len(robust)
