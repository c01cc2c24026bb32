"""Attack, State, Point and the direct call, tested with small attacks made for these tests."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass, fields, replace

import pytest
import torch
from doubles import (
    BALLS,
    DOUBLES,
    EPS,
    NEVER,
    Best,
    DeepFoolStep,
    LabelWalk,
    LineSearch,
    MinimumNorm,
    RandomSearch,
    every_attack,
    every_attack_and_norm,
)
from nets import Counting, LabelOnly, Recording, batch, batch_of, linear, mlp, predicted, weighted
from torch import Tensor

import epsball as eb
from epsball.attacks.attack import Attack, State
from epsball.problem.losses import margin
from epsball.problem.objective import Objective
from epsball.problem.task import Task, task_of

BALL = eb.Linf(eps=0.3, lo=0, hi=1)


@pytest.mark.parametrize(
    ("needs", "shown"), [("grad", {"logits", "loss", "grad"}), ("logits", {"logits", "loss"}), ("label", set())]
)
def test_point_shows_only_what_needs_declares(needs: str, shown: set[str]) -> None:
    x, y = batch_of(4, (5,), 3)
    with Objective(mlp((5,), 3), margin, needs=needs) as objective:
        point = objective(x, task_of(x, y, BALL))
    for name in ("logits", "loss", "grad"):
        if name in shown:
            assert not getattr(point, name).requires_grad
        else:
            with pytest.raises(AttributeError, match="`needs`"):
                getattr(point, name)
    assert point.fooled.dtype == torch.bool
    assert torch.equal(point.fooled, predicted(objective.model, x) != y)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_k_columns_of_loss_are_k_backwards_on_one_forward(classes: int, shape: tuple[int, ...]) -> None:
    x, y = batch_of(4, shape, classes)
    model = Counting(linear(shape, classes))
    attack, k = DeepFoolStep(), max(classes, 2)
    with Objective(model, attack.loss) as objective:
        point = objective(x, task_of(x, y, eb.Linf(eps=0.3)))
        assert (objective.forwards, objective.backwards) == (4, 4 * k)
    assert (model.calls, model.forwards) == (1, 4)
    weight = model.model[1].weight.detach().reshape(classes, *shape)
    weight = torch.cat([torch.zeros_like(weight), weight]) if classes == 1 else weight
    torch.testing.assert_close(point.grad, weight.expand(4, k, *shape), rtol=0, atol=1e-14)
    assert point.loss.shape == (4, k)


def test_deepfool_step_reaches_the_decision_boundary_of_a_linear_model() -> None:
    x = batch(20, (6,))
    model = Counting(linear((6,), 4))
    y = predicted(model, x)
    model.forwards = model.calls = 0
    x_adv = DeepFoolStep(overshoot=1e-9)(model, x, y, eb.L2(eps=math.inf, lo=-100, hi=100))
    assert (model.calls, model.forwards, model.backwards) == (1, 20, 80)
    top = model(x_adv).topk(2, dim=1).values
    torch.testing.assert_close(top[:, 0], top[:, 1], rtol=0, atol=1e-6)
    assert (predicted(model, x_adv) != y).all()
    assert (predicted(model, x + (1 - 1e-6) * (x_adv - x)) == y).all()


def test_state_map_applies_to_every_field() -> None:
    state = Best.at(torch.rand(3, 2, generator=torch.Generator().manual_seed(0)), best_loss=torch.arange(3.0))
    picked = state.map(lambda part: part[[2, 0]])
    assert type(picked) is Best
    for f in fields(Best):
        assert torch.equal(getattr(picked, f.name), getattr(state, f.name)[[2, 0]])
    other = Best.at(torch.zeros(1, 2), best_loss=torch.tensor([9.0]))
    merged = state.map(lambda old, new: old.index_copy(0, torch.tensor([1]), new), other)
    assert merged.best_loss.tolist() == [0.0, 9.0, 2.0]
    assert merged.z[1].tolist() == [0.0, 0.0]
    assert torch.equal(merged.z[[0, 2]], state.z[[0, 2]])
    assert (state.t.dtype, state.done.dtype) == (torch.long, torch.bool)
    assert list(state.best_loss) == [0.0, 1.0, 2.0]


def leaves(part: object, name: str = "") -> list[tuple[str, torch.Tensor]]:
    """The tensors of a state and of its parts, with their names."""
    if part is None:
        return []
    if isinstance(part, torch.Tensor):
        return [(name, part)]
    return [leaf for f in fields(part) for leaf in leaves(getattr(part, f.name), f"{name}.{f.name}")]


@every_attack
def test_hyperparameters_are_frozen(attack: Attack) -> None:
    with pytest.raises(FrozenInstanceError):
        attack.restarts = 2
    assert replace(attack, restarts=2).jobs == 2
    assert replace(attack) == attack


@every_attack_and_norm
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_step_is_pure_and_row_by_row(attack: Attack, norm: str, shape: tuple[int, ...]) -> None:
    """Seven steps over seven rows against the same steps over three of them, and the states before and after."""
    x, y = batch_of(7, shape, 3)
    ball = BALLS[norm](eps=EPS[norm], lo=-0.2, hi=1.1)
    task = task_of(x, y, ball, ids=torch.arange(7) + 11, seed=2)
    index = torch.tensor([5, 0, 3])
    with Objective(linear(shape, 3), attack.loss, needs=attack.needs) as objective:
        state, some = attack.init(task), attack.init(task.rows(index))
        for _ in range(7):
            before = state.map(torch.clone)
            stepped = attack.step(state, objective(state.z, task), task)
            some = attack.step(some, objective(some.z, task.rows(index)), task.rows(index))
            for (name, now), then, ahead, part in zip(
                leaves(state), leaves(before), leaves(stepped), leaves(some), strict=True
            ):
                assert torch.equal(now, then[1]), name
                assert len(ahead[1]) == 7, name
                torch.testing.assert_close(part[1], ahead[1][index], rtol=0, atol=1e-12, msg=name)
            state = stepped


@every_attack_and_norm
def test_rows_of_a_pool_keep_their_own_step_counts(attack: Attack, norm: str) -> None:
    """Rows that have made 0, 3 and 5 steps, mixed in one pool, continue as each group would alone."""
    x, y = batch_of(9, (5,), 3)
    task = task_of(x, y, BALLS[norm](eps=EPS[norm], lo=-0.2, hi=1.1), ids=torch.arange(9) + 11, seed=2)
    groups = [(torch.tensor([1, 4, 8]), 0), (torch.tensor([0, 2, 6]), 3), (torch.tensor([3, 5, 7]), 5)]
    with Objective(linear((5,), 3), attack.loss, needs=attack.needs) as objective:

        def stepped(state: State, part: Task, times: int) -> State:
            for _ in range(times):
                state = attack.step(state, objective(state.z, part), part)
            return state

        pool = attack.init(task)
        for rows, before in groups:
            part = stepped(attack.init(task.rows(rows)), task.rows(rows), before)
            pool = pool.map(lambda old, new, at=rows: old.index_copy(0, at, new), part)
        pool = stepped(pool, task, 3)
        for rows, before in groups:
            want = stepped(attack.init(task.rows(rows)), task.rows(rows), before + 3)
            for (name, wanted), (_, got) in zip(leaves(want), leaves(pool), strict=True):
                torch.testing.assert_close(got[rows], wanted, rtol=0, atol=1e-12, msg=name)


@dataclass(frozen=True, kw_only=True)
class UntilItsTurn(Attack[State]):
    """Row `id` ends after id + 1 steps; every step moves it by one."""

    needs = "logits"

    def init(self, task: Task) -> State:
        return State.at(task.x)

    def step(self, state: State, point: object, task: Task) -> State:
        t = state.t + 1
        return State(z=state.z + 1, best=state.z + 1, t=t, done=t > task.noise.ids)


def test_row_that_is_done_stays_where_it_is() -> None:
    x = torch.zeros(4, 1, dtype=torch.float64)
    model = Counting(weighted(torch.ones(1).double()))
    x_adv = UntilItsTurn()(model, x, 0, eb.Linf(eps=9.0), ids=torch.tensor([2, 0, 4, 1]), success=NEVER)
    assert x_adv[:, 0].tolist() == [3, 1, 5, 2]
    assert model.calls == 5 + 4  # four for the question whether an output of zeros is a probability


@pytest.mark.parametrize("name", DOUBLES)
def test_double_fools_a_model_that_is_easily_fooled(name: str) -> None:
    x = batch(30, (6,))
    model = linear((6,), 3)
    y = predicted(model, x)
    assert (predicted(model, DOUBLES[name](model, x, y, eb.Linf(eps=0.5))) != y).double().mean() > 0.5


def test_until_done_stops_at_the_first_success() -> None:
    """x = 0 moves by .25 a step and fools from .4 on: the first success is .5, the closest .4 = .8 x .5."""
    model = weighted(torch.ones(1).double(), -0.399)
    x = torch.zeros(2, 1, dtype=torch.float64)
    ball = eb.Linf(eps=torch.tensor([1.0, 0.1]))
    by = {until.until: until(model, x, 0, ball)[0].item() for until in (eb.BIM(step_size=0.25), MinimumNorm())}
    assert by["fooled"] == 0.5
    assert by["done"] == pytest.approx(0.4)
    assert MinimumNorm()(model, x, 0, ball)[1].item() == 0.0  # nothing fools there


def test_minimum_norm_returns_the_closest_adversarial_example_it_saw() -> None:
    x = batch(25, (6,))
    inner = mlp((6,), 3)
    y = predicted(inner, x)
    model = Recording(inner)
    x_adv = MinimumNorm()(model, x, y, eb.L2(eps=1.4))
    seen = torch.stack(model.seen)
    fools = torch.stack([predicted(inner, z) != y for z in seen])
    distance = torch.where(fools, (seen - x).square().sum(2).sqrt(), math.inf).amin(0)
    broken = fools.any(0)
    assert 5 < broken.sum() < 25
    assert torch.equal(predicted(inner, x_adv) != y, broken)
    torch.testing.assert_close((x_adv - x).square().sum(1).sqrt()[broken], distance[broken], rtol=0, atol=1e-14)
    assert torch.equal(x_adv[~broken], x[~broken])
    assert len(seen) == 16


def test_rows_in_different_phases_do_not_disturb_each_other() -> None:
    """Rows of one batch are in different phases; the best loss of none decreases, and each makes the steps it needs."""
    x, y = batch_of(30, (6,), 3)
    model, attack = mlp((6,), 3), LineSearch()
    task = task_of(x, y, eb.L2(eps=1.0, lo=0, hi=1))
    mixed = 0
    with Objective(model, attack.loss) as objective:
        state = attack.init(task)
        for _ in range(attack.steps):
            before = state
            state = attack.step(state, objective(state.z, task), task)
            assert (state.best_loss >= before.best_loss).all()
            mixed += len(state.phase.unique()) == 2
        assert torch.equal(objective(state.best, task).loss, state.best_loss)
    assert mixed > 2
    assert state.phase.dtype == torch.long
    assert state.done.all()


def test_random_search_increases_the_loss() -> None:
    x, y = batch_of(10, (6,), 3)
    model = Counting(mlp((6,), 3))
    ball = eb.Linf(eps=0.1, lo=0, hi=1)
    x_adv = RandomSearch(loss=margin)(model, x, y, ball, success=NEVER)
    assert (model.calls, model.backwards) == (12, 0)
    with Objective(model, margin) as objective:
        task = task_of(x, y, ball)
        assert (objective(x_adv, task).loss > objective(x, task).loss).all()


def test_label_walk_needs_only_labels() -> None:
    x = batch(30, (6,))
    inner = linear((6,), 3)
    y = predicted(inner, x)
    ball = eb.Linf(eps=0.5)
    x_adv = LabelWalk()(LabelOnly(inner), x, y, ball)
    assert torch.equal(x_adv, LabelWalk()(inner, x, y, ball))
    assert (predicted(inner, x_adv) != y).double().mean() > 0.5
    with pytest.raises(eb.BadInput, match="`needs` is 'label'"):
        RandomSearch()(LabelOnly(inner), x, y, ball)
    with pytest.raises(eb.BadInput, match="`n_targets` must be 0"):
        replace(LabelWalk(), n_targets=2)(LabelOnly(inner), x, y, ball)


# Jobs: restarts and target classes.


def test_target_classes_are_in_the_order_of_the_clean_logits() -> None:
    clean = torch.tensor([[5.0, 1, 3, 3, 2], [0, 1, 2, 3, 4]])
    task = task_of(torch.zeros(2, 1), torch.tensor([0, 4]), eb.Linf(eps=1.0))
    attack = eb.PGD(restarts=2, n_targets=6)
    jobs = [attack.job(replace(task, clean=clean), torch.full((2,), restart)) for restart in range(attack.jobs)]
    assert [job.aim.tolist() for job, _ in jobs[:4]] == [[2, 3], [3, 2], [4, 1], [1, 0]]  # the first on ties
    assert [exists.all().item() for _, exists in jobs] == [True] * 4 + [False] * 2 + [True] * 4 + [False] * 2
    assert [job.noise.restart.tolist() for job, _ in jobs] == [[restart] * 2 for restart in range(12)]
    task = replace(task, clean=clean, target=torch.tensor([3, -1]))
    aims, exist = zip(
        *[((j := attack.job(task, torch.full((2,), r)))[0].aim.tolist(), j[1]) for r in (0, 1)], strict=True
    )
    assert aims == ([3, 3], [3, 2])
    assert torch.stack(exist).tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("attack", [eb.BIM(loss=margin), eb.FGSM(loss=margin), MinimumNorm(loss=margin)])
def test_a_direct_call_tries_all_target_classes(attack: Attack) -> None:
    """Only the least likely class is a success: that is the last target class."""
    x, model = batch(6, (3,)), lambda z: 2 * z
    y, last = x.argmax(1), x.argmin(1)
    hit = lambda output, task: output.argmax(1) == last[task.noise.ids]  # noqa: E731
    x_adv = replace(attack, n_targets=2)(model, x, y, eb.Linf(eps=20.0), success=hit)
    assert torch.equal(x_adv.argmax(1), last)


def test_targeted_loss_sees_its_target_class() -> None:
    seen: list[Tensor] = []

    def spy(logits: Tensor, task: Task) -> Tensor:
        seen.append(task.aim)
        return margin(logits, task)

    x, y = batch_of(3, (5,), 3)
    model = linear((5,), 3)
    eb.PGD(steps=1, n_targets=2, loss=spy)(model, x, y, eb.Linf(eps=1e-6), success=NEVER)
    rivals = model(x).scatter(1, y[:, None], -math.inf).argsort(1, descending=True)
    assert torch.equal(torch.stack(seen), rivals[:, :2].T)
