"""The four norms by their properties: nothing feasible is nearer or gains more, rows are independent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from epsball.balls.ball import Ball
from epsball.balls.l0 import L0
from epsball.balls.linf import Linf
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.shapes import column, flat

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NORMS = pytest.mark.parametrize("norm", BALLS)
DUALS = {"linf": 1, "l2": 2, "l1": math.inf}
properties = settings(derandomize=True, deadline=None, max_examples=60, database=None)


def noise(n: int, seed: int = 0) -> Noise:
    return Noise(seed, torch.arange(n) + 3, torch.arange(n) % 2)


@dataclass
class Case:
    x: torch.Tensor
    z: torch.Tensor
    grad: torch.Tensor
    parts: dict
    seed: int

    def ball(self, norm: str) -> Ball:
        box = {"lo": -9.7, "hi": 11.3} if norm == "l0" else {}
        return BALLS[norm](**box | self.parts | {"eps": self.eps})

    @property
    def eps(self) -> float | torch.Tensor:
        """The radius; radii per example are a column where x is square, and (n,) could be meant per feature."""
        eps, (n, d) = self.parts["eps"], self.x.shape
        return eps[:, None] if isinstance(eps, torch.Tensor) and n == d > 1 else eps

    def feasible(self, ball: Ball) -> torch.Tensor:
        """(50, n, d): random points of ball, box and mask, many of them far out."""
        draw = torch.Generator().manual_seed(self.seed)
        x, eps = self.x, column(torch.as_tensor(ball.eps, dtype=torch.float64), 2)
        delta = 3 * torch.randn(50, *x.shape, generator=draw, dtype=torch.float64)
        delta[:25] = (self.z - x) + 0.1 * delta[:25]
        delta = torch.clamp(x + delta, ball.lo * torch.ones_like(x), ball.hi * torch.ones_like(x)) - x
        delta = delta if ball.mask is None else delta * ball.mask
        if ball.name == "l0":
            order = torch.rand(delta.shape, generator=draw).argsort(2).argsort(2)
            return x + torch.where(order < eps.floor(), delta, 0)
        length = torch.stack([ball.norm(d) for d in delta])[..., None]
        return x + delta * (eps / length.clamp_min(1e-300)).clamp_max(1)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n, d = draw(st.integers(1, 3)), draw(st.integers(1, 6))

    def numbers(shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
        exact = st.floats(low, high).map(lambda value: round(value, 9))  # ties and zeros, and no subnormal numbers
        return torch.from_numpy(draw(hnp.arrays(float, shape, elements=exact | st.integers(int(low), int(high)))))

    per_row = draw(st.booleans())
    parts: dict = {"eps": numbers((n,), 0, 4) if per_row else draw(st.sampled_from([0.0, 0.25, 1.7, 3, 40.0]))}
    x = numbers((n, d), -2, 3)
    if draw(st.booleans()):
        rows = draw(st.sampled_from([1, n]))
        lo = numbers((rows, d), -2, 1)
        hi = lo + numbers((rows, d), 0, 3)
        parts |= {"lo": lo, "hi": hi}
        x = torch.clamp(x, lo, hi)
    if draw(st.booleans()):
        rows = draw(st.sampled_from([1, n]))
        parts["mask"] = torch.from_numpy(draw(hnp.arrays(bool, (rows, d))))
    return Case(x, numbers((n, d), -5, 6), numbers((n, d), -4, 4), parts, draw(st.integers(0, 2**20)))


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(-1)


@NORMS
@properties
@given(case=cases())
def test_projection_is_the_nearest_point_and_keeps_points_inside(norm: str, case: Case) -> None:
    ball = case.ball(norm)
    p = ball.project(case.z, case.x)
    assert ball.contains(p, case.x).all()
    assert torch.equal(ball.project(p, case.x), p)
    assert torch.equal(ball.project(case.x, case.x), case.x)
    others = case.feasible(ball)
    well_inside = case.x + 0.99 * (others - case.x)
    for w in well_inside[::10]:
        assert torch.equal(ball.project(w, case.x), w)
    nearest = (p - case.z).square().sum(-1)
    assert (nearest <= (others - case.z).square().sum(-1) * (1 + 1e-12) + 1e-12).all()


@NORMS
@properties
@given(case=cases(), factor=st.sampled_from([0.0, 1e-3, 0.3, 7.0, 1e6]))
def test_argmax_has_the_greatest_gain_and_max_gain_is_its_value(norm: str, case: Case, factor: float) -> None:
    ball, x, grad = case.ball(norm), case.x, case.grad
    z, gain = ball.argmax(grad, x), ball.max_gain(grad, x)
    assert ball.contains(z, x).all()
    torch.testing.assert_close(gain, dot(grad, z - x), rtol=1e-12, atol=1e-12)
    assert (dot(grad, case.feasible(ball) - x) <= gain + 1e-12 * (1 + gain)).all()
    torch.testing.assert_close(ball.max_gain(factor * grad, x), factor * gain, rtol=1e-10, atol=1e-12 * factor)
    assert (gain >= 0).all()
    assert torch.equal(z[grad == 0], x[grad == 0])


@pytest.mark.parametrize("norm", DUALS)
@properties
@given(case=cases())
def test_max_gain_without_a_box_is_eps_times_the_dual_norm(norm: str, case: Case) -> None:
    ball = BALLS[norm](eps=case.eps)
    dual = torch.linalg.vector_norm(case.grad, DUALS[norm], dim=1)
    expected = torch.as_tensor(case.parts["eps"], dtype=torch.float64) * dual
    torch.testing.assert_close(ball.max_gain(case.grad, case.x), expected, rtol=1e-13, atol=1e-13)


@NORMS
@properties
@given(case=cases())
def test_ascent_is_a_unit_step_in_the_free_coordinates(norm: str, case: Case) -> None:
    ball, z, grad = case.ball(norm), case.x, case.grad
    step = ball.ascent(grad, z)
    lo, hi = ball.lo * torch.ones_like(z), ball.hi * torch.ones_like(z)
    shut = ((grad > 0) & (z >= hi)) | ((grad < 0) & (z <= lo)) | (grad == 0)
    shut |= torch.zeros_like(shut) if ball.mask is None else ~ball.mask
    assert (step[shut] == 0).all()
    some = (~shut).any(1)
    torch.testing.assert_close(ball.norm(step), some.double(), rtol=1e-14, atol=1e-14)
    room = torch.where(step > 0, hi - z, torch.where(step < 0, z - lo, math.inf))
    small = 0.5 * torch.minimum(room.amin(1, keepdim=True), torch.ones(len(z), 1, dtype=torch.float64))
    assert ((z + small * step >= lo) & (z + small * step <= hi)).all()
    if norm == "l0":
        best = torch.where(shut, 0, grad.abs() * torch.where(grad > 0, hi - z, z - lo)).amax(1)
    else:
        best = torch.linalg.vector_norm(torch.where(shut, 0, grad), DUALS[norm], dim=1)
    torch.testing.assert_close(dot(grad, step), best, rtol=1e-13, atol=1e-13)


def answers(ball: Ball, x: torch.Tensor, z: torch.Tensor, grad: torch.Tensor, noise: Noise) -> dict[str, torch.Tensor]:
    inside = ball.project(z, x)
    return {
        "project": inside,
        "argmax": ball.argmax(grad, x),
        "max_gain": ball.max_gain(grad, x),
        "ascent": ball.ascent(grad, x),
        "step": ball.step(grad, inside, x, 0.1),
        "sample": ball.sample(x, noise),
        "contains": ball.contains(z, x),
        "inside": ball.contains(inside, x),
    }


@NORMS
@properties
@given(case=cases())
def test_samples_and_steps_stay_in_the_ball(norm: str, case: Case) -> None:
    ball = case.ball(norm)
    for seed in (case.seed, -1):
        drawn = ball.sample(case.x, noise(len(case.x), seed))
        assert ball.contains(drawn, case.x).all()
        anywhere = ball.sample(case.x, noise(len(case.x), seed), in_box=False)
        assert torch.equal(ball.project(anywhere, case.x), drawn)
        if ball.mask is not None:
            assert torch.equal(torch.where(ball.mask, case.x, anywhere), case.x)
    z = case.x
    for size in (0.1, 0.5, 2.0):
        z = ball.step(case.grad, z, case.x, size)
        assert ball.contains(z, case.x).all()


@NORMS
@properties
@given(case=cases(), data=st.data())
def test_row_does_not_depend_on_its_batch(norm: str, case: Case, data: st.DataObject) -> None:
    n = len(case.x)
    index = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=5)))
    ball, rows = case.ball(norm), noise(n)
    whole = answers(ball, case.x, case.z, case.grad, rows)
    x, z, grad = case.x[index], case.z[index], case.grad[index]
    for part_ball in (ball.rows(index), ball.bind(case.x).rows(index)):
        part = answers(part_ball, x, z, grad, rows.rows(index))
        assert [name for name in whole if not torch.equal(part[name], whole[name][index])] == []


@NORMS
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_of_an_image_does_not_depend_on_its_batch(norm: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(5)
    x, z, grad = (torch.randn(9, 3, 16, 16, generator=draw) for _ in range(3))
    x = x.clamp(-0.75, 1.5).to(dtype)
    ball = BALLS[norm](eps=torch.linspace(0, 7, 9), lo=-0.75, hi=1.5, mask=grad > -1)
    rows = noise(9)
    whole = answers(ball, x, z.to(dtype), grad.to(dtype), rows)
    for index in (torch.tensor([8]), torch.tensor([5, 2]), torch.arange(8, -1, -1)):
        part = answers(ball.rows(index), x[index], z[index].to(dtype), grad[index].to(dtype), rows.rows(index))
        assert [name for name in whole if not torch.equal(part[name], whole[name][index])] == []
    assert whole["inside"].all()
    assert torch.equal(ball.project(whole["project"], x), whole["project"]), "not idempotent in many dimensions"


@NORMS
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_keep_dtype_and_shape_and_lie_in_the_ball(norm: str, n: int, shape: tuple, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(n + len(shape))
    x, z, grad = (0.4 + torch.randn(n, *shape, generator=draw) for _ in range(3))
    scale = 100.0 if n == 3 else 1.0
    x, z, grad = (x.clamp(-0.7, 1.9) * scale).to(dtype), (z * scale).to(dtype), grad.to(dtype)
    low, high = (round(side * scale, 1) for side in (-0.7, 1.9))
    lo, hi = (torch.full((1, *shape), side, dtype=torch.float64) for side in (low, high))
    x = torch.clamp(x, lo.to(dtype), hi.to(dtype))
    for eps in (0, 0.3, 1.6 * scale, torch.linspace(0, 3, n), math.inf):
        for box in ({"lo": low, "hi": high}, {"lo": lo, "hi": hi}):
            ball = BALLS[norm](eps=eps, **box)
            found = answers(ball, x, z, grad, noise(n))
            for name in ("project", "argmax", "sample", "step"):
                assert ball.contains(found[name], x).all(), (name, ball)
                assert torch.equal(ball.project(found[name], x), found[name]), (name, ball)
            for name in ("project", "argmax", "sample", "step", "ascent"):
                assert (found[name].dtype, found[name].shape) == (dtype, x.shape), name
                assert found[name].isfinite().all(), name
            assert (found["max_gain"].dtype, found["max_gain"].shape) == (dtype, (n,))
            assert (found["contains"].dtype, found["contains"].shape) == (torch.bool, (n,))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 64.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_contains_allows_eps_and_four_ulp_at_the_scale_of_the_data(
    norm: str, dtype: torch.dtype, scale: float, sign: int
) -> None:
    ulp = torch.finfo(dtype).eps * scale
    x = torch.tensor([[-scale, 0.0, 0.0]] * 6, dtype=torch.float64)
    z = x.clone()
    z[:, 1] = sign * (scale / 4 + ulp * torch.tensor([-1, 0, 3.5, 4, 4.5, 40], dtype=torch.float64))
    ball = BALLS[norm](eps=scale / 4)
    assert torch.equal(z.to(dtype).double(), z), "the test's own points are not representable"
    assert ball.contains(z.to(dtype), x.to(dtype)).tolist() == [True] * 4 + [False] * 2
    z[:, 2] = ulp * 8
    assert ball.contains(z.to(dtype), x.to(dtype)).all() == (norm == "linf" and False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 255.0, 2.0**14])
def test_l0_contains_counts_the_changed_coordinates_exactly(dtype: torch.dtype, scale: float) -> None:
    x = torch.full((5, 30), scale, dtype=dtype)
    z = x.clone()
    for row, count in enumerate((0, 2, 3, 4, 30)):
        z[row, :count] = 0.0
    assert L0(eps=2.9, lo=0, hi=scale).contains(z, x).tolist() == [True, True, False, False, False]


@NORMS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["number", "shared", "row"])
def test_contains_refuses_one_ulp_beyond_the_box_or_the_mask(norm: str, dtype: torch.dtype, kind: str) -> None:
    lo, hi = (torch.tensor(side, dtype=torch.float64).to(dtype).item() for side in (-0.7, 1.1))
    rows = {"number": (), "shared": (1, 3), "row": (4, 3)}[kind]
    sides = (
        {"lo": -0.7, "hi": 1.1}
        if kind == "number"
        else {name: torch.full(rows, side, dtype=torch.float64) for name, side in (("lo", -0.7), ("hi", 1.1))}
    )
    x = torch.tensor([[lo, hi, 0.3]] * 4, dtype=dtype)
    z = x.clone()
    up, down = torch.tensor(math.inf, dtype=dtype), torch.tensor(-math.inf, dtype=dtype)
    z[1, 0], z[2, 1], z[3, 2] = torch.nextafter(x[1, 0], down), torch.nextafter(x[2, 1], up), 0.5
    assert BALLS[norm](eps=2.5, **sides).contains(z, x).tolist() == [True, False, False, True]
    z = x.clone()
    z[1, 2], z[2, 2], z[3, 0] = torch.nextafter(x[1, 2], up), torch.nextafter(x[2, 2], down), 0.5
    mask = torch.tensor([[True, True, False]])
    assert BALLS[norm](eps=2.5, mask=mask, **sides).contains(z, x).tolist() == [True, False, False, True]
    z = x.clone()
    z[0, 2] = math.nan
    assert BALLS[norm](eps=math.inf, **sides).contains(z, x).tolist() == [False, True, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_l0_projection_keeps_a_change_whose_square_under_or_overflows(dtype: torch.dtype) -> None:
    for change in (2.0**-14, 0.5, 400.0):
        x = torch.full((1, 4), 0.0, dtype=dtype)
        z = torch.tensor([[0, change, 0, -change / 2]], dtype=dtype)
        ball = L0(eps=1, lo=-300, hi=302)
        assert ball.project(z, x).tolist() == [[0, min(change, 302), 0, 0]]


@NORMS
def test_methods_leave_their_arguments_unchanged(norm: str) -> None:
    x, z, grad = (torch.randn(4, 5, generator=torch.Generator().manual_seed(s)).clamp(-1, 2) for s in (1, 2, 3))
    given = [x, z, grad, torch.full((4,), 1.5), torch.full((1, 5), -1.0), torch.full((4, 5), 2.0)]
    mask = torch.tensor([[True, False, True, True, True]])
    copies = [part.clone() for part in given]
    ball = BALLS[norm](eps=given[3], lo=given[4], hi=given[5], mask=mask)
    for part in (ball, ball.bind(x)):
        answers(part, x, z, grad, noise(4))
        answers(part.with_eps(math.inf), x, z, grad, noise(4))
        assert all(torch.equal(one, other) for one, other in zip(given, copies, strict=True))
    assert mask.int().tolist() == [[1, 0, 1, 1, 1]]


@NORMS
def test_radius_as_a_scalar_tensor_gives_the_results_of_a_number(norm: str) -> None:
    x, z, grad = (torch.rand(4, 5, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3))
    number = BALLS[norm](eps=1.5, lo=0, hi=1)
    tensor = BALLS[norm](eps=torch.tensor(1.5), lo=torch.tensor(0.0), hi=torch.tensor(1.0))
    index = torch.tensor([2, 0])
    for one, other, chosen in ((number, tensor, torch.arange(4)), (number.rows(index), tensor.rows(index), index)):
        first = answers(one, x[chosen], z[chosen], grad[chosen], noise(len(chosen)))
        second = answers(other, x[chosen], z[chosen], grad[chosen], noise(len(chosen)))
        assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_linf_radius_per_feature_is_respected_by_every_method() -> None:
    x = torch.tensor([[0.5, 0.5, 0.5], [0.25, 1.0, -0.5]])
    ball = Linf(eps=torch.tensor([[0.0, 0.25, 9.0]]), lo=-0.5, hi=1.0)
    assert ball.argmax(torch.ones(2, 3), x).tolist() == [[0.5, 0.75, 1.0], [0.25, 1.0, 1.0]]
    assert ball.project(x - 1, x).tolist() == [[0.5, 0.25, -0.5], [0.25, 0.75, -0.5]]
    assert ball.max_gain(-torch.ones(2, 3), x).tolist() == [1.25, 0.25]
    assert ball.contains(x + torch.tensor([[0.0, -0.25, 0.0]]), x).all()
    assert not ball.contains(x - torch.tensor([[0.125, 0.0, 0.0]]), x).any()
    assert torch.equal(ball.rows(torch.tensor([1])).argmax(torch.ones(1, 3), x[1:]), torch.tensor([[0.25, 1.0, 1.0]]))


@pytest.mark.parametrize(("norm", "share"), [("linf", 0.999999), ("l2", 0.999), ("l1", 0.98)])
def test_steps_reach_the_linear_optimum(norm: str, share: float) -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.rand(30, 20, generator=draw, dtype=torch.float64) - 0.3
    grad = torch.randn(30, 20, generator=draw, dtype=torch.float64)
    ball = BALLS[norm](eps=1.1, lo=-0.3, hi=0.7)
    z = x
    for _ in range(100):
        z = ball.step(grad, z, x, 0.1)
    ratio = dot(grad, z - x) / ball.max_gain(grad, x)
    assert (ratio >= share).all(), ratio.min()
    assert (ratio <= 1 + 1e-12).all()


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@NORMS
def test_infinite_radius_leaves_the_steps_of_other_rows_unchanged(norm: str, dtype: torch.dtype, shape: tuple) -> None:
    draw = torch.Generator().manual_seed(5)
    x, z, grad = (torch.rand(6, *shape, generator=draw).to(dtype) - 0.3 for _ in range(3))
    radius = torch.tensor([1.0, 0.2, 2.0, 1.5, 0.1, 1.2])
    endless = radius.clone()
    endless[[1, 4]] = math.inf
    bounded, ball = (BALLS[norm](eps=eps, lo=-0.3, hi=0.7).bind(x) for eps in (radius, endless))
    z = bounded.project(z, x)
    for size in (0.25, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=dtype)):
        stepped = ball.step(grad, z, x, size)
        same = endless.isfinite()
        assert torch.equal(stepped[same], bounded.step(grad, z, x, size)[same])
        assert torch.equal(stepped[~same], ball.argmax(grad, x)[~same])
        if norm in ("l2", "l1"):
            assert not torch.equal(stepped[same], ball.argmax(grad, x)[same])


def test_flat_and_column_keep_rows_apart() -> None:
    assert flat(torch.zeros(3)).shape == (3, 1)
    assert flat(torch.zeros(0, 2, 5)).shape == (0, 10)
    assert column(torch.tensor([1.0, 2.0]), 3).tolist() == [[[1.0]], [[2.0]]]


def with_radius(ball: Ball, radius: torch.Tensor) -> Ball:
    return ball.with_eps(radius.nan_to_num(posinf=1e9)[:, None])


@NORMS
@properties
@given(case=cases(), block=st.sampled_from([1, 5, 1 << 18]))
def test_max_gains_is_max_gain_pair_by_pair(norm: str, case: Case, block: int) -> None:
    ball, x = case.ball(norm), case.x
    grads = torch.cat([case.grad, -case.grad.flip(1), torch.zeros_like(case.grad[:1])])
    balls = [ball]
    if norm == "linf":
        balls.append(ball.with_eps(torch.linspace(0, 2.5, x.shape[1], dtype=torch.float64)[None]))
    if norm == "l0" or "lo" in case.parts:
        balls.append(ball.with_eps(math.inf))
    for each in balls:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("epsball.balls.ball.BLOCK", block)
            found = each.max_gains(grads, x)
        expected = torch.stack([each.max_gain(grad.expand_as(x), x) for grad in grads], 1)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@NORMS
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_gains_of_images_in_low_precision_agree_with_float64(norm: str, shape: tuple, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(len(shape))
    x, grads = (0.3 + torch.randn(count, *shape, generator=draw) for count in (6, 3))
    x, grads = x.clamp(-0.75, 1.5).to(dtype), grads.to(dtype)
    mask = torch.rand(1, *shape, generator=draw) < 0.7
    for part in (None, mask, mask.expand(6, *shape) & (x > 0)):
        ball = BALLS[norm](eps=torch.linspace(0, 3, 6), lo=-0.75, hi=1.5, mask=part)
        found = ball.max_gains(grads, x)
        assert (found.dtype, found.shape) == (dtype, (6, 3))
        expected = torch.stack([ball.max_gain(grad.expand_as(x).double(), x.double()) for grad in grads], 1)
        torch.testing.assert_close(found.double(), expected, rtol=40 * torch.finfo(dtype).eps, atol=1e-6)
        assert ball.max_gains(grads[:0], x).shape == (6, 0)
        assert ball.rows(torch.arange(0)).max_gains(grads, x[:0]).shape == (0, 3)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_max_gains_refuses_an_unbounded_ball_and_another_shape(norm: str) -> None:
    x = torch.tensor([[0.5, 0.9]])
    for eps in (math.inf, torch.tensor([math.inf])):
        with pytest.raises(BadInput, match="`eps` must be finite where the box is not"):
            BALLS[norm](eps=eps, lo=0.25).max_gains(torch.tensor([[1.0, 0.0]]), x)
    with pytest.raises(BadInput, match=r"`grads` must be \(k, \*shape\)"):
        BALLS[norm](eps=1).max_gains(torch.ones(2), x)


@NORMS
@properties
@given(case=cases(), share=st.sampled_from([1e-3, 0.2, 0.5, 0.9]))
def test_min_eps_is_the_smallest_radius_with_the_gain(norm: str, case: Case, share: float) -> None:
    ball, x, grad = case.ball(norm), case.x, case.grad
    most = with_radius(ball, torch.full((len(x),), 60.0, dtype=torch.float64)).max_gain(grad, x)
    gain = share * most
    for strict in (False, torch.arange(len(x)) % 2 == 0):
        radius = ball.min_eps(gain, grad, x, strict=strict)
        assert (radius.isfinite() == ((most > 0) | ~torch.as_tensor(strict))).all()
        had = with_radius(ball, radius).max_gain(grad, x)
        if norm == "l0":
            assert (had >= gain * (1 - 1e-12)).all()
            assert (with_radius(ball, (radius - 1).clamp_min(0)).max_gain(grad, x) <= gain).all()
        else:  # the gain rises strictly up to its maximum: a radius that has it, and no more, is the smallest
            torch.testing.assert_close(had, gain, rtol=1e-12, atol=1e-12)


@NORMS
def test_min_eps_at_the_greatest_gain_is_exact_and_beyond_it_infinite(norm: str) -> None:
    x = torch.tensor([[0.5, 0.25]]).double().expand(5, 2).clone()
    grad = torch.tensor([[2.0, -1.0]]).double().expand(5, 2)
    ball = BALLS[norm](eps=3, lo=0, hi=1)
    gain = torch.tensor([1.0, 1.25, 1.2500001, 0.0, -1.0])  # at most 2 * 0.5 + 0.25
    full = {"linf": 0.5, "l2": math.hypot(0.5, 0.25), "l1": 0.75, "l0": 2}[norm]
    loose = ball.min_eps(gain, grad, x)
    assert loose[1].item() == pytest.approx(full, rel=1e-14)
    assert loose[2:].tolist() == [math.inf, 0, 0]
    strict = ball.min_eps(gain, grad, x, strict=True)
    assert strict[1:3].tolist() == [math.inf, math.inf]
    assert (loose[0].item(), strict[0].item()) == ((1, 2) if norm == "l0" else (loose[0].item(),) * 2)
    assert strict[3:].tolist() == [1 if norm == "l0" else 0, 0]


@NORMS
@properties
@given(case=cases())
def test_dual_is_an_upper_bound_of_the_gain_per_unit_of_radius(norm: str, case: Case) -> None:
    ball = case.ball(norm)
    for radius in (1.0, 2.0, 5.0):
        gains = ball.with_eps(radius).max_gains(case.grad, case.x)
        assert (gains <= radius * ball.dual(case.grad) * (1 + 1e-12)).all()
