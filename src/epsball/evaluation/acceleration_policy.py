"""Is it worth while to accelerate the model of a run? A trial costs about as much as fifty passes.

It pays where the model has convolutions or BatchNorm, and the attacks will make many passes: as many as they may make
on the examples that do not fall after a few. Those of an undefended network fall at once, and the run is over before
the trial.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

from epsball.acceleration.accelerate import Accelerated, accelerate
from epsball.acceleration.plan import AccelerationPlan
from epsball.acceleration.rewriting import NORMS
from epsball.attacks.attack import Attack
from epsball.attacks.pgd import PGD
from epsball.engine.user_attack import UserAttack
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective
from epsball.problem.task import Task

LONG = 1 << 15
"""The rows of passes that the attacks of a run must be likely to ask for."""
TYPICAL = 100
"""The passes of a job that does not say how many it will make."""
ASKED, STEPS = 32, 8
"""So many examples are attacked for so many steps first: the share that stands is taken for that of the run."""


def accelerated(
    model: Model,
    task: Task,
    attacks: tuple[Attack | UserAttack, ...],
    *,
    asked: bool | AccelerationPlan | None,
    compile: bool,
    before: AccelerationPlan | None,
    batch_size: int,
) -> Accelerated | None:
    """`model` accelerated for a run of `attacks` on `task`, None where it is not worth while or not `asked` for.

    With `before`, the plan of the run that goes on, it is that one. `asked` None leaves it to `worth_while`.
    """
    plan = asked if isinstance(asked, AccelerationPlan) else before
    if asked is False or (plan is None and not asked and not worth_while(model, task, attacks)):
        return None
    if not isinstance(model, nn.Module) and asked is None:
        return None
    return accelerate(model, task.x[:batch_size], plan=plan, compile=compile and before is None)  # type: ignore[arg-type]


def worth_while(model: Model, task: Task, attacks: tuple[Attack | UserAttack, ...]) -> bool:
    """Whether a trial is likely to pay."""
    if not isinstance(model, nn.Module) or not any(isinstance(m, (nn.Conv2d, *NORMS)) for m in model.modules()):
        return False
    own = [attack for attack in attacks if isinstance(attack, Attack) and attack.needs != "label"]
    rows = len(task.x) * sum(attack.jobs * (attack.max_steps or TYPICAL) for attack in own)
    if rows < LONG:
        return False
    few = task.rows(torch.arange(min(ASKED, len(task.x)), device=task.x.device))
    try:
        with warnings.catch_warnings(), Objective(model, cross_entropy) as objective:
            warnings.simplefilter("ignore")  # the run itself says them
            right = ~objective.evaluate_at(few.x, few).fooled
            found = PGD(steps=STEPS)(model, few.x, few.y, few.ball, ids=few.noise.ids)
            stood = right & ~objective.evaluate_at(found, few).fooled
    except Exception:  # what is wrong with the model is said by the run itself
        return False
    return rows * int(stood.sum()) >= LONG * len(stood)
