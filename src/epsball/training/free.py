"""Adversarial training for free: each backward pass improves the model and the perturbation.

Shafahi et al., "Adversarial Training for Free!" (NeurIPS 2019), algorithm 1.
"""

from __future__ import annotations

import torch
from torch import nn

from epsball.balls.ball import Ball
from epsball.common.shapes import Batch
from epsball.problem.gradients import finite_gradient
from epsball.training.cross_entropy import Count, CrossEntropyTraining, NonNegative, accuracy, existing, logits_of
from epsball.training.training_objective import Labels, Logged, TrainingStep

DELTA, OWNERS = "perturbation", "perturbation of"
"""In memory: the perturbations (k, *shape), and (k, 2) the example of each and the step that made it."""


class Free(CrossEntropyTraining):
    """J(x + delta), each batch `m` times in a row; after each, delta makes a step of `step_size` * eps in the ball.

    One forward and one backward pass for each step of the optimiser, and m steps on each batch: the gradient that delta
    follows is that of the model before the step. It is taken in train mode, with the label smoothing of J. The
    perturbation is carried over to the next batch, row by row, as in the paper; checkpoints hold it. Take an m-th of
    the epochs.

    Logs "loss" and "adversarial_accuracy".
    """

    cost = "1 for each of m steps of the optimiser; the attack is the pass itself, in train mode"
    source = "Shafahi et al. 2019, algorithm 1"

    m: Count = 8
    step_size: NonNegative = 1.0

    @property
    def replays(self) -> int:
        """Steps of the optimiser on each batch."""
        return self.m

    def __call__(self, model: nn.Module, x: Batch, y: Labels, ball: Ball | None, step: TrainingStep) -> Logged:
        ball = self.need(ball)
        leaf = ball.project(x + _take_perturbations(step, x), x).detach().requires_grad_()
        logits = logits_of(model, leaf)
        loss = self.loss(logits, y)
        loss.backward()
        z = ball.step(finite_gradient(existing(leaf.grad)), leaf.detach(), x, self.step_size)
        _return_perturbations(step, z - x)
        return {"loss": loss.detach(), "adversarial_accuracy": accuracy(logits, y)}


def _take_perturbations(step: TrainingStep, x: Batch) -> Batch:
    """The rows' perturbations, out of the queue in memory: their own on a replay, else the oldest ones.

    Where a batch is computed in parts, those that another part of this step has returned are not available.
    """
    memory, ids = step.memory, step.noise.ids
    if DELTA not in memory:
        memory[DELTA], memory[OWNERS] = torch.zeros_like(x[:0]), torch.zeros(0, 2, dtype=torch.long)
    queue, owners = memory[DELTA].to(x), memory[OWNERS].to(ids)
    available = owners[:, 1] != step.number
    if step.replay:
        same = (owners[:, 0] == ids[:, None]) & available
        places = (same * torch.arange(1, len(owners) + 1, device=x.device)).argmax(1)
    else:
        places = available.nonzero().squeeze(1)[: len(x)]
    taken = torch.cat([queue[places], torch.zeros_like(x[len(places) :])])
    remains = torch.ones_like(available).index_fill(0, places, False)
    memory[DELTA], memory[OWNERS] = queue[remains], owners[remains]
    return taken


def _return_perturbations(step: TrainingStep, delta: Batch) -> None:
    memory, ids = step.memory, step.noise.ids
    owners = torch.stack([ids, torch.full_like(ids, step.number)], 1)
    memory[DELTA], memory[OWNERS] = torch.cat([memory[DELTA], delta]), torch.cat([memory[OWNERS], owners])
