"""The binarization test: do the attacks find an adversarial example where one certainly exists?

An evaluation that finds nothing has shown that the model is robust, or that its attacks are too weak for this model.
To tell the two apart, some examples get a head for which an adversarial example exists in the ball
(`planted_examples`), and the same attacks with the same budgets are run on these. Random points of the ball are the
control: if they find as many, the task was too easy to be conclusive.

Zimmermann, Brendel, Tramer and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations" (NeurIPS 2022).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.balls.ball import Ball
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.diagnosis.binarization_record import BinarizationTest
from epsball.diagnosis.binary_heads import Backbone, Headed, Heads, OneHead, last_linear
from epsball.diagnosis.planted_examples import make_heads, repeated, scattered
from epsball.diagnosis.sample import task_in_id_order
from epsball.engine import queue, user_attack
from epsball.engine.batches import forward_rows
from epsball.engine.outcome import AttackOutcome
from epsball.engine.queue import QueueOptions
from epsball.engine.stages import Asked, Named, named
from epsball.models.frozen import frozen
from epsball.problem.inputs import inputs_for
from epsball.problem.losses import cross_entropy, margin
from epsball.problem.objective import Model, Objective, check_labels
from epsball.problem.task import AWAY, Task

FEWEST_DRAWS, MOST_DRAWS = 200, 2000
"""Random points per example: the authors' number, or as many as the attacks' forward passes, up to a limit."""
RANDOM_RESTART = 3 << 20
"""The first restart index of their noise: no attack's start and no head was drawn from it."""


def binarization_test(
    model: Model,
    data: Examples | tuple[Any, Any] | Any,
    ball: Ball | str,
    attacks: Asked | Sequence[Asked] = ("fgsm", "pgd"),
    *,
    n: int = 32,
    seed: int = 0,
    eot: int = 1,
    batch_size: int = 128,
) -> BinarizationTest:
    """Are these attacks strong enough for this model? How many of `n` planted adversarial examples they find.

    Model, data, ball, attacks, `eot` and `batch_size` are those of `evaluate`. The first `n` examples (by id) that the
    model classifies correctly take part; where no edge point of the ball can be separated, the example is skipped and
    counted. The same seed gives the same result.

    Raises `BadInput` for arguments that do not fit, and for a model that returns labels only. The model is not changed.

    >>> from epsball import Linf
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(8, 20)
    >>> net = torch.nn.Sequential(torch.nn.Linear(20, 60), torch.nn.ReLU(), torch.nn.Linear(60, 3))
    >>> binarization_test(net, (x, net(x).argmax(1)), Linf(eps=0.1, lo=0, hi=1), "pgd", n=8).sentence
    'Binarization test: passed: 8 of 8 planted adversarial examples found (random search: 0).'
    """
    check_whole("n", n, 1)
    check_whole("batch_size", batch_size, 1)
    check_whole("eot", eot, 1)
    model, examples, ball = inputs_for(model, data, ball)
    task = task_in_id_order(examples, ball, seed)
    if len(task.noise.ids.unique()) < len(task.x):
        raise BadInput("`ids` must be distinct, got some twice; number the rows of the unshuffled data")
    return run_binarization_test(model, task, named(attacks, ball), n=n, eot=eot, batch_size=batch_size)


def run_binarization_test(
    model: Model, task: Task, attacks: Sequence[Named], *, n: int, eot: int, batch_size: int
) -> BinarizationTest:
    """`binarization_test` of checked arguments; `task` holds all examples in the order of their ids, untargeted."""
    began = time.perf_counter()
    with frozen(model):
        correct, logits = _first_correct(model, task, n, eot, batch_size)
        layer = last_linear(model, correct.x[:1]) if len(correct.x) else None
        backbone = Backbone(model, layer, eot, batch_size)
        planted = _planted(backbone, correct, logits)
        found = planted.attacked(attacks)
        draws = min(max(found.forwards_per_example, FEWEST_DRAWS), MOST_DRAWS) if planted.heads is not None else 0
        random = planted.broken_at_random(draws)
    ids = planted.task.noise.ids
    return BinarizationTest(
        n=len(planted),
        found=int(found.broken.sum()),
        random=int(random.sum()),
        skipped=len(correct.x) - len(planted),
        missed=tuple(ids[(~found.broken).to(ids.device)].tolist()),
        found_by=tuple((name, count) for (name, _), count in zip(attacks, found.by_attack, strict=True)),
        features="logits" if layer is None else f"input of the last layer, {layer}",
        draws=draws,
        requested=n,
        seed=task.noise.seed,
        forwards=found.forwards,
        backwards=found.backwards,
        seconds=time.perf_counter() - began,
    )


def _first_correct(
    model: Model, task: Task, n: int, eot: int, batch_size: int
) -> tuple[Task, Float[Tensor, "m classes"]]:
    """The first `n` rows that are classified correctly, or as many as there are, and their logits."""
    rows, logits = [], []
    with Objective(model, cross_entropy, eot=eot) as objective:
        for batch in torch.arange(len(task.x), device=task.x.device).split(batch_size):
            part = task.rows(batch)
            output = forward_rows(objective, part, part.x, batch_size)
            if not output.is_floating_point():
                raise BadInput(
                    "`model` must return logits for the binarization test, got labels: it needs features to act on"
                )
            check_labels(output, part)
            correct = (output.argmax(1) == part.y) & output.isfinite().all(1)
            rows.append(batch[correct])
            logits.append(output[correct])
            if sum(map(len, rows)) >= n:
                break
    return task.rows(torch.cat(rows)[:n]), torch.cat(logits)[:n]


@dataclass(frozen=True, eq=False)
class _Found:
    """What a list of attacks found: which examples are `broken`, how many `by_attack`, and its model calls in rows."""

    broken: Bool[Tensor, " n"]
    by_attack: list[int]
    forwards: int
    backwards: int
    forwards_per_example: int


@dataclass(frozen=True, eq=False)
class _Planted:
    """Examples of class 0 with the heads that make a point of their ball class 1; `task` has their logits."""

    backbone: Backbone
    heads: Heads | None
    task: Task

    def __len__(self) -> int:
        return len(self.task.x)

    def attacked(self, attacks: Sequence[Named]) -> _Found:
        """What the attacks find, each working on what those before it have not found."""
        broken = torch.zeros(len(self), dtype=torch.bool)
        forwards, backwards, by_attack = torch.zeros(len(self), dtype=torch.long), 0, [0] * len(attacks)
        for place, (_, attack) in enumerate(attacks):
            robust = (~broken).nonzero().squeeze(1)
            if not len(robust):
                break
            success, outcomes = self._attacked_once(attack, self.task.rows(robust.to(self.task.x.device)))
            broken[robust[success]] = True
            by_attack[place] = int(success.sum())
            forwards[robust] += torch.cat([outcome.forwards for outcome in outcomes])
            backwards += sum(int(outcome.backwards.sum()) for outcome in outcomes)
        return _Found(broken, by_attack, int(forwards.sum()), backwards, int(forwards.max()) if len(self) else 0)

    def _attacked_once(self, attack: Attack | user_attack.UserAttack, task: Task) -> tuple[Tensor, list[AttackOutcome]]:
        """Where one attack succeeds on the rows of `task`, verified again, and its outcomes."""
        assert self.heads is not None, "there are rows to attack"
        batch_size = self.backbone.batch_size
        loss, needs = (attack.loss, attack.needs) if isinstance(attack, Attack) else (cross_entropy, "grad")
        with self.backbone.headed(self.heads, loss, needs) as headed:
            if isinstance(attack, Attack):
                outcomes = [queue.run(attack, headed, task, QueueOptions(batch_size=batch_size))]
            else:
                outcomes = [_called(attack, headed, task, row, batch_size) for row in range(len(task.x))]
            x_adv = torch.cat([outcome.x_adv for outcome in outcomes])
            success = headed.succeeds(forward_rows(headed, task, x_adv, batch_size), task)
            success = (success & task.ball.contains(x_adv, task.x)).cpu()
        return success & torch.cat([outcome.fooled for outcome in outcomes]), outcomes

    def broken_at_random(self, draws: int) -> Bool[Tensor, " n"]:
        """Where one of `draws` random points of the ball succeeds, every other one at its edge."""
        broken = torch.zeros(len(self), dtype=torch.bool)
        if self.heads is None:
            return broken
        batch_size = self.backbone.batch_size
        restarts = RANDOM_RESTART + torch.arange(draws, device=self.task.x.device)
        with self.backbone.headed(self.heads, needs="logits") as headed:
            for row in range(len(broken)):
                for batch in restarts.split(batch_size):
                    copies = repeated(self.task, row, batch)
                    output = forward_rows(headed, copies, scattered(copies), batch_size)
                    if bool(headed.succeeds(output, copies).any()):
                        broken[row] = True
                        break
        return broken


def _planted(backbone: Backbone, task: Task, logits: Float[Tensor, "n classes"]) -> _Planted:
    """Adversarial examples in the balls of the rows that can have one.

    Kept are the rows whose head predicts 0 at the example and 1 at the edge point, as an attack would see it.
    """
    rows, heads = torch.zeros(0, dtype=torch.long, device=task.x.device), None
    if len(task.x):
        with backbone.featured() as featured:
            heads, rows = make_heads(featured, task, margin(logits, task).neg(), batch_size=backbone.batch_size)
    y = torch.zeros_like(task.y)
    away = torch.full_like(y, AWAY)
    task = replace(task, y=y, target=away, aim=away, clean=None, warm_start=None).rows(rows)
    if heads is None:
        return _Planted(backbone, None, task)
    with backbone.headed(heads) as headed:
        clean = forward_rows(headed, task, task.x, backbone.batch_size)
        edge = forward_rows(headed, task, heads.edge, backbone.batch_size)
        as_planned = ~headed.succeeds(clean, task) & headed.succeeds(edge, task) & clean.isfinite().all(1)
    rows = as_planned.nonzero().squeeze(1)
    return _Planted(backbone, heads.rows(rows), replace(task, clean=clean).rows(rows))


def _called(attack: user_attack.UserAttack, headed: Headed, task: Task, row: int, batch_size: int) -> AttackOutcome:
    """A user's callable on one example: its model has this example's head."""
    one = task.rows(torch.tensor([row], device=task.x.device))
    return user_attack.run(attack, OneHead(headed, one), headed, one, batch_size=batch_size, on_turn=lambda _: None)
