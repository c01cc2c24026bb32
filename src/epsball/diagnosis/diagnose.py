"""`epsball.diagnose`: probes, traces and control attacks on a sample of the examples, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.square import Square
from epsball.balls.ball import Ball
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.undo import without_warnings
from epsball.data.examples import Examples
from epsball.diagnosis.binarization_record import BinarizationTest
from epsball.diagnosis.controls import Controls
from epsball.diagnosis.diagnosis_record import Diagnosis
from epsball.diagnosis.indicators import INDICATORS, Indicator, indicator
from epsball.diagnosis.probes import Probe, run_probes
from epsball.diagnosis.reaction import Reaction
from epsball.diagnosis.sample import correct_rows, sampled, task_in_id_order
from epsball.engine.stages import Asked, Named, named
from epsball.models.frozen import frozen
from epsball.problem.inputs import inputs_for
from epsball.problem.objective import Model, ModelWarning
from epsball.problem.task import Task

PROBED = 64
"""Examples that `probe` looks at."""
LABELS_ONLY = "`model` must return logits for a diagnosis, got labels: there is no loss to maximise"
OF_GRADIENTS = ("zero-gradients", "vanishing-gradients", "shattered-gradients", "saturated-logits")
"""Probes that say nothing of attacks without gradients on a model that has none."""
LONGER = {
    "attack with logits only: square": "attack with logits only, longer: square:steps=20000",
    "the protocol fast": "the protocol standard",
}
"""What a remedy says where the attack that it names was run already."""
FEW_CLASSES, ENOUGH = 3, 1000
"""With fewer classes, so many examples per class are needed before a class without any counts as a rejection class."""


class Finished(Protocol):
    """What a diagnosis reads of a finished evaluation (`epsball.Evaluation`)."""

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def records(self) -> pa.Table: ...
    @property
    def binarization_test(self) -> BinarizationTest | None: ...


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known before a diagnosis: the finished evaluation, the labels of all examples where the task holds only
    some, the number of the data's classes (0 where it is not known), and what the attacks were changed by."""

    evaluation: Finished | None = None
    labels: np.ndarray | None = None
    classes: int = 0
    reaction: Reaction = field(default_factory=Reaction)


def diagnose(
    model: Model,
    data: Examples | tuple[Any, Any] | Any,
    ball: Ball | str,
    attacks: Asked | Sequence[Asked] = ("fgsm", "pgd"),
    *,
    n: int = 128,
    seed: int = 0,
    eot: int = 1,
    batch_size: int = 128,
    evaluation: Finished | None = None,
) -> Diagnosis:
    """Is an evaluation of `model` by `attacks` in `ball` reliable? Checks for the known signs of attack failure.

    Model, data, ball, attacks, `eot` and `batch_size` are those of `evaluate`; attacks without gradients, and
    callables, are not traced. The first `n` examples by id are sampled, and those that are classified correctly are
    attacked: up to a hundred steps of each attack's first job, some three hundred more of control attacks on examples
    that are robust so far, and `QUERIES` queries of random search. With the `evaluation`, its successes without
    gradients and its binarization test are used too. The same seed gives the same result, also for a model that draws
    from torch's generator.

    Raises `BadInput` for arguments that do not fit, and for a model that returns labels only. The model and torch's
    generators are not changed.

    >>> from epsball import Linf
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(32, 20)
    >>> net = torch.nn.Linear(20, 3)
    >>> y = net(x).argmax(1)
    >>> ball, attack = Linf(eps=0.1, lo=0, hi=1), "pgd:loss=margin"
    >>> diagnose(net, (x, y), ball, attack).sentence
    'Reliability checks: 17 of 18 passed, 1 not measured (on 32 correctly classified of 32 sampled examples).'
    >>> diagnose(lambda x: net(x).softmax(1), (x, y), ball, attack).failed_names
    ('softmax-outputs',)
    """
    check_whole("n", n, 1)
    check_whole("batch_size", batch_size, 1)
    check_whole("eot", eot, 1)
    model, examples, ball = inputs_for(model, data, ball)
    found = run_diagnosis(
        model,
        task_in_id_order(examples, ball, seed),
        named(attacks, ball),
        n=n,
        eot=eot,
        batch_size=batch_size,
        known=Known(evaluation=evaluation, classes=examples.classes),
    )
    if found is None:
        raise BadInput(LABELS_ONLY)
    return found


def run_diagnosis(
    model: Model,
    task: Task,
    attacks: Sequence[Named],
    *,
    n: int,
    eot: int,
    batch_size: int,
    known: Known,
) -> Diagnosis | None:
    """`diagnose` of checked arguments; `task` holds the examples in the order of their ids, `n` or more if there are.

    Targets are ignored: the question is whether attacks can change the prediction. None for a model of labels.
    """
    evaluation, reaction = known.evaluation, known.reaction
    began = time.perf_counter()
    library_attacks = [(name, attack) for name, attack in attacks if isinstance(attack, Attack)]
    sample = sampled(task, n)
    with frozen(model), _quiet(task.x, task.noise.seed):
        correct = correct_rows(model, sample, eot, batch_size)
        if correct is None:
            return None
        probes = run_probes(model, correct.task, correct.logits, eot)
        controls = Controls(
            model, correct.task, eot, batch_size, library_attacks, differentiable=probes.differentiable,
            reaction=reaction,
        )  # fmt: skip
        found: list[Indicator] = list(probes.indicators)
        if not probes.differentiable and all(attack.needs != "grad" for _, attack in library_attacks):
            found = [one for one in found if one.name not in OF_GRADIENTS]
            if evaluation is not None and len(correct.task.x):
                found += controls.of_searches(~_broken_rows(evaluation, correct.task, lambda attack: True))
        elif len(correct.task.x):
            labels = task.y if known.labels is None else torch.tensor(known.labels, device=task.y.device)
            labelled = _labelled_classes(labels, correct.logits.shape[1], known.classes)
            found += controls.indicators(_broken_without_gradients(evaluation, correct.task, library_attacks), labelled)
    found.append(_of_binarization_test(None if evaluation is None else evaluation.binarization_test))
    protocol = () if evaluation is None else evaluation.config["protocol"]
    measured = {one.name: not_run_yet(one, protocol, [attack for _, attack in library_attacks]) for one in found}
    return Diagnosis(
        indicators=tuple(measured.get(name, unmeasured) for name, unmeasured in INDICATORS.items()),
        attacks=tuple(controls.traces),
        examples=len(sample.x),
        correct=len(correct.task.x),
        seed=task.noise.seed,
        forwards=correct.forwards + probes.forwards + controls.forwards,
        backwards=probes.backwards + controls.backwards,
        mitigated=tuple(
            dict.fromkeys(
                (
                    *reaction.mitigated,
                    *(("stochastic-forward",) * (eot > 1)),
                    *(("softmax-outputs",) * bool(probes.ends_in)),
                )
            )
        ),
        seconds=time.perf_counter() - began,
    )


def probe(
    model: Model,
    data: Examples | tuple[Any, Any] | Any,
    ball: Ball | str,
    *,
    n: int = PROBED,
    seed: int = 0,
    eot: int = 1,
    batch_size: int = 128,
) -> Probe:
    """The indicators that need no attack, in a dozen model calls over `n` examples: what a protocol can react to.

    Arguments and errors as in `diagnose`.
    """
    check_whole("n", n, 1)
    check_whole("eot", eot, 1)
    model, examples, ball = inputs_for(model, data, ball)
    sample = sampled(task_in_id_order(examples, ball, seed), n)
    with frozen(model), _quiet(sample.x, seed):
        correct = correct_rows(model, sample, eot, batch_size)
        if correct is None:
            raise BadInput(LABELS_ONLY)
        found = run_probes(model, correct.task, correct.logits, eot)
    return replace(found, forwards=found.forwards + correct.forwards)


@contextmanager
def _quiet(x: Tensor, seed: int) -> Iterator[None]:
    """Torch's generators seeded, and restored on leaving; no warnings of what the indicators say themselves."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), without_warnings(ModelWarning):
        torch.manual_seed(seed)
        yield


def not_run_yet(one: Indicator, protocol: Sequence[str], attacks: Sequence[Attack]) -> Indicator:
    """The indicator, with a remedy that names nothing that was run already."""
    remedy = one.remedy
    for short, longer in LONGER.items():
        if "fast" in protocol if "fast" in short else any(isinstance(attack, Square) for attack in attacks):
            remedy = remedy.replace(short, longer)
    return replace(one, remedy=remedy)


def _labelled_classes(labels: Tensor, n_logits: int, classes: int) -> Bool[Tensor, " n_logits"]:
    """Which classes are known to be labels; all of them where there are too few data to tell."""
    known = torch.zeros(n_logits, dtype=torch.bool, device=labels.device)
    known[: max(classes, int(labels.max()) + 1)] = True
    if known.sum() < FEW_CLASSES and len(labels) < ENOUGH * known.sum():
        known[:] = True
    return known


def _broken_without_gradients(
    evaluation: Finished | None, task: Task, attacks: Sequence[tuple[str, Attack]]
) -> Bool[Tensor, " n"]:
    """The rows that an evaluation broke by a transfer, or by an attack that uses no gradient."""
    broken = torch.zeros(len(task.x), dtype=torch.bool, device=task.x.device)
    if evaluation is None:
        return broken
    gradient_free = {name for name, attack in attacks if attack.needs != "grad"}
    transfer = evaluation.config.get("source") is not None
    return _broken_rows(evaluation, task, lambda attack: transfer or attack in gradient_free)


def _broken_rows(evaluation: Finished, task: Task, by: Callable[[str], bool]) -> Bool[Tensor, " n"]:
    """The rows that an evaluation broke within their radius, by an attack of which `by` says yes."""
    records = evaluation.records.select(["id", "status", "attack", "distance"]).to_pylist()
    distances = {one["id"]: one["distance"] for one in records if one["status"] == "fooled" and by(one["attack"])}
    eps = torch.as_tensor(task.ball.eps, dtype=torch.float64)
    radii = (eps if eps.ndim == 1 else eps.amax()).expand(len(task.x)).tolist()  # one per feature: its widest
    within = [
        identity in distances and distances[identity] <= radius * (1 + 1e-6)
        for identity, radius in zip(task.noise.ids.tolist(), radii, strict=True)
    ]
    return torch.tensor(within, dtype=torch.bool, device=task.x.device)


def with_binarization_test(found: Diagnosis, test: BinarizationTest | None) -> Diagnosis:
    """An earlier diagnosis with the indicator of the binarization test that there is now."""
    now = _of_binarization_test(test)
    return replace(found, indicators=tuple(now if one.name == now.name else one for one in found.indicators))


def _of_binarization_test(test: BinarizationTest | None) -> Indicator:
    """The share of planted examples that were missed; not measured where the test is inconclusive."""
    if test is None or test.inconclusive:
        return indicator("binarization-test-failed", None)
    return indicator("binarization-test-failed", 1 - test.found / test.n)
