"""The examples that a diagnosis looks at: the first ones by id, and which of them the model classifies correctly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import index

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.data.examples import Examples
from epsball.engine.batches import forward_rows
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective, check_labels
from epsball.problem.task import AWAY, Task, task_of

FINITE_SHARE = 0.1
"""Attacks in a ball of infinite radius are compared in a ball of this share of the data's range."""


def task_in_id_order(examples: Examples, ball: Ball, seed: int) -> Task:
    """The untargeted task of all examples in the order of their ids."""
    rows, bound = examples.ids.argsort(stable=True), ball.bind(examples.x)
    return task_of(examples.x[rows], examples.y[rows], bound.rows(rows), ids=examples.ids[rows], seed=index(seed))


def span_of(ball: Ball, x: Float[Tensor, "n *shape"]) -> float:
    """The range of the data: the widest side of the box where it is finite, else that of the values in `x`."""
    width = float((torch.as_tensor(ball.hi, dtype=torch.float64) - torch.as_tensor(ball.lo)).amax())
    return width if width < torch.inf else max(float(x.amax() - x.amin()), torch.finfo(x.dtype).tiny)


def everywhere(ball: Ball, x: Float[Tensor, "n *shape"]) -> Ball:
    """The ball of the same norm that holds the data's whole range."""
    return ball.with_eps(float(ball.norm(torch.full_like(x[:1], span_of(ball, x)).double())))


def sampled(task: Task, n: int) -> Task:
    """The first `n` rows, untargeted, in a ball of finite radius."""
    part = task.rows(torch.arange(min(n, len(task.x)), device=task.x.device))
    away = torch.full_like(part.y, AWAY)
    ball = part.ball
    if bool(torch.as_tensor(ball.eps).isinf().any()):
        ball = ball.with_eps(FINITE_SHARE * float(torch.as_tensor(everywhere(ball, part.x).eps))).bind(part.x)
    return replace(part, target=away, aim=away, ball=ball, warm_start=None)


@dataclass(frozen=True, eq=False)
class CorrectRows:
    """Rows that are classified correctly, their logits, and the forward passes (in rows) that found them."""

    task: Task
    logits: Float[Tensor, "m classes"]
    forwards: int


def correct_rows(model: Model, task: Task, eot: int, batch_size: int) -> CorrectRows | None:
    """The rows of `task` that the model classifies correctly; None for a model of labels."""
    with Objective(model, cross_entropy, needs="logits", eot=eot) as objective:
        output = forward_rows(objective, task, task.x, batch_size)
        if not output.is_floating_point():
            return None
        check_labels(output, task)
        forwards = objective.forwards
    rows = ((output.argmax(1) == task.y) & output.isfinite().all(1)).nonzero().squeeze(1)
    return CorrectRows(replace(task.rows(rows), clean=output[rows]), output[rows], forwards)
