"""`epsball.diagnose`: probes, traces and controls on a sample of the examples, put together."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import index
from typing import Any, Protocol

import pyarrow as pa
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.balls.ball import Ball
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.diagnosis.binarization_record import BinarizationTest
from epsball.diagnosis.controls import Controls
from epsball.diagnosis.probes import Probe, everywhere, probed
from epsball.diagnosis.reaction import Reaction
from epsball.diagnosis.record import INDICATORS, Diagnosis, Indicator, indicator
from epsball.engine.batches import forward_rows
from epsball.engine.stages import Asked, named
from epsball.engine.user_attack import UserAttack
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, ModelWarning, Objective, check_labels, frozen
from epsball.problem.task import AWAY, Task, task_of

PROBED = 64
"""Examples that `probe` looks at."""
FEW_CLASSES, ENOUGH = 3, 1000
"""With fewer classes so many examples of each are needed before a class without one is taken for a rejection."""
TENTH = 0.1
"""Where a radius is infinite, attacks are compared in a ball of this share of the data's range."""


class Finished(Protocol):
    """What a diagnosis reads of a finished evaluation (`epsball.Evaluation`)."""

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def records(self) -> pa.Table: ...
    @property
    def binarization_test(self) -> BinarizationTest | None: ...


def diagnose(
    model: Model,
    data: Examples | tuple[Any, Any],
    ball: Ball,
    attacks: Asked | Sequence[Asked] = ("fgsm", "pgd"),
    *,
    n: int = 128,
    seed: int = 0,
    eot: int = 1,
    batch_size: int = 128,
    evaluation: Finished | None = None,
) -> Diagnosis:
    """Is an evaluation of `model` by `attacks` in `ball` to be believed? The indicators of attack failure.

    Model, data, ball, attacks, `eot` and `batch_size` are those of `evaluate`; attacks without gradients, and callables, are
    not traced. Looked at are the first `n` examples by id, and attacked those that are classified correctly: up to a
    hundred passes of each attack's first job, some three hundred more of controls where examples stand, and
    `QUERIES` forwards of random search. With the `evaluation`, what it found without gradients and its active test are
    looked at too. The same seed gives the same result, also for a model that draws from torch's generator.

    Raises `BadInput` for arguments that do not fit, and for a model that returns labels only. The model and torch's
    generators come back as they were.

    >>> from epsball import Linf
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(32, 20)
    >>> net = torch.nn.Linear(20, 3)
    >>> y = net(x).argmax(1)
    >>> ball, attack = Linf(eps=0.1, lo=0, hi=1), "pgd:loss=margin"
    >>> diagnose(net, (x, y), ball, attack).sentence
    'diagnosis: none of 16 indicators speaks against the verdict (32 of 32 examples)'
    >>> diagnose(lambda x: net(x).softmax(1), (x, y), ball, attack).names
    ('softmax-outputs',)
    """
    check_whole("n", n, 1)
    check_whole("batch_size", batch_size, 1)
    check_whole("eot", eot, 1)
    examples = data if isinstance(data, Examples) else from_arrays(*data)
    found = diagnosed(
        model,
        ordered(examples, ball, seed),
        named(attacks, ball),
        n=n,
        eot=eot,
        batch_size=batch_size,
        evaluation=evaluation,
        classes=examples.classes,
    )
    if found is None:
        raise BadInput("`model` must return logits for a diagnosis, got labels: it asks what attacks can climb")
    return found


def diagnosed(
    model: Model,
    task: Task,
    attacks: Sequence[tuple[str, Attack | UserAttack]],
    *,
    n: int,
    eot: int,
    batch_size: int,
    evaluation: Finished | None = None,
    classes: int = 0,
    reaction: Reaction = Reaction(),  # noqa: B008 - it is frozen
) -> Diagnosis | None:
    """`diagnose` of checked arguments; `task` holds all examples in the order of their ids. None for a model of labels.

    A target is left aside: what is asked is whether attacks can leave the label. `classes` are those of the data, where
    that is known; `reaction` is what the attacks were changed by.
    """
    began = time.perf_counter()
    own = [(name, attack) for name, attack in attacks if isinstance(attack, Attack)]
    labels, part = task.y, sampled(task, n)
    asked = len(part.x)
    with frozen(model), _quiet(task.x, task.noise.seed):
        seen = _correct(model, part, eot, batch_size)
        if seen is None:
            return None
        part, logits, looked = seen
        probes = probed(model, part, logits, eot)
        controls = Controls(model, part, logits.shape[1], eot, batch_size, own, probes.differentiable, reaction)
        found: list[Indicator] = list(probes.indicators)
        if len(part.x):
            known = torch.zeros(logits.shape[1], dtype=torch.bool, device=task.x.device)
            known[: max(classes, int(labels.max()) + 1)] = True
            if known.sum() < FEW_CLASSES and len(labels) < ENOUGH * known.sum():
                known[:] = True  # too little data to say that a class has no examples
            found += controls.measured(_without_gradients(evaluation, part, own), known)
    found.append(_active(None if evaluation is None else evaluation.binarization_test))
    measured = {one.name: one for one in found}
    return Diagnosis(
        indicators=tuple(measured.get(name) or indicator(name, None) for name in INDICATORS),
        attacks=tuple(controls.traces),
        examples=asked,
        correct=len(part.x),
        seed=task.noise.seed,
        forwards=looked + probes.forwards + controls.forwards,
        backwards=probes.backwards + controls.backwards,
        answered=tuple(dict.fromkeys((*reaction.answers, *(("stochastic-forward",) * (eot > 1))))),
        seconds=time.perf_counter() - began,
    )


def probe(
    model: Model,
    data: Examples | tuple[Any, Any],
    ball: Ball,
    *,
    n: int = PROBED,
    seed: int = 0,
    eot: int = 1,
    batch_size: int = 128,
) -> Probe:
    """The indicators that need no attack, in a dozen passes over `n` examples: what a protocol can react to.

    Arguments and errors as in `diagnose`.
    """
    check_whole("n", n, 1)
    check_whole("eot", eot, 1)
    examples = data if isinstance(data, Examples) else from_arrays(*data)
    task = sampled(ordered(examples, ball, seed), n)
    with frozen(model), _quiet(task.x, seed):
        seen = _correct(model, task, eot, batch_size)
        if seen is None:
            raise BadInput("`model` must return logits for a diagnosis, got labels: it asks what attacks can climb")
        found = probed(model, *seen[:2], eot)
    return replace(found, forwards=found.forwards + seen[2])


def ordered(examples: Examples, ball: Ball, seed: int) -> Task:
    """The task of all examples in the order of their ids."""
    if not len(examples):
        raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
    rows, bound = examples.ids.argsort(stable=True), ball.bind(examples.x)
    return task_of(examples.x[rows], examples.y[rows], bound.rows(rows), ids=examples.ids[rows], seed=index(seed))


def sampled(task: Task, n: int) -> Task:
    """The first `n` rows, away from their labels, in a ball that is bounded."""
    part = task.rows(torch.arange(min(n, len(task.x)), device=task.x.device))
    away = torch.full_like(part.y, AWAY)
    ball = part.ball
    if bool(torch.as_tensor(ball.eps).isinf().any()):
        ball = ball.with_eps(TENTH * float(torch.as_tensor(everywhere(ball, part.x).eps))).bind(part.x)
    return replace(part, target=away, aim=away, ball=ball, warm_start=None)


@contextmanager
def _quiet(x: Tensor, seed: int) -> Iterator[None]:
    """Torch's generators seeded, and given back as they were; what the indicators say is not warned of as well."""
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        torch.manual_seed(seed)
        yield


def _correct(
    model: Model, task: Task, eot: int, batch_size: int
) -> tuple[Task, Float[Tensor, "m classes"], int] | None:
    """The rows that are classified correctly, with their logits, and what it cost to see which; None for labels."""
    with Objective(model, cross_entropy, needs="logits", eot=eot) as objective:
        output = forward_rows(objective, task, task.x, batch_size)
        if not output.is_floating_point():
            return None
        check_labels(output, task)
        looked = objective.forwards
    rows = ((output.argmax(1) == task.y) & output.isfinite().all(1)).nonzero().squeeze(1)
    return replace(task.rows(rows), clean=output[rows]), output[rows], looked


def _without_gradients(
    evaluation: Finished | None, task: Task, attacks: Sequence[tuple[str, Attack]]
) -> Bool[Tensor, " n"]:
    """The rows that an evaluation fooled by a transfer, or by an attack that sees no gradient."""
    found = torch.zeros(len(task.x), dtype=torch.bool, device=task.x.device)
    if evaluation is None:
        return found
    blind = {name for name, attack in attacks if attack.needs != "grad"}
    records = evaluation.records.select(["id", "status", "attack", "distance"]).to_pylist()
    transfer = evaluation.config.get("source") is not None
    far = {one["id"]: one["distance"] for one in records if one["status"] == "fooled"}
    ids = {one["id"] for one in records if one["id"] in far and (transfer or one["attack"] in blind)}
    eps = torch.as_tensor(task.ball.eps, dtype=torch.float64)
    radii = (eps if eps.ndim == 1 else eps.amax()).expand(len(task.x)).tolist()  # one per feature: its widest
    near = (
        one in ids and far[one] <= radius * (1 + 1e-6)
        for one, radius in zip(task.noise.ids.tolist(), radii, strict=True)
    )
    return torch.tensor(list(near), dtype=torch.bool, device=task.x.device)


def with_active(found: tuple[Indicator, ...], test: BinarizationTest | None) -> tuple[Indicator, ...]:
    """The indicators of an earlier diagnosis with the active test that there is now."""
    now = _active(test)
    return tuple(now if one.name == now.name else one for one in found)


def _active(test: BinarizationTest | None) -> Indicator:
    """The share that the active test's protocol missed; not measured where it says nothing."""
    if test is None or test.says_nothing:
        return indicator("binarization-test-failed", None)
    return indicator("binarization-test-failed", 1 - test.found / test.n)
