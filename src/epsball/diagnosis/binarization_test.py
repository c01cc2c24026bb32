"""The active test: does the protocol find an adversarial example where there surely is one?

An evaluation that finds nothing has shown that the model is robust, or that its attacks are too weak for this model.
To tell the two apart, some examples get a head for which an adversarial example exists in the ball (hiding.py), and the
same attacks with the same budgets are run on these. Random points of the ball are the control: where they find as much,
the task was too easy to say anything.

Zimmermann, Brendel, Tramer and Carlini, "Increasing Confidence in Adversarial Robustness Evaluations" (NeurIPS 2022).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from operator import index
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from epsball.attacks.attack import Attack
from epsball.balls.ball import Ball
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.diagnosis.binarization_record import BinarizationTest
from epsball.diagnosis.binary_heads import Featured, Headed, Heads, OneHead, last_linear
from epsball.diagnosis.planted_examples import make_heads, repeated, scattered
from epsball.engine import queue, user_attack
from epsball.engine.batches import forward_rows
from epsball.engine.outcome import AttackOutcome
from epsball.engine.queue import QueueOptions
from epsball.engine.stages import Asked, Named, named
from epsball.engine.user_attack import UserAttack
from epsball.problem.losses import cross_entropy, margin
from epsball.problem.objective import Model, Objective, check_labels, frozen
from epsball.problem.task import AWAY, Task, task_of

FEWEST_DRAWS, MOST_DRAWS = 200, 2000
"""Random points that an example is tried with at least (the authors' number) and at most."""
RANDOM_RANK = 3 << 20
"""The restart_indices of their noise, which no attack's start and no head was made of."""


def binarization_test(
    model: Model,
    data: Examples | tuple[Any, Any],
    ball: Ball,
    attacks: Asked | Sequence[Asked] = ("fgsm", "pgd"),
    *,
    n: int = 32,
    seed: int = 0,
    eot: int = 1,
    batch_size: int = 128,
) -> BinarizationTest:
    """Is this list of attacks strong enough for this model? What it finds of `n` hidden adversarial examples.

    Model, data, ball, attacks, `eot` and `batch_size` are those of `evaluate`. The first `n` examples (by id) that the model
    classifies correctly take part; where no edge point of the ball can be separated, the example is left out and
    counted. The same seed gives the same result.

    Raises `BadInput` for arguments that do not fit, and for a model that returns labels only. The model comes back as
    it was.

    >>> from epsball import Linf
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(8, 20)
    >>> net = torch.nn.Sequential(torch.nn.Linear(20, 60), torch.nn.ReLU(), torch.nn.Linear(60, 3))
    >>> binarization_test(net, (x, net(x).argmax(1)), Linf(eps=0.1, lo=0, hi=1), "pgd", n=8).sentence
    'active test: 8 of 8 hidden adversarial examples found (random search: 0)'
    """
    check_whole("n", n, 1)
    check_whole("batch_size", batch_size, 1)
    check_whole("eot", eot, 1)
    examples = data if isinstance(data, Examples) else from_arrays(*data)
    if not len(examples):
        raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
    order = examples.ids.argsort(stable=True)
    if len(examples.ids.unique()) < len(order):
        raise BadInput("`ids` must be distinct, got some twice; number the rows of the unshuffled data")
    x, y, ids = (part[order] for part in (examples.x, examples.y, examples.ids))
    task = task_of(x, y, ball.bind(examples.x).rows(order), ids=ids, seed=index(seed))
    return examined(model, task, named(attacks, ball), n=n, eot=eot, batch_size=batch_size)


def examined(
    model: Model, task: Task, attacks: Sequence[Named], *, n: int, eot: int, batch_size: int
) -> BinarizationTest:
    """`binarization_test` of checked arguments; `task` holds all examples in the order of their ids, without targets."""
    began = time.perf_counter()
    with frozen(model):
        rows, logits = _correct(model, task, n, eot, batch_size)
        part = task.rows(rows)
        layer = last_linear(model, part.x[:1]) if len(rows) else None
        heads, kept = None, rows[:0]
        if len(rows):
            with Featured(model, layer, eot=eot) as featured:
                heads, kept = make_heads(featured, part, margin(logits, part).neg(), batch_size=batch_size)
        asked, part = len(rows), _binary(part.rows(kept))
        found, caught, spent, draws = torch.zeros(0, dtype=torch.bool), [0] * len(attacks), [0, 0], 0
        random = found
        if heads is not None:
            heads, part = _verified(model, layer, heads, part, eot, batch_size)
            found, caught, spent, most = _attacked(model, layer, heads, part, attacks, eot, batch_size)
            draws = min(max(most, FEWEST_DRAWS), MOST_DRAWS)
            random = _random(model, layer, heads, part, draws, eot, batch_size)
    return BinarizationTest(
        n=len(found),
        found=int(found.sum()),
        random=int(random.sum()),
        skipped=asked - len(found),
        missed=tuple(part.noise.ids[(~found).to(part.noise.ids.device)].tolist()) if len(found) else (),
        caught=tuple((name, count) for (name, _), count in zip(attacks, caught, strict=True)),
        features="logits" if layer is None else f"input of the last layer, {layer}",
        draws=draws,
        asked=n,
        seed=task.noise.seed,
        forwards=spent[0],
        backwards=spent[1],
        seconds=time.perf_counter() - began,
    )


def _correct(
    model: Model, task: Task, n: int, eot: int, batch_size: int
) -> tuple[Int64[Tensor, " m"], Float[Tensor, "m classes"]]:
    """The first `n` rows that are classified correctly, or as many as there are, and their logits."""
    rows, kept = [task.y[:0]], []
    with Objective(model, cross_entropy, eot=eot) as objective:
        for some in torch.arange(len(task.x), device=task.x.device).split(batch_size):
            part = task.rows(some)
            output = forward_rows(objective, part, part.x, batch_size)
            if not output.is_floating_point():
                raise BadInput(
                    "`model` must return logits for the active test, got labels: it needs features to act on"
                )
            check_labels(output, part)
            good = (output.argmax(1) == part.y) & output.isfinite().all(1)
            rows.append(some[good])
            kept.append(output[good])
            if sum(map(len, rows)) >= n:
                break
    return torch.cat(rows)[:n], torch.cat(kept)[:n]


def _binary(task: Task) -> Task:
    """The same rows as examples of class 0, to be driven away from it; their logits come with the heads."""
    y = torch.zeros_like(task.y)
    away = torch.full_like(y, AWAY)
    return Task(task.x, y, target=away, aim=away, clean=None, ball=task.ball, noise=task.noise)


def _verified(
    model: Model, layer: nn.Linear | None, heads: Heads, task: Task, eot: int, batch_size: int
) -> tuple[Heads, Task]:
    """The heads that call the example 0 and the edge point 1 as an attack would see it, and their task, with logits."""
    with Headed(model, layer, heads, eot=eot) as headed:
        clean = forward_rows(headed, task, task.x, batch_size)
        edge = forward_rows(headed, task, heads.edge, batch_size)
        good = ~headed.succeeds(clean, task) & headed.succeeds(edge, task) & clean.isfinite().all(1)
    kept = good.nonzero().squeeze(1)
    task = Task(task.x, task.y, task.target, task.aim, clean, task.ball, task.noise)
    return heads.rows(kept), task.rows(kept)


def _attacked(
    model: Model,
    layer: nn.Linear | None,
    heads: Heads,
    task: Task,
    attacks: Sequence[Named],
    eot: int,
    batch_size: int,
) -> tuple[Bool[Tensor, " n"], list[int], list[int], int]:
    """Where the protocol succeeds, how often each attack did, its passes in rows, and the most forwards of a row."""
    found = torch.zeros(len(task.x), dtype=torch.bool)
    forwards, backwards = torch.zeros(len(found), dtype=torch.long), 0
    caught = [0] * len(attacks)
    for place, (_, attack) in enumerate(attacks):
        standing = (~found).nonzero().squeeze(1)
        if not len(standing):
            break
        part = task.rows(standing.to(task.x.device))
        with ExitStack() as stack:
            loss, needs = (attack.loss, attack.needs) if isinstance(attack, Attack) else (cross_entropy, "grad")
            headed = stack.enter_context(Headed(model, layer, heads, loss, needs=needs, eot=eot))
            outcomes = (
                [queue.run(attack, headed, part, QueueOptions(batch_size=batch_size))]
                if isinstance(attack, Attack)
                else [_called(attack, headed, part, row, batch_size) for row in range(len(part.x))]
            )
            x_adv = torch.cat([outcome.x_adv for outcome in outcomes])
            output = forward_rows(headed, part, x_adv, batch_size)
            good = headed.succeeds(output, part) & part.ball.contains(x_adv, part.x)
        good = good.cpu() & torch.cat([outcome.fooled for outcome in outcomes])
        found[standing[good]] = True
        caught[place] = int(good.sum())
        forwards[standing] += torch.cat([outcome.forwards for outcome in outcomes])
        backwards += sum(int(outcome.backwards.sum()) for outcome in outcomes)
    return found, caught, [int(forwards.sum()), backwards], int(forwards.max()) if len(forwards) else 0


def _called(attack: UserAttack, headed: Headed, task: Task, row: int, batch_size: int) -> AttackOutcome:
    """A user's callable on one example: it is handed a model that has this example's head."""
    one = task.rows(torch.tensor([row], device=task.x.device))
    return user_attack.run(
        attack, OneHead(headed, one), headed, one, batch_size=batch_size, on_turn=lambda fallen: None
    )


def _random(
    model: Model, layer: nn.Linear | None, heads: Heads, task: Task, draws: int, eot: int, batch_size: int
) -> Bool[Tensor, " n"]:
    """Where one of `draws` random points of the ball succeeds, every other one at its edge."""
    found = torch.zeros(len(task.x), dtype=torch.bool)
    restart_indices = RANDOM_RANK + torch.arange(draws, device=task.x.device)
    with Headed(model, layer, heads, needs="logits", eot=eot) as headed:
        for row in range(len(found)):
            for some in restart_indices.split(batch_size):
                many = repeated(task, row, some)
                output = forward_rows(headed, many, scattered(many), batch_size)
                if bool(headed.succeeds(output, many).any()):
                    found[row] = True
                    break
    return found
