"""A user's own attack in an evaluation: any callable (model, x, y, ball) -> x_adv takes part beside the built-in ones.

It gets copies, `batch_size` rows at a time; success and containment in the ball are computed here from what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MethodType

import torch
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.undo import Undo
from epsball.engine.batches import forward_rows
from epsball.engine.outcome import AttackOutcome
from epsball.engine.queue import OnTurn
from epsball.models.frozen import held_modules, restored_buffers
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
        x_adv, calls, spare = objective.limit(partial(_attacked, called, model), part.x, part)
        before = objective.forwards
        output = forward_rows(objective, part, x_adv, batch_size)
        padding += objective.forwards - before - objective.eot * len(rows) + int(spare.sum())
        valid = output.isfinite().all(1) if output.is_floating_point() else output >= 0
        good = objective.succeeds(output, part)
        parts.append(torch.where(good.reshape(-1, *[1] * (x_adv.ndim - 1)), x_adv, part.x))
        forwards.append(calls + objective.eot)
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


def _attacked(called: UserAttack, model: Model, x: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """What the callable returns for the rows x of `task`, the forward passes of each, and those beyond, in row 0."""
    with _counted(model) as counts, _as_it_was(model):
        x_adv = called.attack(model, x.clone(), task.y.clone(), task.ball)
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape:
        shape = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise BadInput(
            f"`attacks`: {called.name} must return a tensor {tuple(x.shape)}, one point per row, got {shape}"
        )
    spare = torch.zeros(len(x), dtype=torch.long)
    spare[0] = counts[0] % len(x)
    return x_adv.detach().to(x), torch.full((len(x),), counts[0] // len(x)), spare


@contextmanager
def _as_it_was(model: Model) -> Iterator[None]:
    """On leaving, every module's mode and buffers, every parameter's `requires_grad` and `.grad` are what they were.

    Inside, `train()` and `eval()` set flags and nothing else, as some modules change their weights there.
    """
    with Undo() as stack:
        modules = held_modules(model)
        stack.enter_context(restored_buffers(modules))
        for module in modules:
            stack.callback(module._buffers.update, dict(module._buffers))
            stack.callback(module._buffers.clear)
            stack.callback(setattr, module, "training", module.training)
            if "train" not in vars(module):
                stack.callback(vars(module).pop, "train", None)
                vars(module)["train"] = MethodType(_set_flags, module)
            for part in module.parameters(recurse=False):
                stack.callback(setattr, part, "grad", part.grad)
                if part.grad is not None:
                    stack.callback(_fill, part.grad, part.grad.detach().clone())
                if part.is_leaf:
                    stack.callback(part.requires_grad_, part.requires_grad)
        yield


def _set_flags(module: nn.Module, mode: bool = True) -> nn.Module:
    for part in module.modules():
        part.training = mode
    return module


def _fill(tensor: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        tensor.copy_(value)


@contextmanager
def _counted(model: Model) -> Iterator[list[int]]:
    """Count the rows of the inputs of a module."""
    counts = [0]
    if not isinstance(model, nn.Module):
        yield counts
        return

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        counts[0] += len(inputs[0]) if inputs else 0

    with Undo() as stack:
        stack.callback(model.register_forward_pre_hook(count).remove)
        yield counts
