"""Square: the paper's windows, one query a step, the best point so far, and at most the exact optimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from doubles import BALLS, NEVER, assert_inside
from nets import CONV_SHAPE, Counting, Recording, Steady, batch, batch_of, conv, linear, predicted, rng
from torch import Tensor

import epsball as eb
from epsball import Square
from epsball.attacks.grid import BLOCK, Grid, eta, halvings
from epsball.attacks.square import SearchState
from epsball.problem.losses import cross_entropy, margin
from epsball.problem.objective import Objective, Point, changes_prediction
from epsball.problem.task import Task, task_of

NORMS = ("linf", "l2", "l1")
EPS = {"linf": 0.3, "l2": 0.9, "l1": 2.0}
every_norm = pytest.mark.parametrize("norm", NORMS)


def opened(
    norm: str,
    shape: tuple[int, ...],
    *,
    n: int = 6,
    steps: int = 200,
    box: tuple[float, float] = (-0.5, 1.0),
    **more: object,
) -> tuple[Square, Task]:
    """An attack, and a task on examples in [-0.5, 1]."""
    x = batch(n, shape, lo=-0.5, hi=1.0, seed=n)
    return Square(steps=steps), task_of(
        x, torch.arange(n) % 2, BALLS[norm](eps=EPS[norm], lo=box[0], hi=box[1]), **more
    )


def evaluated(state: SearchState, task: Task, loss: Tensor) -> Point:
    """The evaluation of `state.z`, with this loss."""
    logits = torch.zeros(len(loss), 2, dtype=torch.float64)
    return Point(state.z, logits, loss, None, changes_prediction, task)


def walk(attack: Square, task: Task, steps: int, seed: int = 0) -> list[SearchState]:
    """The states of a search in which each query is accepted with probability .3."""
    states, generator = [attack.init(task)], rng(seed)
    for turn in range(steps):
        rise = torch.where(torch.rand(len(task.x), generator=generator) < 0.3, 1.0, -1.0) * (turn > 0) + (turn == 0)
        loss = rise + (states[-1].best_loss if turn else 0)
        states.append(attack.step(states[-1], evaluated(states[-1], task, loss), task))
    return states


# Schedule, sizes and patterns: supplement B of the paper, AutoAttack's rounding.


@pytest.mark.parametrize("steps", [10_000, 5_000, 1_000])
def test_schedule_is_the_papers_at_10000_queries_scaled(steps: int) -> None:
    last = {10: 1, 50: 2, 200: 4, 500: 8, 1000: 16, 2000: 32, 4000: 64, 6000: 128, 8000: 256, 10_000: 512}
    for query in range(steps):
        paper = next(part for end, part in last.items() if query * 10_000 // steps <= end)
        assert 2 ** halvings(query, steps) == paper, query


def test_side_of_a_window_is_autoattacks() -> None:
    for side in (28, 32, 224):
        for k in range(10):
            here = max(round(math.sqrt(0.8 / 2**k * side * side)), 1)
            assert Grid(3, (side, side)).side(0.8 / 2**k, centred=False) == here
            odd = max(here, 3) + (max(here, 3) % 2 == 0)
            assert Grid(3, (side, side)).side(0.8 / 2**k, centred=True) == min(odd, side)
    assert Grid(1, (4, 30)).side(0.8, centred=False) == 4  # never beyond the shortest side
    assert [Grid(1, (d,)).side(0.8, centred=True) for d in (1, 2, 5, 100)] == [1, 2, 5, 81]
    assert [Grid(1, sides).side(0.001, centred=True) for sides in ((20,), (21,), (7, 8), (8, 8))] == [1, 3, 1, 3]


@pytest.mark.parametrize(("power", "decay"), [(2, 2), (1, 4)])
@pytest.mark.parametrize("side", [2, 3, 6, 7])
def test_pattern_is_two_opposite_pyramids(side: int, power: int, decay: int) -> None:
    halves = []
    for rows, sign in ((side // 2, 1), (side - side // 2, -1)):
        hill = torch.zeros(rows, side, dtype=torch.float64)
        for j in range(max(rows, side) // 2 + 1):  # boxes that grow around the middle
            top, left = rows // 2 - j, side // 2 - j
            hill[max(top, 0) : top + 2 * j + 1, max(left, 0) : left + 2 * j + 1] += 1 / (j + 1) ** decay
        halves.append(sign * hill / hill.pow(power).sum() ** (1 / power))
    whole = torch.cat(halves) / 2 ** (1 / power)
    torch.testing.assert_close(eta(side, 2, power, decay), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((), (1, (1,))),
        ((5,), (1, (5,))),
        ((4, 6), (1, (4, 6))),
        ((3, 4, 6), (3, (4, 6))),
        ((2, 3, 4, 5), (2, (3, 4, 5))),
    ],
)
def test_grid_of_a_shape_has_its_channels_and_sides(shape: tuple[int, ...], grid: tuple[int, tuple[int, ...]]) -> None:
    assert Grid.of(shape) == Grid(*grid)


# What a proposal writes.


def extent(changed: Tensor) -> list[tuple[int, int]]:
    """First and last changed place along each axis."""
    return [(int(where.min()), int(where.max())) for where in changed.nonzero().unbind(1)]


@pytest.mark.parametrize("shape", [(2, 9, 11), (12,), (6, 5), (2, 4, 5, 6)], ids=str)
def test_linf_proposal_changes_one_cube_to_the_ends_of_the_interval(shape: tuple[int, ...]) -> None:
    attack, task = opened("linf", shape)
    low, high = torch.maximum(task.x - 0.3, torch.tensor(-0.5)), torch.minimum(task.x + 0.3, torch.tensor(1.0))
    grid, fuller = Grid.of(shape), 0
    for t, state in enumerate(walk(attack, task, 120)):
        assert ((state.z == low) | (state.z == high)).all()
        if not t:
            continue
        side = grid.side(0.8 / 2 ** halvings(t - 1, 200), centred=False)
        changed = (state.z != state.best).reshape(len(task.x), grid.channels, *grid.sides)
        for row in changed:
            assert row.any(), "a query that repeats the last point"
            places = row.any(0)
            assert all(last - first < side for first, last in extent(places)), t
            fuller += int(places.sum() == side ** len(grid.sides))
        cells = state.z.reshape(len(task.x), grid.channels, -1) == high.reshape(len(task.x), grid.channels, -1)
        for row, now in zip(changed.flatten(2), cells, strict=True):
            for channel in range(grid.channels):
                assert len(set(now[channel, row[channel]].tolist())) <= 1, "one end per channel and window"
    assert fuller > 50


def test_window_reaches_every_place() -> None:
    attack, task = opened("linf", (7, 6), n=32)
    seen = torch.zeros(7, 6, dtype=torch.long)
    for state in walk(attack, task, 150)[-60:]:
        seen += (state.z != state.best).sum(0)
    assert (seen > 0.5 * seen.double().mean()).all(), seen


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_l2_and_l1_proposals_move_mass_between_two_windows_and_spend_the_radius(norm: str) -> None:
    attack, task = opened(norm, (1, 9, 11), box=(-math.inf, math.inf))
    power = {"l2": 2, "l1": 1}[norm]
    for t, state in enumerate(walk(attack, task, 120)):
        spent = (state.z - task.x).flatten(1).abs().pow(power).sum(1)
        torch.testing.assert_close(state.spent_by_z, spent, rtol=1e-9, atol=1e-12)
        if not t:
            continue
        side = Grid(1, (9, 11)).side(0.8 / 2 ** halvings(t - 1, 200), centred=True)
        full = 0
        for was, now, x in zip(state.best, state.z, task.x, strict=True):
            emptied, changed = (now == x) & (was != x), now != was
            if emptied.any():
                assert all(last - first < side for first, last in extent(emptied[0]))
            assert all(last - first < side for first, last in extent((changed & ~emptied)[0]))
            full += int((now - x).abs().pow(power).sum() > 0.999 * EPS[norm] ** power)
        assert full >= 4, "without a box all of the radius is spent, but where the pattern meets its opposite"


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_mass_that_the_box_cuts_off_goes_to_later_windows(norm: str) -> None:
    attack, task = opened(norm, (1, 10, 10), n=8)
    grown = [s.spent_by_z.median() for s in walk(attack, task, 150)]
    assert grown[-1] > 0.9 * EPS[norm] ** {"l2": 2, "l1": 1}[norm]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(), (2,), (3, 7, 5), (2, 4, 5, 6)], ids=str)
@every_norm
def test_every_query_lies_in_ball_box_and_mask(norm: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = batch(5, shape, lo=-0.5, hi=2.0).to(dtype)
    model, y = linear(shape, 3).to(dtype), torch.arange(5) % 3
    mask = (torch.rand(1, *shape, generator=rng(3)) < 0.7) if shape else None
    lo = torch.full((1, *shape), -0.5).to(dtype) if shape else -0.5
    for part in (None, mask):
        ball = BALLS[norm](eps=EPS[norm], lo=lo, hi=2.0, mask=part)
        model_ = Recording(model)
        Square(steps=60)(model_, x, y, ball, success=NEVER, seed=1)
        for z in (z for z in model_.seen if z.shape == x.shape):  # others ask what one example is
            assert ball.contains(z, x).all()
            assert_inside(z, x, norm, EPS[norm], torch.tensor(-0.5).to(dtype).item(), 2.0, part)


@every_norm
def test_radius_is_per_example_from_zero_to_infinity(norm: str) -> None:
    x, y = batch_of(4, (1, 6, 6), 3)
    eps = torch.tensor([0.0, 0.2, 1.0, math.inf], dtype=torch.float64)
    model = Recording(linear((1, 6, 6), 3))
    ball = BALLS[norm](eps=eps, lo=0, hi=1)
    z = Square(steps=100)(model, x, y, ball, success=NEVER)
    assert all(ball.contains(seen, x).all() for seen in model.seen)
    assert torch.equal(z[0], x[0])
    distance = ball.norm(z - x)
    assert distance[1] > 0.19
    assert distance[2] > 0.9
    assert distance[3] > (0.9 if norm == "linf" else 2)
    with pytest.raises(eb.BadInput, match="`eps` must be finite where the box is not"):
        Square(steps=3)(model, x, y, BALLS[norm](eps=math.inf))


# The search.


@every_norm
def test_result_has_the_highest_loss_of_all_queries(norm: str) -> None:
    x, y = batch_of(12, CONV_SHAPE, 10)
    model = Recording(conv())
    z = Square(steps=80)(model, x, y, BALLS[norm](eps=EPS[norm], lo=0, hi=1), success=NEVER)
    assert len(model.seen) == 80
    task = task_of(x, y, eb.Linf(eps=1))
    losses = torch.stack([margin(model(seen), task) for seen in model.seen[:80]])
    best = torch.stack(model.seen[:80])[losses.argmax(0), torch.arange(12)]
    assert torch.equal(z, best)
    assert (losses.argmax(0) > 40).any()


def test_job_ends_at_the_first_adversarial_example() -> None:
    x, y = batch_of(24, CONV_SHAPE, 10)
    model, ball = conv(), eb.Linf(eps=0.15, lo=0, hi=1)
    y = predicted(model, x)
    recorded = Recording(model)
    x_adv = Square(steps=60)(recorded, x, y, ball)
    fooled = torch.stack([predicted(model, z) != y for z in recorded.seen])
    assert fooled.any(0).float().mean() > 0.3
    first = fooled.byte().argmax(0)
    for row in fooled.any(0).nonzero().squeeze(1).tolist():
        assert torch.equal(x_adv[row], recorded.seen[first[row]][row])


def test_a_query_costs_one_forward_pass() -> None:
    x, y = batch_of(6, CONV_SHAPE, 10)
    model = Counting(conv())
    Square(steps=37)(model, x, y, eb.L2(eps=0.1), success=NEVER)
    assert (model.calls, model.forwards, model.backwards) == (37, 37 * 6, 0)


@pytest.mark.parametrize("shape", [(), (5,), (6, 5), (3, 7, 6)], ids=str)
@every_norm
def test_candidates_do_not_depend_on_the_batch(norm: str, shape: tuple[int, ...]) -> None:
    n, order = 9, torch.tensor([4, 0, 8, 2, 7, 1, 6, 3, 5])
    x, y = batch(n, shape, lo=-0.5), torch.arange(n) % 3
    ball = BALLS[norm](eps=EPS[norm], lo=-0.5, hi=1)
    steady = Steady(max(1, math.prod(shape)), 3)
    flat = lambda z: steady(z.reshape(len(z), -1))  # noqa: E731

    def candidates(index: Tensor) -> Tensor:
        model = Recording(flat)
        Square(steps=90)(model, x[index], y[index], ball, ids=index, seed=5, success=NEVER)
        return torch.stack([z for z in model.seen if z.shape == x[index].shape])  # others ask what one example is

    together = candidates(torch.arange(n))
    assert torch.equal(candidates(order), together[:, order])
    for row in (0, 5):
        assert torch.equal(candidates(torch.tensor([row])), together[:, [row]])


@pytest.mark.parametrize("shape", [(12,), (3, 9, 8)], ids=str)
@every_norm
def test_rows_at_different_steps_share_a_batch_as_if_alone(norm: str, shape: tuple[int, ...]) -> None:
    attack, task = opened(norm, shape, n=8, steps=150)
    ages, rows = (0, 3, 45, 110), torch.arange(8)
    loss = torch.linspace(-1, 1, 8).double()
    parts, alone = [], []
    for place, age in enumerate(ages):
        mine = rows[2 * place : 2 * place + 2]
        some = task.rows(mine)
        states = walk(attack, some, age + BLOCK + 5, seed=9)
        parts.append(states[age])
        warm_start = [states[age]]
        for _ in range(BLOCK + 4):
            warm_start.append(attack.step(warm_start[-1], evaluated(warm_start[-1], some, loss[mine]), some))
        alone.append(warm_start[1:])
    mixed = parts[0].map(lambda *these: torch.cat(these), *parts[1:])
    for turn in range(BLOCK + 4):
        mixed = attack.step(mixed, evaluated(mixed, task, loss), task)
        for name in ("z", "best", "best_loss", "spent_by_z", "t"):
            expected = torch.cat([getattr(states[turn], name) for states in alone])
            assert torch.equal(getattr(mixed, name), expected), (turn, name)


@every_norm
def test_a_step_leaves_its_arguments_unchanged(norm: str) -> None:
    attack, task = opened(norm, (2, 6, 6))
    state = walk(attack, task, 40)[-1]
    assert state.progress is None  # without early stopping
    before = {f.name: getattr(state, f.name).clone() for f in fields(state) if f.name != "progress"}
    x = task.x.clone()
    one, other = (attack.step(state, evaluated(state, task, state.best_loss + 1), task) for _ in range(2))
    for name, part in before.items():
        assert torch.equal(getattr(state, name), part), name
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert torch.equal(task.x, x)
    assert one.best.data_ptr() not in (one.z.data_ptr(), state.best.data_ptr(), state.z.data_ptr())


@every_norm
def test_seed_example_and_restart_are_in_the_key_of_a_proposal(norm: str) -> None:
    attack, task = opened(norm, (12,))
    same = replace(task, x=task.x[:1].expand(6, -1).contiguous())
    same = replace(same, ball=BALLS[norm](eps=EPS[norm], lo=-0.5, hi=1).bind(same.x))
    moves = attack.init(same).proposals
    assert len({tuple(row.flatten().tolist()) for row in moves}) == 6
    again = replace(same, noise=replace(same.noise, restart=same.noise.restart + 1))
    assert (attack.init(again).proposals != moves).flatten(1).any(1).all()
    seeded = replace(same, noise=replace(same.noise, seed=1))
    assert (attack.init(seeded).proposals != moves).flatten(1).any(1).all()


# Exact optima: on a linear model the optimum in ball and box is known.

SHARES = [
    # shape, queries, the least and the median share of the optimum that Square's docstring promises in L2 and L1
    ((), 60, 1.0, 1.0),
    ((1,), 60, 1.0, 1.0),
    ((2,), 2000, 0.4, 0.8),
    ((5,), 2000, 0.4, 0.8),
    ((20,), 2000, 0.4, 0.8),
    ((1, 6, 6), 2000, 0.4, 0.8),
]


@pytest.mark.parametrize(("lo", "hi"), [(-0.5, 1.0), (-math.inf, math.inf)])
@pytest.mark.parametrize(("shape", "queries", "least", "median"), SHARES, ids=[str(row[0]) for row in SHARES])
@every_norm
def test_promised_share_of_the_linear_optimum_is_reached_and_the_optimum_never_exceeded(
    norm: str, shape: tuple[int, ...], queries: int, least: float, median: float, lo: float, hi: float
) -> None:
    w = torch.stack([torch.randn(shape, generator=rng(seed), dtype=torch.float64) for seed in range(2)])
    w = w.repeat_interleave(32, 0)  # the weights of each row
    x = torch.cat([batch(32, shape, lo=-0.5, hi=1.0, seed=seed) for seed in range(2)])
    y = torch.arange(64) % 2
    up = (1 - 2 * y).double().reshape(-1, *[1] * len(shape)) * w
    ball = BALLS[norm](eps=EPS[norm], lo=lo, hi=hi)
    z = Square(steps=queries)(lambda z: (w * z).reshape(64, -1).sum(1), x, y, ball, success=NEVER)
    gain, optimum = (up * (z - x)).reshape(64, -1).sum(1), ball.max_gain(up, x)
    assert (gain <= optimum * (1 + 1e-12) + 1e-12).all()
    share = gain / optimum
    if norm == "linf":
        least = median = 1.0
    assert share.min() >= least * (1 - 2e-6), share.min()  # L2 and L1 spend 1 - 1e-6 of the radius
    assert share.median() >= median * (1 - 2e-6), share.median()


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize(("classes", "squeeze"), [(1, True), (1, False), (2, False), (3, False), (10, False)])
@pytest.mark.parametrize("shape", [(), (2,), CONV_SHAPE], ids=str)
def test_succeeds_on_linear_models_exactly_where_success_is_possible(
    shape: tuple[int, ...], classes: int, squeeze: bool, targeted: bool
) -> None:
    model = linear(shape, classes, squeeze=squeeze)
    x = batch(16, shape, lo=-0.5)
    y = predicted(model, x)
    ball = eb.Linf(eps=3.0)
    target = (y + 1) % max(classes, 2) if targeted else None
    away = y if target is None else target
    grads = model[1].weight if classes > 1 else torch.cat([0 * model[1].weight, model[1].weight])
    reach = torch.zeros(16, max(classes, 2), dtype=torch.bool)
    for rival in range(max(classes, 2)):  # where the linear score of a rival over all others is out of reach
        others = [k for k in range(max(classes, 2)) if k != rival]
        for row in range(16):
            against = [int(y[row])] if target is None else others
            logits = (
                torch.cat([0 * model(x).reshape(16, -1), model(x).reshape(16, -1)], 1) if classes == 1 else model(x)
            )
            reach[row, rival] = rival != int(y[row]) and all(
                logits[row, rival] + 3 * (grads[rival] - grads[k]).abs().sum() > logits[row, k] for k in against
            )
    x_adv = Square(steps=400)(model, x, y, ball, target=target)
    reached = predicted(model, x_adv)
    done = (reached == away) if targeted else (reached != y)
    possible = reach.gather(1, away[:, None]).squeeze(1) if targeted else reach.any(1)
    assert not (done & ~possible).any()
    if classes < 3 or not targeted:
        assert torch.equal(done, possible)


def test_n_targets_raise_the_margins_of_the_likeliest_classes() -> None:
    x, _ = batch_of(8, CONV_SHAPE, 10)
    model = conv()
    y, ball = predicted(model, x), eb.Linf(eps=0.03, lo=0, hi=1)
    logits = model(x).detach()
    rivals = logits.scatter(1, y[:, None], -math.inf).argsort(1, descending=True)
    task = replace(task_of(x, y, ball), clean=logits)
    attack = Square(steps=50, n_targets=2)
    with Objective(model, attack.loss, needs=attack.needs, success=NEVER) as objective:
        for place in range(2):
            job, exists = attack.job(task, torch.full((8,), place))
            assert exists.all()
            z, _ = attack._run(objective, job)
            aim = rivals[:, place]
            target_margin = lambda at, aim=aim: margin(model(at), replace(task, aim=aim, target=aim))  # noqa: E731
            assert (target_margin(z) >= target_margin(x) - 1e-12).float().mean() > 0.8


def test_model_may_compute_its_logits_without_torch() -> None:
    generator = np.random.default_rng(0)
    weight = 3 * generator.normal(size=(36, 3))

    def black_box(x: Tensor) -> Tensor:
        logits = np.arctan(x.detach().numpy().reshape(len(x), -1) @ weight)
        return torch.from_numpy(logits)

    x = batch(20, (1, 6, 6))
    y = predicted(black_box, x)
    for norm in NORMS:
        ball = BALLS[norm](eps=EPS[norm] * 3, lo=0, hi=1)
        x_adv = Square(steps=200)(black_box, x, y, ball)
        assert ball.contains(x_adv, x).all()
        assert (predicted(black_box, x_adv) != y).float().mean() > 0.75


def test_logits_that_are_nan_never_become_the_best() -> None:
    x, y = batch_of(4, (6,), 3)
    inner = linear((6,), 3)
    calls = iter(range(1000))

    def at_times(z: Tensor) -> Tensor:
        return inner(z) * (math.nan if next(calls) % 2 else 1.0)

    z = Square(steps=20)(at_times, x, y, eb.Linf(eps=0.1), success=NEVER)
    assert z.isfinite().all()
    assert inner(z).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Square(steps=0), "`steps` must be a whole number >= 1"),
        (lambda: Square(steps=2.5), "`steps` must be a whole number"),
        (lambda: Square(p=0.0), "`p` must be in (0, 1], got 0.0"),
        (lambda: Square(p=1.5), "`p` must be in (0, 1], got 1.5"),
        (lambda: Square(p=math.nan), "`p` must be in (0, 1], got nan"),
    ],
)
def test_invalid_hyperparameter_is_refused(make: Callable[[], Square], message: str) -> None:
    with pytest.raises(eb.BadInput) as error:
        make()
    assert message in str(error.value)


def test_l0_is_refused() -> None:
    x, y = batch_of(2, (4,), 3)
    with pytest.raises(eb.BadInput, match="`ball` must be linf or l2 or l1 for Square, got l0"):
        Square(steps=3)(linear((4,), 3), x, y, eb.L0(eps=1, lo=0, hi=1))


def test_another_loss_is_maximised() -> None:
    x, y = batch_of(8, (10,), 3)
    model, ball = linear((10,), 3, scale=1.0), eb.L2(eps=0.5, lo=0, hi=1)
    task = task_of(x, y, ball)
    z = Square(steps=200, loss=cross_entropy)(model, x, y, ball, success=NEVER)
    assert (cross_entropy(model(z), task) > cross_entropy(model(x), task)).all()


@every_norm
def test_warm_start_equal_to_the_example_is_ignored(norm: str) -> None:
    """Where no attack moved an example its warm start is x: Square starts there as it does without one."""
    x, y = batch_of(6, (3, 5, 4), 3)
    task = task_of(x, y, BALLS[norm](eps=EPS[norm], lo=0, hi=1))
    elsewhere = task.ball.argmax(torch.randn(x.shape, generator=rng(5), dtype=x.dtype), x)
    none = torch.tensor([False, True, False, False, True, False])
    start = Square(steps=9).init(task)
    for without in (none, none | True, none & False):
        mixed = torch.where(without[:, None, None, None], x, elsewhere)
        state = Square(steps=9, warm_start=True).init(replace(task, warm_start=mixed))
        assert torch.equal(state.z[without], start.z[without])
        assert torch.equal(state.z[~without], elsewhere[~without])
        assert torch.equal(state.spent_by_best[without], start.spent_by_best[without])


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_infinite_radius_of_one_row_leaves_the_budgets_of_others_unchanged(norm: str) -> None:
    """A finite radius is spent in full, also one beyond what the box holds, whatever the radius of another row."""
    x, y = batch_of(3, (5,), 3)
    radius = torch.tensor([0.5, 40.0, 1.0], dtype=x.dtype)
    budgets = [
        Square(steps=9).init(task_of(x, y, BALLS[norm](eps=eps, lo=0, hi=1))).budget
        for eps in (radius, torch.where(radius == 1, math.inf, radius))
    ]
    assert torch.equal(budgets[0][:2], budgets[1][:2])
    assert budgets[1].isfinite().all()
