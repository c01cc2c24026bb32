"""What is called robust, not robust or fooled, against fractions that share no code and no formula with it.

The examples are where rounding decides: their radius is the exact one, a unit in the last place beside it, 1e-15 or
1e-7 beside it, and weights and examples of few digits have exact ties.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import epsball as eb
from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS
from epsball.linear.exact import minimal_eps, optimum

NORMS = pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
KINDS = ("coarse", "double", "single", "half", "wide")
DTYPES = {"single": torch.float32, "half": torch.float16}


def fractions(values: Any) -> list[Fraction]:
    return [Fraction(value) for value in np.asarray(values, dtype=float).ravel().tolist()]


def can_gain(norm: str, slope: list[Fraction], room: list[Any], eps: Any, wanted: Fraction, *, more: bool) -> bool:
    """Whether some displacement 0 <= v <= room of norm <= eps has <slope, v> >= `wanted` (`more`: > ).

    All vertices are enumerated, and in l2 all sets of coordinates at their ends.
    """

    def enough(gain: Fraction) -> bool:
        return gain > wanted if more else gain >= wanted

    places = range(len(slope))
    if norm == "linf":
        return enough(sum((g * min(r, eps) for g, r in zip(slope, room, strict=True)), Fraction(0)))
    if norm == "l0":
        count = min(math.floor(eps), len(slope))
        return any(
            enough(sum((slope[j] * room[j] for j in some), Fraction(0)))
            for some in itertools.combinations(places, count)
        )
    for ends in itertools.product((False, True), repeat=len(slope)):
        at_end = [j for j in places if ends[j]]
        if any(room[j] == math.inf for j in at_end):
            continue
        gain = sum((slope[j] * room[j] for j in at_end), Fraction(0))
        free = [j for j in places if not ends[j]]
        if norm == "l1":
            left = eps - sum(room[j] for j in at_end)
            if left >= 0 and (enough(gain) or any(enough(gain + slope[j] * min(left, room[j])) for j in free)):
                return True
            continue
        left, steep = eps * eps - sum(room[j] ** 2 for j in at_end), sum((slope[j] ** 2 for j in free), Fraction(0))
        if left < 0:
            continue
        if any(left * slope[j] ** 2 > room[j] ** 2 * steep for j in free if room[j] != math.inf):
            if enough(gain):
                return True
            continue  # its point is outside the box
        short = wanted - gain  # sqrt(left * steep) has to reach it
        if short < 0 or (left * steep > short**2 if more else left * steep >= short**2):
            return True
    return False


def is_robust(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: int, ball: Ball, eps: Any) -> bool:
    """Whether every real point of the ball is predicted as y; `eps` a Fraction, or one per feature."""
    if len(weight) == 1:
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    point = fractions(x)
    lo, hi = (np.broadcast_to(np.asarray(side, dtype=float), x.shape).ravel() for side in (ball.lo, ball.hi))
    free = np.ones(x.size, bool) if ball.mask is None else ball.mask.numpy().ravel()
    scores = [
        Fraction(float(b)) + sum(a * c for a, c in zip(fractions(w), point, strict=True))
        for w, b in zip(weight, bias, strict=True)
    ]
    for rival in range(len(weight)):
        if rival == y:
            continue
        slope = [a - b for a, b in zip(fractions(weight[rival]), fractions(weight[y]), strict=True)]
        room: list[Any] = []
        for j, g in enumerate(slope):
            end = hi[j] if g > 0 else lo[j]
            room.append(0 if not free[j] or not g else math.inf if math.isinf(end) else abs(Fraction(end) - point[j]))
        radius = eps
        if isinstance(eps, list):
            room, radius = [min(r, e) for r, e in zip(room, eps, strict=True)], max(eps)
        steep = [abs(g) for g in slope]
        if can_gain(ball.name, steep, room, radius, scores[y] - scores[rival], more=y < rival):
            return False
    return True


def drawn(
    kind: str, norm: str, seed: int, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Ball]:
    """Weights, bias, examples, labels and a ball; coarse numbers are multiples of 1/4, wide ones from 1e-9 to 1e9."""
    draw = torch.Generator().manual_seed(seed)
    d, classes = 1 + seed % 4, (1, 2, 3)[seed % 3]
    parts = [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((classes, d), (classes,), (n, d))]
    if kind == "coarse":
        parts = [(4 * part).round() / 4 for part in parts]
    if kind == "wide":
        parts = [part * 10 ** (18 * torch.rand(part.shape, generator=draw, dtype=torch.float64) - 9) for part in parts]
    weight, bias, x = parts
    x = x.to(DTYPES.get(kind, torch.float64))
    if kind != "double":
        weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    box: dict[str, Any] = {}
    if norm == "l0" or seed % 2:
        box = {"lo": x.double().amin().item() - 0.25, "hi": x.double().amax().item() + 0.5}
    if norm != "l0" and seed % 5 == 0 and d > 1:
        box["mask"] = torch.arange(d)[None] > 0
    scores = x.double() @ weight.double().T + bias.double()
    y = scores.argmax(1) if classes > 1 else (scores[:, 0] > 0).long()
    return weight, bias, x, y, BALLS[norm](eps=0, **box)


def near_the_boundary(radius: torch.Tensor, norm: str, seed: int) -> torch.Tensor:
    """Each radius as it is, or a little beside it."""
    radius = torch.where(radius.isfinite(), radius, 1.0)
    if norm == "l0":
        return (radius + torch.tensor([-1, 0, 0.5])[torch.arange(len(radius)) % 3]).clamp_min(0)
    up, down = torch.nextafter(radius, radius + 1), torch.nextafter(radius, radius * 0)
    exact = (radius * 2**20).round() / 2**20
    moved = [
        radius,
        up,
        down,
        radius * (1 + 1e-15),
        radius * (1 + 1e-7),
        radius * (1 - 1e-7),
        exact,
        radius.float().double(),
    ]
    choice = torch.randint(len(moved), radius.shape, generator=torch.Generator().manual_seed(seed))
    return torch.stack(moved).gather(0, choice[None])[0].clamp_min(0)


def check_scene(kind: str, norm: str, seed: int, n: int) -> int:
    weight, bias, x, y, ball = drawn(kind, norm, seed, n)
    eps = near_the_boundary(minimal_eps(weight, bias, x, y, ball), norm, seed)
    found = optimum(weight, bias, x, y, ball.with_eps(eps))
    box = BALLS[norm](
        eps=0,
        lo=torch.tensor(ball.lo, dtype=x.dtype).item(),
        hi=torch.tensor(ball.hi, dtype=x.dtype).item(),
        mask=ball.mask,
    )
    weights, biases, points = (part.double().numpy() for part in (weight, bias, x))
    expected = [is_robust(weights, biases, points[i], int(y[i]), box, Fraction(eps[i].item())) for i in range(len(x))]
    assert found.robust.tolist() == expected, (kind, norm, seed)
    assert not (found.robust & found.fooled).any()
    assert found.margin.dtype == torch.float64
    for i in range(0, n, 7):
        assert_inside(found.x_adv[i], x[i], box, Fraction(eps[i].item()))
        nowhere = BALLS["linf"](eps=0)
        said = bool(found.prediction_after[i] == y[i])
        assert said == is_robust(weights, biases, found.x_adv[i].double().numpy(), int(y[i]), nowhere, Fraction(0))
    return len(x)


def assert_inside(z: torch.Tensor, x: torch.Tensor, ball: Ball, eps: Fraction) -> None:
    """In the ball of real numbers, without any slack."""
    moved = [abs(a - b) for a, b in zip(fractions(z.double()), fractions(x.double()), strict=True)]
    if ball.mask is not None:
        assert all(free or not v for free, v in zip(ball.mask.ravel().tolist(), moved, strict=True))
    assert all(ball.lo <= value <= ball.hi for value in z.tolist())
    if ball.name == "l0":
        assert sum(v != 0 for v in moved) <= math.floor(eps)
    elif ball.name == "l2":
        assert sum(v * v for v in moved) <= eps * eps
    else:
        assert (max(moved) if ball.name == "linf" else sum(moved)) <= eps


@NORMS
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_called_robust_is_what_fractions_say(norm: str, kind: str) -> None:
    assert sum(check_scene(kind, norm, seed, 12) for seed in range(12)) == 144


@pytest.mark.nightly
@NORMS
@pytest.mark.parametrize("kind", KINDS)
def test_100_000_examples_are_called_as_fractions_say(norm: str, kind: str) -> None:
    assert sum(check_scene(kind, norm, 1000 + seed, 100) for seed in range(50)) == 5000


def test_single_precision_whose_radius_is_exceeded_by_1e_7_is_not_robust() -> None:
    """Of 2,000 such rows 283 were called robust."""
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.rand(2000, 50, generator=draw), torch.randn(1, 50, generator=draw)
    y = (x.double() @ weight.double().T > 0).long()[:, 0]
    for ball in (eb.Linf(eps=0), eb.Linf(eps=0, lo=0, hi=1), eb.L2(eps=0, lo=0, hi=1), eb.L1(eps=0)):
        radius = minimal_eps(weight, 0.25, x, y, ball)
        changes = radius.isfinite() & (radius > 0)
        more, less = (torch.where(changes, radius * factor, 0) for factor in (1 + 1e-7, 1 - 1e-7))
        assert not optimum(weight, 0.25, x, y, ball.with_eps(more)).robust[changes].any()
        assert optimum(weight, 0.25, x, y, ball.with_eps(less)).robust[changes].all()


@pytest.mark.parametrize("seed", range(30))
def test_one_radius_per_feature_is_decided_as_fractions_say(seed: int) -> None:
    weight, bias, x, y, ball = drawn("coarse" if seed % 2 else "double", "linf", seed, 1)
    unit = 0.5 + torch.rand(1, x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factor = minimal_eps(weight * unit, bias, x / unit, y, eb.Linf(eps=0)).nan_to_num(posinf=1.0)
    for eps in (unit * factor, torch.nextafter(unit * factor, unit), unit * factor * (1 + 1e-15)):
        found = optimum(weight, bias, x, y, ball.with_eps(eps))
        weights, biases = weight.double().numpy(), bias.double().numpy()
        assert found.robust.tolist() == [is_robust(weights, biases, x[0].numpy(), int(y[0]), ball, fractions(eps))]


@pytest.mark.parametrize("size", [1e-200, 1e-150, 1e150, 1e200])
@NORMS
def test_sizes_whose_squares_leave_the_range_of_doubles_are_decided_exactly(norm: str, size: float) -> None:
    x = torch.tensor([[0.25, -0.5, 0.125]], dtype=torch.float64)
    weight = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    for box in ({}, {"lo": -1.0, "hi": 1.0}) if norm != "l0" else ({"lo": -1.0, "hi": 1.0},):
        radius = minimal_eps(weight, None, x, 1, BALLS[norm](eps=0, **box)).item()
        for factor in (0.5, 1 - 1e-15, 1.0, 1 + 1e-15, 2.0):
            eps = radius * factor
            for scaled, at in ((weight * size, x), (weight, x * min(size, 1e-100))):
                share = 1.0 if at is x else min(size, 1e-100)
                parts = {name: end * share for name, end in box.items()}
                ball = BALLS[norm](eps=eps if norm == "l0" else eps * share, **parts)
                expected = is_robust(scaled.numpy(), np.zeros(1), at[0].numpy(), 1, ball, Fraction(ball.eps))
                assert optimum(scaled, None, at, 1, ball).robust.item() is expected, (box, factor, share)


def test_a_radius_of_the_least_double_is_decided_exactly() -> None:
    """Its margin is less than any double, and its whole numbers are greater."""
    x = torch.tensor([[0.25, 0.5], [-0.25, -0.5]], dtype=torch.float64)
    weight, least = torch.tensor([[2.0, -1.0]], dtype=torch.float64), math.ulp(0.0)
    for norm in ("linf", "l2", "l1"):
        found = optimum(weight, [least], x, 1, BALLS[norm](eps=torch.tensor([[0.0], [least]], dtype=torch.float64)))
        assert found.robust.tolist() == [True, False]
        assert found.margin[0] == least


def test_margins_are_within_the_bounds_they_state() -> None:
    draw = torch.Generator().manual_seed(3)
    weight, x = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((4, 40), (50, 40)))
    y = (x @ weight.T).argmax(1)
    found = optimum(weight, None, x, y, eb.Linf(eps=0.01))
    for i in range(50):
        own, *others = (fractions(weight[k]) for k in (int(y[i]), *(k for k in range(4) if k != y[i])))
        eps, point = Fraction(0.01), fractions(x[i])
        exact = min(
            sum((a - b) * c - eps * abs(a - b) for a, b, c in zip(own, other, point, strict=True)) for other in others
        )
        assert abs(Fraction(found.margin[i].item()) - exact) <= Fraction(found.margin_error[i].item())
    assert (found.margin_error < 1e-10).all()


def test_predictions_at_exact_ties_are_those_of_real_numbers() -> None:
    weight = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2], [0.2, 0.3, 0.1]], dtype=torch.float64)
    x = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [3.0, 3.0, 3.0]], dtype=torch.float64)
    best = [
        max(range(3), key=lambda k: (sum(a * c for a, c in zip(fractions(weight[k]), fractions(row), strict=True)), -k))
        for row in x
    ]
    found = optimum(weight, None, x, [0, 0, 0], eb.Linf(eps=0))
    assert found.prediction_before.tolist() == best
    assert found.robust.tolist() == [k == 0 for k in best]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("kind", ["coarse", "double"])
@pytest.mark.parametrize("per_feature", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_robust_scores_of_estimators_are_what_fractions_say(
    norm: str, kind: str, per_feature: bool, classes: int
) -> None:
    rng = np.random.default_rng(classes)
    X = rng.normal(size=(30, 3)) if kind == "double" else rng.integers(-8, 9, (30, 3)) / 4
    y = np.arange(30) % classes
    model = eb.RobustLogisticRegression(0.0, norm=norm, tol=1e-2).fit(X + y[:, None], y)
    if kind == "coarse":
        model.coef_, model.intercept_ = (4 * model.coef_).round() / 4, (4 * model.intercept_).round() / 4
    unit = rng.integers(0, 4, 3) / 4 + 0.25 if per_feature else np.ones(3)
    weight, bias = torch.from_numpy(model.coef_ * unit), torch.from_numpy(model.intercept_)
    radius = minimal_eps(weight, bias, X / unit, y, BALLS[norm](eps=0)).nan_to_num(posinf=1.0)
    for i, eps in enumerate(near_the_boundary(radius, norm, 7).tolist()):
        given = eps * unit
        scaled = [[Fraction(a) * Fraction(e) for a, e in zip(row, given, strict=True)] for row in model.coef_.tolist()]
        expected = _is_robust_in_units(model, scaled, X[i], int(y[i]), norm)
        assert model.robust_score(X[i : i + 1], y[i : i + 1], given if per_feature else eps) == expected


def _is_robust_in_units(model: Any, steep: list[list[Fraction]], x: np.ndarray, y: int, norm: str) -> bool:
    """With the slopes of each score times the radius of each feature, an attacker of radius one."""
    weights, biases = [fractions(row) for row in model.coef_], fractions(model.intercept_)
    if len(weights) == 1:
        zero = [Fraction(0)] * 3
        weights, biases, steep = [zero, *weights], [Fraction(0), *biases], [zero, *steep]
    scores = [
        b + sum(a * c for a, c in zip(w, fractions(x), strict=True)) for w, b in zip(weights, biases, strict=True)
    ]
    for rival in range(len(weights)):
        slope = [abs(a - b) for a, b in zip(steep[rival], steep[y], strict=True)]
        room = [math.inf if g else 0 for g in slope]
        wanted = scores[y] - scores[rival]
        if rival != y and can_gain(norm, slope, room, Fraction(1), wanted, more=y < rival):
            return False
    return True


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_column_of_radii_is_one_per_example(norm: str) -> None:
    draw = torch.Generator().manual_seed(5)
    weight, x = torch.randn(3, 4, generator=draw), torch.randn(4, 4, generator=draw)
    radii = torch.tensor([0.0, 0.1, 0.5, 3.0])
    column = optimum(weight, None, x, 0, BALLS[norm](eps=radii[:, None]))
    single = [optimum(weight, None, x[i : i + 1], 0, BALLS[norm](eps=float(radii[i]))) for i in range(4)]
    assert column.robust.tolist() == [one.robust.item() for one in single]
    torch.testing.assert_close(column.margin, torch.cat([one.margin for one in single]))
