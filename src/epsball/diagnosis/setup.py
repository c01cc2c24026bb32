"""The set-up of an evaluation: what was understood of its data, ball, labels and model, and what is likely wrong.

A result is only as true as what went in. Before any attack, the clean predictions that an evaluation makes anyway are
compared with the labels, and data, box and radius with each other; `Setup` states what was understood, and warns of
what is likely to be wrong, the likely cause first. What is certainly wrong is refused.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.diagnosis.setup_data import ball_facts, copies_finding, data_facts, label_facts, unit_findings
from epsball.diagnosis.setup_inputs import BAD, TRIED, input_finding
from epsball.diagnosis.setup_labels import (
    accuracy_finding,
    by_the_names,
    chance_accuracy,
    class_findings,
    count_finding,
    numbering_finding,
)
from epsball.diagnosis.setup_record import BallFacts, DataFacts, Finding, LabelFacts, ModelFacts, Setup
from epsball.models.black_box import BlackBox
from epsball.models.frozen import held_modules
from epsball.models.model_record import LABEL_NAMES
from epsball.problem.objective import Model, Objective, prediction, probabilities
from epsball.problem.task import Task

ORDER = (
    "constant-data",
    "box-of-pixels",
    "scaled-twice",
    "eps-of-unit-range",
    "normalised-data",
    "eps-below-level",
    "eps-zero",
    "eps-below-precision",
    "eps-covers-box",
    "labels-swapped",
    "labels-shifted",
    "class-missing",
    "labels-permuted",
    "input-form",
    "nonfinite-logits",
    "constant-predictions",
    "chance-accuracy",
    "rows-dependent",
    "stochastic",
    "probabilities",
    "saturated-logits",
    "one-class",
    "class-count",
    "classes-missing",
    "targets-are-labels",
    "no-box",
    "duplicated-rows",
)
"""The names of all warnings, the gravest first."""
NUMBERING = frozenset({"labels-swapped", "labels-shifted", "class-missing", "labels-permuted"})
"""Warnings that explain a low accuracy."""
SAID_ELSEWHERE = frozenset({"stochastic", "probabilities", "saturated-logits"})
"""Warnings that other parts of an evaluation give as well, when they meet the fault."""
INVALID = 0.0
"""The share of examples without finite logits above which that is a warning."""
SATURATED = 0.05
"""The share of examples whose cross-entropy has no gradient above which that is a warning."""


@dataclass(frozen=True, eq=False)
class CleanPass:
    """What a clean pass over the rows `rows` of a task showed: `output`, logits or labels of each.

    `deterministic` and `independent` are as in `ModelFacts`; `mode` is the mode in which the model came, `ends_in` the
    sigmoid or softmax at its end that was left out.
    """

    rows: Tensor
    output: Tensor
    mode: str
    deterministic: bool | None = None
    independent: bool | None = None
    ends_in: str | None = None


def mode_of(model: Model) -> str:
    """The mode of the modules that a model consists of, or holds: "eval", or "train" (one of them is enough).

    "function" for one that holds none.
    """
    modules = held_modules(model)
    if not modules:
        return "function"
    return "train" if any(getattr(module, "training", False) for module in modules) else "eval"


@dataclass(frozen=True, eq=False)
class AllExamples:
    """What is known of all examples of a run, where a task holds some of them: their `ids` (n,), and the `labels` (m,)
    of those that have one, in the same order; None where these are not known without reading them."""

    ids: Tensor
    labels: Tensor | None


def make_setup(
    task: Task,
    examples: Examples,
    every: AllExamples,
    radii: tuple[float, ...] | None,
    clean: CleanPass,
    evaluator: Objective,
) -> Setup:
    """What an evaluation understood of `task`, which holds all or some of `every` example of it.

    `examples` know box and names of the classes. `evaluator` asks the model; it counts the forward passes that the
    set-up takes.

    `radii` are those of a curve, or None for the ball's own. Raises `BadInput` where the set-up is certainly wrong.
    """
    began = time.perf_counter()
    check_targets(task)
    outputs = clean.output.shape[1] if clean.output.is_floating_point() else 0
    labels = label_facts(task.y if every.labels is None else every.labels, max(outputs, examples.classes))
    data, ball = data_facts(task.x), ball_facts(task.ball, radii, task.x)
    if len(every.ids) > len(task.x):
        data = replace(data, n=len(every.ids), seen=len(task.x))
    seen = _valid(task, clean, labels.classes)
    facts = ModelFacts(
        sampled=len(clean.rows),
        clean_accuracy=int((seen.predicted == seen.y).sum()) / len(clean.rows),
        chance=chance_accuracy(seen.y, seen.predicted, labels.classes),
        mode=clean.mode,
        deterministic=clean.deterministic,
        independent=clean.independent,
    )
    found = [*_of_data(task, examples, data, ball), *_of_labels(every, examples, labels, seen, evaluator.model)]
    if not any(one.name in NUMBERING for one in found):
        found += _of_inputs(task, seen, data, evaluator, labels.classes)
    found += _of_outputs(clean, task.y[clean.rows], facts)
    found.sort(key=lambda one: ORDER.index(one.name))
    return Setup(data, ball, labels, facts, tuple(found), evaluator.forwards, time.perf_counter() - began)


@dataclass(frozen=True, eq=False)
class _Seen:
    """The rows of a clean pass with a valid prediction, their labels, and what is predicted."""

    rows: Tensor
    y: Tensor
    predicted: Tensor


def _valid(task: Task, clean: CleanPass, classes: int) -> _Seen:
    predicted = prediction(clean.output)
    valid = (predicted >= 0) & (predicted < classes)
    if clean.output.is_floating_point():
        valid &= clean.output.isfinite().all(1)
    rows = clean.rows[valid]
    return _Seen(rows, task.y[rows], predicted[valid])


def check_targets(task: Task) -> None:
    """Raise `BadInput` where no example has a target that differs from its label."""
    targeted = task.target >= 0
    if bool(targeted.any()) and bool((task.target == task.y)[targeted].all()):
        raise BadInput(
            f"`target` must differ from the label of some example, but equals it for all {len(task.y):,}; give the "
            "class that the attack is to reach, as in (y + 1) % classes"
        )


def _of_data(task: Task, examples: Examples, data: DataFacts, ball: BallFacts) -> Iterator[Finding]:
    yield from unit_findings(data, ball, (examples.lo, examples.hi))
    if (copies := copies_finding(task.x, data)) is not None:
        yield copies
    same = (task.target == task.y)[task.target >= 0].double()
    several = len(task.target.unique()) > 1
    if several and len(same) > 8 and float(same.mean()) > 0.5:
        yield Finding(
            "targets-are-labels",
            "`target` holds labels",
            f"for {100 * float(same.mean()):.0f} % of the examples the target is the label: they are not attacked",
            "give the classes that the attack is to reach, as in (y + 1) % classes",
        )


def _of_labels(
    every: AllExamples, examples: Examples, labels: LabelFacts, seen: _Seen, model: Model
) -> Iterator[Finding]:
    names = examples.label_names
    if every.labels is not None:
        yield from class_findings(every.labels, every.ids, labels.classes if names is None else len(names), names)
    if not len(seen.y):
        return
    arguments = seen.y, seen.predicted, labels.classes, names
    for finding in (numbering_finding(*arguments), count_finding(*arguments)):
        if finding is not None:
            yield by_the_names(finding, names, getattr(model, LABEL_NAMES, None))
            return


def _of_inputs(task: Task, seen: _Seen, data: DataFacts, evaluator: Objective, classes: int) -> Iterator[Finding]:
    """Why a model does badly: inputs of another form, or no reason that can be seen."""
    if not len(seen.y):
        return
    if float((seen.predicted == seen.y).double().mean()) < BAD and not isinstance(evaluator.model, BlackBox):
        rows = seen.rows[:: max(1, len(seen.rows) // TRIED)][:TRIED]
        better = input_finding(lambda z: prediction(evaluator.forward(z)), task.x[rows], task.y[rows], data)
        if better is not None:
            yield better
            return
    if (accuracy := accuracy_finding(seen.y, seen.predicted, classes)) is not None:
        yield accuracy


def _of_outputs(clean: CleanPass, y: Tensor, facts: ModelFacts) -> Iterator[Finding]:
    """What is wrong with the outputs themselves."""
    output = clean.output
    if facts.deterministic is False:
        yield Finding(
            "stochastic",
            "the model draws random numbers in eval mode",
            "two forward passes over the same examples differ",
            "fix its noise, or attack and evaluate the mean of several forward passes with eot=20",
        )
    if facts.independent is False:
        yield Finding(
            "rows-dependent",
            "the model mixes the rows of a batch (batch statistics, a side input that belongs to rows)",
            "the same examples beside others have other outputs, so that attacks and batch sizes change the model",
            "put the model into eval mode (BatchNorm with track_running_stats), and side inputs into x",
        )
    if not output.is_floating_point():
        return
    finite = output.isfinite().all(1)
    invalid = 1 - float(finite.double().mean())
    if invalid > INVALID:
        yield Finding(
            "nonfinite-logits",
            "the model overflows, divides by zero, or masks classes with -inf",
            f"logits of {100 * invalid:.3g} % of {len(output):,} examples are not finite, and count as invalid",
            "look for an overflow or a logarithm at zero in the model; mask classes with -1e4, or drop their columns",
        )
    logits, y = output[finite], y[finite]
    if not len(logits):
        return
    if clean.ends_in:
        yield Finding(
            "probabilities",
            "the model returns probabilities",
            f"it ends in a {clean.ends_in}: the logits before it are attacked and evaluated",
            "return the logits, from before it",
        )
    elif len(logits) > 1 and probabilities(logits):
        yield Finding(
            "probabilities",
            "the model returns probabilities",
            "outputs are >= 0 and sum to 1: gradients vanish, and the model looks robust",
            "return the logits, from before the softmax",
        )
        return
    saturated = _saturated(logits, y)
    if saturated > max(SATURATED, 2 / len(logits)):
        yield Finding(
            "saturated-logits",
            "the logits are so far apart that the cross-entropy has no gradient",
            f"it is zero for {100 * saturated:.0f} % of {len(logits):,} examples",
            'attack a loss that does not saturate, pgd:loss=margin, or "fast", which divides the logits',
        )


def _saturated(logits: Tensor, y: Tensor) -> float:
    """The share of examples where the gradient of the cross-entropy is zero in the logits' precision."""
    with torch.enable_grad():
        leaf = logits.detach().clone().to(torch.promote_types(logits.dtype, torch.float32)).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(leaf, y, reduction="sum"), leaf)
    return float((grad == 0).all(1).double().mean())
