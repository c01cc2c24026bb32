"""Coordinates and examples that may not move: radius 0 for a feature, for an example, and a box without width."""

from __future__ import annotations

import pytest
import torch
from doubles import BALLS, EPS, PAIRS, ball_of, every_attack_and_norm
from nets import Recording, batch, batch_of, mlp
from torch import Tensor

import epsball as eb
from epsball.attacks.attack import Attack
from epsball.balls.linf import Linf

BOX = {"lo": 0.0, "hi": 1.0}
IN_LINF = {name: attack for name, (attack, norm) in PAIRS.items() if norm == "linf"}
PER_FEATURE = {name: attack for name, attack in IN_LINF.items() if not isinstance(attack, eb.FMN)}  # it refuses them
ZEROS = torch.tensor([[0.0, 0.2, 0.4, 0.0, 0.3, 0.1]], dtype=torch.float64)


BASE = mlp((6,), 3, seed=1)
MIDDLE = BASE(batch(200, (6,), seed=5)).mean(0).detach()


def net(x: Tensor) -> Tensor:
    """A network that predicts each of its classes."""
    return BASE(x) - MIDDLE


def attacked(attack: Attack, ball: eb.Ball, x: Tensor, y: Tensor) -> Tensor:
    """The points of a direct call, of a model that is never shown a number that is not finite."""
    model = Recording(net)
    x_adv = attack(model, x, y, ball)
    assert all(seen.isfinite().all() for seen in model.seen)
    assert x_adv.isfinite().all()
    return x_adv


@pytest.mark.parametrize("boxed", [True, False], ids=["box", "no box"])
@pytest.mark.parametrize("attack", PER_FEATURE.values(), ids=PER_FEATURE)
def test_radius_of_zero_for_a_feature_is_a_mask_to_every_attack(attack: Attack, boxed: bool) -> None:
    x = batch(8, (6,))
    y = net(x).argmax(1)
    zeros = Linf(eps=ZEROS, **(BOX if boxed else {}))
    mask = Linf(eps=torch.where(ZEROS > 0, ZEROS, 1.0), mask=ZEROS > 0, **(BOX if boxed else {}))
    x_adv = attacked(attack, zeros, x, y)
    assert torch.equal(x_adv[:, ZEROS[0] == 0], x[:, ZEROS[0] == 0])
    assert zeros.contains(x_adv, x).all()
    torch.testing.assert_close(x_adv, attacked(attack, mask, x, y), rtol=0, atol=0)


@every_attack_and_norm
def test_example_with_a_radius_of_zero_stays(attack: Attack, norm: str) -> None:
    x = batch(8, (6,))
    y = net(x).argmax(1)
    eps = torch.full((8,), EPS[norm], dtype=torch.float64)
    eps[::3] = 0
    x_adv = attacked(attack, BALLS[norm](eps=eps, **BOX), x, y)
    assert torch.equal(x_adv[::3], x[::3])
    assert torch.equal(x_adv, x) <= (attack.needs == "label")  # eight questions do not always find something


@every_attack_and_norm
def test_feature_whose_box_has_no_width_stays(attack: Attack, norm: str) -> None:
    x = batch(8, (6,))
    y = net(x).argmax(1)
    x[:, 2] = 0.25
    lo, hi = torch.zeros(1, 6, dtype=torch.float64), torch.ones(1, 6, dtype=torch.float64)
    lo[:, 2] = hi[:, 2] = 0.25
    x_adv = attacked(attack, BALLS[norm](eps=EPS[norm], lo=lo, hi=hi), x, y)
    assert (x_adv[:, 2] == 0.25).all()
    assert torch.equal(x_adv, x) <= (attack.needs == "label")


@pytest.mark.parametrize("boxed", [True, False], ids=["box", "no box"])
@pytest.mark.parametrize("name", ["fgsm", "fab", "hopskipjump:steps=300", "square:steps=300"])
def test_immutable_columns_of_a_linear_model_reach_the_closed_form(name: str, boxed: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(40, 6, generator=g), torch.randn(6, generator=g)
    y, eps = (x @ w > 0).long(), torch.tensor([[0.0, 0.6, 0.4, 0.0, 0.5, 0.0]])
    exact = ((x @ w).abs() > (w.abs() * eps).sum()).float().mean().item()  # the box is far
    ball = eb.Linf(eps=eps, **({"lo": -9, "hi": 9} if boxed else {}))
    found = eb.evaluate(lambda z: z @ w, (x, y), ball, name, diagnose=0)
    assert 0 <= found.robust_accuracy - exact <= (0.051 if "steps" in name else 1e-9)
    assert found.count("invalid") == 0
    ids, points = found.points()
    assert ball.contains(torch.from_numpy(points), x[ids]).all()
    assert all(stage.unconfirmed == 0 for stage in found.stages)


def test_references_that_differ_in_immutable_columns_are_still_used() -> None:
    w = torch.tensor([0.0, 1.0])
    x, y, ball = torch.tensor([[0.0, 0.0]]), torch.tensor([0]), eb.Linf(eps=torch.tensor([[0.0, 2.0]]), lo=-9, hi=9)
    references = eb.References(torch.tensor([[7.0, 1.5], [0.0, 4.0]]), torch.tensor([1, 1]))
    model = Recording(lambda z: z @ w - 1)
    x_adv = eb.HopSkipJump(steps=60, references=references)(model, x, y, ball)
    assert any(torch.equal(seen, torch.tensor([[0.0, 1.5]])) for seen in model.seen)  # the nearer of the two
    assert 1 < x_adv[0, 1] < 1.1
    assert x_adv[0, 0] == 0


def test_ball_of_zero_leaves_everything_as_it_is() -> None:
    x, y = batch_of(6, (6,), 3)
    for attack in IN_LINF.values():
        assert torch.equal(attacked(attack, ball_of(attack, 0.0, **BOX), x, y), x)
