"""Five small attacks that test the protocol, each using another part of it; and parameters over all attacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from epsball.attacks.attack import Attack, LossAttack, State
from epsball.attacks.registry import ATTACKS, attack_class, options_of, parse
from epsball.balls.ball import Ball
from epsball.balls.l0 import L0
from epsball.balls.l1 import L1
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf
from epsball.common.shapes import column, flat
from epsball.problem.losses import Loss
from epsball.problem.objective import Point
from epsball.problem.task import Task


def towards(task: Task, z: Tensor, step: Tensor, rate: float) -> Tensor:
    """From z a part of the way to a random end of the ball, keyed by each row's own step."""
    noise = task.noise.sign(task.x.shape[1:], step=step, dtype=z.dtype)
    return task.ball.project(z + rate * (task.ball.argmax(noise, task.x) - z), task.x)


@dataclass(frozen=True, eq=False)
class Best(State):
    """With the loss at `best`, (n,)."""

    best_loss: Tensor


@dataclass(frozen=True, kw_only=True)
class RandomSearch(LossAttack[Best]):
    """Logits only: a random step is kept where it raised the loss. Ends by `done`, not by a known length."""

    needs = "logits"
    steps: int = 12
    rate: float = 0.3

    def init(self, task: Task) -> Best:
        return Best.at(task.x, best_loss=torch.full_like(flat(task.x)[:, 0], -math.inf))

    def step(self, state: Best, point: Point, task: Task) -> Best:
        better = point.loss > state.best_loss
        best = torch.where(column(better, task.x.ndim), state.z, state.best)
        t = state.t + 1
        return Best(
            z=towards(task, best, t, self.rate),
            best=best,
            t=t,
            done=t >= self.steps,
            best_loss=torch.where(better, point.loss.to(state.best_loss.dtype), state.best_loss),
        )


def every_logit(logits: Tensor, task: Task) -> Tensor:
    """One column of loss per class."""
    return logits


@dataclass(frozen=True, kw_only=True)
class DeepFoolStep(LossAttack[State]):
    """One step to the nearest linearised decision boundary, with as many gradients as classes on one forward.

    Moosavi-Dezfooli et al. (CVPR 2016), algorithm 2, overshoot .02.
    """

    until = "done"
    loss: Loss = every_logit
    overshoot: float = 0.02

    @property
    def max_steps(self) -> int:
        return 1

    def init(self, task: Task) -> State:
        return State.at(task.x)

    def step(self, state: State, point: Point, task: Task) -> State:
        rows = torch.arange(len(task.y))
        grads = point.grad.flatten(2) if point.grad.ndim > 2 else point.grad[:, :, None]
        normal, gap = (part - part[rows, task.y, None] for part in (grads, point.logits))
        size = normal.square().sum(2).sqrt().clamp_min(1e-6)
        distance = gap.abs() / size
        distance[rows, task.y] = math.inf
        rival = torch.where(task.aimed, task.aim, distance.argmin(1))
        length = (1 + self.overshoot) * distance[rows, rival] / size[rows, rival]
        step = (length[:, None] * normal[rows, rival]).reshape(task.x.shape)
        step = torch.where(column(rival == task.y, step.ndim), 0, step)  # a target that is the label
        z = task.ball.project(task.x + step, task.x)
        return replace(state, z=z, best=z)


@dataclass(frozen=True, eq=False)
class Searching(Best):
    """With the phase, the number of halvings, and the end of the present line."""

    phase: Tensor
    halvings: Tensor
    end: Tensor


@dataclass(frozen=True, kw_only=True)
class LineSearch(LossAttack[Searching]):
    """Phase 0 draws a line from a point to the maximiser of its gradient; phase 1 halves it until the loss rises."""

    FACE: ClassVar[int] = 0
    WALK: ClassVar[int] = 1

    most_halvings: int = 3
    steps: int = 14

    def init(self, task: Task) -> Searching:
        zero = torch.zeros_like(task.y)
        lowest = torch.full_like(flat(task.x)[:, 0], -math.inf)
        return Searching.at(task.x, best_loss=lowest, phase=zero, halvings=zero, end=task.x)

    def step(self, state: Searching, point: Point, task: Task) -> Searching:
        facing = state.phase == self.FACE
        loss = point.loss.to(state.best_loss.dtype)
        risen = ~facing & (loss > state.best_loss)
        keep = facing | risen
        best = torch.where(column(keep, task.x.ndim), state.z, state.best)
        best_loss = torch.where(keep, loss, state.best_loss)
        end = torch.where(column(facing, task.x.ndim), task.ball.argmax(point.grad, task.x), state.end)
        halvings = torch.where(keep, 0, state.halvings + 1)
        shorter = task.ball.project(best + (end - best) * column(0.5**halvings, best.ndim).to(best.dtype), task.x)
        t = state.t + 1
        return Searching(
            z=torch.where(column(risen, best.ndim), best, shorter),
            best=best,
            t=t,
            done=(halvings > self.most_halvings) | (t >= self.steps),
            best_loss=best_loss,
            phase=torch.where(risen, self.FACE, self.WALK),
            halvings=halvings,
            end=end,
        )


@dataclass(frozen=True, kw_only=True)
class LabelWalk(Attack[State]):
    """Labels only: a random walk through the ball until it has crossed a decision boundary."""

    needs = "label"
    steps: int = 12
    rate: float = 0.5

    def init(self, task: Task) -> State:
        return State.at(task.ball.sample(task.x, task.noise))

    def step(self, state: State, point: Point, task: Task) -> State:
        t = state.t + 1
        z = torch.where(column(point.fooled, task.x.ndim), state.z, towards(task, state.z, t, self.rate))
        return State(z=z, best=z, t=t, done=t >= self.steps)


@dataclass(frozen=True, eq=False)
class Nearest(State):
    """With the distance of `best`, infinite until one is found, (n,)."""

    distance: Tensor


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(LossAttack[Nearest]):
    """Steps out until the point fools, back while it does; returns the closest adversarial example."""

    until = "done"
    steps: int = 16
    step_size: float = 0.25
    shrink: float = 0.8

    @property
    def max_steps(self) -> int:
        return self.steps

    def init(self, task: Task) -> Nearest:
        return Nearest.at(task.x, distance=torch.full_like(flat(task.x)[:, 0], math.inf))

    def step(self, state: Nearest, point: Point, task: Task) -> Nearest:
        distance = task.ball.norm(state.z - task.x)
        closer = point.fooled & (distance < state.distance)
        back = task.ball.project(task.x + self.shrink * (state.z - task.x), task.x)
        out = task.ball.step(point.grad, state.z, task.x, self.step_size)
        return Nearest(
            z=torch.where(column(point.fooled, out.ndim), back, out),
            best=torch.where(column(closer, out.ndim), state.z, state.best),
            t=state.t,
            done=state.done,
            distance=torch.where(closer, distance, state.distance),
        )


DOUBLES: dict[str, Attack] = {
    "random-search": RandomSearch(),
    "deepfool-step": DeepFoolStep(),
    "line-search": LineSearch(),
    "label-walk": LabelWalk(),
    "minimum-norm": MinimumNorm(),
}


def short(name: str) -> Attack:
    """From the table, with fewer steps where it makes steps."""
    options = options_of(attack_class(name))
    steps, late = "steps=8" * ("steps" in options), "early=false" * ("early" in options)
    return parse(f"{name}:{steps},{late}")


SUITE: dict[str, Attack] = {**{name: short(name) for name in ATTACKS}, **DOUBLES}
BALLS: dict[str, Callable[..., Ball]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}
EPS = {"linf": 0.3, "l2": 0.6, "l1": 1.0, "l0": 2.0}

every_attack = pytest.mark.parametrize("attack", SUITE.values(), ids=SUITE)
PAIRS = {f"{name}-{norm}": (attack, norm) for name, attack in SUITE.items() for norm in attack.norms()}
every_attack_and_norm = pytest.mark.parametrize(("attack", "norm"), PAIRS.values(), ids=PAIRS)


def ball_of(attack: Attack, eps: float, **box: object) -> Ball:
    """The max-norm ball, or, for an attack that is not defined there, one of its own norm that is about as large."""
    norm = "linf" if "linf" in attack.norms() else attack.norms()[0]
    box = {"lo": -9.0, "hi": 9.0, **box} if norm == "l0" else box  # L0 needs a box
    return BALLS[norm](eps=eps * EPS[norm] / EPS["linf"], **box)


def NEVER(output: Tensor, task: Task) -> Tensor:
    """A success that no point has: the attack runs to its end."""
    return torch.zeros_like(task.y, dtype=torch.bool)


def assert_inside(x_adv: Tensor, x: Tensor, norm: str, eps: float, lo: float, hi: float, mask: Tensor | None) -> None:
    """Ball, box and mask, written down apart from balls.py; the slack is 4 ulp of the dtype at the data's scale."""
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert bool((x_adv >= torch.tensor(lo).to(x)).all())
    assert bool((x_adv <= torch.tensor(hi).to(x)).all())
    delta = (x_adv.double() - x.double()).reshape(len(x), -1)
    order = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    slack = 0 if norm == "l0" else 4 * torch.finfo(x.dtype).eps * max(x_adv.abs().max().item(), x.abs().max().item())
    assert torch.linalg.vector_norm(delta, order, dim=1).max().item() <= eps + slack
    assert mask is None or bool((x_adv == x)[~mask.expand_as(x)].all())
