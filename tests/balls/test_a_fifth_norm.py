"""CONTRIBUTING's recipe for a norm, followed: a class and one line, and everything else works with it.

The norm is the weighted maximum, max |z_i - x_i| / w_i: no coordinate moves by more than eps * w_i.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from torch import Tensor

import epsball as eb
from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS, parse
from epsball.common.noise import Noise
from epsball.common.shapes import flat
from epsball.data.digits import read_digits
from epsball.linear.arguments import checked_case
from epsball.report.html import write_report

EDGES_FIRST = torch.linspace(1.5, 0.5, 8)[None, None, None]
"""A weight for each column of an image of 8 x 8."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedLinf(Ball):
    """|z_i - x_i| <= eps * w_i, computed as the max norm in units of the weights."""

    name = "wlinf"
    symbol = "weighted L∞"
    rule = "each change ≤ ε times its weight"
    traits = frozenset({"dual norm", "intervals"})

    weights: float | Tensor = EDGES_FIRST

    def _widths(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.weights).to(like)

    def intervals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        reach = self.radius_like(x).to(x) * self._widths(x)
        low, high = self._box_like(x)
        return self.apply_mask(torch.maximum(x - reach, low), x), self.apply_mask(torch.minimum(x + reach, high), x)

    def norm(self, delta: Tensor) -> Tensor:
        return flat(delta / self._widths(delta)).abs().amax(1)

    def _project(self, z: Tensor, x: Tensor) -> Tensor:
        return z.clamp(*self.intervals(x))

    def _argmax(self, grad: Tensor, x: Tensor) -> Tensor:
        low, high = self.intervals(x)
        return torch.where(grad > 0, high, torch.where(grad < 0, low, x))

    def _ascent(self, grad: Tensor, z: Tensor) -> Tensor:
        return grad.sign() * self._widths(grad)

    def _step(self, grad: Tensor, z: Tensor, x: Tensor, size: float | Tensor) -> Tensor:
        return self._project(z + self._ascent(grad, z) * self._step_length(z, size), x)

    def _sample(self, x: Tensor, noise: Noise) -> Tensor:
        unit = 2 * noise.uniform(x.shape[1:], dtype=x.dtype) - 1
        return x + self.radius_like(x).to(x) * self._widths(x) * unit

    def _dual(self, grads: Tensor) -> Tensor:
        return flat(grads * self._widths(grads)).abs().sum(1)

    def _min_radius(self, size: Tensor, room: Tensor, gain: Tensor, strict: Tensor) -> tuple[Tensor, Tensor]:
        return eb.Linf(eps=1)._min_radius(size * self._flat_widths(size), room / self._flat_widths(room), gain, strict)

    def exact_gain(self, size: np.ndarray, room: np.ndarray, eps: Any) -> tuple[Any, Any]:
        widths = np.array([Fraction(width) for width in self._flat_widths(torch.zeros(1)).ravel().tolist()], object)
        return (size * np.minimum(room, eps * widths)).sum(), 0

    def _shortest_step(self, size: Tensor, room: Tensor, gain: Tensor) -> Tensor:
        widths = self._flat_widths(size)
        return eb.Linf(eps=1)._shortest_step(size * widths, room / widths, gain) * widths

    def _flat_widths(self, like: Tensor) -> Tensor:
        return self._widths(like).expand(1, 1, 8, 8).flatten(1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BALLS, "wlinf", WeightedLinf)  # a user writes BALLS["wlinf"] = WeightedLinf


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = read_digits("test")
    return data.x[:24], data.y[:24]


@pytest.fixture(scope="module")
def linear() -> torch.nn.Module:
    """A linear classifier, so that the worst point of a ball is known."""
    torch.manual_seed(0)
    data = read_digits("train")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    fit = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        fit.zero_grad()
        torch.nn.functional.cross_entropy(model(data.x), data.y).backward()
        fit.step()
    return model.eval()


def ball_of(**parts: Any) -> WeightedLinf:
    return WeightedLinf(**{"eps": 0.1, "lo": 0, "hi": 1} | parts)


def test_geometry_is_that_of_a_max_norm_with_a_radius_per_feature(digits):
    x, _ = digits
    mine, known = ball_of(), eb.Linf(eps=0.1 * EDGES_FIRST.expand(1, 1, 8, 8), lo=0, hi=1)
    generator = torch.Generator().manual_seed(3)
    z, grad = torch.rand(x.shape, generator=generator), torch.randn(x.shape, generator=generator)
    torch.testing.assert_close(mine.project(z, x), known.project(z, x))
    torch.testing.assert_close(mine.argmax(grad, x), known.argmax(grad, x))
    torch.testing.assert_close(mine.max_gains(grad[:3], x), known.max_gains(grad[:3], x))
    assert mine.contains(mine.argmax(grad, x), x).all()
    gain = 0.5 * mine.max_gain(grad, x)
    reached = mine.min_eps(gain, grad, x)
    torch.testing.assert_close(replace(mine, eps=reached.float()).max_gain(grad, x), gain)
    on_plane = mine.project_onto_hyperplane(gain, grad, x)
    torch.testing.assert_close(mine.norm(on_plane - x).double(), reached, rtol=1e-4, atol=1e-6)
    drawn = mine.sample(x, Noise(0, torch.arange(len(x)), torch.zeros(len(x), dtype=torch.long)))
    assert mine.contains(drawn, x).all()


def test_linear_models_are_decided_exactly(digits, linear):
    x, y = digits
    radius = eb.linear.minimal_eps(linear, None, x, y, ball_of())
    (right,) = (radius > 0).nonzero(as_tuple=True)
    for factor, robust in ((1 + 1e-12, False), (1 - 1e-12, True), (0.5, True)):
        ball = ball_of(eps=radius * factor)
        found = eb.linear.optimum(linear, None, x, y, ball)
        assert (found.robust[right] == robust).all()
    case = checked_case(linear, None, x, y, ball, None)
    for row in right[:4].tolist():  # in whole numbers, which margins this far from zero do not need
        margin = case._margin(row, int(y[row]), int(found.rival[row]), attacked=True)
        assert margin == pytest.approx(found.margin[row].item(), rel=1e-9)


@pytest.mark.parametrize("attack", [eb.FGSM(), eb.PGD(steps=20), eb.APGD(steps=20), eb.Square(steps=60)])
def test_attacks_end_in_the_ball_and_reach_the_exact_optimum_of_a_linear_model(attack, digits, linear):
    x, y = digits
    ball = ball_of(eps=0.02)
    weight = linear[1].weight.detach()
    target = (y + 1) % 10
    pair = (weight[target] - weight[y]).reshape(x.shape)
    scores = lambda z: torch.stack([torch.zeros(len(z)), (z * pair[:1]).flatten(1).sum(1)], 1)  # noqa: E731
    x = x[:1].expand(8, 1, 8, 8)
    z = attack(scores, x, torch.zeros(8, dtype=torch.long), ball, success=lambda output, task: task.y < 0)
    assert ball.contains(z, x).all()
    if not isinstance(attack, eb.Square):
        best = ball.max_gain(pair[:1].expand_as(x), x)
        gained = ((z - x) * pair[:1]).flatten(1).sum(1)
        assert (gained > 0.98 * best).all()


def test_run_records_the_distances_of_the_norm_and_verifies_and_reports(digits, linear, tmp_path: Path):
    ball = ball_of(eps=0.15)
    found = eb.evaluate(linear, digits, ball, attacks=["fgsm", "pgd:steps=10", "apgd:steps=10"], run_dir=tmp_path / "a")
    assert found.robust_accuracy < found.clean_accuracy
    fooled = found.records.to_pandas().query("status == 'fooled'")
    assert (fooled["wlinf"] == fooled["distance"]).all()
    assert (fooled["wlinf"] <= 0.15 * (1 + 1e-6)).all()
    assert (fooled["linf"] > 0.15).any(), "a weight above one lets a pixel move by more than eps"
    checked = eb.verify(tmp_path / "a", linear, data=digits)
    assert checked.agrees, checked.differences.to_pandas()
    page = write_report(tmp_path / "a").read_text()
    assert "weighted L∞" in page


def test_default_protocols_are_those_of_the_traits_of_the_norm(digits, linear):
    found = eb.evaluate(linear, digits, ball_of(eps=0.3), attacks="fast", diagnose=0)
    assert found.robust_accuracy == 0
    nearest = eb.evaluate(linear, digits, ball_of(eps=math.inf), attacks="min-norm", min_norm=True, diagnose=0)
    assert (nearest.records["distance"].drop_null().to_numpy() > 0).all()


def test_command_line_accepts_the_norm(tmp_path: Path):
    assert isinstance(parse("wlinf:0.1"), WeightedLinf)
    out = tmp_path / "run"
    common = ["--ball", "wlinf:0.1", "--attacks", "fgsm", "pgd:steps=5", "--limit", "40", "--out", str(out)]
    done = run("evaluate", *common)
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "config.json").read_text())["ball"]["norm"] == "wlinf"
    assert run("verify", str(out)).returncode == 0
    assert run("report", str(out)).returncode == 0
    assert "wlinf" in (out / "report.html").read_text()
