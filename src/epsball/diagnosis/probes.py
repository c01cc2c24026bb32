"""Indicators that need no attack, from a dozen model calls: outputs, random numbers, gradients, precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from epsball.attacks.early_stopping import success_margin
from epsball.balls.linf import Linf
from epsball.common.shapes import flat
from epsball.diagnosis.indicators import Indicator, indicator
from epsball.diagnosis.sample import everywhere, span_of
from epsball.problem.losses import margin
from epsball.problem.objective import Model, Objective
from epsball.problem.task import Task

SHORT, STEPS = 1e-3, 8
"""The length of a short step as a share of the data's range, and the number of steps."""
OFF = 0.5
"""The relative error of a step's predicted gain above which the gradient counts as shattered."""
NEXT_TO_NOTHING = 0.01
"""A gradient vanishes if, followed across the data's range, it changes the margin by less than this share of it."""
ROUNDING, SAME = 1e-4, 10
"""The batch matters if another one changes the outputs by more than this share of the largest logit, and by so many
times what a mere repetition does."""
TARGET_MARGIN = 8.0
"""A temperature brings large margins of the logits down to this one, where the cross-entropy has a gradient."""


@dataclass(frozen=True)
class Probe:
    """What the probes found: their indicators, and what a reaction needs to know.

    `temperature` brings the median margin of the logits down to `TARGET_MARGIN`; it is 1 if the median is smaller.
    `differentiable` says whether the output depends on the input through torch at all; `ends_in` which activation at
    the model's end is left out.
    """

    indicators: tuple[Indicator, ...]
    temperature: float
    differentiable: bool
    forwards: int
    backwards: int
    ends_in: str = ""

    @property
    def failed_names(self) -> tuple[str, ...]:
        """The names of the indicators whose check failed."""
        return tuple(one.name for one in self.indicators if one.failed)


def run_probes(model: Model, task: Task, logits: Float[Tensor, "n classes"], eot: int) -> Probe:
    """The probes of checked rows, all classified correctly, whose `logits` are those of one forward pass.

    They make `STEPS` + 1 model calls with a gradient and two without, and a third one where these two differ by more
    than rounding: if it agrees with the second, in the same batch, it is the batch that matters, and nothing is drawn.
    """
    if not len(task.x):
        return Probe((), 1.0, True, 0, 0)
    with Objective(model, margin, eot=eot) as objective:
        again = objective.forward(task.x)
        scale = float(logits.double().abs().amax().clamp_min(torch.finfo(torch.float64).tiny))
        differing = repeated = float((again.double() - logits.double()).abs().amax()) / scale
        if differing > ROUNDING:
            repeated = float((objective.forward(task.x).double() - again.double()).abs().amax()) / scale
        differentiable = _differentiable(model, task.x[:1])
        margins = -success_margin(logits, task).double()
        zero, vanishing, shattered = _gradients(objective, task, margins) if differentiable else (1.0, None, None)
        forwards, backwards, ends_in = objective.forwards, objective.backwards, objective.ends_in or ""
    chance = chance_level(len(task.x))
    found = (
        indicator("softmax-outputs", 1.0 if ends_in else float(_sums_to_one(logits).double().mean())),
        indicator("dependent-rows", 0.0 if repeated * SAME > differing else differing),
        indicator("stochastic-forward", repeated),
        indicator("zero-gradients", zero, least=chance),
        indicator("vanishing-gradients", vanishing, least=chance),
        indicator("shattered-gradients", shattered, least=chance),
        indicator("saturated-logits", _saturated_share(logits, task), least=chance),
    )
    temperature = max(1.0, float(margins.median()) / TARGET_MARGIN)
    return Probe(found, temperature, differentiable, forwards + 1, backwards, ends_in)


def chance_level(n: int) -> float:
    """The share that two of `n` examples are: what happens to no more of them may be chance."""
    return 2 / n


def _differentiable(model: Model, x: Float[Tensor, "n *shape"]) -> bool:
    """Whether the output depends on x through torch; the model's parameters are frozen."""
    with torch.enable_grad():
        output = model(x.detach().clone().requires_grad_())
    return isinstance(output, Tensor) and output.requires_grad


def _sums_to_one(logits: Float[Tensor, "n classes"]) -> Bool[Tensor, " n"]:
    """Rows that look like probabilities; a sigmoid's (0, p) among them, if all rows are in [0, 1]."""
    positive = (logits >= 0).all(1)
    sigmoid = logits.shape[1] == 2 and bool((logits[:, 0] == 0).all()) and bool((positive & (logits[:, 1] <= 1)).all())
    return positive & (((logits.sum(1) - 1).abs() < 1e-3) | sigmoid)


def _saturated_share(logits: Float[Tensor, "n classes"], task: Task) -> float:
    """The share of rows where the cross-entropy's gradient is zero in the logits' precision."""
    with torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(leaf, task.y, reduction="sum"), leaf)
    return float((grad == 0).all(1).double().mean())


def _gradients(objective: Objective, task: Task, margins: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """The shares of rows whose gradient is zero, vanishing, and shattered."""
    short = Linf(eps=SHORT * span_of(task.ball, task.x), lo=task.ball.lo, hi=task.ball.hi, mask=task.ball.mask)
    point = objective(task.x, task)
    zero = (flat(point.grad) == 0).all(1)
    max_gain = everywhere(task.ball, task.x).max_gain(point.grad, task.x).double()
    vanishing = ~zero & (max_gain < NEXT_TO_NOTHING * margins)
    shattered = torch.zeros_like(zero)
    for _ in range(STEPS):
        z = short.argmax(point.grad, point.z)
        predicted = flat(point.grad.double() * (z.double() - point.z.double())).sum(1)
        after = objective(z, task)
        gained = after.loss.double() - point.loss.double()
        rounding = 64 * torch.finfo(task.x.dtype).eps * after.logits.double().abs().amax(1)
        shattered |= (predicted > rounding) & ((gained - predicted).abs() > OFF * predicted + rounding)
        point = after
    return float(zero.double().mean()), float(vanishing.double().mean()), float(shattered.double().mean())
