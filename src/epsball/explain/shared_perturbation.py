"""One perturbation for many examples: how it is made, and what is counted of it.

The perturbation v maximises a sum over examples at clip(x + v) by projected gradient ascent, as in Shafahi et al.,
"Universal adversarial training" (AAAI 2020), algorithm 1. What is summed is a smooth count of the fooled,
sigmoid(margin / T) with T a tenth of the median margin, or a fifth, whichever fools more: on the digits, within .1, it
fools 1.6 times as many held-out examples as the margin itself does. There may be better ones: every share is a lower
bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.balls.linf import Linf
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.record import Record
from epsball.data.examples import Examples
from epsball.explain.inputs import radius_of
from epsball.explain.measure import correct
from epsball.problem.losses import margin
from epsball.problem.objective import Model, Objective, check_labels, prediction
from epsball.problem.task import Task, task_of

TEMPERATURES = (0.1, 0.2)
"""T, in units of the median margin of the examples that the perturbation is made on: the sum has many maxima."""
LEAK = 1e-3
"""The share of margin / T that is added, so that no example is without a gradient."""
FIRST = 0.25
"""The first step, in units of eps; it shrinks to a tenth of that on half a cosine."""
SHUFFLE_DRAW = 7


@dataclass(frozen=True)
class SharedPerturbation(Record):
    """One perturbation of `n` coordinates, and what it does to the `correct` examples, classified correctly without it.

    `held_out` is the share that it fools of them, `fitted` of those that it was made on, `noise` the mean share that
    its own values fool in random places (equal in every norm), `per_example` the share that FGSM on the margin fools, a
    step for each example. `dominant` is the class that most of the fooled are predicted as, `dominant_share` its share
    of them.
    """

    eps: float
    n: int
    correct: int
    fitted: float
    held_out: float
    noise: float
    per_example: float
    dominant: int
    dominant_share: float


@dataclass(frozen=True)
class SmoothCount:
    """Nearly 1 where the model is wrong and 0 where it is right: sigmoid(margin / T), and a little of margin / T."""

    temperature: float

    def __call__(self, logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
        scaled = margin(logits, task) / self.temperature
        return scaled.sigmoid() + LEAK * scaled


@dataclass(frozen=True)
class PerturbationMaker:
    """Makes one perturbation for many examples, and counts what it fools."""

    steps: int
    draws: int
    seed: int
    batch_size: int

    def __call__(
        self, model: Model, fitted: Examples, others: Examples, ball: Ball
    ) -> tuple[SharedPerturbation, Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """The counts, the perturbation made on `fitted`, and the first of `others` that it fools (else the first)."""
        shared, ball = around_zero(ball), ball.bind(fitted.x)
        with Objective(model, margin, needs="logits") as objective:
            fitted, median_margin = self._correct(objective, fitted, ball)
            others, _ = self._correct(objective, others, ball)
        batches = zip(others.x.split(self.batch_size), others.y.split(self.batch_size), strict=True)
        stepped = torch.cat([FGSM(loss=margin)(model, x, y, ball) for x, y in batches])
        candidates = []
        for temperature in TEMPERATURES:
            with Objective(model, SmoothCount(max(temperature * median_margin, 1e-6))) as objective:
                candidates.append(self._ascend(objective, fitted, shared, ball))
        delta, _ = max(candidates, key=lambda candidate: candidate[1])
        with Objective(model, margin, needs="logits") as objective:
            fitted_fooled = self._predicted(objective, fitted, delta, ball) != fitted.y
            predicted = self._predicted(objective, others, delta, ball)
            noise = [
                (self._predicted(objective, others, mixed, ball) != others.y).double().mean().item()
                for mixed in self._shuffled(delta, ball.mask)
            ]
            alone = self._predicted(objective, replace(others, x=stepped), torch.zeros_like(delta), ball) != others.y
        fooled = predicted != others.y
        counts = torch.bincount(predicted[fooled]) if fooled.any() else torch.zeros(1, dtype=torch.long)
        record = SharedPerturbation(
            eps=radius_of(ball),
            n=delta.numel(),
            correct=len(others),
            fitted=fitted_fooled.double().mean().item(),
            held_out=fooled.double().mean().item(),
            noise=sum(noise) / len(noise),
            per_example=alone.double().mean().item(),
            dominant=int(counts.argmax()),
            dominant_share=float(counts.max() / counts.sum().clamp_min(1)),
        )
        return record, delta[0], others.x[int(fooled.nonzero()[0]) if fooled.any() else 0]

    def _correct(self, objective: Objective, data: Examples, ball: Ball) -> tuple[Examples, float]:
        """Those of the examples that are classified correctly, and the median of their margins."""
        task = task_of(data.x, data.y, ball)
        logits = torch.cat([objective.forward(x) for x in task.x.split(self.batch_size)])
        if not logits.is_floating_point():
            raise BadInput("`model` must return logits, got labels; a universal perturbation is made from gradients")
        check_labels(logits, task)
        rows = correct(logits, data.y).nonzero().squeeze(1)
        if not len(rows):
            raise BadInput(f"`model` must be right about some of the {len(data)} examples, got none; look at its data")
        return data.rows(rows), -margin(logits, task)[rows].double().median().item()

    def _ascend(
        self, objective: Objective, data: Examples, shared: Ball, ball: Ball
    ) -> tuple[Float[Tensor, "1 *shape"], int]:
        """The perturbation that fooled most of `data` on the way, and how many.

        The first to be tried is the maximiser of the gradient at zero, the optimum of a linear model.
        """
        zero = torch.zeros_like(data.x[:1])
        grad, _ = self._summed(objective, data, zero, ball)
        best = shared.argmax(grad, zero)
        _, most = self._summed(objective, data, best, ball)
        delta = zero
        for step in range(self.steps):
            size = FIRST * (0.1 + 0.9 * (1 + math.cos(math.pi * step / self.steps)) / 2)
            delta = shared.step(grad, delta, zero, size)
            grad, fooled = self._summed(objective, data, delta, ball)
            if fooled > most:
                best, most = delta, fooled
        return best, most

    def _summed(
        self, objective: Objective, data: Examples, delta: Float[Tensor, "1 *shape"], ball: Ball
    ) -> tuple[Float[Tensor, "1 *shape"], int]:
        """The gradient of the summed loss with respect to the perturbation, and how many it fools."""
        task = task_of(data.x, data.y, Linf(eps=math.inf))  # for the labels; the ball plays no part
        grad, fooled = torch.zeros_like(delta), 0
        for rows in torch.arange(len(data), device=data.x.device).split(self.batch_size):
            moved = data.x[rows] + delta
            z = ball.clip(moved)
            point = objective(z, task.rows(rows))
            grad += torch.where(moved == z, point.grad, 0).sum(0, keepdim=True)  # zero where it is clipped
            fooled += int(point.fooled.sum())
        return grad, fooled

    def _predicted(self, objective: Objective, data: Examples, delta: Tensor, ball: Ball) -> Int64[Tensor, " n"]:
        """The predictions for the examples with `delta` added."""
        return prediction(torch.cat([objective.forward(ball.clip(x + delta)) for x in data.x.split(self.batch_size)]))

    def _shuffled(self, delta: Float[Tensor, "1 *shape"], mask: Tensor | None) -> list[Float[Tensor, "1 *shape"]]:
        """The perturbation with its values in other places, among those that may change: equal in every norm."""
        index = torch.arange(self.draws)
        keys = Noise(self.seed, index, torch.zeros_like(index)).uniform((delta.numel(),), draw=SHUFFLE_DRAW)
        free: Bool[Tensor, " d"] = torch.ones(delta.numel(), dtype=torch.bool)
        if mask is not None:
            free = mask.expand(delta.shape).flatten().cpu()
        places, values, found = free.nonzero().squeeze(1), delta.flatten(), []
        for key in keys:
            mixed = values.clone()
            mixed[places] = values[places[key[places].argsort()]]
            found.append(mixed.reshape(delta.shape))
        return found


def around_zero(ball: Ball) -> Ball:
    """The ball that the perturbation is in: its box is what can move any example from one end to the other."""
    for name in ("lo", "hi", "mask"):
        part = getattr(ball, name)
        if isinstance(part, Tensor) and part.ndim and len(part) != 1:
            raise BadInput(f"`{name}` of the ball must be the same for all examples, got {tuple(part.shape)}; share it")
    return replace(ball, lo=ball.lo - ball.hi, hi=ball.hi - ball.lo)
