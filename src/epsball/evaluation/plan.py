"""What an evaluation is about to do: its inputs, checked, become a plan of stages, and the record in `config.json`."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epsball.acceleration.accelerate import Accelerated
from epsball.acceleration.draft import Draft
from epsball.acceleration.plan import AccelerationPlan
from epsball.attacks.attack import Attack
from epsball.balls.ball import Ball
from epsball.balls.ball_file import describe_ball
from epsball.balls.registry import BALLS
from epsball.common import fingerprint
from epsball.common.errors import BadInput
from epsball.common.version import __version__
from epsball.diagnosis.reaction import Reaction
from epsball.engine.batches import padded_size
from epsball.engine.queue import SuccessCheck
from epsball.engine.stages import (
    Asked,
    Named,
    Planned,
    PlannedStage,
    certifying_attacks,
    certifying_stages,
    listed,
    name_of,
    named,
    nearest_stages,
    stages_of,
)
from epsball.engine.user_attack import UserAttack
from epsball.evaluation.acceleration_policy import accelerated
from epsball.evaluation.config import EvaluationConfig
from epsball.evaluation.point_storage import Storage
from epsball.evaluation.rows import Rows
from epsball.evaluation.run_directory import read_config
from epsball.models.black_box import BlackBox
from epsball.problem.black_box_objective import objective_for
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective, Success, changes_prediction
from epsball.problem.row_limit import RowLimit

log = logging.getLogger(__name__)

CHUNK = 1024
"""Examples that are compared with the 256 levels at a time."""
SAID_OTHERWISE = frozenset({"certify", "eps", "shard_mib", "shard_size"})
"""Settings that a record holds as what became of them: "radii", "shard_size", "certify" (seconds)."""


@dataclass(frozen=True, eq=False)
class EvaluationInputs:
    """What is evaluated, as the caller handed it over: objects, where `EvaluationConfig` holds plain values."""

    model: Model
    rows: Rows
    ball: Ball
    attacks: Asked | Sequence[Asked]
    source: Model | None = None
    success: Success = changes_prediction


@dataclass(frozen=True, eq=False)
class EvaluationPlan:
    """The checked inputs of an evaluation: its examples (`rows`), and the stages that are to come.

    `record` is what `config.json` says and a resumed run is compared with; `eot` is that of the settings, or more where
    a protocol reacts to a stochastic model; `probe_forwards` the model calls of the probe that it reacts to.
    `accelerated`, if any, is the same function as the model (or source) with cheaper gradients, for the attacks.
    `limit` is the most rows of a model call: of a batch, or as many as the run has found to fit into memory.
    """

    model: Model
    source: Model | None
    success: Success
    rows: Rows
    attacks: tuple[Attack | UserAttack, ...]
    stages: tuple[Planned, ...]
    settings: EvaluationConfig
    storage: Storage
    record: dict[str, Any]
    classes: int
    eot: int
    probe_forwards: int = 0
    accelerated: Accelerated | None = None
    limit: RowLimit = field(default_factory=RowLimit)

    @property
    def min_norm(self) -> bool:
        """Whether minimum-norm adversarial examples are searched, and not any inside the ball."""
        return self.settings.min_norm

    @property
    def attack_stages(self) -> tuple[PlannedStage, ...]:
        """The stages that attack; in a run that certifies there are others."""
        return tuple(stage for stage in self.stages if isinstance(stage, PlannedStage))

    def objectives(self) -> dict[str, Objective]:
        """What the attack of each stage climbs, by the stage's name."""
        return {stage.name: self.objective(stage) for stage in self.attack_stages}

    @property
    def black_box(self) -> BlackBox | None:
        """The model, where it is one whose queries are counted."""
        return self.model if isinstance(self.model, BlackBox) else None

    @property
    def batch_size(self) -> int:
        """Rows of a model call: those of the settings, or as many as the run has found to fit into memory."""
        return min(self.settings.first_batch_size, self.limit.rows)

    @property
    def uses_warm_start(self) -> bool:
        """Whether an attack starts from what those before it found; a transfer may not know what that is."""
        return self.source is None and any(isinstance(a, Attack) and a.uses_warm_start for a in self.attacks)

    def objective(self, stage: PlannedStage) -> Objective:
        """What the attack of a stage climbs: the loss of the source where there is one, else of the model."""
        attack = stage.attack
        if isinstance(attack, UserAttack):
            return self.evaluator()
        model = self.accelerated_for(attack) or self.source or self.model
        if stage.draft:
            model = Draft(model)
        return objective_for(model, attack.loss, needs=attack.needs, **self._options)

    def evaluator(self) -> Objective:
        """The model itself, whose predictions count."""
        return objective_for(self.model, cross_entropy, needs="label", **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        """What all objectives of the run have in common."""
        return {"success": self.success, "eot": self.eot, "limit": self.limit}

    def accelerated_for(self, attack: Attack | UserAttack) -> Accelerated | None:
        """The accelerated network, where it saves this attack time: without gradients its forward has to be faster."""
        if self.accelerated is None or isinstance(attack, UserAttack):
            return None
        return self.accelerated if attack.needs == "grad" or self.accelerated.plan.forwards_too else None

    def needs_evaluator(self, stage: PlannedStage) -> bool:
        """Whether an attack climbs on another network than the one whose predictions count."""
        return stage.draft or self.source is not None or self.accelerated_for(stage.attack) is not None

    def success_check(self, evaluator: Objective, stage: PlannedStage) -> SuccessCheck | None:
        """How a success is checked before it ends a job; None where what the attack saw is what is stored."""
        if self.storage.x_adv != "8bit" and not stage.draft and self.accelerated_for(stage.attack) is None:
            return None
        # the boundary search moves minimum-norm points out of the reach of rounding
        return SuccessCheck(evaluator, (lambda z, x: z) if self.min_norm else self.stored)

    def stored(self, z: Tensor, x: Tensor) -> Tensor:
        """The points z as they are read back from storage."""
        return self.decoded(self.storage.keep(numbers(z), numbers(x))).to(x)

    def decoded(self, stored: np.ndarray) -> Tensor:
        """The points that stored numbers stand for."""
        return torch.from_numpy(self.storage.read(stored))


def attacks_and_stages(
    settings: EvaluationConfig, attacks: Asked | Sequence[Asked], ball: Ball, reaction: Reaction
) -> tuple[list[Named], tuple[Planned, ...]]:
    """The attacks by name, and the stages that they make at the radii of `settings`, or at the ball's own.

    Raises `BadInput` for attacks that are unknown, or not defined in such balls, for radii that are none of the ball's
    kind, and with `min_norm` where no attack searches minimum-norm adversarial examples.
    """
    pairs = reaction.applied(named(attacks, ball))
    radii = settings.radii
    for radius in radii or ():
        ball.with_eps(radius)
    if settings.min_norm:
        return pairs, nearest_stages(pairs, radii, settings.draft)
    at = radii or (own_radius(ball),)
    if settings.certifies:
        search = settings.search_seconds > 0
        pairs = certifying_attacks(pairs, search=search)
        return pairs, certifying_stages(pairs, at, settings.draft, search=search)
    return pairs, stages_of(pairs, at, settings.draft)


def own_radius(ball: Ball) -> float | None:
    """The ball's radius; None where it differs between examples or features."""
    return None if isinstance(ball.eps, Tensor) else float(ball.eps)


def make_plan(inputs: EvaluationInputs, settings: EvaluationConfig, reaction: Reaction) -> EvaluationPlan:
    """The plan of an evaluation. Raises `BadInput` for inputs that do not fit each other or the settings."""
    rows, radii = inputs.rows, settings.radii
    pairs, stages = attacks_and_stages(settings, inputs.attacks, inputs.ball, reaction)
    callables = [name for name, attack in pairs if isinstance(attack, UserAttack)]
    if rows.has_target and callables:
        raise BadInput(f"`target` must be left out with {callables[0]}: a callable has no parameter for it")
    if inputs.source is not None and not callable(inputs.source):
        raise BadInput(f"`source` must be a model, callable, x -> logits, got {type(inputs.source).__name__}")
    plan = EvaluationPlan(
        model=inputs.model,
        source=inputs.source,
        success=inputs.success,
        rows=rows,
        attacks=tuple(attack for _, attack in pairs),
        stages=stages,
        settings=settings,
        storage=_storage(settings.storage, rows),
        record={},
        classes=rows.examples.classes,
        eot=max(settings.eot, reaction.eot),
        limit=RowLimit() if settings.batch_size == "auto" else RowLimit(padded_size(*2 * [settings.batch_size])),
    )
    record = _record(plan, inputs, reaction) | {
        "ball": describe_ball(rows.ball),
        "radii": list(radii) if radii else [own_radius(inputs.ball)],
        "target": None if not rows.has_target else fingerprint.of_tensors(rows.all_targets),
    }
    return replace(plan, record=json.loads(json.dumps(record)))


def _record(plan: EvaluationPlan, inputs: EvaluationInputs, reaction: Reaction) -> dict[str, Any]:
    """What `config.json` says of a plan, but for its ball, radii and target."""
    rows, examples, threads = plan.rows, plan.rows.examples, torch.get_num_threads()
    settings = {name: value for name, value in plan.settings.to_record().items() if name not in SAID_OTHERWISE}
    return settings | {
        "certify": plan.settings.search_seconds if plan.settings.certifies else None,
        "shard_size": rows.shard_size,
        "epsball": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {threads} thread{'s' if threads > 1 else ''}",
        "data": {
            "name": examples.name,
            "n": len(rows),
            "shape": list(examples.shape),
            "dtype": plan.storage.dtype,
            **rows.identity(),
            "class_names": None if examples.label_names is None else list(examples.label_names),
        },
        "model": fingerprint.of_model(plan.model),
        "source": None if plan.source is None else fingerprint.of_model(plan.source),
        "black_box": None if plan.black_box is None else {"budget": plan.black_box.budget},
        "eot": plan.eot,
        "norms": {name: cls.symbol for name, cls in BALLS.items()},
        "protocol": [name_of(one) for one in listed(inputs.attacks)],
        "attacks": [fingerprint.described(attack) for attack in plan.attacks],
        "stages": [stage.described() for stage in plan.stages],
        "reaction": reaction.to_record() if reaction.because else None,
        "success": fingerprint.described(plan.success),
        "storage": asdict(plan.storage),
    }


def unbounded(ball: Ball) -> Ball:
    """The ball with an infinite radius, in which minimum-norm adversarial examples are searched."""
    if isinstance(ball.eps, Tensor):
        raise BadInput("`ball` must have one number as `eps` with `min_norm`, got a tensor; it plays no part there")
    return ball.with_eps(math.inf)


def with_acceleration(
    plan: EvaluationPlan, requested: bool | AccelerationPlan | None, run_dir: str | Path | None
) -> EvaluationPlan:
    """The plan with an accelerated model, where requested or likely to pay; a resumed run keeps the one it had."""
    before = None
    if run_dir is not None and (Path(run_dir) / "config.json").exists():
        record = read_config(Path(run_dir)).get("acceleration")
        before = None if record is None else AccelerationPlan.from_record(record)
        requested = False if requested is None and record is None else requested
    made = accelerated(
        plan.model if plan.source is None else plan.source,
        plan.rows.first,
        plan.attacks,
        requested=requested,
        compile=plan.settings.compile,
        before=before,
        batch_size=plan.batch_size,
    )
    plan.record["acceleration"] = None if made is None else made.plan.to_record()
    return replace(plan, accelerated=None if made is None or made.plan.rewriting == "none" else made)


def _storage(kind: str, rows: Rows) -> Storage:
    """How the adversarial examples of a run are stored, by the examples that are known before it."""
    ball, x = rows.ball, rows.first.x
    lo, hi = (None if isinstance(side, Tensor) else float(side) for side in (ball.lo, ball.hi))
    dtype = str(x.dtype).removeprefix("torch.")
    storage = Storage.chosen(kind, dtype, lo, hi, map(numbers, x.split(CHUNK)))
    if storage.x_adv == "8bit" and storage.x != "8bit":
        log.warning(
            "`storage` '8bit': the data is not on the 256 levels from %g to %g, so that storing an adversarial example "
            "may move every number by up to half a level; successes that this carries out of the ball do not count",
            lo,
            hi,
        )
    return storage


def numbers(values: Tensor) -> np.ndarray:
    """As stored: single precision, double where the values are."""
    return values.detach().to(torch.promote_types(values.dtype, torch.float32)).cpu().numpy()
