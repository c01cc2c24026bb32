"""The queue: the same answers as a direct call at any batch size and order; restarts; model calls per example."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from doubles import BALLS, DOUBLES, EPS, NEVER, MinimumNorm, ball_of, every_attack, every_attack_and_norm
from nets import CONV_SHAPE, Broken, Counting, batch, conv, linear, mlp, predicted, rng
from torch import Tensor

import epsball as eb
from epsball.attacks.attack import Attack, State
from epsball.balls.ball import Ball
from epsball.engine import batches, queue
from epsball.engine.outcome import AttackOutcome
from epsball.engine.queue import QueueOptions
from epsball.problem.losses import margin
from epsball.problem.objective import Objective, Point, changes_prediction
from epsball.problem.task import Task, task_of


def clean_task(model: Callable[[Tensor], Tensor], x: Tensor, y: object, ball: Ball, **more: object) -> Task:
    with torch.no_grad():
        return replace(task_of(x, y, ball, **more), clean=model(x))


def run(
    model: object, attack: Attack, task: Task, batch_size: int = 32, **more: object
) -> tuple[AttackOutcome, Objective]:
    with Objective(
        model, attack.loss, needs=attack.needs, success=more.pop("success", changes_prediction)
    ) as objective:
        return queue.run(attack, objective, task, QueueOptions(batch_size=batch_size, **more)), objective


def one_by_one(model: object, attack: Attack, task: Task, success: object = changes_prediction) -> AttackOutcome:
    """The same without a pool: every job of every row on its own, restarts in order until one succeeds.

    A minimum-norm attack makes all restarts.
    """
    n = len(task.x)
    x_adv, restart = task.x.clone(), torch.full((n,), -1)
    forwards, backwards, failed = torch.zeros(n).long(), torch.zeros(n).long(), torch.zeros(n).bool()
    warm_start, best_margin = task.x.clone(), torch.full((n,), -math.inf, dtype=torch.float64)
    with Objective(model, attack.loss, needs=attack.needs, success=success) as objective:
        for i in range(n):
            least = math.inf
            for place in range(attack.jobs):
                job, exists = attack.job(task.rows(torch.tensor([i])), torch.tensor([place]))
                before = objective.forwards, objective.backwards
                z, broke, end, end_margin = alone(objective, attack, job) if exists else (None, False, None, -math.inf)
                forwards[i] += objective.forwards - before[0]
                backwards[i] += objective.backwards - before[1]
                failed[i] |= broke
                if end_margin > best_margin[i]:
                    warm_start[i], best_margin[i] = end[0], end_margin
                if z is not None:
                    distance = job.ball.distance(z, job.x).item() if attack.minimises else 0.0
                    if distance < least:
                        x_adv[i], restart[i], least = z[0], place, distance
                    if not attack.minimises:
                        break
    return AttackOutcome(
        x_adv=x_adv,
        fooled=restart >= 0,
        invalid=failed & (restart < 0),
        restart=restart,
        warm_start=warm_start,
        margin=best_margin,
        forwards=forwards,
        backwards=backwards,
        exhausted=torch.zeros_like(failed),
        speculative_forwards=0,
        speculative_backwards=0,
        padding_forwards=0,
        padding_backwards=0,
    )


def alone(objective: Objective, attack: Attack, job: Task) -> tuple[Tensor | None, bool, Tensor | None, float]:
    """The adversarial example of a job, whether the model failed on the way, its warm start, and the margin there."""
    state = attack.init(job)
    for turn in range(1, 1000):
        point = objective(state.z, job)
        if not point.valid.item():
            return None, True, None, -math.inf
        if attack.until == "fooled" and point.fooled.item():
            return point.z, False, None, -math.inf
        state = attack.step(state, point, job)
        if (turn == attack.max_steps) if attack.max_steps is not None else state.done.item():
            end = objective.evaluate_at(state.best, job)
            fooled, end_margin = end.fooled.item(), margin_at(objective, state.best, job)
            start, best = state.best, attack.best_point(state)
            if end_margin is not None and not fooled and not torch.equal(best, start):
                objective.forwards += 1
                if (best_margin := margin_at(objective, best, job)) > end_margin:
                    start, end_margin = best, best_margin
            end_margin = -math.inf if end_margin is None else end_margin
            return (state.best if fooled else None), not end.valid.item(), start, end_margin
    raise AssertionError("the job does not end")


def margin_at(objective: Objective, z: Tensor, job: Task) -> float | None:
    """The margin of success at the one point z; None for a model of labels. Its model call is not counted."""
    output = objective.forward(z)
    objective.forwards -= 1
    if not output.is_floating_point():
        return None
    if not output.isfinite().all():
        return -math.inf
    of, sign = (job.y, 1) if job.target.item() < 0 else (job.target, -1)
    return sign * (output.scatter(1, of[:, None], -math.inf).max() - output[0, of]).item()


def assert_same(one: AttackOutcome, other: AttackOutcome, *, atol: float = 0.0, index: Tensor | None = None) -> None:
    """Per example: points, results, restarts and model calls."""
    for name in ("x_adv", "fooled", "invalid", "restart", "forwards", "backwards"):
        a, b = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(a if index is None else a[index], b, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize(
    "jobs",
    [
        {},
        {"restarts": 2, "n_targets": 4},
        pytest.param({"restarts": 3}, marks=pytest.mark.nightly),
        pytest.param({"n_targets": 2}, marks=pytest.mark.nightly),
    ],
    ids=str,
)
@every_attack
def test_pool_changes_neither_the_result_nor_the_model_calls_of_an_example(
    attack: Attack, jobs: dict[str, int]
) -> None:
    n = 14 if jobs else 45  # more jobs than the pool has rows
    x, model = batch(n, (6,)), linear((6,), 3)
    task = clean_task(model, x, predicted(model, x), ball_of(attack, 0.16, lo=0, hi=1), seed=1)
    attack = replace(attack, **jobs)
    outcome, objective = run(model, attack, task, warm_start=True)
    wanted = one_by_one(model, attack, task)
    if attack.minimises:  # among equal distances rounding decides which is the least
        ends = [task.ball.distance(one.x_adv, task.x) for one in (outcome, wanted)]
        tie = (outcome.restart != wanted.restart) & ((ends[0] - ends[1]).abs() <= 1e-9 * ends[0])
        restart = torch.where(tie, outcome.restart, wanted.restart)
        wanted = replace(wanted, restart=restart, x_adv=torch.where(tie[:, None], outcome.x_adv, wanted.x_adv))
    assert_same(outcome, wanted, atol=1e-12)
    robust = ~wanted.fooled
    torch.testing.assert_close(outcome.margin[robust], wanted.margin[robust], rtol=0, atol=1e-12)
    torch.testing.assert_close(outcome.warm_start[robust], wanted.warm_start[robust], rtol=0, atol=1e-12)
    assert 0 < wanted.fooled.sum() < n
    made = outcome.forwards.sum() + outcome.speculative_forwards + outcome.padding_forwards
    back = outcome.backwards.sum() + outcome.speculative_backwards + outcome.padding_backwards
    assert (objective.forwards, objective.backwards) == (made, back)
    assert min(outcome.padding_forwards, outcome.speculative_forwards, outcome.padding_backwards) >= 0
    assert outcome.speculative_backwards >= 0


@every_attack_and_norm
def test_direct_call_and_queue_find_the_same_points(attack: Attack, norm: str) -> None:
    # 64 rows, as the pool has: on some processors a row of a ragged batch rounds otherwise, and a tie decides.
    x, model = batch(64, (6,)), mlp((6,), 3)
    y, ball = predicted(model, x), BALLS[norm](eps=2 * EPS[norm], lo=-0.5, hi=1.2)
    direct = attack(model, x, y, ball, seed=4)
    outcome, _ = run(model, attack, task_of(x, y, ball, seed=4))
    assert torch.equal(predicted(model, direct) != y, outcome.fooled)
    torch.testing.assert_close(outcome.x_adv[outcome.fooled], direct[outcome.fooled], rtol=0, atol=1e-12)
    assert torch.equal(outcome.x_adv[~outcome.fooled], x[~outcome.fooled])


@pytest.mark.parametrize(
    "attack",
    [
        eb.PGD(steps=5, restarts=2, n_targets=3),
        DOUBLES["line-search"],
        eb.UniformNoise(restarts=7),
        MinimumNorm(n_targets=2),
    ],
)
def test_bits_do_not_depend_on_batch_size_or_order(attack: Attack) -> None:
    """float32, with as many threads as there are; 300 examples, so that every batch size refills and shrinks."""
    model = conv().float()
    x = batch(300, CONV_SHAPE).float()
    task = clean_task(model, x, predicted(model, x), eb.Linf(eps=0.06, lo=0, hi=1))
    outcome, _ = run(model, attack, task, 128)
    assert 5 < outcome.fooled.sum() < 290
    for batch_size in (32, 96, 512):
        assert_same(run(model, attack, task, batch_size)[0], outcome)
    order = torch.randperm(300, generator=rng(2))
    assert_same(outcome, run(model, attack, task.rows(order), 96)[0], index=order)


# Scripted jobs: which restart wins, which are dropped, and what they cost.


@dataclass(frozen=True, kw_only=True)
class Scripted(Attack[State]):
    """Job (id, restart) succeeds at step script[id][restart], at its end if that is `steps` + 1, never if it is 0."""

    needs = "logits"
    script: tuple[tuple[int, ...], ...]
    steps: int = 4
    broken: float = math.nan

    @property
    def max_steps(self) -> int:
        return self.steps

    def due(self, task: Task, turn: Tensor) -> Tensor:
        """The point to evaluate at that step: 1 + restart where it succeeds, NaN where the script says so, else 0."""
        at = torch.tensor(self.script)[task.noise.ids, task.noise.restart]
        z = torch.where(at == turn, 1.0 + task.noise.restart, 0.0)
        return torch.where(at == -turn, math.nan, z).to(task.x)[:, None]

    def init(self, task: Task) -> State:
        return State.at(self.due(task, torch.tensor(1)))

    def step(self, state: State, point: Point, task: Task) -> State:
        z = self.due(task, state.t + 2)
        return State(z=z, best=z, t=state.t + 1, done=state.done)


def play(script: list[list[int]], batch_size: int = 32, **more: object) -> tuple[AttackOutcome, Objective]:
    attack = Scripted(script=tuple(map(tuple, script)), restarts=len(script[0]))
    task = task_of(torch.zeros(len(script), 1), 0, eb.Linf(eps=9.0))
    return run(lambda z: z[:, 0] - 0.5, attack, task, batch_size, **more)


@pytest.mark.parametrize(
    ("script", "restart", "forwards"),
    [
        ([3, 1, 1], 0, 3),  # restart 1 succeeds first, restart 0 wins
        ([0, 2, 1], 1, 5 + 2),
        ([5, 1, 1], 0, 5),  # the end of restart 0, evaluated late, still wins
        ([0, 0, 4], 2, 5 + 5 + 4),
        ([0, 5, 1], 1, 5 + 5),
        ([0, 0, 0], -1, 15),
        ([1, 0, 0], 0, 1),
        ([-2, 0, 3], 2, 2 + 5 + 3),  # the model fails at restart 0, step 2
        ([-1, 0, -5], -1, 1 + 5 + 5),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 7, 32, 33, 256])
def test_lowest_successful_restart_wins_and_model_calls_do_not_depend_on_batch_size(
    script: list[int], restart: int, forwards: int, batch_size: int
) -> None:
    """Among rows of every other kind, so that pools are mixed; the row itself is in the middle."""
    others = [[0, 0, 0], [2, 0, 0], [0, 3, 0], [5, 5, 5], [0, 0, 1]] * 4
    outcome, _ = play([*others, script, *others], batch_size)
    assert outcome.restart[20] == restart
    assert outcome.forwards[20] == forwards
    assert outcome.fooled[20] == (restart >= 0)
    assert outcome.invalid[20] == (restart < 0 and min(script) < 0)
    assert outcome.x_adv[20].item() == 1 + restart
    want = torch.tensor([-1, 0, 1, 0, 2] * 4)
    assert torch.equal(outcome.restart, torch.cat([want, torch.tensor([restart]), want]))
    assert torch.equal(outcome.x_adv[:, 0], 1.0 + outcome.restart)


def test_success_drops_later_restarts_and_keeps_earlier_ones() -> None:
    """One example, three restarts at once: restart 1 succeeds at step 2, which drops restart 2 but not restart 0."""
    outcome, objective = play([[0, 2, 0]])
    assert outcome.forwards.tolist() == [5 + 2]
    assert outcome.speculative_forwards == 2
    assert objective.forwards == 4 * 32 + 32
    assert outcome.padding_forwards == 5 * 32 - 9


def test_broken_example_gets_no_further_job() -> None:
    """64 examples and 32 rows: all are broken at once, so no job of restart 1 starts or costs a model call."""
    outcome, objective = play([[1, 1]] * 64)
    assert outcome.forwards.tolist() == [1] * 64
    assert (outcome.speculative_forwards, outcome.padding_forwards) == (0, 0)
    assert objective.forwards == 64


def test_finished_row_is_checked_once_and_without_a_gradient() -> None:
    x, model = batch(40, (6,)), Counting(linear((6,), 3))
    task = task_of(x, predicted(model, x), eb.Linf(eps=1e-4))
    model.forwards = 0
    outcome, objective = run(model, eb.PGD(steps=6), task, 64)
    assert not outcome.fooled.any()
    assert outcome.forwards.tolist() == [7] * 40
    assert outcome.backwards.tolist() == [6] * 40
    assert (model.forwards, model.backwards) == (objective.forwards, objective.backwards) == (7 * 64, 6 * 64)


def test_attack_that_ends_when_done_goes_on_after_a_success() -> None:
    x, model = batch(40, (6,)), linear((6,), 3)
    y, ball = predicted(model, x), eb.Linf(eps=0.5)
    outcome, _ = run(model, MinimumNorm(), task_of(x, y, ball))
    first, _ = run(model, eb.BIM(step_size=0.25, steps=16), task_of(x, y, ball))
    assert torch.equal(outcome.fooled, first.fooled)
    assert outcome.fooled.all()
    assert outcome.forwards.tolist() == [17] * 40
    nearer = ball.norm(outcome.x_adv - x) <= ball.norm(first.x_adv - x)
    assert nearer.all()
    assert (ball.norm(outcome.x_adv - x) < ball.norm(first.x_adv - x)).any()


@pytest.mark.parametrize(("batch_size", "largest"), [(200, 224), (128, 128), (48, 64), (32, 32), (2000, 320)])
def test_sizes_of_the_pool_shrink_and_are_multiples_of_32(batch_size: int, largest: int) -> None:
    turns: list[int] = []
    checks: list[int] = []
    inner = linear((6,), 3)

    def model(z: Tensor) -> Tensor:
        (turns if z.requires_grad else checks).append(len(z))
        return inner(z)

    x = batch(300, (6,))
    outcome, _ = run(model, eb.PGD(), task_of(x, predicted(inner, x), eb.Linf(eps=0.16)), batch_size)
    assert 30 < outcome.fooled.sum() < 270
    assert turns[0] == largest
    assert turns == sorted(turns, reverse=True)
    assert turns[-1] < largest or largest == 32
    assert all(size % 32 == 0 and size <= largest for size in turns + checks)


def test_padded_size_holds_the_rows_wanted_without_excess() -> None:
    for batch_size in range(1, 300):
        sizes = [batches.padded_size(wanted, batch_size) for wanted in range(1, 400)]
        assert sizes == sorted(sizes)
        for wanted, size in enumerate(sizes, 1):
            assert size >= min(wanted, batch_size)
            assert size % min(32, batch_size) == 0
            assert size < max(batch_size, 2 * wanted) + 32


def test_rows_without_finite_logits_are_invalid_after_one_model_call_per_job() -> None:
    x, inner = batch(50, (6,)), linear((6,), 3)
    bad = torch.arange(50) % 3 == 1
    x[:, 0] = torch.where(bad, 0.9, 0.1)
    task = task_of(x, predicted(inner, x), eb.Linf(eps=0.1))
    for attack in (eb.PGD(steps=3, restarts=2), eb.FGSM(), eb.UniformNoise(restarts=2), *DOUBLES.values()):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the gradient is", UserWarning)
            outcome, _ = run(Broken(inner, 0.7), attack, task)
        assert torch.equal(outcome.invalid, bad)
        assert not outcome.fooled[bad].any()
        assert torch.equal(outcome.x_adv[bad], x[bad])
        assert (outcome.forwards[bad] == attack.jobs).all()
        assert torch.equal(outcome.fooled[~bad], run(inner, attack, task)[0].fooled[~bad])


def test_adversarial_example_is_kept_where_the_model_fails_later() -> None:
    """From 0 to .5, an adversarial example, back to .4, where there are no logits: .5 is returned."""
    model = lambda z: torch.where((z - 0.4).abs() < 0.01, math.nan, z - 0.3)  # noqa: E731
    x, ball = torch.zeros(2, 1, dtype=torch.float64), eb.Linf(eps=1.0)
    assert MinimumNorm()(model, x, 0, ball).tolist() == [[0.5], [0.5]]
    outcome, _ = run(model, MinimumNorm(), task_of(x, 0, ball))
    assert outcome.fooled.tolist() == [True, True]
    assert outcome.x_adv.tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_n_targets_is_capped_at_the_other_classes(classes: int) -> None:
    x, model = batch(40, (6,)), linear((6,), classes)
    with Objective(model, margin) as objective:
        clean = objective.forward(x)
    task = replace(task_of(x, predicted(model, x), eb.Linf(eps=1e-5)), clean=clean)
    rivals = max(classes, 2) - 1
    outcome, _ = run(model, eb.BIM(steps=3, n_targets=7, restarts=2), task)
    assert outcome.forwards.tolist() == [2 * rivals * 4] * 40
    targeted = replace(task, target=(task.y + 1) % max(classes, 2))
    outcome, _ = run(model, eb.BIM(steps=3, n_targets=7, restarts=2), targeted)
    assert outcome.forwards.tolist() == [2 * 4] * 40  # a target leaves no choice


def test_target_of_the_user_decides_success_and_not_the_aim() -> None:
    """Searching towards class 1 or away from 0, with target 2: only class 2 is a success."""
    x = torch.tensor([[0.0, -1, -1.5]] * 3, dtype=torch.float64)
    task = task_of(x, 0, eb.Linf(eps=3.0), target=2)
    task = replace(task, aim=torch.tensor([1, 2, -1]))
    outcome, _ = run(lambda z: 2 * z, eb.BIM(loss=margin, steps=6), task)
    assert outcome.fooled.tolist() == [False, True, False]
    outcome, _ = run(lambda z: 2 * z, eb.BIM(loss=margin, steps=6), replace(task, target=torch.tensor([-1, -1, 1])))
    assert outcome.fooled.tolist() == [True, True, True]


def test_empty_task_costs_no_model_call() -> None:
    model = Counting(linear((6,), 3))
    outcome, objective = run(model, eb.PGD(), task_of(batch(0, (6,)), torch.zeros(0).long(), eb.Linf(eps=0.1)))
    assert (model.calls, objective.forwards) == (0, 0)
    assert outcome.x_adv.shape == (0, 6)
    assert all(len(getattr(outcome, f.name)) == 0 for f in fields(outcome)[:6])


def test_task_of_the_caller_is_left_unchanged() -> None:
    x, model = batch(40, (6,)), linear((6,), 3)
    task = clean_task(model, x, predicted(model, x), eb.Linf(eps=torch.full((40,), 0.4), lo=0, hi=1))
    copies = [
        part.clone() for part in (task.x, task.y, task.aim, task.target, task.clean, task.ball.eps, task.noise.ids)
    ]
    outcome, _ = run(model, eb.PGD(restarts=2, n_targets=2), task)
    now = (task.x, task.y, task.aim, task.target, task.clean, task.ball.eps, task.noise.ids)
    assert all(torch.equal(a, b) for a, b in zip(now, copies, strict=True))
    assert outcome.x_adv.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("shape", [(), (5,), CONV_SHAPE])
@every_attack
def test_refill_and_shrinking_work_for_every_shape(attack: Attack, shape: tuple[int, ...]) -> None:
    x, model = batch(130, shape), linear(shape, 3)
    task = task_of(x, predicted(model, x), ball_of(attack, 0.1, lo=0, hi=1))
    assert_same(run(model, attack, task, 64)[0], run(model, attack, task, 32)[0], atol=1e-12)


def test_progress_rises_up_to_the_number_of_broken_examples() -> None:
    broken: list[int] = []
    outcome, _ = play([[i % 6] for i in range(100)], on_turn=broken.append)
    assert broken == sorted(broken)
    assert 0 < broken[-1] <= outcome.fooled.sum()
    assert len(broken) >= 4


def test_success_is_what_the_caller_defines() -> None:
    x, model = batch(40, (6,)), linear((6,), 3)
    task = task_of(x, predicted(model, x), eb.Linf(eps=2.0))
    outcome, _ = run(model, eb.BIM(steps=3), task, success=NEVER)
    assert not outcome.fooled.any()
    assert np.array_equal(outcome.forwards, np.full(40, 4))
