"""FAB: its equations written out, the least radius of linear models, model calls, and corner cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from doubles import BALLS, NEVER, assert_inside
from nets import Counting, Recording, Steady, batch, linear, mlp, predicted, rng
from nets import weighted as scored
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.boundary import logit_gaps
from epsball.attacks.registry import parse
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.engine import queue
from epsball.engine.queue import QueueOptions
from epsball.linear.exact import minimal_eps
from epsball.problem.objective import Objective
from epsball.problem.task import AWAY, task_of

NORMS = ("linf", "l2", "l1")
every_norm = pytest.mark.parametrize("norm", NORMS)
WITHIN = 1.02
"""The share of the least radius by which FAB may miss it on a linear model, with ten steps (1.0164 was the worst of 9
norm-by-dimension grids of 12 models with 40 points each)."""
BOXES = [(0.0, 1.0), (-1.0, 0.5), (-math.inf, math.inf)]


def case(d: int, classes: int, lo: float, hi: float, n: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, points of which some are on the faces of the box, and the model's own labels."""
    model = linear((d,), classes, seed=d + classes)
    x = batch(n, (d,), lo=max(lo, -1.0), hi=min(hi, 1.0), seed=classes)
    x[0, :3], x[1, ::2] = max(lo, -1.0), min(hi, 1.0)
    return model, x, predicted(model, x)


def both(model: nn.Module, x: Tensor, y: Tensor) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Each point twice, and the share of its least radius: once a little more, once less."""
    return model, x.repeat(2, 1), y.repeat(2), torch.tensor([WITHIN, 0.999], dtype=x.dtype).repeat_interleave(len(x))


def weights(model: nn.Module, classes: int) -> tuple[Tensor, Tensor]:
    weight, bias = model[1].weight.detach(), model[1].bias.detach()
    return (weight[0], bias) if classes == 1 else (weight, bias)


@pytest.mark.parametrize("n_targets", [0, 9], ids=["all boundaries", "one boundary at a time"])
@pytest.mark.parametrize("classes", [1, 2, 3, 10])
@pytest.mark.parametrize("d", [1, 2, 40])
@every_norm
def test_succeeds_within_a_fiftieth_of_the_least_radius_of_a_linear_model_and_never_below_it(
    norm: str, d: int, classes: int, n_targets: int
) -> None:
    for lo, hi in BOXES:
        model, x, y, share = both(*case(d, classes, lo, hi))
        free = torch.rand(x.shape, generator=rng(d)) < 0.7
        for mask in (None, free):
            ball = BALLS[norm](eps=0, lo=lo, hi=hi, mask=mask)
            least = minimal_eps(*weights(model, classes), x, y, ball)
            wide = ball.with_eps(torch.where(least.isfinite(), share * least, 9.0))
            x_adv = eb.FAB(steps=10, n_targets=n_targets)(model, x, y, wide)
            assert wide.contains(x_adv, x).all()
            fooled = predicted(model, x_adv) != y
            assert torch.equal(fooled, least.isfinite() & (share > 1)), (lo, hi)


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("d", [1, 2, 40])
@every_norm
def test_targeted_succeeds_within_a_fiftieth_of_the_least_radius_and_never_below_it(
    norm: str, d: int, classes: int
) -> None:
    model, x, y, share = both(*case(d, classes, -1.0, 0.5))
    ball = BALLS[norm](eps=0, lo=-1, hi=0.5)
    least = minimal_eps(*weights(model, classes), x, y, ball, target=1 - y)
    wide = ball.with_eps(torch.where(least.isfinite(), share * least, 9.0))
    x_adv = eb.FAB(steps=10)(model, x, y, wide, target=1 - y)
    assert torch.equal(predicted(model, x_adv) == 1 - y, least.isfinite() & (share > 1))


@every_norm
def test_targeted_reaches_its_class_among_ten(norm: str) -> None:
    model, x, y = case(40, 10, -1.0, 0.5)
    target = (y + 3) % 10
    ball = BALLS[norm](eps=40.0, lo=-1, hi=0.5)
    for attack in (eb.FAB(steps=40), eb.FAB(steps=40, n_targets=9)):
        x_adv = attack(model, x, y, ball, target=target)
        assert (predicted(model, x_adv) == target).double().mean() >= 0.9
        near = BALLS[norm](eps=0).norm(x_adv - x)
        assert (near >= minimal_eps(*weights(model, 10), x, y, ball, target=target)).all()


def walk(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, steps: int, attack: eb.FAB) -> list[Tensor]:
    """Algorithm 1 for one example (1, d), with projections by the exact radius and the maximiser at that radius.

    A step back keeps the planes of the point it was made from.
    """

    def onto(start: Tensor, gain: float, normal: Tensor) -> tuple[Tensor, float]:
        gain, normal = torch.tensor([abs(gain)], dtype=x.dtype), math.copysign(1, gain) * normal
        radius = ball.min_eps(gain, normal, start)
        if radius.isinf():
            return ball.with_eps(1e6).argmax(normal, start), math.inf
        return ball.with_eps(radius).argmax(normal, start), radius.item()

    z, seen = x, []
    for _ in range(steps):
        seen.append(z)
        leaf = z.clone().requires_grad_()
        logits = model(leaf)[0]
        start = x + attack.beta * (z - x) if logits.argmax() != y else z
        planes = []
        for j in range(len(logits)):
            if j != y.item():
                gap = logits[j] - logits[y.item()]
                normal = torch.autograd.grad(gap, leaf, retain_graph=True)[0]
                gap = gap.item() + (normal * (start - z)).sum().item()
                planes.append((gap, normal, *onto(start, -gap, normal)))
        z = start
        gap, normal, from_z, here = min(planes, key=lambda plane: plane[3])
        from_x, there = onto(x, (normal * (z - x)).sum().item() - gap, normal)
        here, there = (ball.norm(part).item() for part in (from_z - z, from_x - x))
        alpha = min(here / (here + there), attack.alpha_max)
        eta = attack.eta
        z = (1 - alpha) * (z + eta * (from_z - z)) + alpha * (x + eta * (from_x - x))
        z = z.clamp(ball.lo, ball.hi)
    return seen


@pytest.mark.parametrize(
    "attack", [eb.FAB(steps=12), eb.FAB(steps=12, eta=1.2, alpha_max=0.4, beta=0.7)], ids=["", "other"]
)
@pytest.mark.parametrize("classes", [2, 4])
@every_norm
def test_steps_are_those_of_algorithm_1(norm: str, classes: int, attack: eb.FAB) -> None:
    x = batch(6, (7,), lo=-0.5, hi=1.5)
    x[:3, 0], x[2, 1:4] = -0.5, 1.5
    net = mlp((7,), classes, seed=2)
    y = predicted(net, x)
    ball = BALLS[norm](eps=1e-9, lo=-0.5, hi=1.5)  # no adversarial example in it: the search goes on
    retreats = 0
    for i in range(6):
        model = Recording(net)
        attack(model, x[i, None], y[i, None], ball)
        expected = walk(net, x[i, None], y[i, None], ball, 12, attack)
        assert len(model.seen) == len(expected) == 12
        retreats += sum(net(z).argmax(1).item() != y[i].item() for z in expected)
        torch.testing.assert_close(torch.cat(model.seen), torch.cat(expected), rtol=0, atol=1e-8)
    assert retreats > 30


@every_norm
def test_minimum_norm_is_near_the_least_and_the_nearest_example_seen(norm: str) -> None:
    for classes in (2, 10):
        model, x, y = case(40, classes, -1.0, 0.5)
        everywhere = BALLS[norm](eps=math.inf, lo=-1, hi=0.5)
        least = minimal_eps(*weights(model, classes), x, y, everywhere)
        recording = Recording(model)
        x_adv = eb.FAB(steps=10, minimise=True)(recording, x, y, everywhere)
        distance = everywhere.norm(x_adv - x)
        assert (predicted(model, x_adv) != y).all()
        assert ((distance >= least * (1 - 1e-12)) & (distance <= WITHIN * least)).all()
        seen = torch.stack(recording.seen)
        fools = torch.stack([predicted(model, z) != y for z in seen])
        lengths = torch.stack([everywhere.norm(z - x) for z in seen])
        torch.testing.assert_close(torch.where(fools, lengths, math.inf).amin(0), distance, rtol=0, atol=0)
        ball = everywhere.with_eps(1.5 * least[:, None])
        inside = eb.FAB(steps=10, minimise=True)(model, x, y, ball)
        assert torch.equal(inside, x_adv)
        small = everywhere.with_eps(0.5 * least[:, None])
        assert small.contains(eb.FAB(steps=10, minimise=True)(model, x, y, small), x).all()


def test_misclassified_example_is_returned_after_one_evaluation() -> None:
    for attack in (eb.FAB(), eb.FAB(minimise=True), eb.FAB(eta=2.0)):
        model, x, y = case(5, 3, 0.0, 1.0)
        counting = Counting(model)
        for eps in (0.0, 0.1):
            counting.calls = 0
            assert torch.equal(attack(counting, x, (y + 1) % 3, eb.L2(eps=eps, lo=0, hi=1)), x)
            assert counting.calls == 1


@pytest.mark.parametrize(
    ("classes", "n_targets", "backwards"), [(1, 0, 1), (2, 0, 1), (3, 0, 2), (10, 0, 9), (10, 9, 1)]
)
def test_step_costs_one_backward_pass_for_each_boundary(classes: int, n_targets: int, backwards: int) -> None:
    model = Counting(mlp((5,), classes))
    x = batch(6, (5,))
    y = predicted(model.model, x)
    model.calls = 0
    eb.FAB(steps=7, n_targets=min(n_targets, 1))(model, x, y, eb.L2(eps=1e-9, lo=0, hi=1), success=NEVER)
    assert model.calls == 7 + bool(n_targets)  # targets are ranked by the clean logits
    assert model.backwards == 6 * 7 * backwards
    model.calls = 0
    eb.FAB(steps=7, minimise=True)(model, x, y, eb.L2(eps=math.inf, lo=-9, hi=9))
    assert model.calls == 8  # one evaluates the end


def test_adversarial_example_at_the_edge_of_the_ball_counts_as_inside() -> None:
    """Logit 3 (x - 1): from 0 the walk lands on 1.05; just less than that is reached from a step back."""
    model = Recording(scored(torch.tensor([3.0]), -3.0).float())
    x, y = torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)
    landed = torch.tensor(1.05).item()
    for eps, calls in ((landed, 2), (landed * (1 + 1e-6), 2), (landed * (1 - 1e-5), 3)):
        model.seen.clear()
        x_adv = eb.FAB()(model, x, y, eb.Linf(eps=eps))
        assert len(model.seen) == calls
        assert predicted(model, x_adv).item() == 1
        assert_inside(x_adv, x, "linf", eps, -math.inf, math.inf, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n_targets", [0, 9])
@every_norm
def test_success_lies_in_the_ball_without_its_slack(norm: str, n_targets: int, dtype: torch.dtype) -> None:
    """In bfloat16 the slack at 1 is .031, as much as the radius; only what rounding adds to x + eps may be beyond."""
    first, second = (torch.randn(*shape, generator=rng(1)) for shape in ((8, 32), (32, 5)))
    model = lambda z: (torch.sin(3 * (z.double() - 0.5) @ first.double()) @ second.double()).to(dtype)  # noqa: E731
    x, eps = batch(100, (8,)).to(dtype), {"linf": 0.03, "l2": 0.06, "l1": 0.12}[norm]
    y, ball = predicted(model, x), BALLS[norm](eps=eps, lo=0, hi=1)
    found = eb.evaluate(model, (x, y), ball, eb.FAB(steps=20, n_targets=n_targets))
    farthest = max(size for size in found.records["distance"].to_pylist() if size is not None)
    rounding = torch.finfo(dtype).eps * (1 + eps) / 2 if norm == "linf" else 0
    assert 20 < found.count("fooled") < 100
    assert farthest <= eps * (1 + 1e-12) + rounding
    direct = eb.FAB(steps=20, n_targets=n_targets)(model, x, y, ball)
    assert torch.equal(ball.project(direct, x), direct)


def test_last_point_is_returned_projected_into_the_ball() -> None:
    model = Recording(scored(torch.tensor([3.0]).double(), -3.0))
    x, y = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    for eps, end in ((2.0, 1.05), (1.02, 1.02), (0.5, 0.5)):  # beyond the ball: its projection
        model.seen.clear()
        x_adv = eb.FAB(steps=1)(model, x, y, eb.Linf(eps=eps))
        assert len(model.seen) == 1
        assert x_adv.item() == pytest.approx(end, rel=1e-6)


def test_boundary_beyond_the_box_is_passed_over_for_one_in_reach() -> None:
    """The boundary of class 1 is 0.1 beyond the box, that of class 2 0.6 away; the paper's rule stays in a corner."""
    weight = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    bias = torch.tensor([0.0, -1.1, -0.6], dtype=torch.float64)
    x, y = torch.tensor([[0.9, 0.0]], dtype=torch.float64), torch.tensor([0])
    for norm in NORMS:
        ball = BALLS[norm](eps=0.62, lo=0, hi=1)
        x_adv = eb.FAB(steps=3)(lambda z: z @ weight.T + bias, x, y, ball)
        assert (x_adv @ weight.T + bias).argmax(1).item() == 2


def test_nearest_boundary_in_l1_takes_the_room_in_the_box_into_account() -> None:
    """To class 1 by a coordinate that has room for a tenth of the way, to class 2 by one that has it for all."""
    weight = torch.tensor([[0.0, 0, 0], [2.0, 0.1, 0], [0.0, 0, 1]], dtype=torch.float64)
    bias = torch.tensor([0.0, -2.1, -0.7], dtype=torch.float64)
    x, y = torch.tensor([[0.95, 0.0, 0.1]], dtype=torch.float64), torch.tensor([0])
    model = lambda z: z @ weight.T + bias  # noqa: E731
    ball = eb.L1(eps=0, lo=0, hi=20)
    least = minimal_eps(weight, bias, x, y, ball.with_eps(0))
    assert least.item() == pytest.approx(0.1)
    ball = eb.L1(eps=math.inf, lo=0, hi=1)
    assert minimal_eps(weight, bias, x, y, ball).item() == pytest.approx(0.6)
    x_adv = eb.FAB(steps=3, minimise=True)(model, x, y, ball)
    assert ball.norm(x_adv - x).item() <= WITHIN * 0.6


@pytest.mark.parametrize("slope", [0.0, 1e-12, 1e-30])
@every_norm
def test_points_stay_in_range_where_the_model_is_flat(norm: str, slope: float) -> None:
    model = Recording(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).requires_grad_(False))
    with torch.no_grad():
        model.model[0].weight.copy_(slope * torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 1.0]]))
        model.model[0].bias.copy_(torch.tensor([2.0, -1.0]))
    x, y = torch.tensor([[0.3, -0.4, 0.5], [30.0, 0.0, -7.0]]), torch.tensor([0, 0])
    ball = BALLS[norm](eps=0.5)
    with Objective(model, logit_gaps) as objective:
        objective._fresh = False
        found = queue.run(eb.FAB(steps=6), objective, task_of(x, y, ball), QueueOptions(batch_size=32))
    seen = torch.cat(model.seen)
    assert seen.isfinite().all()
    assert (seen.abs() <= 1e6 * 31).all()
    assert not found.fooled.any()
    assert not found.invalid.any()


@pytest.mark.parametrize(
    "attack",
    [eb.FAB(steps=9), eb.FAB(steps=9, n_targets=2), eb.FAB(steps=9, minimise=True), eb.FAB(steps=9, restarts=2)],
    ids=["all", "n_targets", "minimise", "restarts"],
)
@every_norm
def test_result_is_the_same_alone_in_a_batch_and_in_the_queue(norm: str, attack: eb.FAB) -> None:
    n = 40
    x, model = batch(n, (6,), lo=-1.0, hi=1.0), Steady(6, 4)
    y = model(x).argmax(1)
    mask = torch.rand(n, 6, generator=rng(3)) < 0.8
    radius = torch.linspace(0.02, 0.6, n, dtype=torch.float64) * {"linf": 0.3, "l2": 0.6, "l1": 1.0}[norm]
    ball = BALLS[norm](eps=radius, lo=-1, hi=1, mask=mask)
    ids = torch.arange(n) * 10 + 3
    for target in (None, (y + 1) % 4):
        whole = attack(model, x, y, ball, ids=ids, target=target, seed=2)
        assert ball.contains(whole, x).all()
        for i in range(0, n, 7):
            row, goal = torch.tensor([i]), None if target is None else target[i, None]
            alone = attack(model, x[row], y[row], ball.bind(x).rows(row), ids=ids[row], target=goal, seed=2)
            assert torch.equal(alone, whole[row])
        task = task_of(x, y, ball, target=target, ids=ids, seed=2)
        fooled = (model(whole).argmax(1) != y) if target is None else model(whole).argmax(1) == target
        assert 0.1 < fooled.double().mean() < 0.95 or target is not None
        for batch_size in (32, 64):
            with Objective(model, logit_gaps) as objective:
                found = queue.run(attack, objective, _with_clean(task, model), QueueOptions(batch_size=batch_size))
            assert torch.equal(found.fooled, fooled)
            assert torch.equal(found.x_adv[fooled], whole[fooled])


def _with_clean(task, model):
    from dataclasses import replace

    return replace(task, clean=model(task.x))


@every_norm
def test_restarts_start_at_random_points_of_their_own_near_x(norm: str) -> None:
    model = Recording(linear((6,), 3))
    x = batch(5, (6,), lo=-1.0, hi=1.0)
    y = predicted(model.model, x)
    ball = BALLS[norm](eps=0.4, lo=-1, hi=1)
    eb.FAB(steps=2, restarts=3)(model, x, y, ball, success=NEVER, seed=4)
    firsts = [z for z in model.seen if len(z) == 5][::3][:3]  # two steps and an evaluation of the end
    starts = [z for z in firsts if not torch.equal(z, x)]
    assert torch.equal(firsts[0], x)
    assert len(starts) == 2
    assert not torch.equal(*starts)
    for z in starts:
        assert (ball.norm(z - x) <= 0.2 + 1e-12).all()
        assert len((z - x)[:, 0].unique()) == 5


def test_radius_per_feature_is_the_unit_of_distance() -> None:
    model, x, y = case(8, 3, -1.0, 0.5)
    scale = torch.tensor([0.1, 0.5, 1.0, 2.0, 0.3, 0.0, 0.2, 1.0], dtype=torch.float64)
    weight, bias = weights(model, 3)
    unit = scale.clamp_min(1e-3)
    fixed = (scale > 0).expand(1, 8)
    inside = eb.Linf(eps=0, lo=(-1 / unit)[None], hi=(0.5 / unit)[None], mask=fixed)
    least = minimal_eps(weight * unit, bias, x / unit, y, inside)
    for i in least.isfinite().nonzero().squeeze(1).tolist():
        for share in (WITHIN, 0.999):
            ball = eb.Linf(eps=share * least[i] * scale[None], lo=-1, hi=0.5)
            x_adv = eb.FAB(steps=10)(model, x[i, None], y[i, None], ball)
            assert ball.contains(x_adv, x[i, None]).all()
            assert (predicted(model, x_adv) != y[i, None]).item() == (share > 1)


def test_logit_gaps_are_zero_on_the_boundaries() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.5, 8.0]])
    x, y = torch.zeros(2, 1), torch.tensor([1, 0])
    away = task_of(x, y, eb.Linf(eps=1))
    assert logit_gaps(logits, away).tolist() == [[-4.0, -3.0], [-3.5, 4.0]]
    assert logit_gaps(logits[:, :2], away).tolist() == [-4.0, -3.5]
    aimed = away.with_jobs(away.noise.restart, torch.tensor([2, 1]))
    assert (aimed.target == AWAY).all()
    assert logit_gaps(logits, aimed).tolist() == [-3.0, -3.5]
    targeted = task_of(x, y, eb.Linf(eps=1), target=torch.tensor([2, 2]))
    assert logit_gaps(logits, targeted).tolist() == [-3.0, 4.0]
    assert logit_gaps(logits, task_of(x, y, eb.Linf(eps=1), target=torch.tensor([0, 1]))).tolist() == [-4.0, -7.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse("fab:loss=margin"), "`fab option` must be one of"),
        (lambda: eb.FAB(steps=0), "`steps` must be a whole number >= 1"),
        (lambda: eb.FAB(eta=0.9), "`eta` must be >= 1"),
        (lambda: eb.FAB(alpha_max=1.5), "`alpha_max` must be in [0, 1], got 1.5"),
        (lambda: eb.FAB(beta=math.nan), "`beta` must be in [0, 1], got nan"),
        (
            lambda: eb.FAB()(linear((3,), 2), batch(1, (3,)), torch.tensor([0]), eb.L0(eps=1, lo=0, hi=1)),
            "`ball` must be linf or l2 or l1 for FAB, got l0",
        ),
    ],
)
def test_errors_name_argument_and_rule(make: Callable[[], object], message: str) -> None:
    with pytest.raises(eb.BadInput) as error:
        make()
    assert message in str(error.value)


def test_short_form_and_the_name_of_the_literature_are_understood() -> None:
    assert parse("fab") == eb.FAB()
    assert parse("fab-t:steps=20") == eb.FAB(steps=20, n_targets=9)
    assert parse("fab:eta=1.1,alpha-max=.2,minimise=true") == eb.FAB(eta=1.1, alpha_max=0.2, minimise=True)


def test_early_stopping_saves_backward_passes_and_changes_no_result() -> None:
    """On linear models ten steps find the nearest boundary: beyond the radius no job needs more."""
    model, x, y = case(12, 4, 0.0, 1.0, n=64)
    for name, eps in (("linf", 0.6), ("l2", 1.4), ("l1", 3.8)):
        ball = BALLS[name](eps=eps, lo=0, hi=1)
        full = eb.evaluate(model, (x, y), ball, "fab-t:n_targets=3")
        stopping = eb.evaluate(model, (x, y), ball, "fab-t:n_targets=3,early_stop=2")
        assert 5 < full.count("robust") < 60
        assert stopping.count("robust") == full.count("robust")
        assert stopping.stages[1].backwards < 0.9 * full.stages[1].backwards  # jobs out of reach are stopped


def test_early_stopping_is_refused_for_the_minimum_norm_and_below_zero() -> None:
    with pytest.raises(BadInput, match="`early_stop` must be left out with `minimise`"):
        eb.FAB(minimise=True, early_stop=2)
    with pytest.raises(BadInput, match="`early_stop` must be >= 0, got -1"):
        eb.FAB(early_stop=-1)
