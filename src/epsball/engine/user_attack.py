"""A user's own attack in an evaluation: any callable (model, x, y, ball) -> x_adv takes part beside the built-in ones.

It gets copies, `batch_size` rows at a time; success and containment in the ball are computed here from what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.engine.batches import forward_rows
from epsball.engine.outcome import AttackOutcome
from epsball.engine.queue import OnTurn
from epsball.problem.objective import Model, Objective
from epsball.problem.task import Task

UserCallable = Callable[[Model, Tensor, Tensor, Ball], Tensor]


@dataclass(frozen=True)
class UserAttack:
    """A callable in a stage of an evaluation: (model, x (n, *shape), y (n,), ball) -> x_adv (n, *shape)."""

    attack: UserCallable

    @property
    def name(self) -> str:
        """Its name in records."""
        return getattr(self.attack, "__name__", type(self.attack).__name__).lower()


def run(
    called: UserAttack, model: Model, objective: Objective, task: Task, *, batch_size: int, on_turn: OnTurn
) -> AttackOutcome:
    """Attack every row on `model`; success is what `objective`, which is open, says of the returned points.

    The callable's forward passes are counted where `model` is a module; its backward passes cannot be counted. Passes
    beyond a whole number per row count as padding. What the callable does to the model's modes, buffers and `.grad` is
    undone.
    """
    parts, forwards, broken, padding = [], [], 0, 0
    fooled, invalid = [], []
    for rows in torch.arange(len(task.x), device=task.x.device).split(batch_size):
        part = task.rows(rows)
        with _counted(model) as counts, _as_it_was(model):
            x_adv = called.attack(model, part.x.clone(), part.y.clone(), part.ball)
        if not isinstance(x_adv, Tensor) or x_adv.shape != part.x.shape:
            shape = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
            raise BadInput(
                f"`attacks`: {called.name} must return a tensor {tuple(part.x.shape)}, one point per row, got {shape}"
            )
        x_adv = x_adv.detach().to(part.x)
        before = objective.forwards
        output = forward_rows(objective, part, x_adv, batch_size)
        padding += objective.forwards - before - objective.eot * len(rows) + counts[0] % len(rows)
        valid = output.isfinite().all(1) if output.is_floating_point() else output >= 0
        good = objective.succeeds(output, part)
        parts.append(torch.where(good.reshape(-1, *[1] * (x_adv.ndim - 1)), x_adv, part.x))
        forwards.append(torch.full((len(rows),), counts[0] // len(rows) + objective.eot))
        fooled.append(good.cpu())
        invalid.append(
            (~valid & ~good & part.ball.contains(x_adv, part.x)).cpu()
        )  # outside the ball logits mean nothing
        broken += int(good.sum())
        on_turn(broken)
    hit = torch.cat(fooled)
    return AttackOutcome(
        x_adv=torch.cat(parts),
        fooled=hit,
        invalid=torch.cat(invalid),
        restart=hit.long() - 1,
        warm_start=task.x,
        margin=torch.full((len(hit),), -torch.inf, dtype=torch.float64),
        forwards=torch.cat(forwards),
        backwards=torch.zeros(len(hit), dtype=torch.long),
        exhausted=torch.zeros(len(hit), dtype=torch.bool),
        speculative_forwards=0,
        speculative_backwards=0,
        padding_forwards=padding,
        padding_backwards=0,
    )


@contextmanager
def _as_it_was(model: Model) -> Iterator[None]:
    """On leaving, every module's mode and buffers, every parameter's `requires_grad` and `.grad` are what they were."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [(module, module.training) for module in modules]
    learning = [
        (part, part.requires_grad, part.grad) for module in modules for part in module.parameters(recurse=False)
    ]
    buffers = [(module, dict(module._buffers)) for module in modules]
    tensors = [*(grad for _, _, grad in learning), *(part for _, parts in buffers for part in parts.values())]
    values = [(part, part.detach().clone()) for part in tensors if part is not None]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for part, wanted, grad in learning:
            part.requires_grad_(wanted)
            part.grad = grad
        for module, parts in buffers:
            module._buffers.clear()
            module._buffers.update(parts)
        with torch.no_grad():
            for part, value in values:
                part.copy_(value)


@contextmanager
def _counted(model: Model) -> Iterator[list[int]]:
    """Count the rows of the inputs of a module."""
    counts = [0]
    if not isinstance(model, nn.Module):
        yield counts
        return

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[0] += len(inputs[0]) if inputs else 0

    hook = model.register_forward_pre_hook(count)
    try:
        yield counts
    finally:
        hook.remove()
