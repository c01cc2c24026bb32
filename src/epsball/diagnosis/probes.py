"""What can be seen of a model in a dozen passes, before any attack: outputs, random numbers, gradients, precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from epsball.attacks.early_stopping import success_margin
from epsball.balls.ball import Ball
from epsball.balls.linf import Linf
from epsball.common.shapes import flat
from epsball.diagnosis.record import Indicator, indicator
from epsball.problem.losses import margin
from epsball.problem.objective import Model, Objective
from epsball.problem.task import Task

SHORT, STEPS = 1e-3, 8
"""A short step as a share of the data's range, and how many are made."""
OFF = 0.5
"""By how much of what the gradient promises a step may be off."""
NEXT_TO_NOTHING = 0.01
"""The share of the way to a wrong class below which the gradient, followed across all of the range, is no help."""
TALL = 8.0
"""The lead of the label that a temperature brings large logits down to: cross-entropy has a slope there."""


@dataclass(frozen=True)
class Probe:
    """What the probes found: their indicators, and what a reaction needs to know.

    `temperature` is what brings the median lead of the label down to `TALL`, 1 where it is below. `differentiable` says
    whether the output depends on the input through torch at all.
    """

    indicators: tuple[Indicator, ...]
    temperature: float
    differentiable: bool
    forwards: int
    backwards: int

    @property
    def raised(self) -> tuple[str, ...]:
        """The names of the indicators that are raised."""
        return tuple(one.name for one in self.indicators if one.raised)


def span_of(ball: Ball, x: Float[Tensor, "n *shape"]) -> float:
    """The range of the data: the widest side of the box where it is finite, else that of the values in `x`."""
    width = float((torch.as_tensor(ball.hi, dtype=torch.float64) - torch.as_tensor(ball.lo)).amax())
    return width if width < torch.inf else max(float(x.amax() - x.amin()), torch.finfo(x.dtype).tiny)


def everywhere(ball: Ball, x: Float[Tensor, "n *shape"]) -> Ball:
    """The ball of the same norm that holds the data's whole range."""
    return ball.with_eps(float(ball.norm(torch.full_like(x[:1], span_of(ball, x)).double())))


def probed(model: Model, task: Task, logits: Float[Tensor, "n classes"], eot: int) -> Probe:
    """The probes of checked rows, all classified correctly, whose `logits` are those of one pass.

    `STEPS` + 1 passes with a gradient and two without.
    """
    if not len(task.x):
        return Probe((), 1.0, True, 0, 0)
    with Objective(model, margin, careful=True, eot=eot) as objective:
        again = objective.forward(task.x)
        through = _differentiable(model, task.x[:1])
        gap = -success_margin(logits, task).double()
        zero, vanishing, shattered = _gradients(objective, task, gap) if through else (1.0, None, None)
        forwards, backwards = objective.forwards, objective.backwards
    scale = logits.double().abs().amax().clamp_min(torch.finfo(torch.float64).tiny)
    chance = few(len(task.x))
    found = (
        indicator("softmax-outputs", float(_sums_to_one(logits).double().mean())),
        indicator("stochastic-forward", float((again.double() - logits.double()).abs().amax() / scale)),
        indicator("zero-gradients", zero, least=chance),
        indicator("vanishing-gradients", vanishing, least=chance),
        indicator("shattered-gradients", shattered, least=chance),
        indicator("saturated-logits", _flat_share(logits, task), least=chance),
    )
    return Probe(found, max(1.0, float(gap.median()) / TALL), through, forwards + 1, backwards)


def few(n: int) -> float:
    """The share that two of `n` examples are: what happens to no more of them may be chance."""
    return 2 / n


def _differentiable(model: Model, x: Float[Tensor, "n *shape"]) -> bool:
    """Whether the output depends on x through torch; the model's parameters are frozen."""
    with torch.enable_grad():
        output = model(x.detach().clone().requires_grad_())
    return isinstance(output, Tensor) and output.requires_grad


def _sums_to_one(logits: Float[Tensor, "n classes"]) -> Bool[Tensor, " n"]:
    """Rows that look like probabilities; a sigmoid's (0, p) among them, where no row is outside [0, 1]."""
    positive = (logits >= 0).all(1)
    single = logits.shape[1] == 2 and bool((logits[:, 0] == 0).all()) and bool((positive & (logits[:, 1] <= 1)).all())
    return positive & (((logits.sum(1) - 1).abs() < 1e-3) | single)


def _flat_share(logits: Float[Tensor, "n classes"], task: Task) -> float:
    """The share of rows where the cross-entropy's gradient is zero in the logits' precision."""
    with torch.enable_grad():
        leaf = logits.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(leaf, task.y, reduction="sum"), leaf)
    return float((slope == 0).all(1).double().mean())


def _gradients(objective: Objective, task: Task, gap: Float[Tensor, " n"]) -> tuple[float, float, float]:
    """The shares of rows whose gradient is zero, next to nothing, and not that of the function."""
    near = Linf(eps=SHORT * span_of(task.ball, task.x), lo=task.ball.lo, hi=task.ball.hi, mask=task.ball.mask)
    point = objective(task.x, task)
    zero = (flat(point.grad) == 0).all(1)
    reach = everywhere(task.ball, task.x).max_gain(point.grad, task.x).double()
    vanishing = ~zero & (reach < NEXT_TO_NOTHING * gap)
    broken = torch.zeros_like(zero)
    for _ in range(STEPS):
        z = near.argmax(point.grad, point.z)
        promised = flat(point.grad.double() * (z.double() - point.z.double())).sum(1)
        after = objective(z, task)
        gained = after.loss.double() - point.loss.double()
        rounding = 64 * torch.finfo(task.x.dtype).eps * after.logits.double().abs().amax(1)
        broken |= (promised > rounding) & ((gained - promised).abs() > OFF * promised + rounding)
        point = after
    return float(zero.double().mean()), float(vanishing.double().mean()), float(broken.double().mean())
