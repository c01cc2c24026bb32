"""Every registered attack, and the test doubles, through one suite; exact optima; known pitfalls of the field."""

from __future__ import annotations

import inspect
import math
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from doubles import BALLS, EPS, NEVER, PAIRS, SUITE, assert_inside, ball_of, every_attack, every_attack_and_norm
from nets import CONV_SHAPE, Counting, RaisesAt, Recording, Steady, batch, batch_of, conv, linear, mlp, predicted, rng
from nets import weighted as scored
from torch import Tensor, nn

import epsball as eb
import epsball.attacks
from epsball.attacks.attack import Attack, LossAttack
from epsball.attacks.registry import ATTACKS, attack_class, options_of, parse
from epsball.common.noise import Noise
from epsball.common.shapes import flat
from epsball.engine import queue
from epsball.engine.queue import QueueOptions
from epsball.problem.losses import cross_entropy, margin
from epsball.problem.objective import Objective, changes_prediction
from epsball.problem.task import task_of

every_norm = pytest.mark.parametrize("norm", BALLS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@every_attack_and_norm
def test_result_lies_in_ball_box_and_mask_and_keeps_its_dtype(attack: Attack, norm: str, dtype: torch.dtype) -> None:
    model = linear((5,), 3, scale=1.5).to(dtype)
    mask = torch.tensor([[True, False, True, True, False]])
    boxes = [(0.0, 1.0), (-1.0, 2.0)] if norm == "l0" else [(0.0, 1.0), (-1.0, 2.0), (-math.inf, math.inf)]
    for lo, hi in boxes:
        x = batch(6, (5,), lo=max(lo, -1.0), hi=min(hi, 2.0)).to(dtype)
        x[0, 0], x[1, 1] = x.new_tensor([max(lo, -1.0), min(hi, 2.0)])
        y = torch.tensor([0, 1, 2, 0, 1, 2])
        for part, target, success in (
            (None, None, changes_prediction),
            (mask, None, NEVER),
            (mask, (y + 1) % 3, NEVER),
        ):
            ball = BALLS[norm](eps=EPS[norm], lo=lo, hi=hi, mask=part)
            x_adv = attack(model, x, y, ball, target=target, seed=3, success=success)
            assert_inside(x_adv, x, norm, EPS[norm], lo, hi, part)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
REGISTERED = {name: pair for name, pair in PAIRS.items() if pair[0] in [SUITE[one] for one in ATTACKS]}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("attack", "norm"), REGISTERED.values(), ids=REGISTERED)
def test_result_lies_in_the_ball_where_logits_are_of_another_dtype(
    attack: Attack, norm: str, dtype: torch.dtype
) -> None:
    """As under autocast; with more examples than the pool has rows, so that new rows join those that have stepped."""
    x, net = batch(40, (5,)).to(dtype), linear((5,), 3, scale=1.5)
    ball = BALLS[norm](eps=0.6 * EPS[norm] if norm != "l0" else 1.0, lo=0, hi=1).bind(x)
    attacks = [attack, replace(attack, early_stop=2.0)] if "early_stop" in options_of(type(attack)) else [attack]
    for kind in DTYPES:
        model = lambda z, kind=kind: net(z.double()).to(kind)  # noqa: E731
        y = predicted(model, x)
        for one in attacks:
            with Objective(model, one.loss, needs=one.needs) as objective:
                found = queue.run(one, objective, task_of(x, y, ball), QueueOptions(warm_start=True, batch_size=32))
            assert found.x_adv.dtype == dtype
            assert torch.equal(ball.project(found.x_adv, x), found.x_adv)
            assert torch.equal(ball.project(found.warm_start, x), found.warm_start)
            assert torch.equal(predicted(model, found.x_adv) != y, found.fooled)
            assert found.fooled.sum() < 40
            assert found.fooled.any() or attack.needs != "grad"


@pytest.mark.parametrize(("attack", "norm"), REGISTERED.values(), ids=REGISTERED)
def test_infinite_radius_of_one_row_leaves_the_others_unchanged(attack: Attack, norm: str) -> None:
    x, net = batch(9, (6,), lo=-0.5, hi=0.8), mlp((6,), 3)
    y = predicted(net, x)
    radius = torch.linspace(0.2, 1.2, 9, dtype=x.dtype).mul(EPS[norm])
    endless = torch.where(torch.arange(9) % 4 == 1, math.inf, radius)
    ends = [attack(net, x, y, BALLS[norm](eps=eps, lo=-0.5, hi=0.8), success=NEVER) for eps in (radius, endless)]
    same = endless.isfinite()
    torch.testing.assert_close(ends[1][same], ends[0][same], rtol=0, atol=1e-12)
    assert same.sum() == 7
    if attack.needs == "grad" and not attack.minimises:  # those return x where they find no adversarial example
        moved = flat(ends[1] - x).abs().sum(1)
        assert (moved[~same] > moved[same].max() / 2).all()
        assert ((ends[1] >= -0.5) & (ends[1] <= 0.8)).all()


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
@pytest.mark.parametrize(("classes", "squeeze"), [(1, True), (1, False), (2, False), (3, False), (10, False)])
@pytest.mark.parametrize("shape", [(), (5,), CONV_SHAPE], ids=["dim 1", "dim 2", "dim 4"])
@every_attack
def test_any_shape_and_number_of_classes_is_attacked(
    attack: Attack, shape: tuple[int, ...], classes: int, squeeze: bool, targeted: bool
) -> None:
    model = linear(shape, classes, squeeze=squeeze)
    x = batch(6, shape)
    y = predicted(model, x)
    eps = 50.0  # far enough for any linear model; there cross-entropy is saturated
    attack = replace(attack, loss=margin) if isinstance(attack, LossAttack) and attack.loss is cross_entropy else attack
    target = (y + 1) % max(classes, 2) if targeted else None
    ball = ball_of(attack, eps)
    x_adv = attack(model, x, y, ball, target=target)
    assert_inside(x_adv, x, ball.name, ball.eps, -math.inf, math.inf, None)
    if attack.needs == "grad":
        reached = predicted(model, x_adv)
        assert ((reached == target) if targeted and classes < 3 else (reached != y) | torch.tensor(targeted)).all()


@every_attack_and_norm
def test_result_does_not_depend_on_the_batch_or_on_global_randomness(attack: Attack, norm: str) -> None:
    """To the bit in a batch of 32, as the docs promise; one by one the kernels of a row may round differently."""
    x, y = batch_of(32, (6,), 3)
    model, ball = Steady(6, 3), BALLS[norm](eps=EPS[norm], lo=0, hi=1)
    ids = torch.arange(32) * 1000 + 7
    state = torch.get_rng_state()
    whole = attack(model, x, y, ball, ids=ids, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(attack(model, x, y, ball, ids=ids, seed=5), whole)
    order = torch.randperm(32, generator=rng(1))
    assert torch.equal(attack(model, x[order], y[order], ball, ids=ids[order], seed=5), whole[order])
    alone = torch.cat([attack(model, x[i, None], y[i, None], ball, ids=ids[i, None], seed=5) for i in range(9)])
    torch.testing.assert_close(alone, whole[:9], rtol=0, atol=1e-12)


@every_attack_and_norm
def test_prediction_at_the_result_does_not_depend_on_the_batch(attack: Attack, norm: str) -> None:
    """The last bits of a network's logits depend on the batch; the success of an attack does not."""
    x, model = batch(9, (6,)), mlp((6,), 3)
    y, ball = predicted(model, x), BALLS[norm](eps=2 * EPS[norm], lo=0, hi=1)
    whole = attack(model, x, y, ball)
    alone = torch.cat([attack(model, x[i, None], y[i, None], ball, ids=torch.tensor([i])) for i in range(9)])
    assert torch.equal(predicted(model, alone), predicted(model, whole))


@pytest.mark.parametrize("name", ["pgd", "uniform-noise", "sign-noise", "random-search", "label-walk"])
def test_seed_and_id_are_in_the_key_of_the_noise(name: str) -> None:
    x, y = batch_of(4, (6,), 3)
    model = linear((6,), 3)

    def at(seed: int, ids: Tensor) -> Tensor:
        return SUITE[name](model, x, y, eb.Linf(eps=0.3), ids=ids, seed=seed, success=NEVER)

    first = at(0, torch.arange(4))
    changed = at(1, torch.arange(4)), at(0, torch.arange(4) + 50)
    if name == "pgd":  # it ends at the optimum, wherever it starts
        changed = tuple(-z for z in changed)
    assert all(bool((z != first).any(1).all()) for z in changed)


def snapshot(model: nn.Module) -> list[object]:
    return [(m.training, [(p.requires_grad, id(p.grad)) for p in m.parameters()]) for m in model.modules()]


@pytest.mark.parametrize("raises_at", [None, 1, 2], ids=["sound", "raises at once", "raises later"])
@every_attack
def test_model_and_arguments_come_back_unchanged(attack: Attack, raises_at: int | None) -> None:
    inner = conv(noisy=True)
    inner.train()
    inner[1].eval()
    inner[0].weight.requires_grad_(False)
    inner[3].training = False
    for part in inner.parameters():
        part.grad = torch.ones_like(part)
    model = Recording(RaisesAt(inner, raises_at or -1))
    x, y = batch_of(5, CONV_SHAPE, 10)
    handed = x, y, (y + 1) % 10, torch.arange(5)
    copies = [part.clone() for part in (*handed, *inner.state_dict().values(), *(p.grad for p in inner.parameters()))]
    before = snapshot(model)
    call, ball = replace(attack, restarts=2), ball_of(attack, 0.01, lo=0, hi=1)
    if raises_at is None:
        call(model, x, y, ball, target=handed[2], ids=handed[3])
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            call(model, x, y, ball, target=handed[2], ids=handed[3])
    assert snapshot(model) == before
    now = (*handed, *inner.state_dict().values(), *(p.grad for p in inner.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(now, copies, strict=True))
    assert not any(model.modes)
    assert not x.requires_grad


@every_attack_and_norm
def test_example_that_requires_a_gradient_gives_the_same_result(attack: Attack, norm: str) -> None:
    x, y = batch_of(4, (5,), 3)
    model, ball = linear((5,), 3), BALLS[norm](eps=EPS[norm], lo=0, hi=1)
    leaf = x.clone().requires_grad_()
    x_adv = attack(model, leaf, y, ball)
    assert torch.equal(x_adv, attack(model, x, y, ball))
    assert not x_adv.requires_grad
    assert leaf.requires_grad
    assert leaf.grad is None


@every_attack
def test_result_is_the_same_under_no_grad(attack: Attack) -> None:
    x, y = batch_of(4, (5,), 3)
    ball = ball_of(attack, 0.2)
    with torch.no_grad():
        inside = attack(mlp((5,), 3), x, y, ball)
        assert not torch.is_grad_enabled()
    assert torch.equal(inside, attack(mlp((5,), 3), x, y, ball))


@every_attack
def test_empty_batch_costs_no_model_call(attack: Attack) -> None:
    model = Counting(mlp((5,), 3))
    x = batch(0, (5,))
    assert attack(model, x, torch.zeros(0, dtype=torch.long), ball_of(attack, 0.2)).shape == (0, 5)
    assert model.calls == 0


REFUSED = [(name, norm) for name, attack in SUITE.items() for norm in BALLS if norm not in attack.norms()]


@pytest.mark.parametrize(("name", "norm"), REFUSED)
def test_norm_for_which_an_attack_is_not_defined_is_refused(name: str, norm: str) -> None:
    """By a direct call, the queue and an evaluation, before any model call."""
    attack, ball = SUITE[name], BALLS[norm](eps=EPS[norm], lo=0, hi=1)
    model, (x, y) = Counting(linear((5,), 3)), batch_of(4, (5,), 3)
    message = rf"`ball` must be .*{' or '.join(attack.norms())} for {type(attack).__name__}, got {norm}; .* which norm"

    def queued() -> None:
        with Objective(model, attack.loss, needs=attack.needs) as objective:
            queue.run(attack, objective, task_of(x, y, ball))

    calls = [lambda: attack(model, x, y, ball), queued, lambda: eb.evaluate(model, (x, y), ball, attacks=attack)]
    if name in ATTACKS:
        calls.append(lambda: eb.evaluate(model, (x, y), ball, attacks=["fgsm", name]))
    for call in calls:
        with pytest.raises(eb.BadInput, match=message):
            call()
    assert model.calls == 0


# The registry.


def test_registry_lists_every_attack_of_the_package() -> None:
    found = set()
    for module in pkgutil.walk_packages(epsball.attacks.__path__, "epsball.attacks."):
        for _, cls in inspect.getmembers(import_module(module.name), inspect.isclass):
            if issubclass(cls, Attack) and not inspect.isabstract(cls):
                found.add((cls.__module__, cls.__name__))
    assert found == set(ATTACKS.values())
    assert len(found) == len(ATTACKS)
    for name in ATTACKS:
        assert getattr(eb, attack_class(name).__name__) is attack_class(name)
        assert all(v is None or isinstance(v, str | int | float) for v in options_of(attack_class(name)).values())


def test_reading_the_registry_does_not_import_torch() -> None:
    code = "import sys; from epsball.attacks.registry import ATTACKS; sys.exit(not ATTACKS or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("fgsm", eb.FGSM()),
        (" PGD ", eb.PGD()),
        ("pgd:steps=100,loss=margin", eb.PGD(steps=100, loss=margin)),
        ("bim:step-size=0.1,momentum=1", eb.BIM(step_size=0.1, momentum=1.0)),
        ("uniform-noise:restarts=5", eb.UniformNoise(restarts=5)),
    ],
)
def test_parse_gives_the_attack_with_its_options(text: str, attack: Attack) -> None:
    assert parse(text) == attack


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pdg", "did you mean 'pgd'"),
        ("", "must be one of fgsm"),
        ("pgd:stepz=3", "did you mean 'steps'"),
        ("pgd:steps", "KEY=VALUE, got 'steps'"),
        ("pgd:steps=many", "`pgd:steps` must be of type int, got 'many'"),
        ("pgd:steps=2.5", "`pgd:steps` must be of type int"),
        ("pgd:steps=0", "`steps` must be a whole number >= 1"),
        ("pgd:loss=cross_entrpy", "did you mean 'cross_entropy'"),
    ],
)
def test_parse_error_names_a_remedy(text: str, message: str) -> None:
    with pytest.raises(eb.BadInput) as error:
        parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: eb.PGD(steps=0),
        lambda: eb.PGD(steps=2.5),  # would never be done
        lambda: eb.PGD(steps=math.inf),
        lambda: eb.PGD(step_size=-0.1),
        lambda: eb.PGD(step_size=math.nan),
        lambda: eb.BIM(momentum=-1),
        lambda: eb.PGD(restarts=0),
        lambda: eb.PGD(restarts=1.5),
        lambda: eb.FGSM(n_targets=-1),
        lambda: eb.FGSM(loss="margin"),
    ],
)
def test_invalid_hyperparameter_is_refused(make: Callable[[], Attack]) -> None:
    with pytest.raises(eb.BadInput, match=r"`(steps|step_size|momentum|restarts|n_targets|loss)` must be"):
        make()


# Oracles: on a linear model the optimum is known.


def test_fgsm_gives_the_figures_of_the_worked_example() -> None:
    x, w = torch.tensor([[-2.0, 2, 1, -3, 1]], dtype=torch.float64), torch.tensor([[3.0, 2, -1, 1, 4]]).double()
    for eps, figure in ((0.0, 0.11920292202211755), (0.3, 0.7858349830425586), (1.0, 0.9998766054240137)):
        ball = eb.Linf(eps=eps)
        by_fgsm = eb.FGSM()(scored(w[0]), x, torch.tensor([0]), ball)
        assert torch.equal(by_fgsm, ball.argmax(w, x))
        assert scored(w[0])(by_fgsm).sigmoid().item() == pytest.approx(figure, rel=1e-14)
    assert torch.equal(by_fgsm - x, w.sign())


def heavy_tailed(d: int) -> Tensor:
    """A few weights carry nearly all: Cauchy distributed."""
    normal = torch.randn(2, d, generator=rng(4), dtype=torch.float64)
    return normal[0] / normal[1].abs().clamp_min(1e-2)


WEIGHTS = {"dense": torch.randn(40, generator=rng(3), dtype=torch.float64), "heavy tailed": heavy_tailed(40)}
RADII = [
    (norm, eps) for norm, radii in {"linf": (0.05, 0.4), "l2": (0.2, 1.5), "l1": (0.3, 4)}.items() for eps in radii
]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("lo", "hi"), [(0.0, 1.0), (-1.0, 0.5)])
@pytest.mark.parametrize(("norm", "eps"), [*RADII, ("l0", 1.0), ("l0", 5.0)])
def test_linear_optimum_is_reached_by_pgd_and_exceeded_by_no_attack(
    norm: str, eps: float, lo: float, hi: float, weights: str
) -> None:
    w = WEIGHTS[weights] / WEIGHTS[weights].abs().sum()
    x, y = batch(8, (40,), lo=lo, hi=hi), torch.tensor([0, 1] * 4)
    x[0, :5], x[1, 5:10] = lo, hi
    up = (1 - 2 * y)[:, None] * w  # the loss of class 0 rises with the logit
    ball = BALLS[norm](eps=eps, lo=lo, hi=hi)
    optimum = ball.max_gain(up, x)
    assert (optimum > 0).all()
    least = {"linf": 1 - 1e-9, "l2": 0.98, "l1": 0.98, "l0": -math.inf}[norm]  # in L0 no ratio is promised
    for name, attack in {**SUITE, "bim": eb.BIM(), "pgd": eb.PGD(steps=40)}.items():
        if norm not in attack.norms():
            continue
        gain = (up * (attack(scored(w), x, y, ball, success=NEVER) - x)).sum(1)
        assert (gain <= optimum + 1e-12).all(), name
        if name == "fgsm":
            torch.testing.assert_close(gain, optimum, rtol=1e-12, atol=0)
        if name == "pgd":
            assert (gain >= least * optimum).all(), gain / optimum


@pytest.mark.parametrize("targeted", [False, True])
@every_norm
def test_fgsm_is_the_maximiser_of_the_true_gradient(norm: str, targeted: bool) -> None:
    x, y = batch_of(6, (5,), 3)
    model, ball = linear((5,), 3), BALLS[norm](eps=EPS[norm], lo=-0.2, hi=1.3)
    goal, sign = ((y + 1) % 3, -1) if targeted else (y, 1)
    error = model(x).softmax(1) - nn.functional.one_hot(goal, 3)
    grad = sign * error @ model[1].weight
    x_adv = eb.FGSM()(model, x, y, ball, target=goal if targeted else None)
    torch.testing.assert_close(x_adv, ball.argmax(grad, x).detach(), rtol=0, atol=1e-12)
    assert torch.equal(eb.FGSM.from_gradient(grad, x, ball), ball.argmax(grad, x))


# The pitfalls.

LINE = scored(torch.ones(1, dtype=torch.float64))  # the logit is x


def test_restarts_are_chosen_per_row_and_end_with_the_first_success() -> None:
    x, inner = batch(40, (4,)), scored(torch.tensor([2.0, -1, 1, -1]).double(), -0.5)
    y = (inner(x) > 0).long()
    model, ball, restarts = Counting(inner), eb.Linf(eps=0.25, lo=0, hi=1), 6
    points = [ball.sample(x, Noise(9, torch.arange(40), torch.full((40,), r))) for r in range(restarts)]
    succeeds = torch.stack([(inner(z) > 0).long() != y for z in points])
    first = torch.where(succeeds.any(0), succeeds.long().argmax(0), 0)
    assert len(set(first.tolist())) > 3
    assert not succeeds.any(0).all()
    x_adv = eb.UniformNoise(restarts=restarts)(model, x, y, ball, seed=9)
    assert torch.equal(x_adv, torch.stack(points)[first, torch.arange(40)])
    assert model.forwards == torch.where(succeeds.any(0), first + 1, restarts).sum()


@pytest.mark.parametrize("attack", [eb.BIM(steps=40, step_size=0.1), eb.BIM(steps=7, step_size=0.1)])
def test_first_adversarial_example_is_returned_and_not_the_last_iterate(attack: Attack) -> None:
    x = torch.tensor([[0.0], [0.1], [5.0]], dtype=torch.float64)
    band = lambda output, task: (output[:, 1] > 0.25) & (output[:, 1] < 0.55)  # noqa: E731
    x_adv = attack(LINE, x, torch.zeros(3, dtype=torch.long), eb.Linf(eps=1.0), success=band)
    torch.testing.assert_close(x_adv[:2, 0], torch.tensor([0.3, 0.3], dtype=torch.float64))
    assert x_adv[2, 0] == pytest.approx(5 + min(1, attack.max_steps * 0.1))


def test_targeted_success_is_the_target_class_only() -> None:
    corner = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)  # classes change at .5 and 1.5
    model = lambda x: -((x - corner.T) ** 2)  # noqa: E731
    x, y = torch.full((2, 1), 0.3, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    x_adv = eb.BIM(step_size=0.1)(model, x, y, eb.Linf(eps=2.0), target=torch.tensor([1, 2]))
    torch.testing.assert_close(x_adv[:, 0], torch.tensor([0.7, 1.7]).double(), rtol=0, atol=0.21)
    assert model(x_adv).argmax(1).tolist() == [1, 2]
    away = eb.BIM(step_size=0.1)(model, x, y, eb.Linf(eps=2.0))
    assert (model(away).argmax(1) == 1).all()


@every_norm
@pytest.mark.parametrize("attack", [eb.FGSM(), eb.BIM(), eb.PGD(), eb.BIM(momentum=1.0), eb.PGD(loss=margin)])
def test_targeted_raises_the_targets_probability_and_untargeted_lowers_the_labels(attack: Attack, norm: str) -> None:
    x, y = batch_of(12, (5,), 4)
    model, ball, target = linear((5,), 4), BALLS[norm](eps=EPS[norm], lo=0, hi=1), (y + 1) % 4
    chance = lambda z: model(z).log_softmax(1)  # noqa: E731
    towards = attack(model, x, y, ball, target=target, success=NEVER)
    assert (chance(towards).gather(1, target[:, None]) > chance(x).gather(1, target[:, None])).all()
    away = attack(model, x, y, ball, success=NEVER)
    assert (chance(away).gather(1, y[:, None]) < chance(x).gather(1, y[:, None])).all()


def test_misclassified_rows_move_under_fgsm_and_stay_put_under_bim() -> None:
    x, y = batch_of(10, (5,), 3)
    model, ball = linear((5,), 3), eb.Linf(eps=0.1)
    wrong = model(x).argmax(1) != y
    assert wrong.any()
    assert ((eb.FGSM()(model, x, y, ball) - x).abs().amax(1) > 0.099).all()
    assert torch.equal(eb.BIM()(model, x, y, ball)[wrong], x[wrong])


def test_momentum_is_that_of_equation_6() -> None:
    x, y = batch_of(5, (6,), 3)
    model = mlp((6,), 3)
    z, velocity = x, torch.zeros_like(x)
    for _ in range(4):
        leaf = z.clone().requires_grad_()
        grad = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]
        velocity = 0.7 * velocity + grad / grad.abs().mean(1, keepdim=True)
        z = (z + 0.4 * 0.2 * velocity.sign()).clamp(x - 0.2, x + 0.2)
    x_adv = eb.BIM(steps=4, step_size=0.4, momentum=0.7)(model, x, y, eb.Linf(eps=0.2), success=NEVER)
    torch.testing.assert_close(x_adv, z, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("attack", "k"), [(eb.FGSM(), 1), (eb.BIM(steps=3), 3), (eb.PGD(steps=7), 7), (eb.PGD(momentum=0.5), 40)]
)
def test_k_steps_cost_k_forward_and_backward_passes(attack: Attack, k: int) -> None:
    model = Counting(mlp((5,), 3))
    x, y = batch_of(6, (5,), 3)
    attack(model, x, y, eb.L2(eps=0.3))
    assert (model.calls, model.forwards, model.backwards) == (k, 6 * k, 6 * k)
