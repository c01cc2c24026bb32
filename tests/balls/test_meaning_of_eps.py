"""What a tensor as radius means: one per example or per feature, never guessed; 0 for a feature is a mask."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from nets import batch
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.balls.linf import Linf
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput
from epsball.common.noise import Noise

SQUARE, GRAD = batch(4, (4,)), batch(4, (4,), lo=-1, seed=3)
RADII = torch.tensor([0.05, 0.1, 0.2, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("norm", BALLS)
def test_radius_that_may_be_per_example_or_per_feature_is_refused_with_remedies_that_work(norm: str) -> None:
    cls, eps, box = BALLS[norm], RADII * (10 if norm == "l0" else 1), {"lo": 0.0, "hi": 1.0}
    with pytest.raises(BadInput, match=r"`eps` must say.*\(4,\) for x \(4, 4\); write eps\[:, None\].* or eps\[None\]"):
        cls(eps=eps, **box).argmax(GRAD, SQUARE)
    per_example = cls(eps=eps[:, None], **box)
    one_by_one = [cls(eps=float(eps[i]), **box).argmax(GRAD[i, None], SQUARE[i, None]) for i in range(4)]
    torch.testing.assert_close(per_example.argmax(GRAD, SQUARE), torch.cat(one_by_one))
    assert "one per example" in per_example.label()
    torch.testing.assert_close(per_example.distance(SQUARE + 0.5, SQUARE), cls(eps=1, **box).norm(0.5 + 0 * SQUARE))
    if norm == "linf":
        wanted = torch.clamp(SQUARE + eps * GRAD.sign(), 0, 1)
        torch.testing.assert_close(cls(eps=eps[None], **box).argmax(GRAD, SQUARE), wanted)


def test_what_follows_from_a_bound_ball_is_not_refused() -> None:
    ball = Linf(eps=RADII[:, None]).bind(SQUARE)
    for follows in (ball.with_eps(2 * ball.eps), ball.with_eps(2 * RADII), ball.rows(torch.arange(4)).with_eps(RADII)):
        assert follows.bind(SQUARE).eps.shape == (4,)


@pytest.mark.parametrize("norm", BALLS)
def test_column_of_radii_is_one_per_example_in_images(norm: str) -> None:
    x, grad = batch(3, (2, 3, 3)), batch(3, (2, 3, 3), lo=-1, seed=1)
    eps = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    flat, column = (BALLS[norm](eps=part, lo=0, hi=1) for part in (eps, eps[:, None, None, None]))
    torch.testing.assert_close(flat.argmax(grad, x), column.argmax(grad, x), rtol=0, atol=0)


OF: dict[str, Callable[[Ball, Tensor, Tensor, Tensor], Tensor]] = {
    "project": lambda ball, x, grad, z: ball.project(z, x),
    "argmax": lambda ball, x, grad, z: ball.argmax(grad, x),
    "max_gain": lambda ball, x, grad, z: ball.max_gain(grad, x),
    "max_gains": lambda ball, x, grad, z: ball.max_gains(grad, x),
    "min_eps": lambda ball, x, grad, z: ball.min_eps(ball.max_gain(grad, x) / 2, grad, x),
    "project_onto_hyperplane": lambda ball, x, grad, z: ball.project_onto_hyperplane(grad[:, 0, 0], grad, x),
    "ascent": lambda ball, x, grad, z: ball.ascent(grad, x),
    "step": lambda ball, x, grad, z: ball.step(grad, x, x, 0.5),
    "sample": lambda ball, x, grad, z: ball.sample(x, Noise(0, torch.arange(5), torch.zeros(5, dtype=torch.long))),
    "distance": lambda ball, x, grad, z: ball.distance(ball.project(z, x), x),
    "contains": lambda ball, x, grad, z: ball.contains(ball.bind(x).apply_mask(z, x), x),
}


@pytest.mark.parametrize("question", OF)
@pytest.mark.parametrize("masked", [False, True])
def test_radius_of_zero_for_a_feature_is_a_mask(question: str, masked: bool) -> None:
    x, grad, z = batch(5, (2, 3)), batch(5, (2, 3), lo=-1, seed=1), batch(5, (2, 3), lo=-1, hi=2, seed=2)
    eps = torch.tensor([[[0.0, 0.2, 0.1], [0.3, 0.0, 0.4]]], dtype=torch.float64)
    also = torch.tensor([[[True, True, not masked], [True, True, True]]])
    zeros = Linf(eps=eps, lo=0, hi=1, mask=also if masked else None)
    mask = Linf(eps=torch.where(eps > 0, eps, 1.0), lo=0, hi=1, mask=(eps > 0) & also)
    torch.testing.assert_close(OF[question](zeros, x, grad, z), OF[question](mask, x, grad, z), rtol=0, atol=0)
    assert not zeros.contains(x + 1e-9 * (eps == 0), x).any()


def test_ball_sees_what_changes_under_its_examples() -> None:
    memory = batch(2, (3,)).numpy()
    x = torch.from_numpy(memory)
    ball = Linf(eps=0.1).bind(x)
    before = ball.project(x + 1, x)
    memory += 5  # torch counts no version of x
    torch.testing.assert_close(ball.project(x + 1, x), before + 5)


@pytest.mark.parametrize("norm", BALLS)
def test_pickled_ball_holds_its_parts_only(norm: str) -> None:
    x = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ball = BALLS[norm](eps=torch.full((64,), 4.0), lo=0, hi=1).bind(x)
    for used in (ball, ball.held(x)):
        inside = used.project(x + 1, x)
        stored = pickle.dumps(used)
        assert len(stored) < 4000
        torch.testing.assert_close(pickle.loads(stored).project(x + 1, x), inside, rtol=0, atol=0)


def test_held_ball_answers_for_other_examples_too() -> None:
    x, other = batch(3, (2,)), batch(3, (2,), seed=1)
    held, ball = Linf(eps=0.1).held(x), Linf(eps=0.1)
    for at in (x, other, x):
        torch.testing.assert_close(held.project(at + 1, at), ball.project(at + 1, at), rtol=0, atol=0)
