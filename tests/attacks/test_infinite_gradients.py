"""A gradient that is not finite counts as zero: every attack does what it does where the model itself zeroes it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from doubles import BALLS, EPS, PAIRS
from nets import batch_of, mlp
from torch import Tensor, nn

import epsball as eb
from epsball.attacks.attack import Attack
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import ModelWarning, Objective
from epsball.problem.task import task_of
from epsball.training.registry import parse


class ZeroedSlope(torch.autograd.Function):
    """The input itself, with a gradient that is zero where it is not finite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.where(grad.isfinite(), grad, 0)


class Roots(nn.Module):
    """Logits whose gradient at 0 is inf (coordinate 0), -inf (1) or nan (2): roots of distances from the box's end."""

    def __init__(self, zeroed: bool = False) -> None:
        super().__init__()
        self.net, self.zeroed = mlp((6,), 3, seed=1), zeroed

    def forward(self, x: Tensor) -> Tensor:
        z = ZeroedSlope.apply(x) if self.zeroed else x
        roots = 0.05 * (z[:, 0].sqrt() - z[:, 1].sqrt() + z[:, 2].square().sqrt())
        return self.net(z) + roots[:, None] * torch.tensor([1.0, -2.0, 0.5], dtype=z.dtype)


CLIMBING = {name: pair for name, pair in PAIRS.items() if pair[0].needs == "grad"}


@pytest.mark.parametrize(("attack", "norm"), CLIMBING.values(), ids=CLIMBING)
def test_infinite_gradients_do_what_zeroed_ones_do(attack: Attack, norm: str) -> None:
    x, y = batch_of(12, (6,), 3)
    x[::2, 0], x[1::3, 1], x[::4, 2] = 0, 0, 0
    ball = BALLS[norm](eps=EPS[norm], lo=0.0, hi=1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found, zeroed = (attack(Roots(zeroed), x, y, ball) for zeroed in (False, True))
    assert found.isfinite().all()
    torch.testing.assert_close(found, zeroed, rtol=0, atol=0)
    assert "taken as zero" in " ".join(str(one.message) for one in caught)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("name", ["fgsm", "bim:momentum=1"])
def test_one_infinite_slope_does_not_hide_the_others(name: str, norm: str) -> None:
    def model(z: Tensor) -> Tensor:  # the optimum without the root leads to -.1 and less
        return z[:, 1:].sum(1) - 0.9 + 0.01 * (z[:, 0] * z[:, 0]).sqrt()

    x, y = torch.tensor([[0.0, 0.5, 0.5]], dtype=torch.float64), torch.tensor([1])
    with pytest.warns(ModelWarning, match="taken as zero"):
        found = eb.evaluate(model, (x, y), BALLS[norm](eps=0.3, lo=0, hi=1), name, diagnose=0)
    assert found.robust_accuracy == 0


def test_slope_that_becomes_infinite_on_the_way_is_taken_as_zero_with_a_warning() -> None:
    x, y = torch.tensor([[0.15, 0.5]], dtype=torch.float64), torch.tensor([1])

    def model(z: Tensor) -> Tensor:  # the first step leads to the end of the box, where the slope is infinite
        return z[:, 1] - 0.29 + 0.1 * z[:, 0].sqrt()

    with pytest.warns(ModelWarning, match="taken as zero") as caught:
        x_adv = eb.BIM(steps=10, step_size=1.0)(model, x, y, eb.Linf(eps=0.3, lo=0, hi=1))
    assert len(caught) == 1
    torch.testing.assert_close(x_adv, torch.tensor([[0.0, 0.2]], dtype=torch.float64))


def test_draw_with_an_infinite_gradient_does_not_hide_the_other_draws() -> None:
    calls = [0]

    def model(z: Tensor) -> Tensor:
        calls[0] += 1
        return z[:, 0] + (z[:, 1] * (calls[0] % 2)).sqrt()  # every second draw has an infinite slope at 0

    x = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    task = task_of(x, [0], eb.Linf(eps=0.1))
    with pytest.warns(ModelWarning, match="taken as zero"), Objective(model, cross_entropy, eot=2) as objective:
        grad = objective(x, task).grad
    torch.testing.assert_close(grad, torch.tensor([[0.5, 0.0]], dtype=torch.float64).sigmoid() * torch.tensor([1.0, 0]))


@pytest.mark.parametrize("objective", ["fgsm-rs", "pgd:steps=2", "trades:steps=2", "free:m=2", "fgsm-mix", "n-fgsm"])
def test_training_attacks_take_infinite_slopes_as_zero(objective: str) -> None:
    class Rooted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, z: Tensor) -> Tensor:
            return self.linear(z) + (z[:, :1] * 0).sqrt()  # the slope is nan at every input

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Rooted()
    x = torch.rand(16, 3, generator=torch.Generator().manual_seed(0))
    y = (x.sum(1) > 1.5).long()
    eb.fit(model, (x, y), objective=parse(objective), ball=eb.Linf(eps=0.1, lo=0, hi=1), epochs=2, batch_size=8)
    assert all(part.isfinite().all() for part in model.parameters())
