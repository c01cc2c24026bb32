"""Training by bounds: the worst logits are above those of every point, their gradients exact, their schedule known."""

from __future__ import annotations

import copy
from functools import cache

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.attacks.pgd import PGD
from epsball.balls.l1 import L1
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.load import load_data
from epsball.models.registry import build
from epsball.training import IBP, MTLIBP, SABR, PGDTraining, Plain
from epsball.training.fit import fit
from epsball.training.training_objective import TrainingObjective, TrainingStep
from epsball.training.worst_logits import worst_logits

N = 8
BALLS = {
    "linf": Linf(eps=0.1, lo=0, hi=1),
    "linf, a radius per feature": Linf(eps=0.2 * nets.batch(1, nets.CONV_SHAPE, seed=9), lo=0, hi=1),
    "l2": L2(eps=0.5, lo=0, hi=1),
    "l1, off a mask": L1(eps=2.0, lo=0, hi=1, mask=nets.batch(1, nets.CONV_SHAPE, seed=9) > 0.3),
}
every_ball = pytest.mark.parametrize("ball", BALLS.values(), ids=BALLS)
every_bound = pytest.mark.parametrize("crown", [0.0, 0.5, 1.0], ids=["ibp", "half", "crown-ibp"])


class Residual(nn.Module):
    """A stem with batch normalisation and a block with a shortcut, whose ReLUs are in place, as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        out = self.two(self.relu(self.one(x)))
        out += x
        return self.head(self.relu(out).mean((2, 3)))


MODELS = {
    "conv": nets.conv(3, noisy=True),
    "tanh": nets.mlp(nets.CONV_SHAPE, 3, noisy=True),
    "one logit": nets.mlp(nets.CONV_SHAPE, 1),
    "residual": nets.seeded(Residual, 3, 2.0),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


def step_at(n: int = N, **more) -> TrainingStep:
    return TrainingStep(Noise(7, torch.arange(n), torch.zeros(n, dtype=torch.long)), **more)


def data_for(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = nets.batch(N, nets.CONV_SHAPE, seed=5)
    return x, nets.predicted(model.eval(), x)


def columns(logits: Tensor) -> Tensor:
    """One logit z as (0, z)."""
    return logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)


@every_bound
@every_ball
@every_model
def test_no_point_of_the_ball_has_logits_worse_than_the_bounds_that_are_trained_on(model, ball, crown):
    x, y = data_for(model)
    bound = ball.bind(x)
    worst = worst_logits(model, x, y, bound, step_at(), crown=crown).detach()
    assert worst.gather(1, y[:, None]).abs().max() < 1e-12
    attack = PGD(steps=10)
    points = [
        x,
        attack(model, x, y, ball),
        *(bound.sample(x, Noise(3, torch.arange(N), torch.full((N,), k))) for k in range(5)),
    ]
    for z in points:
        logits = columns(model(z).detach())
        assert (logits - logits.gather(1, y[:, None]) <= worst + 1e-9).all()
        assert (
            F.cross_entropy(logits, y, reduction="none") <= F.cross_entropy(worst, y, reduction="none") + 1e-9
        ).all()


def test_of_a_linear_model_the_worst_logits_are_the_exact_gains_and_tighter_bounds_are_tighter():
    model = nets.linear(nets.CONV_SHAPE, 4, seed=1)
    x, y = data_for(model)
    for ball in BALLS.values():
        bound, weight = ball.bind(x), model[1].weight.detach().reshape(4, *nets.CONV_SHAPE)
        logits, clean = model(x).detach(), columns(model(x).detach())
        exact = torch.stack([bound.max_gain(weight[j] - weight[y], x) + logits[:, j] for j in range(4)], 1)
        exact = exact - clean.gather(1, y[:, None])
        linear = worst_logits(model, x, y, bound, step_at(), crown=1.0).detach()
        torch.testing.assert_close(linear, exact, rtol=0, atol=1e-9)
        intervals = worst_logits(model, x, y, bound, step_at()).detach()
        assert (intervals >= exact - 1e-9).all()
        if "intervals" in ball.traits:  # the last layer is merged into the difference
            torch.testing.assert_close(intervals, exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "crown"),
    [(name, 0.0) for name in MODELS] + [(name, crown) for name in ("conv", "residual") for crown in (0.5, 1.0)],
)  # of curved activations, the slopes of CROWN's lines are constants of the gradient
def test_gradients_of_the_bound_are_those_of_finite_differences(name, crown):
    model = copy.deepcopy(MODELS[name])
    x, y = data_for(model)
    ball = Linf(eps=0.05, lo=0, hi=1).bind(x)

    def loss() -> Tensor:
        return F.cross_entropy(worst_logits(model, x, y, ball, step_at(), crown=crown), y)

    grads = torch.autograd.grad(loss(), list(model.parameters()))
    for number, (parameter, grad) in enumerate(zip(model.parameters(), grads, strict=True)):
        along = torch.randn(parameter.shape, generator=nets.rng(number), dtype=parameter.dtype)
        ends = []
        for size in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(along, alpha=size)
                ends.append(loss())
                parameter.add_(along, alpha=-size)
        slope = (grad * along).sum()
        assert abs((ends[0] - ends[1]) / 2e-6 - slope) < 1e-5 * (1 + abs(slope))


def test_a_trace_is_made_once_in_a_training_and_sees_the_parameters_as_they_are():
    counting, cache = nets.Counting(nets.conv(3)), {}
    x, y = data_for(counting)
    ball = Linf(eps=0.1, lo=0, hi=1).bind(x)
    first = worst_logits(counting, x, y, ball, step_at(cache=cache))
    calls = counting.calls
    with torch.no_grad():
        for parameter in counting.parameters():
            parameter.mul_(0.5)
    second = worst_logits(counting, x, y, ball, step_at(cache=cache))
    assert counting.calls == calls
    torch.testing.assert_close(second, worst_logits(counting, x, y, ball, step_at()))
    assert not torch.allclose(first, second)
    other = nets.conv(3, seed=1)
    torch.testing.assert_close(
        worst_logits(other, x, y, ball, step_at(cache=cache)), worst_logits(other, x, y, ball, step_at())
    )


def test_kappa_and_crown_follow_the_radius():
    model = nets.conv(3).train()
    x, y = data_for(model)
    model.train()
    ball = Linf(eps=0.1, lo=0, hi=1).bind(x)
    for radius, kappa, crown in ((0.0, 1.0, 0.6), (0.5, 0.6, 0.3), (1.0, 0.2, 0.0)):
        logged = IBP(kappa=0.2, crown=0.6)(model, x, y, ball, step_at(radius=radius))
        bound = F.cross_entropy(worst_logits(model, x, y, ball, step_at(), crown=crown), y)
        torch.testing.assert_close(
            logged["loss"], (kappa * F.cross_entropy(model(x), y) + (1 - kappa) * bound).detach()
        )


def test_the_radius_grows_over_half_of_the_training_unless_told_otherwise():
    data, seen = load_data("digits", split="train", first=60), []

    class Noting(IBP):
        def __call__(self, model, x, y, ball, step):
            seen.append((step.fraction, step.radius, float(ball.eps)))
            return super().__call__(model, x, y, ball, step)

    for ramp, share in ((None, 0.5), (0.25, 0.25), (0.0, 0.0)):
        seen.clear()
        model = build("small-mlp", data.shape, data.classes)
        options = {} if ramp is None else {"ramp": ramp}
        result = fit(model, data, Linf(eps=0.1, lo=0, hi=1), objective=Noting(), epochs=2, batch_size=15, **options)
        assert result.config["ramp"] == share
        for fraction, radius, eps in seen:
            assert radius == (min(1.0, fraction / share) if share else 1.0)
            assert eps == pytest.approx(0.1 * radius)
    plain = fit(build("small-mlp", data.shape, data.classes), data, objective=Plain(), epochs=1)
    assert plain.config["ramp"] == 0.0


def test_the_ends_of_sabr_and_mtl_ibp_are_interval_bounds_and_attacks():
    x, y = data_for(nets.conv(3))
    ball = Linf(eps=0.1, lo=0, hi=1).bind(x)

    def gradients(objective) -> Tensor:
        model = nets.conv(3).train()
        objective(model, x, y, ball, step_at())
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    bounds, attacks = gradients(IBP(kappa=0.0)), gradients(PGDTraining(steps=3))
    torch.testing.assert_close(gradients(SABR(share=1.0)), bounds)
    torch.testing.assert_close(gradients(MTLIBP(alpha=1.0)), bounds)
    torch.testing.assert_close(gradients(SABR(share=0.0, steps=3)), attacks)
    torch.testing.assert_close(gradients(MTLIBP(alpha=0.0, steps=3, step_size=0.25)), attacks)


def test_the_small_ball_of_sabr_lies_in_the_whole_one(monkeypatch):
    model, seen = nets.conv(3).train(), []
    x, y = data_for(model)

    def note(model, x, y, ball, step):
        seen.append((x, *ball.intervals(x)))
        return worst_logits(model, x, y, ball, step)

    monkeypatch.setattr("epsball.training.sabr.worst_logits", note)
    ball = Linf(eps=torch.linspace(0.01, 0.4, N, dtype=torch.float64), lo=0, hi=1).bind(x)
    SABR(share=0.3)(model.train(), x, y, ball, step_at())
    ((centre, lower, upper),) = seen
    low, high = ball.intervals(x)
    assert (low - 1e-12 <= lower).all()
    assert (upper <= high + 1e-12).all()
    assert (centre - x).abs().max() > 0.2  # the attack went to the end of its part


def test_a_network_with_layers_that_bounds_do_not_cover_is_refused_with_the_layers_name():
    class Sine(nets.Wrapper):
        def forward(self, x):
            return self.model(x.sin())

    model = Sine(nets.conv(3)).train()
    x, y = nets.batch_of(N, nets.CONV_SHAPE, 3, seed=5)
    with pytest.raises(BadInput, match="layers that certificates cover, got `sin` of layer Sine; train with pgd"):
        IBP()(model, x, y, Linf(eps=0.1, lo=0, hi=1).bind(x), step_at())


@cache
def certified(objective: TrainingObjective) -> float:
    """The share of test examples that intervals certify after training with `objective`."""
    data, ball = load_data("digits", split="train", first=600), Linf(eps=0.05, lo=0, hi=1)
    test, model = load_data("digits", split="test", first=200), build("small-mlp", (1, 8, 8), 10)
    fit(model, data, ball, objective=objective, epochs=20, batch_size=60, lr=1e-2)
    worst = worst_logits(model, test.x, test.y, ball.bind(test.x), step_at(len(test)))
    return float((worst.argmax(1) == test.y).float().mean())


@pytest.mark.parametrize("objective", [IBP(), MTLIBP(), SABR(share=0.7, steps=2)], ids=["ibp", "mtl-ibp", "sabr"])
def test_a_network_trained_by_bounds_is_certified_where_a_plainly_trained_one_is_not(objective):
    assert certified(Plain()) < 0.1
    assert certified(objective) > 0.6
