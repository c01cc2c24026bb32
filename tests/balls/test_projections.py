"""Projections and maximisers against independent references.

Multipliers are found by bisection in extended precision, L1 gains by linear programming duality, L0 by trying every
subset: compared in float64, to 1e-9. cvxpy, which is given the problem itself and is accurate to
about 1e-8, confirms the references' formulas for all but L0.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import pytest
import torch

from epsball.balls.ball import Ball
from epsball.balls.projections import (
    clipped_sum_root,
    covering_knapsack,
    fractional_knapsack,
    mask_of_largest,
    scale_to_l2,
    shrink_to_l1,
)
from epsball.balls.registry import BALLS

EXACT = 1e-9
N = 12
BOXES = ["none", "half", "scalar", "feature", "row"]
MASKS = ["none", "feature", "row"]
RADII = ["one", "row", "zero", "wide", "inf"]


@dataclass
class Scene:
    ball: Ball
    x: torch.Tensor
    z: torch.Tensor
    grad: torch.Tensor
    bounded: bool

    def displacements(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How far each coordinate may move down and up (n, d), and the radius (n, 1), in extended precision."""
        x, eps = wide(self.x), self.ball.eps
        low, high = (wide(side) if isinstance(side, torch.Tensor) else side for side in (self.ball.lo, self.ball.hi))
        free = np.ones(x.shape, bool) if self.ball.mask is None else self.ball.mask.expand(*x.shape).numpy()
        radius = wide(eps)[:, None] if isinstance(eps, torch.Tensor) else np.full((len(x), 1), eps, np.longdouble)
        return np.where(free, low - x, 0), np.where(free, high - x, 0), radius


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.longdouble)


def scene(norm: str, box: str, mask: str, radius: str) -> Scene:
    """Offset data, some of it on the faces; gradients with ties, zeros and whole rows of zeros."""
    seed = 1 + BOXES.index(box) + 10 * MASKS.index(mask) + 100 * RADII.index(radius)
    draw = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    d = 2 + seed % 5
    rows = N if box == "row" else 1
    lo, hi = 0.4 + randn(rows, d), 1.1 + rand(rows, d)
    lo, hi = lo, lo + hi
    if box in ("none", "half", "scalar"):
        lo, hi = torch.tensor([[-1.3]], dtype=torch.float64), torch.tensor([[2.1]], dtype=torch.float64)
    place = rand(N, d)
    place = torch.where(place < 0.15, 0.0, torch.where(place > 0.85, 1.0, place))
    x = torch.where(place == 1, hi, lo + (hi - lo) * place)
    z = x + 2 * randn(N, d)
    z[:2] = x[:2] + 0.01 * (rand(2, d) - 0.5)
    grad = randn(N, d)
    grad[:5] = (2 * grad[:5]).round()
    grad[5] = 0
    grad[6, ::2] = 0
    sides = {
        "none": {},
        "half": {"lo": -1.3},
        "scalar": {"lo": -1.3, "hi": 2.1},
    }.get(box, {"lo": lo, "hi": hi})
    parts = {"none": None, "feature": rand(1, d) < 0.7, "row": rand(N, d) < 0.6}
    eps = {"one": 1.2, "row": 3 * rand(N), "zero": 0.0, "wide": 50.0, "inf": math.inf}[radius]
    ball = BALLS[norm](eps=eps, mask=parts[mask], **sides)
    return Scene(ball, x, z, grad, bounded=box not in ("none", "half") or radius != "inf")


def scenes(norm: str) -> list[Scene]:
    boxes = BOXES[2:] if norm == "l0" else BOXES
    return [scene(norm, *kinds) for kinds in itertools.product(boxes, MASKS, RADII)]


def lengths(norm: str, v: np.ndarray) -> np.ndarray:
    if norm == "l2":
        return np.sqrt((v * v).sum(1, keepdims=True))
    return {"linf": abs(v).max(1, keepdims=True), "l1": abs(v).sum(1, keepdims=True)}[norm]


def on_the_sphere(norm: str, path, start: float, end: float, radius: np.ndarray) -> np.ndarray:
    """The point path(t), t from `start` (inside) towards `end`, where its norm is the radius; path(end) if shorter."""
    good, bad = (np.full(radius.shape, t, np.longdouble) for t in (start, end))
    for _ in range(140):
        middle = (good + bad) / 2
        inside = lengths(norm, path(middle)) <= radius
        good, bad = np.where(inside, middle, good), np.where(inside, bad, middle)
    return np.where(lengths(norm, path(end)) <= radius, path(end), path(good))


def nearest(norm: str, wish: np.ndarray, low: np.ndarray, high: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """By the stationarity conditions of the Lagrangian; the multiplier by bisection."""
    if norm == "linf":
        return np.clip(wish, np.maximum(low, -radius), np.minimum(high, radius))
    if norm == "l2":
        return on_the_sphere(norm, lambda t: np.clip(t * wish, low, high), 0, 1, radius)
    return on_the_sphere(
        norm,
        lambda t: np.clip(np.sign(wish) * np.maximum(abs(wish) - t, 0), low, high),
        float(abs(wish).max()) + 1,
        0,
        radius,
    )


def subsets(d: int) -> list[np.ndarray]:
    return [np.array([bool(code >> i & 1) for i in range(d)]) for code in range(2**d)]


def greatest_gain(norm: str, grad: np.ndarray, low: np.ndarray, high: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """The value of max <grad, v>, (n,)."""
    room = np.where(grad > 0, high, np.where(grad < 0, -low, 0))
    if norm == "linf":
        return (abs(grad) * np.minimum(room, radius)).sum(1)
    if norm == "l0":
        gains = np.array([np.where(s, abs(grad) * room, 0).sum(1) for s in subsets(grad.shape[1])])
        count = np.array([s.sum() for s in subsets(grad.shape[1])])[:, None]
        return np.where(count <= radius[:, 0], gains, -1).max(0)
    if norm == "l2":
        best = on_the_sphere(norm, lambda u: np.clip(np.exp(u) * grad, low, high), -80, 80, radius)
        return (grad * best).sum(1)
    values = []  # the dual: min over t >= 0 of t * radius + sum room * (|grad| - t)_+, attained at a breakpoint
    for t in (np.zeros_like(radius), *np.split(abs(grad), grad.shape[1], axis=1)):
        over = np.maximum(abs(grad) - t, 0)
        values.append(np.where(t > 0, t * np.where(t > 0, radius, 0), 0)[:, 0])
        values[-1] = values[-1] + np.where(over > 0, over * np.where(over > 0, room, 0), 0).sum(1)
    return np.min(values, axis=0)


def check_feasible(norm: str, case: Scene, point: torch.Tensor) -> np.ndarray:
    low, high, radius = case.displacements()
    v = wide(point) - wide(case.x)
    assert ((v >= low) & (v <= high)).all()
    used = (v != 0).sum(1, keepdims=True) if norm == "l0" else lengths(norm, v)
    assert (used <= radius + 1e-14).all()
    return v


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projection_is_the_nearest_point(norm: str) -> None:
    for case in scenes(norm):
        v = check_feasible(norm, case, case.ball.project(case.z, case.x))
        expected = nearest(norm, wide(case.z) - wide(case.x), *case.displacements())
        np.testing.assert_allclose(v.astype(float), expected.astype(float), rtol=0, atol=EXACT, err_msg=str(case.ball))


def test_l0_projection_is_as_near_as_the_best_subset() -> None:
    for case in scenes("l0"):
        v = check_feasible("l0", case, case.ball.project(case.z, case.x))
        low, high, radius = case.displacements()
        wish = wide(case.z) - wide(case.x)
        distances = np.array(
            [((np.where(s, np.clip(wish, low, high), 0) - wish) ** 2).sum(1) for s in subsets(v.shape[1])]
        )
        count = np.array([s.sum() for s in subsets(v.shape[1])])[:, None]
        best = np.where(count <= radius[:, 0], distances, np.inf).min(0)
        np.testing.assert_allclose(((v - wish) ** 2).sum(1).astype(float), best.astype(float), rtol=0, atol=EXACT)


@pytest.mark.parametrize("norm", BALLS)
def test_argmax_and_max_gain_reach_the_optimum(norm: str) -> None:
    for case in scenes(norm):
        if not case.bounded:
            continue
        v = check_feasible(norm, case, case.ball.argmax(case.grad, case.x))
        expected = greatest_gain(norm, wide(case.grad), *case.displacements()).astype(float)
        gain = (wide(case.grad) * v).sum(1).astype(float)
        np.testing.assert_allclose(gain, expected, rtol=0, atol=EXACT, err_msg=str(case.ball))
        max_gain = case.ball.max_gain(case.grad, case.x).numpy()
        np.testing.assert_allclose(max_gain, expected, rtol=0, atol=EXACT, err_msg=str(case.ball))
        assert (v[(case.grad == 0).numpy()] == 0).all(), "a coordinate without gradient moved"


@pytest.mark.parametrize("box", ["half", "feature", "row"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_cvxpy_finds_no_better_point(norm: str, box: str) -> None:
    case = scene(norm, box, "row", "row")
    low, high, radius = (side.astype(float) for side in case.displacements())
    v = cp.Variable(low.shape)
    order = {"linf": "inf", "l2": 2, "l1": 1}[norm]
    up = np.isfinite(high)
    constraints = [cp.norm(v, order, axis=1) <= radius[:, 0], v >= low, v[up] <= high[up]]
    tight = {"tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8}  # CLARABEL gives up at 1e-9 in L2
    wish, grad = (case.z - case.x).numpy(), case.grad.numpy()

    problem = cp.Problem(cp.Minimize(cp.sum_squares(v - wish)), constraints)
    best = problem.solve(solver=cp.CLARABEL, **tight)
    ours = (case.ball.project(case.z, case.x) - case.x).numpy()
    assert ((ours - wish) ** 2).sum() == pytest.approx(best, rel=1e-7)
    np.testing.assert_allclose(ours, v.value, rtol=0, atol=1e-4)  # the solver's own accuracy in v: root of its gap

    problem = cp.Problem(cp.Maximize(cp.sum(cp.multiply(grad, v))), constraints)
    best = problem.solve(solver=cp.CLARABEL, **tight)
    assert case.ball.max_gain(case.grad, case.x).sum().item() == pytest.approx(best, rel=1e-7)


@pytest.mark.parametrize("d", [1, 5, 1000])
def test_shrink_to_l1_meets_its_optimality_conditions(d: int) -> None:
    draw = torch.Generator().manual_seed(d)
    size = torch.stack(
        [
            torch.rand(d, generator=draw, dtype=torch.float64),
            2.0 ** -(torch.arange(d, dtype=torch.float64) % 60),
            torch.full((d,), 0.3, dtype=torch.float64),
            torch.arange(d, dtype=torch.float64) ** 4 + 1,
        ]
    )
    room = torch.rand(4, d, generator=draw, dtype=torch.float64) * size.amax(1, keepdim=True) + 1e-3
    room[:, ::3] = math.inf
    for share in (0.9, 0.3, 1e-3, 1e-8):
        radius = share * torch.minimum(size, room).sum(1, keepdim=True)
        v = shrink_to_l1(size, room, radius)
        rounding = 1e-15 * d * size.amax(1, keepdim=True)
        assert ((v.sum(1, keepdim=True) - radius).abs() <= rounding + 1e-12 * radius).all()
        slack = 1e-14 * size.amax(1, keepdim=True)
        full = v >= room - slack
        free = (v > 0) & ~full
        theta = torch.where(free, size - v, -math.inf).amax(1, keepdim=True)
        assert (((size - v) - theta).abs() <= slack)[free].all(), "the free coordinates pay different prices"
        known = theta.isfinite().expand_as(v)
        assert ((size <= theta + slack) | ~known)[v == 0].all()
        assert ((size - room >= theta - 2 * slack) | ~known)[full & (v > 0)].all()


def test_scale_to_l2_is_exact_after_many_saturated_rounds() -> None:
    d = 300
    size = torch.arange(1, d + 1, dtype=torch.float64)[None]
    room = 1 / size  # the mu that fills coordinate i is 1 / i^2: one more saturates at every mu
    for rooms in (1, 10, 100, 299):
        radius = (room.square().sort().values[:, -rooms:].sum() + 1e-4).sqrt().clamp_max(room.norm())[None, None]
        v = scale_to_l2(size, room, radius)
        assert v.norm().item() == pytest.approx(radius.item(), abs=1e-12)
        mu = torch.where(v < room, v / size, 0).amax()
        torch.testing.assert_close(v, torch.minimum(mu * size, room), rtol=0, atol=1e-12)


@pytest.mark.parametrize("small", [1e-10, 1e-18, 1e-20, 1e-30])
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_argmax_of_a_gradient_of_wide_range_lies_in_the_ball(norm: str, small: float) -> None:
    x = torch.tensor([[0.1, 5.0]])
    grad = torch.tensor([[-1.0, small]])
    for hi in (10.0, math.inf):
        ball = BALLS[norm](eps=1.0, lo=0, hi=hi)
        z = ball.argmax(grad, x)
        assert ball.contains(z, x).all(), z
        assert ball.max_gain(grad, x).item() == pytest.approx(0.1, rel=1e-6)


def test_knapsack_spends_its_budget_exactly() -> None:
    gain = torch.tensor([[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 1.0, 1.0]], dtype=torch.float64)
    room = torch.tensor([[9.0, 0.5, 0.25, 9.0], [math.inf, 1.0, 1.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[0.25, 0.5, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert torch.equal(fractional_knapsack(gain, room, torch.ones(2, 1, dtype=torch.float64)), expected)
    whole = fractional_knapsack(gain[:1], room[:1], torch.full((1, 1), math.inf, dtype=torch.float64))
    assert torch.equal(whole, torch.tensor([[9.0, 0.5, 0.25, 0.0]], dtype=torch.float64))


def test_mask_of_largest_takes_positive_gains_and_the_earlier_of_a_tie() -> None:
    gain = torch.tensor([[2.0, 2.0, 2.0, -1.0], [0.0, -1.0, 4.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    chosen = mask_of_largest(gain, torch.tensor([[2.0], [3.0], [0.0]]))
    assert chosen.int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


# The nearest point of a hyperplane.


def needed(case: Scene, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A gain for each row, `share` of what the box allows on the side of its sign, and its sign."""
    sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(N // 2)
    low, high, _ = case.displacements()
    room = np.where(wide(case.grad * sign[:, None]) > 0, high, -low)
    most = (abs(wide(case.grad)) * np.where(np.isfinite(room), room, 1.5)).sum(1)  # without a box, any gain
    return torch.from_numpy(share * most.astype(float)) * sign, sign


@pytest.mark.parametrize("share", [0.0, 1e-6, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("norm", BALLS)
def test_hyperplane_projection_is_the_nearest_point_of_the_plane(norm: str, share: float) -> None:
    for case in scenes(norm):
        gain, sign = needed(case, share)
        ball, grad = case.ball, case.grad
        point = ball.project_onto_hyperplane(gain, grad, case.x)
        low, high, _ = case.displacements()
        v = wide(point) - wide(case.x)
        assert ((v >= low) & (v <= high)).all()
        assert (v[(grad == 0).numpy()] == 0).all(), "a coordinate without gradient moved"
        np.testing.assert_allclose((wide(grad) * v).sum(1).astype(float), gain.numpy(), rtol=1e-12, atol=1e-12)
        least = ball.min_eps(gain.abs() * (1 - 1e-13), grad * sign[:, None], case.x)
        slack = 1e-7 if share == 1 and norm == "l2" else 1e-10  # at the very corner the radius is a root of the gain
        np.testing.assert_allclose(ball.norm(point - case.x).numpy(), least.numpy(), rtol=slack, atol=slack)


@pytest.mark.parametrize("norm", BALLS)
def test_hyperplane_projection_ends_at_the_corner_where_the_gain_is_out_of_reach(norm: str) -> None:
    x = torch.tensor([[0.5, 0.25, 0.75, -0.125]], dtype=torch.float64).expand(3, 4).clone()
    grad = torch.tensor([[2.0, -1.0, 0.0, 5.0]], dtype=torch.float64).expand(3, 4)
    mask = torch.tensor([[True, True, True, False]])
    ball = BALLS[norm](eps=0, lo=-0.25, hi=1, mask=mask)
    gain = torch.tensor([1.6, 1e30, -2.1], dtype=torch.float64)  # at most 2 * .5 + .5, and -2 * .75 - .75 downwards
    corners = torch.tensor(
        [[1.0, -0.25, 0.75, -0.125], [1.0, -0.25, 0.75, -0.125], [-0.25, 1.0, 0.75, -0.125]]
    ).double()
    moved = ball.project_onto_hyperplane(gain, grad, x)
    torch.testing.assert_close(moved[:2], corners[:2], rtol=0, atol=1e-15)
    assert (grad * (moved - x))[2].sum().item() == pytest.approx(-2.1, rel=1e-14)  # within reach: not the corner
    torch.testing.assert_close(ball.project_onto_hyperplane(gain * 1e30, grad, x), corners, rtol=0, atol=1e-15)
    assert torch.equal(ball.project_onto_hyperplane(gain, torch.zeros_like(grad), x), x)
    assert torch.equal(ball.project_onto_hyperplane(0 * gain, grad, x), x)


@pytest.mark.parametrize("box", ["half", "feature", "row"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_cvxpy_finds_no_nearer_point_of_the_plane(norm: str, box: str) -> None:
    case = scene(norm, box, "row", "row")
    gain, _ = needed(case, 0.6)
    low, high, _ = (side.astype(float) for side in case.displacements())
    v = cp.Variable(low.shape)
    up = np.isfinite(high)
    constraints = [v >= low, v[up] <= high[up], cp.sum(cp.multiply(case.grad.numpy(), v), axis=1) == gain.numpy()]
    order = {"linf": "inf", "l2": 2, "l1": 1}[norm]
    tight = {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}
    best = cp.Problem(cp.Minimize(cp.sum(cp.norm(v, order, axis=1))), constraints).solve(solver=cp.CLARABEL, **tight)
    ours = case.ball.norm(case.ball.project_onto_hyperplane(gain, case.grad, case.x) - case.x).sum().item()
    assert ours == pytest.approx(best, rel=1e-7)


def wide_rows(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sizes and room in many coordinates: dense, heavy-tailed, all equal, few different, over twenty decades."""
    draw = torch.Generator().manual_seed(d)
    size = torch.randn(6, d, generator=draw, dtype=torch.float64).abs()
    size[1] = size[1] ** 8
    size[2] = 0.3
    size[3] = (3 * size[3]).round()
    size[4] = 10 ** (-20 * torch.rand(d, generator=draw, dtype=torch.float64))
    room = torch.rand(6, d, generator=draw, dtype=torch.float64)
    room[:, ::3] *= 1e-3
    room[:, 1::5] = 0
    room[5] = math.inf
    room[5, ::2] = 1e-4
    return size, room


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("d", [1, 2, 31, 32, 100, 784, 3072])
def test_covering_knapsack_reaches_the_gain_at_the_cost_of_its_dual(d: int, dtype: torch.dtype) -> None:
    """Weak duality: for every price p, the least spending is at least (gain - sum room (size - p)_+) / p."""
    size, room = (part.to(dtype) for part in wide_rows(d))
    tolerance = 100 * torch.finfo(dtype).eps
    most = (size * room.clamp_max(9)).double().sum(1, keepdim=True)
    for share in (1e-6, 0.01, 0.3, 0.9, 0.999):
        gain = (share * most).to(dtype)
        v = covering_knapsack(size, room, gain)
        assert ((v >= 0) & (v <= room)).all()
        had = (size.double() * v.double()).sum(1, keepdim=True)
        torch.testing.assert_close(had, gain.double(), rtol=tolerance, atol=0)
        partly = (v > 0) & (v < room * (1 - tolerance))
        price = torch.where(partly, size, -1).amax(1, keepdim=True).double()
        price = torch.where(price > 0, price, torch.where(v > 0, size, math.inf).amin(1, keepdim=True).double())
        over = (size.double() - price).clamp_min(0)
        dual = (gain.double() - torch.where(over > 0, over * room.double(), 0).sum(1, keepdim=True)) / price
        # what rounding leaves of the gain is bought at the price of the last coordinate
        assert (v.double().sum(1, keepdim=True) <= dual + tolerance * (dual.abs() + gain.double() / price)).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("d", [1, 2, 100, 784])
def test_clipped_sum_root_reaches_the_gain(d: int, dtype: torch.dtype) -> None:
    size, room = (part.to(dtype) for part in wide_rows(d))
    most = (size * room.clamp_max(9)).double().sum(1, keepdim=True)
    for share in (0.0, 1e-6, 0.01, 0.3, 0.9, 0.999):
        gain = (share * most).to(dtype)
        t = clipped_sum_root(size, room, gain)
        had = (size.double() * torch.minimum(room, t).double()).sum(1, keepdim=True)
        torch.testing.assert_close(had, gain.double(), rtol=100 * torch.finfo(dtype).eps, atol=0)


def test_clipped_sum_root_converges_where_newton_visits_every_breakpoint() -> None:
    """Room halves from one coordinate to the next while the weight doubles: Newton's method visits every breakpoint."""
    d = 60
    room = 2.0 ** -torch.arange(d, dtype=torch.float64)[None]
    weight = 1 / room
    gain = (weight * room).sum(1, keepdim=True) * 0.9999
    t = clipped_sum_root(weight, room, gain)
    assert (weight * torch.minimum(room, t)).sum().item() == pytest.approx(gain.item(), rel=1e-14)


@pytest.mark.parametrize("d", [7, 100, 784])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_hyperplane_projection_does_not_depend_on_the_other_rows_of_the_batch(norm: str, d: int) -> None:
    draw = torch.Generator().manual_seed(d)
    x = (3 * torch.rand(9, d, generator=draw) - 1).clamp(-0.5, 1.5)
    grad = torch.randn(9, d, generator=draw) ** 3
    grad[:, 1::4] = 0
    gain = torch.randn(9, generator=draw) * torch.tensor([0.01, 0.1, 1, 10, 30, 100, 1e3, 1e4, 0])
    ball = BALLS[norm](eps=1, lo=-0.5, hi=1.5)
    whole = ball.project_onto_hyperplane(gain, grad, x)
    assert torch.equal(
        whole, torch.cat([ball.project_onto_hyperplane(gain[i, None], grad[i, None], x[i, None]) for i in range(9)])
    )
    order = torch.randperm(9, generator=draw)
    assert torch.equal(whole[order], ball.project_onto_hyperplane(gain[order], grad[order], x[order]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_hyperplane_projection_keeps_box_mask_shape_and_dtype(
    norm: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(len(shape))
    x = (2.4 * torch.rand(8, *shape, generator=draw, dtype=torch.float64) - 1.2).clamp(-1, 1).to(dtype)
    grad = torch.randn(8, *shape, generator=draw, dtype=torch.float64).to(dtype)
    mask = torch.rand(8, *shape, generator=draw) < 0.7
    ball = BALLS[norm](eps=1, lo=-1, hi=1, mask=mask)
    for gain in (0.1, -0.4, 3.0, -1e4):
        point = ball.project_onto_hyperplane(torch.full((8,), gain, dtype=dtype), grad, x)
        assert (point.shape, point.dtype) == (x.shape, dtype)
        assert (point.abs() <= 1).all()
        assert torch.equal(point[~mask], x[~mask])
    none = torch.arange(0)
    assert ball.rows(none).project_onto_hyperplane(torch.ones(0, dtype=dtype), grad[none], x[none]).shape == (0, *shape)


def test_hyperplane_projection_measures_each_feature_in_units_of_its_radius() -> None:
    """With eps per feature the plane is touched by the smallest multiple of the ball: one share of eps everywhere."""
    eps = torch.tensor([[0.1, 0.4, 0.0, math.inf, 0.2]], dtype=torch.float64)
    x = torch.tensor([[0.5, 0.5, 0.5, 0.9, 0.5]], dtype=torch.float64)
    grad = torch.tensor([[1.0, -2.0, 5.0, 1.0, 0.0]], dtype=torch.float64)
    ball = BALLS["linf"](eps=eps, lo=-1, hi=1)
    half = ball.project_onto_hyperplane(
        torch.tensor([0.05 + 0.4 + 0.1], dtype=torch.float64), grad, x
    )  # the open coordinate goes to its end, .1 of 2
    torch.testing.assert_close(half, x.new_tensor([[0.55, 0.3, 0.5, 1.0, 0.5]]), rtol=0, atol=1e-12)
    assert ball.distance(half, x).item() == pytest.approx(0.5)
    corner = ball.with_eps(eps.clamp_max(7)).project_onto_hyperplane(torch.tensor([1e9]).double(), grad, x)
    torch.testing.assert_close(corner, x.new_tensor([[1.0, -1.0, 0.5, 1.0, 0.5]]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_min_eps_lower_bound_is_at_most_min_eps(norm: str) -> None:
    for case in scenes(norm):
        gain, sign = needed(case, 0.5)
        below = case.ball.min_eps_lower_bound(gain[:, None], case.grad[:, None])[:, 0]
        least = case.ball.min_eps(gain.abs(), case.grad * sign[:, None], case.x)
        assert (below <= least * (1 + 1e-12) + 1e-300).all()
        if not isinstance(case.ball.lo, torch.Tensor) and case.ball.lo == -math.inf:
            torch.testing.assert_close(below[gain != 0], least[gain != 0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("small", [1e-10, 1e-18, 1e-20, 1e-30, 1e-37])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_tiny_gradient_and_gain_survive_underflow(norm: str, small: float) -> None:
    x = torch.tensor([[0.1, 0.5]])
    for hi in (1.0, math.inf):
        ball = BALLS[norm](eps=1.0, lo=0, hi=hi)
        point = ball.project_onto_hyperplane(torch.tensor([small]) / 4, torch.tensor([[-1.0, 1.0]]) * small, x)
        fair = ball.project_onto_hyperplane(torch.tensor([0.25]), torch.tensor([[-1.0, 1.0]]), x)
        torch.testing.assert_close(point, fair, rtol=0, atol=1e-6)


def test_covering_knapsack_does_not_buy_rounding_errors_at_the_cheapest_price() -> None:
    draw = torch.Generator().manual_seed(0)
    price = torch.cat([torch.rand(64, 50, generator=draw) + 1, torch.full((64, 20), 1e-9), torch.zeros(64, 5)], 1)
    room = torch.rand(64, 75, generator=draw)
    gain = (price * room)[:, :50].double().sum(1, keepdim=True).float()  # all of the expensive ones, but for rounding
    assert (covering_knapsack(price, room, gain)[:, 50:] <= 1e-4).all()
