"""One call for certificates: a model, examples and a ball, and for each example what is proved.

Attacks give an upper bound of robust accuracy, certificates a lower one; `evaluate(..., certify=...)` gives both.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np

from epsball.balls.ball import Ball
from epsball.certify.certificate import Method
from epsball.certify.certifier import METHODS, Certifier, Proofs
from epsball.certify.smoothing import Smoothing, smooth_certify
from epsball.common.checks import check_one_of, check_whole
from epsball.common.errors import BadInput
from epsball.common.intervals import wilson
from epsball.common.record import Record
from epsball.models.black_box import BlackBox
from epsball.problem.inputs import inputs_for
from epsball.problem.task import Task, task_of

BUDGET = 10.0
"""Seconds an example, on average."""
CHOICES = ("auto", *(method for method in get_args(Method) if method in METHODS))
"""What `method` may be, beside `Smoothing`."""


@dataclass(frozen=True)
class Certification(Record):
    """What is proved of n examples, in the order of the data.

    `verified` says that no point of the example's ball is misclassified; `margin` is then a lower bound of the smallest
    margin z_y - z_j of the network in real arithmetic, in units of its logits, elsewhere the best bound that the search
    found. `as_run` says that the certificate holds for the network as it runs too, with the rounding of its precision.
    `method` is what proved it, `reason` why an example is undecided, `seconds` processor time. With smoothing, what is
    certified is the smoothed classifier, `margin` the certified L2 radius less the distance needed, and
    `error_probability` that of each certificate; else it is 0.
    """

    derived: ClassVar = ("certified_accuracy", "interval")

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    verified: tuple[bool, ...]
    margin: tuple[float, ...]
    as_run: tuple[bool, ...]
    method: tuple[str, ...]
    reason: tuple[str, ...]
    seconds: tuple[float, ...]
    error_probability: float = 0.0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def certified_accuracy(self) -> float:
        """The share of examples that are verified: a lower bound of robust accuracy."""
        return float(np.mean(self.verified))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the certified accuracy over other examples from the same source (Wilson 1927)."""
        return wilson(sum(self.verified), len(self))

    def __str__(self) -> str:
        low, high = (f"{100 * end:.1f}" for end in self.interval)
        lines = [
            f"Certification of {len(self):,} examples: certified accuracy {self.certified_accuracy:.2%} "
            f"(95% interval {low}-{high}%)"
        ]
        for name, texts in (("proved by", self.method), ("undecided", self.reason)):
            counts = {text: texts.count(text) for text in dict.fromkeys(texts) if text}
            lines += [f"{name} {text}: {count:,}" for text, count in sorted(counts.items(), key=lambda pair: -pair[1])]
        return "\n".join(lines)


def certify(
    model: Any,
    data: Any,
    ball: Ball | str,
    *,
    method: str | Smoothing = "auto",
    budget: float = BUDGET,
    seed: int = 0,
) -> Certification:
    """Prove, example by example, that no point of the ball changes the model's answer.

    Parameters
    ----------
    model, data, ball
        As `evaluate` takes them. The network must be made of operators that are covered: linear and convolutional
        layers, batch normalisation, ReLU, leaky ReLU, pooling, residual sums, concatenation, sigmoid, tanh, GELU, SiLU,
        clamp, products with constants; one logit, or several.
    method
        "auto" tries interval bounds, CROWN-IBP, CROWN, alpha-CROWN and branch and bound, each on what is left, "ibp",
        "crown-ibp", "crown" or "alpha-crown" that bound alone; `Smoothing(sigma=0.25)`, or
        "smoothing:sigma=0.25", certifies the smoothed classifier of any model.
    budget
        Seconds an example: on average for all that is tried, at most for branch and bound.
    seed
        Of the noise of smoothing.

    Raises `BadInput` where a layer is not covered, and as `evaluate` does for what does not fit.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> x = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    >>> found = certify(model, (x, [0, 0]), "linf:0.2")
    >>> found.verified, [round(margin, 4) for margin in found.margin]
    ((True, False), [0.4, -0.2])
    """
    method = method_of(method) if isinstance(method, str) else method
    if isinstance(method, Smoothing):
        return _smoothed(model, data, ball, method, seed)
    chosen = check_one_of("method", method, CHOICES)
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
        raise BadInput(f"`budget` must be a number of seconds above 0, got {budget!r}; as in budget=10")
    check_whole("seed", seed, 0)
    model, examples, ball = inputs_for(model, data, ball)
    if isinstance(model, BlackBox):
        raise BadInput(
            f"`model` must be a network whose layers can be seen, got the black box {model!r}; certify its smoothed "
            "classifier: method=Smoothing(sigma=0.25)"
        )
    task = task_of(examples.x, examples.y, ball, ids=examples.ids, seed=seed)
    proofs = prove(Certifier(model, examples.x), task, METHODS if chosen == "auto" else (chosen,), budget)
    return Certification(
        ids=tuple(examples.ids.tolist()),
        labels=tuple(examples.y.tolist()),
        verified=tuple(proofs.verified.tolist()),
        margin=tuple(proofs.margin.tolist()),
        as_run=tuple(proofs.as_run.tolist()),
        method=tuple(proofs.method.tolist()),
        reason=tuple(proofs.reason.tolist()),
        seconds=tuple(proofs.seconds.tolist()),
    )


def method_of(text: str) -> str | Smoothing:
    """The method that a text names: a name, or smoothing with its options.

    >>> method_of("smoothing:sigma=0.25,n=5000")
    Smoothing(sigma=0.25, n0=100, n=5000, alpha=0.001)
    """
    name, _, options = text.partition(":")
    if name != "smoothing":
        return text
    values: dict[str, float] = {}
    for pair in filter(None, options.split(",")):
        key, equals, value = pair.partition("=")
        try:
            values[key.strip()] = int(value) if key.strip() in ("n", "n0") else float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise BadInput(f"`method` must have options such as sigma=0.25 for smoothing, got {pair!r} in {text!r}")
    if "sigma" not in values:
        raise BadInput(f"`method` must give sigma for smoothing, got {text!r}; as in smoothing:sigma=0.25")
    return Smoothing.of(values, what="smoothing option")


def prove(certifier: Certifier, task: Task, methods: Sequence[str], budget: float) -> Proofs:
    """What is proved of a task within `budget` seconds an example; with all methods, branch and bound is the last."""
    deadline = time.monotonic() + budget * len(task.x)
    proofs = certifier.bounds(task, methods, deadline)
    left = int((~proofs.verified).sum())
    seconds = min(budget, (deadline - time.monotonic()) / max(1, left))
    if left and seconds > 0 and set(methods) == set(METHODS):
        proofs = certifier.search(task, proofs, seconds)
    return proofs


def _smoothed(model: Any, data: Any, ball: Ball | str, smoothing: Smoothing, seed: int) -> Certification:
    """The same record of what smoothing certifies."""
    began = time.process_time()
    found = smooth_certify(model, data, ball, smoothing, seed=seed)
    n = len(found.ids)
    needed, radius = np.array(found.needed), np.array(found.radius)
    correct = np.equal(found.prediction, found.y)
    reasons = np.where(
        ~correct,
        "misclassified without attack",
        np.where(found.abstained, "smoothing abstains", "certified radius too small"),
    )
    verified = np.array(found.verified)
    return Certification(
        ids=found.ids,
        labels=found.y,
        verified=found.verified,
        margin=tuple(np.where(correct, radius - needed, -np.inf).tolist()),
        as_run=found.verified,
        method=tuple(np.where(verified, "smoothing", "").tolist()),
        reason=tuple(np.where(verified, "", reasons).tolist()),
        seconds=((time.process_time() - began) / n,) * n,
        error_probability=smoothing.alpha,
    )
