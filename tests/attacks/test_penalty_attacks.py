"""CW, goal against distance, box-constrained L-BFGS and sigma-zero: exact distances, frozen pixels, options, rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from doubles import BALLS, NEVER, assert_inside
from nets import Broken, Counting, Recording, Staircase, Steady, batch, linear, mlp, predicted, rng
from nets import weighted as scored
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.attack import Attack
from epsball.attacks.boundary import boundary_distance
from epsball.attacks.goal_distance import goal_logits, goal_probability
from epsball.attacks.lbfgs import log_probability
from epsball.attacks.optimisers import Adam, ConstantSearch
from epsball.attacks.penalty import POLISH
from epsball.attacks.registry import parse
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.engine import queue
from epsball.engine.queue import QueueOptions
from epsball.linear.exact import minimal_eps
from epsball.problem.losses import cross_entropy, dlr, margin
from epsball.problem.objective import Objective
from epsball.problem.task import task_of

SHORT = {
    "cw": eb.CW(steps=40, binary_steps=6),
    "goal-distance": eb.GoalDistance(steps=30, binary_steps=8),
    "lbfgs": eb.BoxLBFGS(),
    "sigma-zero": eb.SigmaZero(steps=80),
}
IN_L2 = {name: attack for name, attack in SHORT.items() if "l2" in attack.norms()}
every_one = pytest.mark.parametrize("attack", SHORT.values(), ids=SHORT)
every_one_in_l2 = pytest.mark.parametrize("attack", IN_L2.values(), ids=IN_L2)
BOXES = [(0.0, 1.0), (-1.0, 0.5), (-math.inf, math.inf)]


def everywhere(attack: Attack, lo: float = 0.0, hi: float = 1.0, **more: object) -> Ball:
    return BALLS[attack.norms()[0]](eps=math.inf, lo=lo, hi=hi, **more)


def case(d: int, classes: int, lo: float, hi: float, n: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, points of which some are on the faces of the box, and the model's own labels."""
    model = linear((d,), classes, seed=d + classes)
    x = batch(n, (d,), lo=max(lo, -1.0), hi=min(hi, 1.0), seed=classes)
    x[0, :3], x[1, ::2] = max(lo, -1.0), min(hi, 1.0)
    return model, x, predicted(model, x)


class Balanced(nn.Module):
    """A network with its mean logits at x taken off, so that it knows several classes there."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net, self.mean = net, net(x).detach().mean(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) - self.mean


def bent(d: int, classes: int, n: int, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network, points of the unit box, and its predictions: each class for some."""
    x = batch(n, (d,), seed=seed)
    net = Balanced(mlp((d,), classes, seed=seed), x)
    y = predicted(net, x)
    assert len(y.unique()) == classes
    return net, x, y


def weights(model: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    return (weight[0], bias) if len(weight) == 1 else (weight, bias)


# Exact distances.


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("d", [1, 2, 40])
@every_one_in_l2
def test_distance_to_the_boundary_of_a_linear_model_is_the_least(attack: Attack, d: int, classes: int) -> None:
    for lo, hi in BOXES:
        model, x, y = case(d, classes, lo, hi)
        for mask in (None, torch.rand(x.shape, generator=rng(d)) < 0.8):
            ball = everywhere(attack, lo, hi, mask=mask)
            least = minimal_eps(*weights(model), x, y, ball)
            reached = least.isfinite()
            found = attack(model, x, y, ball)
            assert ball.contains(found, x).all()
            assert torch.equal(predicted(model, found) != y, reached)
            distance = ball.norm(found - x)[reached]
            assert (distance <= 1.01 * least[reached]).all(), (lo, hi, mask is None)
            assert (distance >= least[reached] * (1 - 1e-12)).all()
            if classes == 2 and mask is None and hi == 0.5:
                aimed = attack(model, x, y, ball, target=1 - y)
                assert torch.equal(predicted(model, aimed) == 1 - y, reached)
                assert (ball.norm(aimed - x)[reached] <= 1.01 * least[reached]).all()


@pytest.mark.parametrize("classes", [1, 2])
def test_sigma_zero_changes_as_few_coordinates_as_a_linear_model_needs(classes: int) -> None:
    """In a box and with a mask, not one."""
    for lo, hi in BOXES[:2]:
        model, x, y = case(40, classes, lo, hi, n=24)
        for mask in (None, torch.rand(x.shape, generator=rng(3)) < 0.8):
            ball = eb.L0(eps=math.inf, lo=lo, hi=hi, mask=mask)
            least = minimal_eps(*weights(model), x, y, ball)
            found = eb.SigmaZero(steps=60)(model, x, y, ball)
            assert torch.equal(predicted(model, found) != y, least.isfinite())
            assert ball.contains(found, x).all()
            assert torch.equal(ball.norm(found - x)[least.isfinite()], least[least.isfinite()])


@every_one
def test_target_among_five_is_reached(attack: Attack) -> None:
    model, x, y = case(20, 5, 0.0, 1.0)
    attack = eb.GoalDistance() if isinstance(attack, eb.GoalDistance) else attack
    ball, target = everywhere(attack), (y + 2) % 5
    least = minimal_eps(*weights(model), x, y, ball, target=target)
    found = attack(model, x, y, ball, target=target)
    reached = least.isfinite()
    assert reached.sum() >= 9
    assert (predicted(model, found) == target)[reached].all()
    assert (ball.norm(found - x)[reached] >= least[reached] * (1 - 1e-12)).all()
    if isinstance(attack, eb.CW):
        assert (ball.norm(found - x)[reached] <= 1.1 * least[reached]).all()


def test_nearest_of_several_classes_is_the_nearest_of_the_targets() -> None:
    model, x, y = case(20, 4, 0.0, 1.0)
    ball = eb.L2(eps=math.inf, lo=0, hi=1)
    least = minimal_eps(*weights(model), x, y, ball)
    nearest = torch.full_like(least, math.inf)
    for t in range(4):
        rows = (y != t).nonzero().squeeze(1)
        found = SHORT["cw"](model, x[rows], y[rows], ball, target=t)
        nearest[rows] = torch.minimum(nearest[rows], ball.norm(found - x[rows]))
    assert (nearest <= 1.01 * least).all()


# The box.


@every_one
def test_pixels_at_an_end_of_the_box_are_not_frozen(attack: Attack) -> None:
    """All of x is at 0 or at 1, as most of a digit is, and every coordinate helps if it moves inwards."""
    x = (torch.arange(30) % 2)[None].double().expand(2, 30).clone()
    model = scored((1 - 2 * x[0]).double(), 15.0 - 4.5)  # x scores -4.5; every coordinate can give 1
    y = predicted(model, x)
    assert y.tolist() == [0, 0]
    ball = everywhere(attack)
    found = attack(model, x, y, ball)
    assert (predicted(model, found) == 1).all()
    moved = (found != x).sum(1)
    if "l2" in attack.norms():
        assert (moved == 30).all()
        assert (ball.norm(found - x) <= 1.01 * 4.5 / math.sqrt(30)).all()
    else:
        assert (moved == 5).all()


@every_one
def test_box_with_sides_per_feature_is_kept_and_used(attack: Attack) -> None:
    lo, hi = torch.tensor([[-3.0, 0.0, 10.0, 0.5]]).double(), torch.tensor([[-2.0, 100.0, 10.5, 0.5]]).double()
    x = (lo + hi) / 2
    model = scored(torch.tensor([1.0, 0.01, 2.0, 5.0]).double(), -22.0)
    assert model(x).item() == pytest.approx(-1.0)
    ball = everywhere(attack, lo, hi)
    found = attack(model, x, torch.tensor([0]), ball)
    assert ((found >= lo) & (found <= hi)).all()
    assert predicted(model, found).item() == 1
    assert found[0, 3] == 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_one
def test_dtype_is_kept_and_fine_enough(attack: Attack, dtype: torch.dtype) -> None:
    model, x, y = case(12, 2, 0.0, 1.0)
    with torch.no_grad():
        model[1].bias.sub_(model(x).mean(0))
    x = x.to(dtype)
    inner = lambda z: model(z.double()).to(dtype)  # noqa: E731
    y, ball = predicted(inner, x), everywhere(attack)
    assert len(y.unique()) == 2
    found = attack(inner, x, y, ball)
    assert_inside(found, x, ball.name, math.inf, 0, 1, None)
    assert (predicted(inner, found) != y).all()
    least = minimal_eps(*weights(model), x.double(), y, ball)
    # Logits are rounded too: what they are rounded by is made good for along the decision boundary's normal.
    rounding = 4 * torch.finfo(dtype).eps * (1 + model(x.double()).abs().amax(1))
    slack = rounding if "l2" in attack.norms() else (torch.finfo(dtype).eps > 1e-4) * 2.0
    assert (ball.norm((found - x).double()) <= 1.01 * least + slack).all()


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 3)], ids=["dim 1", "dim 2", "dim 4"])
@pytest.mark.parametrize(("classes", "squeeze"), [(1, True), (1, False), (3, False)])
@every_one
def test_shapes_and_a_single_logit_are_understood(
    attack: Attack, shape: tuple[int, ...], classes: int, squeeze: bool
) -> None:
    model = linear(shape, classes, squeeze=squeeze)
    x = batch(6, shape, lo=-1, hi=3)
    y, ball = predicted(model, x), everywhere(attack, -20.0, 30.0)
    found = attack(model, x, y, ball)
    assert found.shape == x.shape
    assert (predicted(model, found) != y).all()


# Rows.


@every_one
def test_result_is_the_same_alone_in_a_batch_and_in_the_queue(attack: Attack) -> None:
    n = 40
    x = batch(n, (6,))
    model = Balanced(Steady(6, 4), x)
    y = model(x).argmax(1)
    mask = torch.rand(n, 6, generator=rng(3)) < 0.9
    ids = torch.arange(n) * 10 + 3
    attack = replace(attack, steps=20, **({} if isinstance(attack, eb.SigmaZero) else {"binary_steps": 3}))
    for target in (None, (y + 1) % 4):
        ball = everywhere(attack, mask=mask)
        whole = attack(model, x, y, ball, ids=ids, target=target, seed=2)
        for i in range(0, n, 13):
            row, goal = torch.tensor([i]), None if target is None else target[i, None]
            alone = attack(model, x[row], y[row], ball.bind(x).rows(row), ids=ids[row], target=goal, seed=2)
            assert torch.equal(alone, whole[row])
        task = replace(task_of(x, y, ball, target=target, ids=ids, seed=2), clean=model(x))
        fooled = (model(whole).argmax(1) != y) if target is None else model(whole).argmax(1) == target
        assert fooled.double().mean() > 0.3
        for batch_size in (32, 64):
            with Objective(model, attack.loss) as objective:
                found = queue.run(attack, objective, task, QueueOptions(batch_size=batch_size))
            assert torch.equal(found.fooled, fooled)
            # The exponentials of a softmax may differ in their last bit with the row's place in a batch.
            torch.testing.assert_close(found.x_adv[fooled], whole[fooled], rtol=0, atol=1e-12)


@every_one
def test_nearest_adversarial_example_seen_is_returned(attack: Attack) -> None:
    net, x, y = bent(6, 3, 12)
    model, ball = Recording(net), everywhere(attack)
    found = attack(model, x, y, ball)
    # A targeted attack evaluates x first; afterwards rows keep their places in the batch.
    seen = torch.stack([z for z in model.seen if len(z) == 12])
    succeeds = torch.stack([predicted(model.model, z) != y for z in seen])
    lengths = torch.stack([ball.norm(z - x) for z in seen]).to(torch.float64)
    assert (predicted(model.model, found) != y).all()
    torch.testing.assert_close(
        torch.where(succeeds, lengths, math.inf).amin(0), ball.norm(found - x).double(), rtol=0, atol=0
    )


@every_one
def test_misclassified_example_is_returned_after_one_evaluation(attack: Attack) -> None:
    model, x, y = case(5, 3, 0.0, 1.0)
    counting = Counting(model)
    found = attack(counting, x, (y + 1) % 3, everywhere(attack))
    assert torch.equal(found, x)
    assert counting.calls == 1 + bool(attack.n_targets)


@every_one
def test_result_is_in_a_finite_ball(attack: Attack) -> None:
    model, x, y = bent(6, 3, 12)
    free = attack(model, x, y, everywhere(attack))
    even = torch.arange(12) % 2 == 0
    radius = BALLS[attack.norms()[0]](eps=0, lo=0, hi=1).norm(free - x) * torch.where(even, 1.5, 0.6)
    ball = BALLS[attack.norms()[0]](eps=radius, lo=0, hi=1)
    found = attack(model, x, y, ball)
    assert ball.contains(found, x).all()
    assert torch.equal(found[even], free[even])
    assert not ball.contains(free, x)[~even].any()


@every_one
def test_gradient_of_zero_ends_the_job_at_the_input(attack: Attack) -> None:
    model = Counting(Staircase(mlp((6,), 3)))
    x = batch(8, (6,))
    y = predicted(model.model, x)
    with pytest.warns(UserWarning, match="exactly zero"):
        found = attack(model, x, y, everywhere(attack))
    assert torch.equal(found, x)
    assert model.calls == 1 + bool(attack.n_targets)


@pytest.mark.parametrize("slope", [1e-12, 1e-30])
@every_one_in_l2
def test_points_stay_in_range_where_gradients_vanish(attack: Attack, slope: float) -> None:
    weight = slope * torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 1.0]])
    model = Recording(lambda z: z @ weight.T + torch.tensor([2.0, -1.0]))
    x = torch.tensor([[0.3, -0.4, 0.5], [30.0, 0.0, -7.0]])
    found = attack(model, x, torch.zeros(2, dtype=torch.long), everywhere(attack, -math.inf, math.inf))
    assert torch.cat(model.seen).isfinite().all()
    assert torch.cat(model.seen).abs().max() < 1e10
    assert torch.equal(found, x)


@pytest.mark.filterwarnings("ignore:the gradient is not finite")
@every_one
def test_logits_that_are_not_numbers_count_as_no_success(attack: Attack) -> None:
    net, x, y = bent(6, 3, 24)
    x = x.clamp_max(0.9)
    model, y = Broken(net, 0.95), predicted(net, x)
    task = replace(task_of(x, y, everywhere(attack)), clean=net(x).detach())
    with Objective(model, attack.loss) as objective:
        found = queue.run(attack, objective, task, QueueOptions(batch_size=32))
    assert found.fooled.sum() > 5
    assert model(found.x_adv[found.fooled]).isfinite().all()
    assert torch.equal(predicted(net, found.x_adv) != y, found.fooled)


@every_one
def test_scale_of_the_data_or_of_the_logits_does_not_change_the_result(attack: Attack) -> None:
    """A power of two changes no bit; only CW has no use for the scale of the logits."""
    net, x, y = bent(6, 2, 10)
    found = attack(net, x, y, everywhere(attack))
    wide = attack(lambda z: net(z / 1024), 1024 * x, y, everywhere(attack, 0, 1024))
    torch.testing.assert_close(wide / 1024, found, rtol=0, atol=1e-9)
    if isinstance(attack, eb.CW):
        loud = attack(lambda z: 1024 * net(z), x, y, everywhere(attack))
        torch.testing.assert_close(loud, found, rtol=0, atol=1e-9)


@every_one
def test_second_restart_starts_elsewhere(attack: Attack) -> None:
    model = Recording(linear((6,), 3))
    x = batch(5, (6,))
    y, ball = predicted(model.model, x), everywhere(attack)
    replace(attack, restarts=2)(model, x, y, ball, success=NEVER, seed=4)
    others = {tuple(z[0].tolist()) for z in model.seen}
    away = [z for z in model.seen if not torch.equal(z, x)]
    assert len(others) > 2
    assert away
    assert (torch.stack(away) >= 0).all()


# What model calls are spent on.


def test_cw_costs_at_most_its_steps_a_round() -> None:
    net, x, y = bent(6, 3, 9)
    model, ball = Counting(net), eb.L2(eps=math.inf, lo=0, hi=1)
    for rounds, steps in ((1, 100), (3, 30)):
        model.calls = 0
        attack = eb.CW(steps=steps, binary_steps=rounds, early=False)
        attack(model, x, y, ball)
        assert rounds * attack.round_length < model.calls <= rounds * attack.round_length + POLISH <= rounds * steps


def test_cw_that_ends_early_is_cheaper_and_hardly_farther_away() -> None:
    net, x, y = bent(10, 3, 24)
    ball = eb.L2(eps=math.inf, lo=0, hi=1)
    cost, distance = [], []
    for early in (False, True):
        model = Counting(net)
        found = eb.CW(early=early)(model, x, y, ball)
        cost.append(model.forwards)
        distance.append(ball.norm(found - x))
    assert cost[1] < 0.8 * cost[0]
    assert (distance[1] <= 1.02 * distance[0]).double().mean() >= 0.9


def test_cw_rows_in_the_queue_do_not_wait_for_each_other() -> None:
    """A row that is done costs no further model call: the model calls of a record are its own."""
    model, x, y = case(10, 3, 0.0, 1.0, n=40)
    found = eb.evaluate(model, (x, y), eb.L2(eps=9.0, lo=0, hi=1), "cw:steps=60")
    calls = torch.tensor(found.records["forwards"].to_pylist())
    assert calls.min() < 0.8 * calls.max()


@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_cw_confidence_is_reached_at_the_least_distance(kappa: float) -> None:
    model, x, y = case(12, 2, 0.0, 1.0)
    weight, _ = weights(model)
    ball = eb.L2(eps=math.inf, lo=0, hi=1)
    attack = eb.CW(steps=100, kappa=kappa)
    assert attack.minimises == (kappa == 0)
    found = attack(model, x, y, ball)
    logits = model(found)
    margin = (logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])).squeeze(1)
    gap = (model(x).gather(1, y[:, None]) - model(x).gather(1, 1 - y[:, None])).squeeze(1)
    side = (weight[1] - weight[0]) * (1 - 2 * y[:, None])
    least = ball.min_eps(gap + kappa, side, x)
    reached = least.isfinite()
    assert (margin[reached] >= kappa).all()
    assert (ball.norm(found - x)[reached] <= 1.05 * least[reached]).all()
    assert torch.equal(found[~reached], x[~reached])


def test_cw_is_nearer_with_more_binary_steps_on_a_network() -> None:
    net, x, y = bent(12, 4, 32)
    ball = eb.L2(eps=math.inf, lo=0, hi=1)
    one, nine = (ball.norm(eb.CW(steps=60, binary_steps=b)(net, x, y, ball) - x) for b in (1, 9))
    assert (nine <= 1.01 * one).all()  # the last points start from elsewhere
    assert nine.mean() < one.mean()


def test_bracket_of_the_constant_closes_on_the_answer() -> None:
    search = ConstantSearch.start(torch.tensor([4.0]))
    for _ in range(16):  # rounds succeed from 0.37 on
        search = search.next(search.c >= 0.37)
        assert search.low < 0.37 <= search.high
    assert search.closed(1.01)


def test_adam_is_that_of_torch() -> None:
    start = batch(3, (4,), seed=1)
    leaf = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([leaf], lr=0.1)
    z, adam = start.clone(), Adam.start(start)
    for _ in range(7):
        leaf.grad = (leaf.detach() - 3) ** 3
        z, adam = adam.step(z, (z - 3) ** 3, torch.full((3,), 0.1))
        optimiser.step()
        torch.testing.assert_close(z, leaf.detach(), rtol=0, atol=1e-6)


def test_boundary_distance_is_at_most_that_to_the_corner_of_the_box() -> None:
    x = torch.tensor([[0.25, 0.5]])
    grad = torch.tensor([[1e-9, 0.0]])
    inside = task_of(x, 0, eb.L2(eps=math.inf, lo=0, hi=1))
    distance, slope, count = boundary_distance(torch.tensor([-3.0]), grad, inside)
    assert distance.item() == pytest.approx(math.hypot(0.75, 0.5))
    assert (slope.item(), count.item()) == (pytest.approx(1e-9), 1)


# L-BFGS.


def test_log_probability_is_that_of_softmax() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.5, 8.0]])
    x, y = torch.zeros(2, 1), torch.tensor([1, 0])
    away, towards = task_of(x, y, eb.L2(eps=1)), task_of(x, y, eb.L2(eps=1), target=torch.tensor([0, 2]))
    p = logits.softmax(1)
    torch.testing.assert_close(log_probability(logits, away), (1 - p[[0, 1], y]).log())
    torch.testing.assert_close(log_probability(logits, towards), p[[0, 1], [0, 2]].log())
    aimed = away.with_jobs(away.noise.restart, torch.tensor([2, 1]))
    torch.testing.assert_close(log_probability(logits, aimed), torch.tensor([-3.0, -3.5]).sigmoid().log())
    assert log_probability(1e6 * logits, away).isfinite().all()


def test_lbfgs_converges_faster_with_a_longer_memory() -> None:
    """With a memory of one step against six on an ill-conditioned score: model calls until the jobs end."""
    weight = torch.logspace(0, 2, 30).double()
    model = Counting(lambda z: torch.stack([0 * z[:, 0], (z * weight).tanh().sum(1) - 12], 1))
    x = torch.full((4, 30), 0.01).double() * torch.arange(1, 5)[:, None] / 4
    y, ball = torch.zeros(4, dtype=torch.long), eb.L2(eps=math.inf, lo=0, hi=1)
    lengths, calls = [], []
    for memory in (1, 6):
        model.calls = 0
        found = eb.BoxLBFGS(memory=memory)(model, x, y, ball)
        calls.append(model.calls)
        lengths.append(ball.norm(found - x))
        assert (predicted(model.model, found) == 1).all()
    assert calls[1] <= calls[0]
    assert (lengths[1] <= 1.01 * lengths[0]).all()


# Goal against distance.


def test_goal_losses_are_squared_distances_to_the_goal() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0]])
    x, y, t = torch.zeros(1, 1), torch.tensor([1]), torch.tensor([2])
    task = task_of(x, y, eb.L2(eps=1), target=t)
    goal = torch.tensor([[0.0, 0.0, 1.0]])
    torch.testing.assert_close(goal_probability(logits, task), -(logits.softmax(1) - goal).square().sum(1))
    torch.testing.assert_close(goal_logits(logits, task), -(logits - goal).square().sum(1))
    away = task_of(x, y, eb.L2(eps=1))  # class 2 is the likeliest but one
    for loss in (goal_probability, goal_logits):
        torch.testing.assert_close(loss(logits, away), loss(logits, task))
    aimed = away.with_jobs(away.noise.restart, torch.tensor([0]))
    pair = logits[:, :2].softmax(1) - torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(goal_probability(logits, aimed), -pair.square().sum(1))


@pytest.mark.parametrize("output", ["probability", "logits"])
def test_weighted_loss_is_at_its_least(output: str) -> None:
    """The gradient is about zero, on a smooth network; the less the weight, the greater the distance."""
    net, x, y = bent(5, 3, 8)
    target = (y + 1) % 3
    ball = eb.L2(eps=math.inf, lo=-4, hi=4)

    def value(z: Tensor, weight: float) -> Tensor:
        out = net(z).softmax(1) if output == "probability" else net(z)
        return (out - nn.functional.one_hot(target, 3)).square().sum(1) + weight * (z - x).square().sum(1)

    distances = []
    for weight in (0.03, 0.3):
        attack = eb.GoalDistance(weight=weight, steps=400, output=output)
        assert not attack.minimises
        found = attack(net, x, y, ball, target=target)
        leaf = found.clone().requires_grad_()
        loss = value(leaf, weight)
        slope = torch.autograd.grad(loss.sum(), leaf)[0].norm(dim=1)
        assert (predicted(net, found) == target).sum() >= 6
        assert slope.median() < 1e-3
        assert slope.max() < 0.05
        assert ((loss < value(x, weight)) | (predicted(net, found) == target)).all()
        distances.append(ball.norm(found - x))
    assert (distances[0] >= distances[1] - 1e-2).all()


def test_result_is_near_the_reference_wherever_it_starts() -> None:
    """Predicted as the target and close to the reference, whatever the example."""
    net, x, y = bent(8, 3, 4, seed=1)
    target, reference = (y + 1) % 3, batch(9, (8,), seed=5)
    ids, ball = torch.tensor([3, 0, 7, 8]), eb.L2(eps=math.inf, lo=0, hi=1)
    attack = eb.GoalDistance(weight=0.2, steps=300, reference=reference)
    found = attack(net, x, y, ball, target=target, ids=ids)
    distance = (found - reference[ids]).norm(dim=1)
    assert (distance < 0.9 * (x - reference[ids]).norm(dim=1)).all()
    assert (predicted(net, found) == target).sum() >= 3
    shared = replace(attack, reference=reference[0])(net, x, y, ball, target=target, ids=ids)
    each = replace(attack, reference=reference[0].expand(9, 8))(net, x, y, ball, target=target, ids=ids)
    assert torch.equal(shared, each)
    recording = Recording(net)
    noisy = replace(attack, noise=True)(recording, x, y, ball, target=target, ids=ids)
    starts = recording.seen[0]
    assert not torch.equal(starts[0], starts[1])
    assert ((starts - x).abs().amax(1) > 0.1).all()
    assert ((noisy - reference[ids]).norm(dim=1) < distance + 0.1).all()


def test_weighted_result_is_in_its_ball_and_adversarial_if_any_point_was() -> None:
    net, x, y = bent(8, 3, 12)
    for mask in (None, torch.tensor([[True] * 6 + [False] * 2])):
        ball = eb.L2(eps=0.4, lo=0, hi=1, mask=mask)
        recording = Recording(net)
        found = eb.GoalDistance(weight=0.01, steps=40)(recording, x, y, ball)
        assert ball.contains(found, x).all()
        assert all(bool(ball.contains(z, x).all()) for z in recording.seen)
        fooled_once = torch.stack([predicted(net, z) != y for z in recording.seen]).any(0)
        assert torch.equal(predicted(net, found) != y, fooled_once)
        assert fooled_once.any()


# Words and errors.


def test_short_form_is_understood() -> None:
    assert parse("cw:steps=20,binary-steps=3,kappa=1,loss=dlr,early=false") == eb.CW(
        steps=20, binary_steps=3, kappa=1.0, loss=dlr, early=False
    )
    assert parse("goal-distance:output=logits,weight=.5,noise=true") == eb.GoalDistance(
        output="logits", weight=0.5, noise=True
    )
    assert parse("goal-distance:output=logits").loss is goal_logits
    assert parse("lbfgs:memory=3,loss=margin,n_targets=2") == eb.BoxLBFGS(memory=3, loss=margin, n_targets=2)
    assert parse("sigma-zero:sigma=.01,threshold=.5") == eb.SigmaZero(sigma=0.01, threshold=0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.CW(loss=cross_entropy), "`loss` must be margin or dlr for CW, got 'cross_entropy'"),
        (lambda: eb.CW(kappa=-1), "`kappa` must be >= 0"),
        (lambda: eb.CW(binary_steps=0), "`binary_steps` must be a whole number >= 1"),
        (lambda: eb.CW(steps=1.5), "`steps` must be a whole number"),
        (lambda: eb.CW(lr=0), "`lr` must be > 0 and finite"),
        (lambda: eb.CW(c=math.nan), "`c` must be > 0 and finite"),
        (lambda: eb.GoalDistance(weight=-1), "`weight` must be >= 0"),
        (lambda: eb.GoalDistance(output="softmax"), "`output` must be one of probability, logits"),
        (lambda: eb.GoalDistance(reference=torch.zeros(3)), "`weight` must be > 0 with a `reference`"),
        (lambda: eb.BoxLBFGS(memory=0), "`memory` must be a whole number >= 1"),
        (lambda: eb.BoxLBFGS(c=0), "`c` must be > 0"),
        (lambda: eb.SigmaZero(sigma=0), "`sigma` must be > 0"),
        (lambda: eb.SigmaZero(threshold=2), "`threshold` must be in [0, 1], got 2"),
        (lambda: eb.SigmaZero(loss=cross_entropy), "`loss` must be margin or dlr for SigmaZero"),
        (lambda: parse("goal-distance:output=softmax"), "did you mean|must be one of"),
        (lambda: parse("goal-distance:reference=3"), "`goal-distance:reference` must be left out in words"),
        (
            lambda: eb.GoalDistance(weight=1.0, reference=torch.zeros(4))(
                linear((3,), 2), batch(1, (3,)), torch.tensor([0]), eb.L2(eps=1)
            ),
            "`reference` must be one point (3,)",
        ),
    ],
)
def test_errors_name_argument_and_rule(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput) as error:
        make()
    assert any(part in str(error.value) for part in message.split("|"))
