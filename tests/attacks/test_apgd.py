"""Auto-PGD against the paper's algorithm, implemented again row by row; L1-APGD; both against linear optima."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from doubles import BALLS, EPS, NEVER
from nets import CONV_SHAPE, Counting, Recording, Steady, batch, batch_of, conv, linear, mlp, predicted, rng, weighted
from test_attacks import WEIGHTS
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.apgd import APGD
from epsball.attacks.attack import Attack
from epsball.attacks.l1_apgd import L1APGD, sparse_sign
from epsball.engine import queue
from epsball.engine.queue import QueueOptions
from epsball.problem.losses import cross_entropy, dlr, margin
from epsball.problem.objective import Objective, Point, changes_prediction
from epsball.problem.task import Task, task_of

# The paper's algorithm, independent of the attack: one row, numbers and loops.


def checkpoints_of_the_paper(steps: int) -> list[int]:
    """Section 3.1: p_0 = 0, p_1 = .22, p_(j+1) = p_j + max(p_j - p_(j-1) - .03, .06); w_j = ceil(p_j * steps)."""
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    return [math.ceil(part * steps) for part in p if 0 < part <= 1]


@pytest.mark.parametrize("steps", [100, 200, 500, 1000])
def test_checkpoints_are_those_of_the_paper(steps: int) -> None:
    assert list(APGD(steps=steps).checkpoints) == checkpoints_of_the_paper(steps)


@pytest.mark.parametrize("steps", [*range(1, 60), 77, 99, 101])
def test_intervals_between_checkpoints_shrink_from_22_to_6_percent_of_the_steps(steps: int) -> None:
    """Where .22, .03 and .06 of the steps are no whole numbers they are rounded down, to 1 at least."""
    found = APGD(steps=steps).checkpoints
    waits = np.diff([0, *found]).tolist()
    assert waits == list(found.values())
    assert waits == sorted(waits, reverse=True)
    assert not found or (waits[0] == max(steps * 22 // 100, 1) and waits[-1] >= max(steps * 6 // 100, 1))
    assert not found or steps - max(found) < waits[-1]


Walk = tuple[list[np.ndarray], list[int]]


def paper(
    evaluate: Callable[[np.ndarray], tuple[float, np.ndarray]],
    project: Callable[[np.ndarray], np.ndarray],
    unit: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    eps: float,
    steps: int,
    rho: float,
) -> Walk:
    """Algorithm 1 of Croce and Hein (ICML 2020) from x: the points evaluated, and the checkpoints where it went back.

    As in their code, the loss is compared between consecutive points that were evaluated, also after a restart.
    """
    marks = checkpoints_of_the_paper(steps)
    eta, points, restarts = 2 * eps, [x], []
    loss, grad = evaluate(x)
    losses, best, best_point, best_grad = [loss], loss, x, grad
    at = project(x + eta * unit(grad))
    before, points = x, [x, at]
    best_then, halved_then, last_mark = best, True, 0
    for k in range(1, steps):
        loss, grad = evaluate(at)
        losses.append(loss)
        if loss > best:
            best, best_point, best_grad = loss, at, grad
        if k in marks:
            rises = sum(losses[i + 1] > losses[i] for i in range(last_mark, k))
            halved = rises <= rho * (k - last_mark) or (not halved_then and best_then == best)
            if halved:
                eta, at, grad = eta / 2, best_point, best_grad
                restarts.append(k)
            best_then, halved_then, last_mark = best, halved, k
        z = project(at + eta * unit(grad))
        ahead = project(at + 0.75 * (z - at) + 0.25 * (at - before))
        before, at = at, ahead
        points.append(at)
    return points, restarts


class Waves(nn.Module):
    """Logits that go up and down many times within a ball, of elementary operations only, as `Steady`."""

    def __init__(self, d: int, classes: int) -> None:
        super().__init__()
        self.steady = Steady(d, 8, seed=2)
        self.out = torch.randn(8, classes, generator=rng(5), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        waves = (2 * self.steady(x)).sin()
        return sum(waves[:, i, None] * row for i, row in enumerate(self.out))


def seen_by(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, ball: eb.Linf) -> list[Tensor]:
    recording = Recording(model)
    last = attack(recording, x, y, ball, success=NEVER, seed=3)
    return [*recording.seen, last]


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr])
@pytest.mark.parametrize(("norm", "lo", "hi"), [("linf", 0.0, 1.0), ("linf", -0.3, 0.8), ("l2", -math.inf, math.inf)])
def test_trajectory_is_that_of_algorithm_1(norm: str, lo: float, hi: float, loss: Callable[..., Tensor]) -> None:
    """All points of 100 steps, on a net whose rows have the same bits in every batch.

    In L2 the last bits of a length differ, and steps among waves multiply what differs; a wrong rule costs 1e-3.
    """
    atol = {"linf": 1e-12, "l2": 1e-6}[norm]
    eps = {"linf": 0.25, "l2": 0.7}[norm]
    x = batch(8, (6,), lo=max(lo, 0.0), hi=min(hi, 1.0))
    x[0, :2] = max(lo, 0.0)
    model, ball = Waves(6, 5), BALLS[norm](eps=eps, lo=lo, hi=hi)
    y = model(ball.sample(x, task_of(x, 0, ball, seed=3).noise)).argmax(1)
    points = seen_by(APGD(loss=loss), model, x, y, ball)
    assert len(points) == 101
    went_back = set()
    for i in range(8):
        row = task_of(x[i, None], y[i, None], ball)

        def evaluate(z: np.ndarray, row: Task = row) -> tuple[float, np.ndarray]:
            leaf = torch.from_numpy(z)[None].requires_grad_()
            value = loss(model(leaf), row)
            return value.item(), torch.autograd.grad(value.sum(), leaf)[0][0].numpy()

        def project(z: np.ndarray, i: int = i) -> np.ndarray:
            centre = x[i].numpy()
            if norm == "linf":
                return np.clip(np.clip(z, centre - eps, centre + eps), lo, hi)
            distance = np.linalg.norm(z - centre)
            return centre + (z - centre) * min(1.0, eps / distance) if distance else z

        unit = np.sign if norm == "linf" else lambda grad: grad / (np.linalg.norm(grad) or 1)
        want, restarts = paper(evaluate, project, unit, points[0][i].numpy(), eps, 100, 0.75)
        went_back.add(tuple(restarts))
        for k, point in enumerate(want):
            np.testing.assert_allclose(points[k][i].numpy(), point, rtol=0, atol=atol, err_msg=f"row {i}, point {k}")
    assert len(went_back) > 1, "every row went back at the same checkpoints: the test distinguishes nothing"


def test_each_restart_starts_at_a_random_point_of_its_own_in_the_ball() -> None:
    x, y = batch_of(6, (5,), 3)
    ball = eb.Linf(eps=0.2, lo=0, hi=1)
    for attack in (APGD(steps=1), APGD(steps=1, restarts=2)):
        first = seen_by(attack, mlp((5,), 3), x, y, ball)
        for restart, z in enumerate(first[:-1]):
            task = task_of(x, y, ball, seed=3)
            noise = replace(task.noise, restart=torch.full((6,), restart))
            assert torch.equal(z, ball.sample(x, noise))
    assert not torch.equal(first[0], first[1])


# The rules of a checkpoint, from losses that are as they are written.


def states_for(attack: APGD, losses: list[list[float]]) -> list[object]:
    """The states after each step, one row per list, where step k finds the k-th loss and the gradient k + 1."""
    n = len(losses)
    task = task_of(torch.zeros(n, 1, dtype=torch.float64), 0, eb.Linf(eps=1.0))
    states = [attack.init(task)]
    for k, row in enumerate(zip(*losses, strict=True)):
        state = states[-1]
        loss = torch.tensor(row, dtype=torch.float64)
        grad = torch.full_like(state.z, k + 1.0)
        states.append(attack.step(state, Point(state.z, torch.zeros(n, 2), loss, grad, changes_prediction, task), task))
    return states


def rising(times: int, of: int, first: float = 0.0) -> list[float]:
    """A loss that rises `times` times in `of` steps, and ends above where it began."""
    steps = [-1e-3] * (of - times) + [1.0] * times
    return (first + np.cumsum(steps)).tolist()


@pytest.mark.parametrize(("rises", "halved"), [(0, True), (16, True), (17, False), (22, False)])
def test_step_is_halved_if_the_loss_rose_in_at_most_three_quarters_of_the_steps(rises: int, halved: bool) -> None:
    """22 steps to the first checkpoint: .75 of them is 16.5."""
    states = states_for(APGD(), [[0.0, *rising(rises, 22)], [0.0, *rising(22, 22)]])
    assert [state.step_size.size.tolist() for state in states[:23]] == [[2.0, 2.0]] * 23
    assert states[23].step_size.size.tolist() == [1.0 if halved else 2.0, 2.0]
    best = 0 if rises == 0 else 22
    if halved:
        assert torch.equal(states[23].previous[0], states[best].z[0])
        assert states[23].best_point.grad[0].item() == best + 1


def test_step_is_halved_without_a_new_best_loss_but_not_twice_in_a_row() -> None:
    """17 of 22 steps rise, then 16 of 19, but never above the best: halved, as it was not the last time."""
    start = [0.0, *rising(22, 22)]
    second = [-100.0, *rising(18, 18, -100.0)]
    third = [-100.0, *rising(15, 15, -100.0)]
    states = states_for(APGD(), [start + second + third, start + rising(19, 19, 22.0) + rising(16, 16, 50.0)])
    sizes = [states[at + 1].step_size.size.tolist() for at in (22, 41, 57)]
    assert sizes == [[2.0, 2.0], [1.0, 2.0], [1.0, 2.0]]  # it was halved the last time: not again
    assert torch.equal(states[42].previous[0], states[22].z[0])


def test_rho_is_the_share_of_rises_required_and_a_tie_is_no_rise() -> None:
    """A loss that stays is no rise; with rho = 1 every checkpoint halves, with 0 only a row that never rose."""
    flat, up = [1.0] * 60, np.arange(60.0).tolist()
    assert states_for(APGD(rho=1), [up, flat])[-1].step_size.size.tolist() == [0.25, 0.25]
    assert states_for(APGD(rho=0), [up, flat])[-1].step_size.size.tolist() == [2.0, 0.25]


# Rows at different steps, the queue, and model calls.


@pytest.mark.parametrize(
    ("attack", "norm"),
    [
        *((APGD(steps=30, n_targets=2), norm) for norm in ("linf", "l2", "l1")),
        (L1APGD(steps=30, loss=dlr, restarts=2), "l1"),
    ],
)
def test_result_of_a_row_does_not_depend_on_when_it_enters_the_pool(attack: Attack, norm: str) -> None:
    """130 examples in a pool of 32, broken at different steps, against one pool that holds them all from the start."""
    model, x = mlp((20,), 5), batch(130, (20,))
    y = predicted(model, x)
    ball = BALLS[norm](eps={"linf": 0.25, "l2": 0.8, "l1": 1.5}[norm], lo=0, hi=1)
    task = replace(task_of(x, y, ball, seed=2), clean=model(x).detach())
    outcomes = []
    for batch_size in (32, 512):
        with Objective(model, attack.loss) as objective:
            outcomes.append(queue.run(attack, objective, task, QueueOptions(batch_size=batch_size)))
    late, whole = outcomes
    assert 20 < whole.fooled.sum() < 110
    assert len(whole.forwards[whole.fooled].unique()) > 4
    assert torch.equal(late.fooled, whole.fooled)
    assert torch.equal(late.restart, whole.restart)
    assert torch.equal(late.forwards, whole.forwards)
    torch.testing.assert_close(late.x_adv, whole.x_adv, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", [APGD(steps=37), L1APGD(steps=37), APGD(steps=1), L1APGD(steps=1)])
def test_each_step_costs_one_forward_and_one_backward_pass(attack: Attack) -> None:
    model, (x, y) = Counting(mlp((5,), 3)), batch_of(6, (5,), 3)
    attack(model, x, y, eb.L1(eps=0.3), success=NEVER)
    assert (model.calls, model.forwards, model.backwards) == (attack.steps, 6 * attack.steps, 6 * attack.steps)


def test_apgd_is_at_least_as_strong_as_pgd_of_as_many_steps_in_every_norm() -> None:
    x, model = batch(400, CONV_SHAPE), conv()
    y = predicted(model, x)
    for norm, eps in (("linf", 0.04), ("l2", 0.15), ("l1", 0.8)):
        ball = BALLS[norm](eps=eps, lo=0, hi=1)
        broken = [
            (predicted(model, eb_attack(model, x, y, ball)) != y).sum() for eb_attack in (eb.PGD(), APGD(steps=40))
        ]
        assert 40 < broken[0] < 360
        assert broken[1] >= broken[0], (norm, broken)


# L1-APGD.


@pytest.mark.parametrize(("lo", "hi"), [(0.0, 1.0), (-0.5, 2.0), (-math.inf, math.inf)])
def test_l1_apgd_searches_balls_of_three_two_and_one_eps(lo: float, hi: float) -> None:
    """And each begins at the projection of the best point of the one before."""
    model, eps = Steady(12, 3), 0.8
    x, y = batch(6, (12,), lo=max(lo, -0.5), hi=min(hi, 1.5)), torch.arange(6) % 3
    ball = eb.L1(eps=eps, lo=lo, hi=hi)
    points = torch.stack(seen_by(L1APGD(), model, x, y, ball))
    reach = (points - x).abs().sum(2).amax(1)
    for begin, end, radius in ((0, 30, 3), (30, 60, 2), (60, 101, 1)):
        assert reach[begin:end].max() <= radius * eps * (1 + 1e-12)
        assert reach[begin:end].max() > (radius - 0.5) * eps
    losses = torch.stack([nn.functional.cross_entropy(model(z), y, reduction="none") for z in points])
    for begin, end, radius in ((0, 30, 2), (30, 60, 1)):
        best = points[begin:end].gather(0, losses[begin:end].argmax(0)[None, :, None].expand(1, 6, 12))[0]
        torch.testing.assert_close(points[end], ball.with_eps(radius * eps).project(best, x), rtol=0, atol=1e-13)
    assert ball.contains(points[-1], x).all()


@pytest.mark.parametrize(("steps", "begins"), [(1, (0, 0, 0)), (2, (0, 1, 1)), (3, (0, 1, 2)), (10, (0, 3, 6))])
def test_l1_apgd_ends_in_the_ball_with_few_steps(steps: int, begins: tuple[int, ...]) -> None:
    assert L1APGD(steps=steps)._begins == begins
    x, y = batch_of(6, (12,), 3)
    ball = eb.L1(eps=0.4, lo=0, hi=1)
    points = seen_by(L1APGD(steps=steps), Steady(12, 3), x, y, ball)
    assert ball.contains(points[-2], x).all()
    assert ball.contains(points[-1], x).all()


def test_l1_apgd_counts_only_points_inside_the_ball_as_successes() -> None:
    """The prediction changes between 1 and 3 eps only; then at .75 eps, where the first success ends it."""
    x, outside = torch.zeros(1, 1, dtype=torch.float64), weighted(torch.ones(1).double(), -1.5)
    model = Counting(outside)
    x_adv = L1APGD()(model, x, 0, eb.L1(eps=1.0))
    assert x_adv.abs().item() <= 1.0
    assert model.calls == 100 + 4  # four for the question whether one output in [0, 1] is a probability
    inside = Counting(weighted(torch.ones(1).double(), -0.75))
    x_adv = L1APGD()(inside, x, 0, eb.L1(eps=1.0))
    assert 0.75 < x_adv.item() <= 1
    assert inside.calls == 61  # the first point of the last ball


def test_sparse_sign_keeps_the_signs_of_the_largest_coordinates() -> None:
    grad = torch.randn(40, 2, 5, generator=rng(1), dtype=torch.float64)
    count = torch.arange(40) % 10 + 1.0
    signs = sparse_sign(grad, count)
    for i in range(40):
        order = grad[i].flatten().abs().argsort(descending=True)
        want = torch.zeros(10, dtype=torch.float64)
        want[order[: int(count[i])]] = grad[i].flatten().sign()[order[: int(count[i])]]
        assert torch.equal(signs[i].flatten(), want)
        assert torch.equal(sparse_sign(grad[i, None], count[i, None])[0], signs[i])
    assert sparse_sign(torch.tensor([[2.0, -2, 2, 1]]), torch.tensor([1.0])).tolist() == [[1, -1, 1, 0]]  # ties
    assert sparse_sign(torch.zeros(1, 4), torch.tensor([2.0])).tolist() == [[0, 0, 0, 0]]


def test_l1_apgd_ignores_coordinates_that_mask_or_box_hold_fixed() -> None:
    """All large weights are behind the mask, or at the box: the small ones must go all the way."""
    weight = torch.tensor([50.0, -40, 30, 20, 3, 2, 1, 0.5], dtype=torch.float64)
    x = torch.full((2, 8), 0.5, dtype=torch.float64)
    x[:, :4] = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)
    mask = torch.tensor([[False] * 4 + [True] * 4])
    for part in (None, mask):
        ball = eb.L1(eps=0.8, lo=0, hi=1, mask=part)
        x_adv = L1APGD()(weighted(weight), x, 0, ball, success=NEVER)
        gain = ((x_adv - x) * weight).sum(1)
        assert (gain >= 0.95 * ball.max_gain(weight.expand(2, 8), x)).all(), gain


# Linear models: the share of the optimum over ball and box. Found with 1 to 784 features, boxes and none: APGD 1 in
# Linf, .99999 in L2 and .9989 in L1 after 40 steps; L1-APGD, whose last step is a tenth of eps, .85, half the rows .95.

SHARE = {("apgd", "linf"): 1 - 1e-9, ("apgd", "l2"): 0.9999, ("apgd", "l1"): 0.998, ("l1-apgd", "l1"): 0.8}
RADII = {"linf": (0.05, 0.4), "l2": (0.2, 1.5), "l1": (0.3, 4.0)}


@pytest.mark.parametrize("d", [1, 2, 40])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("lo", "hi"), [(0.0, 1.0), (-1.0, 0.5), (-math.inf, math.inf)])
@pytest.mark.parametrize(("name", "norm"), SHARE)
def test_promised_share_of_the_linear_optimum_is_reached_with_one_logit(
    name: str, norm: str, lo: float, hi: float, weights: str, d: int
) -> None:
    attack = {"apgd": APGD(steps=40), "l1-apgd": L1APGD(steps=40)}[name]
    weight = WEIGHTS[weights][:d] / WEIGHTS[weights][:d].abs().sum()
    y = torch.arange(16) % 2
    x = batch(16, (d,), lo=max(lo, -1.0), hi=min(hi, 1.0))
    x[0, : d // 8 + 1], x[1, -(d // 8 + 1) :] = max(lo, -1.0), min(hi, 1.0)
    up = (1 - 2 * y)[:, None] * weight
    for eps in RADII[norm]:
        ball = BALLS[norm](eps=eps, lo=lo, hi=hi)
        gain = (up * (attack(weighted(weight), x, y, ball, success=NEVER) - x)).sum(1)
        optimum = ball.max_gain(up, x)
        assert (gain <= optimum + 1e-12).all()
        assert (gain >= SHARE[name, norm] * optimum - 1e-12).all(), (eps, (gain / optimum).tolist())


def towards(logits: Tensor, task: Task) -> Tensor:
    """The score of the target less that of the label, whatever the other classes do: linear in x."""
    return (logits.gather(1, task.goal[:, None]) - logits.gather(1, task.y[:, None])).squeeze(1)


@pytest.mark.parametrize("shape", [(), (2,), (40,)], ids=str)
@pytest.mark.parametrize(
    ("classes", "loss"), [(1, margin), (2, dlr), (1, towards), (2, towards), (3, towards), (10, towards)]
)
@pytest.mark.parametrize(("name", "norm"), SHARE)
def test_promised_share_of_the_linear_optimum_is_reached_with_any_number_of_classes(
    name: str, norm: str, classes: int, loss: Callable[..., Tensor], shape: tuple[int, ...]
) -> None:
    """Away from the label, where there are two classes; towards a target among any number."""
    model = linear(shape, classes)
    x = batch(12, shape, lo=-0.5, hi=1.5)
    y = predicted(model, x)
    rival = (y + 1) % max(classes, 2)
    ball = BALLS[norm](eps={"linf": 0.1, "l2": 0.3, "l1": 0.5}[norm], lo=-0.5, hi=1.5)
    attack = {"apgd": APGD(steps=40, loss=loss), "l1-apgd": L1APGD(steps=40, loss=loss)}[name]
    weight = model[1].weight.detach()
    weight = torch.cat([torch.zeros_like(weight), weight]) if classes == 1 else weight
    up = (weight[rival] - weight[y]).reshape(x.shape)
    x_adv = attack(model, x, y, ball, target=rival if loss is towards else None, success=NEVER)
    gain, optimum = (up * (x_adv - x)).reshape(12, -1).sum(1), ball.max_gain(up, x)
    assert (gain <= optimum + 1e-9).all()
    assert (gain >= SHARE[name, norm] * optimum - 1e-9).all(), (gain / optimum).tolist()


@pytest.mark.parametrize(("name", "norm"), [*SHARE, ("apgd", "l0")])
def test_radius_zero_returns_the_example_and_an_infinite_one_the_corner_of_the_box(name: str, norm: str) -> None:
    attack = {"apgd": APGD(steps=25), "l1-apgd": L1APGD(steps=25)}[name]
    weight = WEIGHTS["dense"][:7]
    x, y = batch(6, (7,), lo=-1.0, hi=0.5), torch.arange(6) % 2
    up = (1 - 2 * y)[:, None] * weight
    corner = torch.where(up > 0, 0.5, -1.0).double()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model, z = weighted(weight).to(dtype), x.to(dtype)
        still = attack(model, z, y, BALLS[norm](eps=0.0, lo=-1, hi=0.5), success=NEVER)
        assert torch.equal(still, z)
        free = attack(model, z, y, BALLS[norm](eps=math.inf, lo=-1, hi=0.5), success=NEVER)
        torch.testing.assert_close(free, corner.to(dtype), rtol=0, atol=4 * torch.finfo(dtype).eps)
    mixed = torch.tensor([0.0, math.inf, EPS[norm]] * 2, dtype=torch.float64)
    x_adv = attack(weighted(weight), x, y, BALLS[norm](eps=mixed, lo=-1, hi=0.5), success=NEVER)
    assert torch.equal(x_adv[::3], x[::3])
    torch.testing.assert_close(x_adv[1::3], corner[1::3], rtol=0, atol=1e-14)
    assert BALLS[norm](eps=EPS[norm], lo=-1, hi=0.5).contains(x_adv[2::3], x[2::3]).all()
    with pytest.raises(eb.BadInput, match="finite"):
        attack(weighted(weight), x, y, BALLS[norm](eps=math.inf))
