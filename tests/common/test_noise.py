"""Counter-based noise: the same bits for any batch, the published generator, numbers and samples that look random."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from epsball.balls.ball import Ball
from epsball.balls.l0 import L0
from epsball.balls.l1 import L1
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf
from epsball.balls.registry import BALLS
from epsball.common.noise import GOLDEN, Noise, mix

WORD = (1 << 64) - 1
MANY = 100_000
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def noise(ids: object, *, seed: int = 0, restart: int = 0) -> Noise:
    rows = torch.as_tensor(ids)
    return Noise(seed, rows, torch.full_like(rows, restart))


def word(signed: int) -> int:
    return signed & WORD


def finalise(z: int) -> int:
    """SplitMix64's finaliser in unbounded integers (Steele, Lea and Flood, OOPSLA 2014, figure 17)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def expected_word(seed: int, example: int, restart: int, step: int, draw: int, place: int) -> int:
    golden = 0x9E3779B97F4A7C15
    start = finalise((seed + golden) & WORD)
    key = finalise((finalise((example + start) & WORD) + (restart << 40) + (step * 256 + draw) * golden) & WORD)
    return finalise((key + (place + 1) * golden) & WORD)


# First outputs of the reference C code, https://prng.di.unimi.it/splitmix64.c, as published by Java's
# SplittableRandom (seed 0) and rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64 (seed 1234567).
PUBLISHED = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B],
    1234567: [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ],
}


@pytest.mark.parametrize("seed", PUBLISHED)
def test_mix_is_splitmix64(seed: int) -> None:
    states = seed + torch.arange(1, 6) * GOLDEN
    assert [word(bits) for bits in mix(states).tolist()] == PUBLISHED[seed]
    assert [finalise(word(state)) for state in states.tolist()] == PUBLISHED[seed]


@pytest.mark.parametrize("seed", [0, 7, -1, -(2**63), 2**63, 2**64 - 2, 2**64 + 7, -(2**100) + 5])
def test_bits_are_those_of_the_reference_for_every_key(seed: int) -> None:
    ids, restart_indices = [0, 5, 2**40, 2**62], [0, 1, 9, 2**20]
    rows = Noise(seed, torch.tensor(ids), torch.tensor(restart_indices))
    for step, draw in [(0, 0), (0, 1), (0, 2), (1, 0), (39, 3), (10**6, 255)]:
        got = rows.bits((2, 3), step, draw).reshape(4, 6).tolist()
        keys = zip(ids, restart_indices, strict=True)
        assert [[word(b) for b in row] for row in got] == [
            [expected_word(seed, i, r, step, draw, place) for place in range(6)] for i, r in keys
        ]
        steps = torch.full((4,), step)
        assert torch.equal(rows.bits((2, 3), steps, draw), rows.bits((2, 3), step, draw)), "a step per row differs"


def test_draws_equal_the_pinned_numbers() -> None:
    """From `expected_word` above: the numbers that every stored run depends on."""
    row = noise([7], seed=3, restart=2)
    bits = expected_word(3, 7, 2, 5, 1, 0)
    assert bits == 0x3664AF649C90063A
    assert row.uniform((), 5, 1, dtype=torch.float64).item() == (bits >> 11) / 2**53
    assert row.uniform((), 5, 1).item() == (bits >> 40) / 2**24
    assert row.uniform((), 5, 1, dtype=torch.bfloat16).item() == (bits >> 56) / 2**8
    assert row.uniform((), 5, 1, dtype=torch.float16).item() == (bits >> 53) / 2**11
    assert row.sign((), 5, 1).item() == (1 if bits >> 63 else -1)
    uniform = (bits >> 11) / 2**53
    assert row.exponential((), 5, 1, dtype=torch.float64).item() == pytest.approx(-math.log1p(-uniform), rel=1e-14)
    radius, turn = ((bits >> 32) + 1) / 2**32, (bits & 0xFFFFFFFF) / 2**32
    gauss = math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * turn)
    assert row.normal((), 5, 1, dtype=torch.float64).item() == pytest.approx(gauss, rel=1e-12)


@pytest.mark.parametrize("kind", ["bits", "uniform", "sign", "normal", "exponential"])
def test_draw_does_not_depend_on_the_batch(kind: str) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(100, 140)[order]
    whole = Noise(11, ids, ids % 3)
    steps = ids % 5

    def drawn(part: Noise, step: object) -> torch.Tensor:
        return getattr(part, kind)((3, 5), step, 1)

    full = drawn(whole, steps)
    assert full.shape == (40, 3, 5)
    back = torch.argsort(ids)
    assert torch.equal(drawn(Noise(11, ids[back], ids[back] % 3), steps[back]), full[back])
    for size in (1, 7, 32):
        parts = [torch.arange(start, min(start + size, 40)) for start in range(0, 40, size)]
        assert torch.equal(torch.cat([drawn(whole.rows(part), steps[part]) for part in parts]), full)
    twice = torch.tensor([4, 4, 39, 0])
    assert torch.equal(drawn(whole.rows(twice), steps[twice]), full[twice])
    assert torch.equal(drawn(whole.rows(ids > 120), steps[ids > 120]), full[ids > 120])
    assert drawn(whole.rows(torch.zeros(0, dtype=torch.long)), steps[:0]).shape == (0, 3, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_lies_on_its_grid_in_its_interval(dtype: torch.dtype) -> None:
    digits = {torch.float64: 53, torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}[dtype]
    u = noise(range(50)).uniform((400,), dtype=dtype)
    grid = u.double() * 2**digits
    assert u.dtype == dtype
    assert (u >= 0).all()
    assert (u < 1).all()
    assert torch.equal(grid, grid.round())
    assert (grid % 2 == 1).any(), "the last digit is never used"
    assert (u.double().mean() - (0.5 - 2.0 ** -(digits + 1))).abs() < 5 * math.sqrt(1 / 12 / 20_000)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["sign", "normal", "exponential"])
def test_draw_has_the_dtype_asked_for_and_is_finite(kind: str, dtype: torch.dtype) -> None:
    drawn = getattr(noise(range(20)), kind)((2, 50), dtype=dtype)
    assert drawn.dtype == dtype
    assert drawn.shape == (20, 2, 50)
    assert drawn.isfinite().all()


def sample(kind: str, axis: str, **where) -> torch.Tensor:
    """MANY draws in float64 along one axis of the key."""
    count = torch.arange(MANY)
    key = {"seed": 17, "restart": 0, "step": 0, "draw": 0} | where
    still = torch.full_like(count, where.get("example", 42))
    ids = count if axis == "id" else still[:1] if axis == "coordinate" else still
    restart = count if axis == "restart" else torch.full_like(ids, key["restart"])
    step = count if axis == "step" else key["step"]
    shape = (MANY,) if axis == "coordinate" else ()
    return getattr(Noise(key["seed"], ids, restart), kind)(shape, step, key["draw"], dtype=torch.float64).flatten()


LAWS = {"uniform": stats.uniform(), "normal": stats.norm(), "exponential": stats.expon()}
AXES = ["id", "restart", "step", "coordinate"]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("kind", LAWS)
def test_draws_follow_their_law(kind: str, axis: str) -> None:
    law, drawn = LAWS[kind], sample(kind, axis)
    assert stats.kstest(drawn.numpy(), law.cdf).pvalue > 1e-4
    mean, variance = (float(m) for m in law.stats("mv"))
    fourth = float(law.stats("k")) + 3
    assert (drawn.mean() - mean).abs() < 5 * math.sqrt(variance / MANY)
    assert (drawn.var() - variance).abs() < 5 * variance * math.sqrt((fourth - 1) / MANY)
    if kind == "normal":
        assert abs(stats.skew(drawn.numpy())) < 5 * math.sqrt(6 / MANY)
        assert abs(stats.kurtosis(drawn.numpy())) < 5 * math.sqrt(24 / MANY)


@pytest.mark.parametrize("axis", AXES)
def test_bits_are_unbiased_and_signs_balanced(axis: str) -> None:
    bits = sample_bits(axis)
    for place in range(64):
        ones = (bits >> place & 1).sum().item()
        assert abs(ones - MANY / 2) < 5 * math.sqrt(MANY) / 2, f"bit {place}"
    for low in (0, 28, 56):
        counts = torch.bincount(bits >> low & 255, minlength=256)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    sign = sample("sign", axis)
    assert sign.abs().eq(1).all()
    assert abs(sign.sum().item()) < 5 * math.sqrt(MANY)


def sample_bits(axis: str) -> torch.Tensor:
    count, still = torch.arange(MANY), torch.full((MANY,), 42)
    if axis == "coordinate":
        return noise([42], seed=17).bits((MANY,)).flatten()
    ids, restart = (count if axis == "id" else still), (count if axis == "restart" else torch.zeros_like(count))
    return Noise(17, ids, restart).bits((), count if axis == "step" else 0)


def check_uncorrelated(a: torch.Tensor, b: torch.Tensor) -> None:
    bound = 5 / math.sqrt(len(a))
    for one, two in ((a, b), ((a - 0.5).abs(), b), (a, (b - 0.5).abs()), ((a - 0.5).abs(), (b - 0.5).abs())):
        assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1].item()) < bound


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("lag", [1, 2, 256])
def test_neighbours_along_an_axis_are_uncorrelated(axis: str, lag: int) -> None:
    drawn = sample("uniform", axis)
    check_uncorrelated(drawn[:-lag], drawn[lag:])


@pytest.mark.parametrize(
    ("axis", "changed"),
    [
        ("coordinate", {"example": 43}),
        ("coordinate", {"restart": 1}),
        ("coordinate", {"step": 1}),
        ("coordinate", {"draw": 1}),
        ("coordinate", {"seed": 18}),
        ("coordinate", {"seed": -17}),
        ("coordinate", {"seed": 2**64 + 18}),
        ("id", {"restart": 1}),
        ("id", {"step": 1}),
        ("id", {"draw": 2}),
        ("id", {"seed": 18}),
    ],
)
def test_streams_are_uncorrelated(axis: str, changed: dict[str, int]) -> None:
    check_uncorrelated(sample("uniform", axis), sample("uniform", axis, **changed))


@pytest.mark.parametrize(("kind", "d"), [(Linf, 4), (L2, 4), (L1, 4), (L2, 1), (L1, 1)])
def test_sample_is_uniform_in_the_ball(kind: type[Ball], d: int) -> None:
    n = 40_000
    x = torch.full((n, d), -0.6, dtype=torch.float64)
    ball = kind(eps=1.4)
    delta = (ball.sample(x, noise(range(n), seed=8)) - x) / 1.4
    volume = ball.norm(delta) ** d  # uniform on [0, 1]
    bound = 5 / math.sqrt(n)
    for power in (1, 2, 3):
        assert abs((volume**power).mean().item() - 1 / (power + 1)) < bound / 2
    assert (delta.mean(0).abs() < bound).all()
    assert (delta.sign().mean(0).abs() < bound).all()
    second = delta.square().mean(0)
    assert ((second - second.mean()).abs() < bound).all()
    if d > 1:
        assert ((torch.corrcoef(delta.T) - torch.eye(d)).abs() < bound).all()


def test_l0_sample_is_uniform_over_coordinates_and_box() -> None:
    n = 20_000
    x = torch.full((n, 5), 0.9, dtype=torch.float64)
    z = L0(eps=2.5, lo=-1.5, hi=1.0).sample(x, noise(range(n), seed=8))
    assert ((z != x).sum(1) == 2).all()
    assert (((z != x).double().mean(0) - 0.4).abs() < 5 * math.sqrt(0.24 / n)).all()
    place = (z[z != x] + 1.5) / 2.5
    assert abs(place.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / len(place))
    assert abs(place.square().mean().item() - 1 / 3) < 5 * math.sqrt(4 / 45 / len(place))


@pytest.mark.parametrize("norm", BALLS)
def test_sample_of_an_infinite_radius_is_uniform_over_the_box(norm: str) -> None:
    z = BALLS[norm](eps=math.inf, lo=-1.5, hi=0.5).sample(
        torch.zeros(20_000, 3, dtype=torch.float64), noise(range(20_000))
    )
    place = (z + 1.5) / 2
    assert ((place.mean(0) - 0.5).abs() < 5 * math.sqrt(1 / 12 / 20_000)).all()
    assert ((place.square().mean(0) - 1 / 3).abs() < 5 * math.sqrt(4 / 45 / 20_000)).all()
    assert ((torch.corrcoef(place.T) - torch.eye(3)).abs() < 5 / math.sqrt(20_000)).all()


def test_no_two_keys_share_a_number() -> None:
    seen = set()
    grid = list(itertools.product((0, 1, 2, -1, 2**63), (0, 1, 2), (0, 1, 2, 255), (0, 1, 2)))
    ids = torch.arange(30)
    for seed, restart, draw, step in grid:
        seen.update(noise(ids, seed=seed, restart=restart).bits((2,), step, draw).flatten().tolist())
    assert len(seen) == len(grid) * 60
