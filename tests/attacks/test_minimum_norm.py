"""Minimum-norm attacks: exact distances of linear models, what all of them must hold, DeepFool, DDN and FMN."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from doubles import BALLS, NEVER
from nets import Counting, Recording, Staircase, Steady, batch, linear, mlp, predicted, rng
from nets import weighted as scored
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.attack import Attack
from epsball.attacks.deepfool import CLOSE, LargestGaps
from epsball.attacks.fmn import FMN, largest_radius
from epsball.attacks.registry import ATTACKS, attack_class, parse
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.engine import queue
from epsball.engine.queue import QueueOptions
from epsball.linear.exact import minimal_eps
from epsball.problem.objective import ModelWarning, Objective
from epsball.problem.task import Task, task_of

WITHIN = 1.01
"""The share of the least radius within which every attack ends on a linear model."""
SHORT = {
    "cw": "cw:steps=40,binary-steps=6",
    "goal-distance": "goal-distance:steps=40,binary-steps=8",
    "sigma-zero": "sigma-zero:steps=80",
}
GRADIENTS = {name: parse(SHORT.get(name, name)) for name in ATTACKS if attack_class(name).needs == "grad"}
MINIMISING: dict[str, Attack] = {name: attack for name, attack in GRADIENTS.items() if attack.minimises}
MINIMISING["fab"] = eb.FAB(minimise=True)
PAIRS = {f"{name}-{norm}": (attack, norm) for name, attack in MINIMISING.items() for norm in attack.norms()}
every_one = pytest.mark.parametrize(("attack", "norm"), PAIRS.values(), ids=PAIRS)
OURS = {name: parse(name) for name in ("deepfool", "ddn", "fmn")}
OUR_PAIRS = {f"{name}-{norm}": (attack, norm) for name, attack in OURS.items() for norm in attack.norms()}
each_of_three = pytest.mark.parametrize(("attack", "norm"), OUR_PAIRS.values(), ids=OUR_PAIRS)
BOXES = [(0.0, 1.0), (-1.0, 0.5), (-math.inf, math.inf)]


def case(d: int, classes: int, lo: float, hi: float, n: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, points of which some are on the faces of the box, and the model's own labels."""
    model = linear((d,), classes, seed=d + classes)
    x = batch(n, (d,), lo=max(lo, -1.0), hi=min(hi, 1.0), seed=classes)
    x[0, :3], x[1, ::2] = max(lo, -1.0), min(hi, 1.0)
    return model, x, predicted(model, x)


def weights(model: nn.Module, classes: int) -> tuple[Tensor, Tensor]:
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    return (weight[0], bias) if classes == 1 else (weight, bias)


SEES_EVERY_BOUNDARY = (eb.DeepFool, eb.FAB)
"""The others search towards one class at a time: the nearest decision boundary is sought with a target for each."""


def nearest_of_all_jobs(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, ball: Ball) -> Tensor:
    """Through the queue, which keeps the minimum-norm adversarial example of all jobs."""
    with Objective(model, attack.loss, needs=attack.needs) as objective:
        task = replace(task_of(x, y, ball), clean=objective.forward(x))
        return queue.run(attack, objective, task, QueueOptions(batch_size=160)).x_adv


def everywhere(norm: str, lo: float = 0.0, hi: float = 1.0, **more: object) -> Ball:
    return BALLS[norm](eps=math.inf, lo=lo, hi=hi, **more)


@pytest.mark.parametrize("classes", [1, 3, 10])
@every_one
def test_distance_on_a_linear_model_is_within_a_hundredth_of_the_least(attack: Attack, norm: str, classes: int) -> None:
    if classes > 2 and not isinstance(attack, SEES_EVERY_BOUNDARY):
        attack = replace(attack, n_targets=classes - 1)
    for lo, hi in BOXES[: 2 if norm == "l0" else 3]:
        model, x, y = case(40, classes, lo, hi, n=16)
        mask = None if lo == 0 else torch.rand(x.shape, generator=rng(7)) < 0.8
        ball = everywhere(norm, lo, hi, mask=mask)
        least = minimal_eps(*weights(model, classes), x, y, ball)
        reachable = least.isfinite()
        x_adv = nearest_of_all_jobs(attack, model, x, y, ball)
        assert ball.contains(x_adv, x).all()
        assert (predicted(model, x_adv) != y)[reachable].all()
        distance = ball.norm(x_adv - x)[reachable]
        assert (distance >= least[reachable] * (1 - 1e-9)).all()
        if norm == "l0":  # a count: the greedy choice of coordinates is exact for a linear score
            assert (distance <= least[reachable] + 1).all()
            assert (distance == least[reachable]).double().mean() >= 0.8
        else:
            assert (distance <= WITHIN * least[reachable]).all()


@pytest.mark.parametrize("classes", [1, 2])
@every_one
def test_targeted_distance_is_within_a_hundredth_of_the_least(attack: Attack, norm: str, classes: int) -> None:
    model, x, y = case(12, classes, -1.0, 0.5)
    ball = everywhere(norm, -1.0, 0.5)
    least = minimal_eps(*weights(model, classes), x, y, ball, target=1 - y)
    reachable = least.isfinite()
    x_adv = attack(model, x, y, ball, target=1 - y)
    assert (predicted(model, x_adv) == 1 - y)[reachable].all()
    distance = ball.norm(x_adv - x)[reachable]
    assert (distance <= (least[reachable] + 1 if norm == "l0" else WITHIN * least[reachable])).all()


@every_one
def test_target_among_ten_is_reached(attack: Attack, norm: str) -> None:
    model, x, y = case(40, 10, -1.0, 0.5)
    target = (y + 3) % 10
    x_adv = attack(model, x, y, everywhere(norm, -1.0, 0.5), target=target)
    assert (predicted(model, x_adv) == target).double().mean() >= 0.9


@every_one
def test_misclassified_example_is_returned_after_one_evaluation(attack: Attack, norm: str) -> None:
    model, x, y = case(5, 3, 0.0, 1.0)
    counting = Counting(model)
    for ball in (everywhere(norm), BALLS[norm](eps=1.0, lo=0, hi=1)):
        counting.calls = 0
        assert torch.equal(attack(counting, x, (y + 1) % 3, ball), x)
        assert counting.calls == 1 or type(attack) not in map(type, OURS.values())


@each_of_three
def test_result_is_the_same_alone_in_a_batch_and_in_the_queue(attack: Attack, norm: str) -> None:
    n = 40
    x, model = batch(n, (6,), lo=-1.0, hi=1.0), Steady(6, 4)
    y = model(x).argmax(1)
    mask = torch.rand(n, 6, generator=rng(3)) < 0.8
    radius = torch.linspace(0.02, 0.6, n, dtype=torch.float64) * {"linf": 0.5, "l2": 1.0, "l1": 2.0, "l0": 8.0}[norm]
    radius[::5] = math.inf
    ball = BALLS[norm](eps=radius, lo=-1, hi=1, mask=mask)
    attack = replace(attack, steps=12)
    for target in (None, (y + 1) % 4):
        whole = attack(model, x, y, ball, target=target)
        assert torch.equal(ball.project(whole, x), whole)
        for i in range(0, n, 7):
            row, goal = torch.tensor([i]), None if target is None else target[i, None]
            alone = attack(model, x[row], y[row], ball.bind(x).rows(row), target=goal)
            assert torch.equal(alone, whole[row])
        task = task_of(x, y, ball, target=target)
        fooled = (model(whole).argmax(1) != y) if target is None else model(whole).argmax(1) == target
        assert 0.05 < fooled.double().mean() < 1
        for batch_size in (32, 64):
            with Objective(model, attack.loss) as objective:
                found = queue.run(attack, objective, task, QueueOptions(batch_size=batch_size))
            assert torch.equal(found.fooled, fooled)
            assert torch.equal(found.x_adv[fooled], whole[fooled])


@each_of_three
def test_nearest_adversarial_example_seen_is_returned(attack: Attack, norm: str) -> None:
    net, x = mlp((8,), 4, seed=3), batch(20, (8,), seed=1)
    y = predicted(net, x)
    recording, ball = Recording(net), everywhere(norm)
    x_adv = attack(recording, x, y, ball)
    seen = torch.stack(recording.seen)
    succeeds = torch.stack([predicted(net, z) != y for z in seen])
    lengths = torch.stack([ball.norm(z - x) for z in seen])
    nearest = torch.where(succeeds, lengths, math.inf).amin(0)
    assert nearest.isfinite().double().mean() > 0.9
    found = nearest.isfinite()
    assert torch.equal(ball.norm(x_adv - x)[found], nearest[found])
    assert ((seen >= 0) & (seen <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_of_three
def test_half_precision_of_inputs_or_logits_does_not_stall_it(attack: Attack, norm: str, dtype: torch.dtype) -> None:
    net = linear((5,), 3, scale=1.5)
    x = batch(40, (5,)).to(dtype)
    ball = everywhere(norm)
    for kind in (torch.float64, torch.bfloat16):
        model = lambda z, kind=kind: net(z.double()).to(kind)  # noqa: E731
        y = predicted(model, x)
        x_adv = attack(model, x, y, ball)
        assert x_adv.dtype == dtype
        assert ball.contains(x_adv, x).all()
        least = minimal_eps(*weights(net, 3), x.double(), y, ball)
        certain = least.isfinite()  # a corner of the box that the rounded logits may tie
        assert (predicted(model, x_adv) != y)[certain].double().mean() >= 0.95


@each_of_three
def test_input_is_returned_where_gradients_are_zero(attack: Attack, norm: str) -> None:
    model, x, y = case(6, 3, 0.0, 1.0)
    flat_everywhere = lambda z: 0 * z.sum(1, keepdim=True) + torch.tensor([2.0, 0.0, 0.0])  # noqa: E731
    hidden = Staircase(model)
    for net, box in ((flat_everywhere, (0.0, 1.0)), (hidden, (0.0, 1.0)), (hidden, (-math.inf, math.inf))):
        if norm == "l0" and box[0] == -math.inf:
            continue
        seen = Recording(net)
        with pytest.warns(ModelWarning, match="exactly zero"):
            x_adv = attack(seen, x, torch.zeros_like(y) if net is flat_everywhere else y, everywhere(norm, *box))
        assert torch.cat(seen.seen).isfinite().all()
        assert x_adv.isfinite().all()
        assert torch.equal(x_adv, x)


@each_of_three
def test_points_stay_in_range_without_a_box_where_gradients_vanish(attack: Attack, norm: str) -> None:
    if norm == "l0":
        pytest.skip("needs a box")
    model = Recording(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).requires_grad_(False))
    with torch.no_grad():
        model.model[0].weight.copy_(9 * torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 1.0]]))
        model.model[0].bias.copy_(torch.tensor([2.0, -1.0]))
    x, y = torch.tensor([[0.3, -0.4, 0.5], [3.0, 0.0, -7.0]]), torch.tensor([0, 0])
    with Objective(model, attack.loss) as objective:
        objective._fresh = False
        queue.run(attack, objective, task_of(x, y, BALLS[norm](eps=math.inf)), QueueOptions(batch_size=32))
    seen = torch.cat(model.seen)
    assert seen.isfinite().all()
    assert (seen.abs() <= 1e6 * 9).all()


@each_of_three
def test_result_is_in_a_finite_ball_and_adversarial_where_one_exists(attack: Attack, norm: str) -> None:
    model, x, y = case(40, 2, 0.0, 1.0)
    least = minimal_eps(*weights(model, 2), x, y, everywhere(norm))
    for share in (1.02, 0.98) if norm != "l0" else (1.0, 0.7):
        ball = everywhere(norm).with_eps(share * least)
        x_adv = attack(model, x, y, ball)
        assert ball.contains(x_adv, x).all()
        fooled = predicted(model, x_adv) != y
        assert not fooled.any() if share < 1 else fooled.double().mean() >= 1.0


@pytest.mark.parametrize(
    ("classes", "most_", "backwards"), [(1, 10, 1), (2, 10, 1), (10, 10, 9), (10, 3, 3), (10, 1, 1)]
)
def test_deepfool_makes_one_backward_pass_for_each_candidate(classes: int, most_: int, backwards: int) -> None:
    counting = Counting(mlp((5,), classes))
    x = batch(6, (5,))
    y = predicted(counting.model, x)
    counting.calls = 0
    eb.DeepFool(steps=4, candidates=most_)(counting, x, y, eb.L2(eps=math.inf, lo=-9, hi=9), success=NEVER)
    assert counting.calls == 4
    assert counting.backwards == 6 * 4 * backwards


def paper_walk(model: nn.Module, x: Tensor, y: int, ball: Ball, overshoot: float) -> Tensor:
    """Algorithm 2 for one example (1, d), each step by the exact radius and the maximiser at that radius."""
    z = x
    for _ in range(50):
        leaf = z.clone().requires_grad_()
        logits = model(leaf)[0]
        if logits.argmax() != y:
            break
        planes = []
        for j in range(len(logits)):
            if j != y:
                (normal,) = torch.autograd.grad(logits[j] - logits[y], leaf, retain_graph=True)
                gain = (logits[y] - logits[j]).detach()[None]
                planes.append((ball.min_eps(gain, normal, z).item(), normal))
        radius, normal = min(planes, key=lambda plane: plane[0])
        z = (z + (1 + overshoot) * (ball.with_eps(radius).argmax(normal, z) - z)).clamp(ball.lo, ball.hi)
    return z


@pytest.mark.parametrize("norm", eb.DeepFool.norms())
def test_deepfool_with_full_steps_is_algorithm_2(norm: str) -> None:
    net, x = mlp((7,), 4, seed=2), batch(8, (7,), lo=-0.5, hi=1.5)
    x[:3, 0], x[2, 1:4] = -0.5, 1.5
    y, ball = predicted(net, x), everywhere(norm, -0.5, 1.5)
    x_adv = eb.DeepFool(step_size=1, overshoot=0.1)(net, x, y, ball)
    expected = torch.cat([paper_walk(net, x[i, None], int(y[i]), ball, 0.1) for i in range(8)])
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-8)
    assert (predicted(net, x_adv) != y).all()


def test_deepfool_steps_go_half_of_the_way_until_the_boundary_is_close() -> None:
    """Logit 2 (x - 1) from 0: .5, .75, .875 of the way; from there a last step, whose share is below `CLOSE`."""
    model = Recording(scored(torch.tensor([2.0]), -2.0))
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    x_adv = eb.DeepFool(overshoot=0.1)(model, x, y, eb.L2(eps=math.inf))
    seen = [z.item() for z in model.seen]
    assert CLOSE == 0.25
    assert seen == pytest.approx([0, 0.5, 0.75, 1.025], abs=1e-9)
    assert x_adv.item() == seen[-1]


def test_deepfool_on_a_network_ends_nearer_than_with_the_papers_steps() -> None:
    net, x = mlp((20,), 5, seed=4), batch(40, (20,), seed=2)
    y = predicted(net, x)
    for norm in eb.DeepFool.norms():
        ball = everywhere(norm)
        ours, papers = (ball.norm(attack(net, x, y, ball) - x) for attack in (eb.DeepFool(), eb.DeepFool(step_size=1)))
        assert ours.mean() < papers.mean()


def test_deepfools_candidates_have_the_largest_logits() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0, 4.0], [9.0, 0.5, 8.0, 7.0]])
    task = task_of(torch.zeros(2, 1), torch.tensor([1, 0]), eb.Linf(eps=1))
    assert LargestGaps(2)(logits, task).tolist() == [[-1.0, -3.0], [-1.0, -2.0]]
    assert LargestGaps(1)(logits, task).tolist() == [-1.0, -1.0]
    assert LargestGaps(3)(logits, task).tolist() == [[-4.0, -3.0, -1.0], [-8.5, -1.0, -2.0]]
    targeted = task_of(torch.zeros(2, 1), torch.tensor([1, 0]), eb.Linf(eps=1), target=torch.tensor([2, 2]))
    assert LargestGaps(2)(logits, targeted).tolist() == [-3.0, -1.0]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_fmn_radius_follows_the_boundary_and_points_stay_in_it(norm: str) -> None:
    net, x = mlp((10,), 3, seed=8), batch(30, (10,))
    y, ball, attack = predicted(net, x), everywhere(norm), eb.FMN(steps=40, gamma=0.3)
    task = task_of(x, y, ball)
    with Objective(net, attack.loss) as objective:
        state = attack.init(task)
        for turn in range(40):
            point = objective(state.z, task)
            after = attack.step(state, point, task)
            if turn == 38:  # the last point may be anywhere, but nearer than the best so far
                assert (ball.norm(after.z - x) <= torch.maximum(after.eps, after.distance) * (1 + 1e-6)).all()
            elif norm == "l1" and turn == 24:  # back to the best point
                assert torch.equal(after.z[after.distance < math.inf], after.best[after.distance < math.inf])
            else:
                assert (ball.norm(after.z - x) <= after.eps * (1 + 1e-6)).all()
            assert (after.eps <= largest_radius(task, after.eps)).all()
            share = 0.001 + 0.299 * (1 + math.cos(math.pi * turn / 40)) / 2
            fooled, known = point.fooled, (state.eps < math.inf) & (after.distance < math.inf)
            if norm != "l0":
                shrunk = torch.minimum(state.eps * (1 - share), after.distance)
                torch.testing.assert_close(after.eps[fooled & known], shrunk[fooled & known])
                grown = torch.minimum(state.eps * (1 + share), largest_radius(task, after.eps))
                torch.testing.assert_close(after.eps[~fooled & known], grown[~fooled & known])
            else:
                assert (after.eps[fooled & known] <= (state.eps[fooled & known] - 1).clamp_min(1)).all()
                wider = after.eps[~fooled & known]
                assert (wider >= torch.minimum(state.eps[~fooled & known] + 1, torch.tensor(10.0))).all()
            unknown = (after.distance == math.inf) & (state.eps < math.inf)
            assert (after.eps[unknown] >= torch.minimum(2 * state.eps, largest_radius(task, state.eps))[unknown]).all()
            state = after
    assert (state.distance < math.inf).all()
    assert state.done.all()


def test_ddn_stays_on_the_sphere_without_a_box() -> None:
    net, x = mlp((10,), 3, seed=8), batch(30, (10,), lo=-1.0, hi=1.0)
    y, ball, attack = predicted(net, x), eb.L2(eps=math.inf), eb.DDN(steps=25)
    task = task_of(x, y, ball)
    with Objective(net, attack.loss) as objective:
        state = attack.init(task)
        for _ in range(23):  # then comes the last step
            state = attack.step(state, objective(state.z, task), task)
            torch.testing.assert_close(ball.norm(state.z - x), state.eps, rtol=1e-5, atol=0)


@pytest.mark.parametrize("attack", [eb.FMN(steps=30), eb.DDN(steps=30)], ids=["fmn", "ddn"])
def test_cost_is_one_model_call_a_step(attack: Attack) -> None:
    counting = Counting(mlp((5,), 4))
    x = batch(6, (5,))
    y = predicted(counting.model, x)
    counting.calls = 0
    attack(counting, x, y, eb.L2(eps=math.inf, lo=0, hi=1))
    assert counting.calls == 30
    assert counting.backwards == 6 * 30


def test_scale_of_the_data_does_not_change_the_result() -> None:
    """Nothing is in absolute units: data in [0, 255] end where data in [0, 1] end, 255 times as far."""
    net, x = mlp((10,), 3, seed=8), batch(20, (10,))
    y = predicted(net, x)
    scaled = lambda z: net(z / 256)  # noqa: E731
    for attack, norm in OUR_PAIRS.values():
        near = replace(attack, steps=20)(net, x, y, everywhere(norm))
        far = replace(attack, steps=20)(scaled, 256 * x, y, everywhere(norm, 0.0, 256.0))
        torch.testing.assert_close(far / 256, near, rtol=0, atol=1e-9)


def test_attacks_say_whether_they_minimise() -> None:
    assert eb.FAB(minimise=True).minimises
    assert not eb.FAB().minimises
    assert all(attack.minimises for attack in OURS.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: eb.DeepFool(overshoot=-0.1), "`overshoot` must be >= 0"),
        (lambda: eb.DeepFool(step_size=0), "`step_size` must be in (0, 1], got 0"),
        (lambda: eb.DeepFool(candidates=0), "`candidates` must be a whole number >= 1, got 0"),
        (lambda: eb.DeepFool(steps=0), "`steps` must be a whole number >= 1"),
        (lambda: eb.FMN(step_size=math.inf), "`step_size` must be > 0 and finite, got inf"),
        (lambda: eb.FMN(gamma=1.0), "`gamma` must be in (0, 1), got 1.0"),
        (lambda: eb.DDN()(linear((3,), 2), batch(1, (3,)), torch.tensor([0]), eb.Linf(eps=1)), "`ball` must be l2"),
        (
            lambda: eb.FMN()(linear((3,), 2), batch(1, (3,)), torch.tensor([0]), eb.Linf(eps=torch.ones(1, 3))),
            "`eps` must be one radius per example for FMN, got shape (1, 3)",
        ),
    ],
)
def test_errors_name_argument_and_rule(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadInput) as error:
        make()
    assert message in str(error.value)


def test_short_form_is_understood() -> None:
    assert parse("deepfool:candidates=4,overshoot=.05") == eb.DeepFool(candidates=4, overshoot=0.05)
    assert replace(eb.DeepFool(), candidates=4) == eb.DeepFool(candidates=4)
    assert parse("fmn:steps=20,gamma=.05") == eb.FMN(steps=20, gamma=0.05)
    assert parse("ddn") == eb.DDN()
    assert isinstance(parse("ddn"), FMN)
    assert isinstance(task_of(batch(1, (2,)), 0, eb.Linf(eps=1)), Task)
