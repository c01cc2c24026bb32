"""What a user can get wrong about a ball: every mistake is refused with the argument, the rule, the value, a remedy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from epsball.balls.ball import Ball
from epsball.balls.l0 import L0
from epsball.balls.l1 import L1
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf
from epsball.balls.registry import BALLS, parse, parse_radius
from epsball.common.errors import BadInput
from epsball.common.noise import Noise

NAN, INF = math.nan, math.inf
X = torch.tensor([[0.2, 0.4, 0.6], [1.0, 0.8, 0.3]])
GRAD = torch.ones(2, 3)


def noise(n: int = 2) -> Noise:
    return Noise(0, torch.arange(n), torch.zeros(n, dtype=torch.long))


def made(kind: type[Ball], **parts) -> Ball:
    return kind(**({"eps": 1.0, "lo": -0.5, "hi": 1.5} | parts))


METHODS: dict[str, Callable[[Ball, torch.Tensor], object]] = {
    "bind": lambda ball, x: ball.bind(x),
    "project": lambda ball, x: ball.project(x, x),
    "argmax": lambda ball, x: ball.argmax(x, x),
    "max_gain": lambda ball, x: ball.max_gain(x, x),
    "ascent": lambda ball, x: ball.ascent(x, x),
    "step": lambda ball, x: ball.step(x, x, x, 0.1),
    "sample": lambda ball, x: ball.sample(x, noise(len(x) if x.ndim else 1)),
    "contains": lambda ball, x: ball.contains(x, x),
}

# what is given -> argument, rule, value, remedy
PARTS = {
    "eps is negative": ({"eps": -0.1}, "`eps`", "must be >= 0", "-0.1", "without a sign"),
    "eps is negative and tiny": ({"eps": -1e-50}, "`eps`", "must be >= 0", "-1e-50", "without a sign"),
    "one eps is negative": ({"eps": torch.tensor([0.5, -2.0])}, "`eps`", "must be >= 0", "-2", "without a sign"),
    "eps is -inf": ({"eps": -INF}, "`eps`", "must be >= 0", "-inf", "without a sign"),
    "eps is NaN": ({"eps": NAN}, "`eps`", "must not be NaN", "got nan", "computed"),
    "one eps is NaN": ({"eps": torch.tensor([0.5, NAN])}, "`eps`", "must not be NaN", "nan", "computed"),
    "lo is NaN": ({"lo": NAN}, "`lo`", "must not be NaN", "got nan", "computed"),
    "one hi is NaN": ({"hi": torch.tensor([[1.5, NAN, 1.5]])}, "`hi`", "must not be NaN", "nan", "computed"),
    "lo is above hi": ({"lo": 1.5, "hi": -0.5}, "`lo`", "must be <= `hi`", "lo=1.5, hi=-0.5", "swap"),
    "one lo is above hi": ({"lo": torch.tensor([[0.0, 1.75, 0.0]])}, "`lo`", "must be <= `hi`", "1.75", "swap"),
    "lo is above hi by little": ({"lo": 1 + 1e-9, "hi": 1.0}, "`lo`", "must be <= `hi`", "lo=1", "swap"),
    "lo and hi do not broadcast": (
        {"lo": torch.zeros(1, 3), "hi": torch.ones(1, 4)},
        *("`lo` and `hi`", "must broadcast", "(1, 3)", "(1, 4)"),
    ),
    "mask is a float": (
        {"mask": torch.ones(1, 3)},
        "`mask`",
        "must be a boolean tensor",
        "True: may change",
        ".bool()",
    ),
    "mask is an integer": ({"mask": torch.ones(1, 3).int()}, "`mask`", "boolean", "True: may change", ".bool()"),
    "mask is an array of floats": ({"mask": np.ones((1, 3))}, "`mask`", "boolean", "True: may change", ".bool()"),
    "eps is text": ({"eps": "8/255"}, "`eps`", "must be a number or a tensor", "got str", "convert"),
    "lo is a boolean": ({"lo": False}, "`lo`", "must be a number or a tensor", "got bool", "convert"),
    "hi is an array of text": ({"hi": np.array([["1"]])}, "`hi`", "must be a number or a tensor", "ndarray", "convert"),
    "hi is a list": ({"hi": [1.0, 1.0]}, "`hi`", "must be a number or a tensor", "got list", "torch.tensor(hi)"),
    "hi is missing": ({"hi": None}, "`hi`", "must be a number or a tensor", "got NoneType", "convert"),
}

SHAPES = {
    "eps of three rows": ({"eps": torch.ones(3)}, "`eps`", "(3,)", "one per example, (n,)"),
    "eps a column of three rows": ({"eps": torch.ones(3, 1)}, "`eps`", "(3, 1)", "(n, 1, ..., 1)"),
    "lo without a first dimension": ({"lo": torch.zeros(3)}, "`lo`", "(3,)", "lo[None]"),
    "hi of four features": ({"hi": torch.ones(1, 4)}, "`hi`", "(1, 4)", "as many dimensions"),
    "lo of three rows": ({"lo": torch.zeros(3, 3)}, "`lo`", "(3, 3)", "first one of 1 or n"),
    "mask without a first dimension": ({"mask": torch.ones(3).bool()}, "`mask`", "(3,)", "mask[None]"),
    "mask of three rows": ({"mask": torch.ones(3, 3).bool()}, "`mask`", "(3, 3)", "first one of 1 or n"),
    "mask of images": ({"mask": torch.ones(1, 3, 1, 1).bool()}, "`mask`", "(1, 3, 1, 1)", "as many dimensions"),
}

DATA = {
    "x is integer": (X.mul(255).byte(), "must be a floating point tensor", "torch.uint8", ".float()"),
    "x is an array": (X.numpy(), "must be a floating point tensor", "ndarray", ".float()"),
    "x is a scalar": (torch.tensor(0.5), "must have a first dimension", "scalar", "x[None]"),
    "x holds NaN": (torch.tensor([[0.0, NAN, 1.0]]), "must not hold NaN", "NaN", "drop or impute"),
    "x is above the box": (X * 255, "must lie in the box [-0.5, 1.5]", "from 51 to 255", "rescale x, or widen"),
    "x is below the box": (X - 2, "must lie in the box [-0.5, 1.5]", "from -1.8 to -1", "rescale x, or widen"),
    "x is infinite": (torch.tensor([[INF, 0.0, 1.0]]), "must be finite", "infinite values", "drop or clip"),
}


@pytest.mark.parametrize("kind", BALLS.values(), ids=BALLS)
@pytest.mark.parametrize("case", PARTS)
def test_bad_argument_is_refused_with_rule_value_and_remedy(kind: type[Ball], case: str) -> None:
    given, *pieces = PARTS[case]
    with pytest.raises(BadInput) as caught:
        made(kind, **given)
    assert [piece for piece in pieces if piece not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize("kind", BALLS.values(), ids=BALLS)
def test_arrays_of_numpy_are_the_tensors_with_their_numbers(kind: type[Ball]) -> None:
    lo, hi, mask = np.full((1, 3), -0.5, ">f4"), np.full((2, 3), 1.5), np.array([[True, False, True]])
    eps = np.array([1, 2])
    arrays = kind(eps=eps, lo=lo, hi=hi, mask=mask)
    tensors = kind(eps=torch.tensor([1.0, 2.0]), lo=-0.5, hi=1.5, mask=torch.tensor([[True, False, True]]))
    for name, method in METHODS.items():
        if name != "bind":
            assert torch.equal(method(arrays, X), method(tensors, X)), name
    scalars = kind(eps=np.float32(1), lo=np.int64(-1), hi=np.array(2.0))
    assert (scalars.eps, scalars.lo, scalars.hi) == (1, -1, 2)


@pytest.mark.parametrize("kind", BALLS.values(), ids=BALLS)
def test_radii_in_a_column_are_those_in_a_row(kind: type[Ball]) -> None:
    radii = torch.tensor([1.0, 2.0])
    for name, method in METHODS.items():
        if name != "bind":
            assert torch.equal(method(made(kind, eps=radii[:, None]), X), method(made(kind, eps=radii), X)), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("kind", BALLS.values(), ids=BALLS)
def test_shape_that_does_not_fit_is_refused(kind: type[Ball], case: str, method: str) -> None:
    given, *pieces = SHAPES[case]
    with pytest.raises(BadInput) as caught:
        METHODS[method](made(kind, **given), X)
    assert [p for p in (*pieces, "does not fit x (2, 3)") if p not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("kind", BALLS.values(), ids=BALLS)
def test_bad_example_is_refused(kind: type[Ball], case: str, method: str) -> None:
    x, *pieces = DATA[case]
    with pytest.raises(BadInput) as caught:
        METHODS[method](made(kind), x)
    assert [piece for piece in ("`x`", *pieces) if piece not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize("side", ["lo", "hi"])
def test_example_outside_its_own_box_is_refused(side: str) -> None:
    sides = {"lo": torch.full((2, 3), -0.5), "hi": torch.full((2, 3), 1.5)}
    sides[side][1, 2] = 0.35 if side == "lo" else 0.25
    with pytest.raises(BadInput, match=r"`x` must lie in the box \[a tensor \(2, 3\) from .*: rescale x"):
        Linf(eps=1, **sides).project(X, X)


@pytest.mark.parametrize("eps", [1, INF])
@pytest.mark.parametrize("sides", [{}, {"lo": 0.0}, {"hi": 1.0}, {"lo": torch.tensor([[0.0, -INF, 0.0]]), "hi": 1.0}])
def test_l0_without_a_finite_box_is_refused(sides: dict, eps: float) -> None:
    with pytest.raises(BadInput) as caught:
        L0(eps=eps, **sides)
    for piece in ("`lo` and `hi`", "must be finite in L0", "inf", "write for example L0(eps=10, lo=0, hi=1)"):
        assert piece in str(caught.value)


@pytest.mark.parametrize("eps", [INF, torch.tensor([1.0, INF])], ids=["all", "one"])
@pytest.mark.parametrize("sides", [{}, {"lo": 0.0}, {"hi": 1.0}], ids=["no box", "lo", "hi"])
@pytest.mark.parametrize("method", ["argmax", "max_gain", "sample"])
@pytest.mark.parametrize("kind", [Linf, L2, L1])
def test_maximiser_of_an_infinite_ball_without_a_box_is_refused(
    kind: type[Ball], method: str, sides: dict, eps: object
) -> None:
    ball = kind(eps=eps, **sides)
    assert torch.equal(ball.project(X, X), X)
    with pytest.raises(BadInput) as caught:
        METHODS[method](ball, X)
    for piece in ("`eps`", "must be finite where the box is not", "inf", "give `lo` and `hi`, or a finite eps"):
        assert piece in str(caught.value)


@pytest.mark.parametrize("kind", [L2, L1, L0])
def test_radius_per_feature_outside_linf_is_refused(kind: type[Ball]) -> None:
    misfit = r"`eps` of shape \(1, 3\) does not fit x \(2, 3\): a number, or one per example, \(n,\)"
    with pytest.raises(BadInput, match=misfit):
        made(kind, eps=torch.ones(1, 3)).argmax(GRAD, X)


def test_with_eps_checks_the_new_radius() -> None:
    bound = made(L2).bind(X)
    with pytest.raises(BadInput, match="`eps` must be >= 0, got -3"):
        bound.with_eps(-3)
    with pytest.raises(BadInput, match=r"`eps` of shape \(5,\) does not fit x"):
        bound.with_eps(torch.ones(5)).project(X, X)


@pytest.mark.parametrize(
    ("text", "kind", "eps"),
    [
        ("linf:8/255", Linf, 8 / 255),
        (" L2:0.5 ", L2, 0.5),
        ("l1:12", L1, 12.0),
        ("l0:10", L0, 10.0),
        ("l2:inf", L2, math.inf),
    ],
)
def test_short_form_gives_norm_radius_and_box(text: str, kind: type[Ball], eps: float) -> None:
    ball = parse(text, lo=-2.0, hi=3.0)
    assert type(ball) is kind
    assert (ball.eps, ball.lo, ball.hi, ball.mask) == (eps, -2.0, 3.0, None)


@pytest.mark.parametrize("text", ["l3:1", "linf", "linf=0.3", "", ":0.3", "linf 0.3"])
def test_unknown_short_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="`ball` must be one of linf, l2, l1, l0, a colon and a radius, got") as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert "linf:8/255" in str(caught.value)


@pytest.mark.parametrize("text", ["", "eight", "8/", "/255", "8/0", "1/2/3", "0,3"])
def test_unreadable_radius_is_refused(text: str) -> None:
    for call in (lambda: parse_radius(text), lambda: parse(f"l2:{text}")):
        with pytest.raises(BadInput, match="`eps` must be a number or a fraction such as 8/255, got") as caught:
            call()
        assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("text", "pieces"), [("l2:-1", "must be >= 0, got -1"), ("l1:nan", "must not be NaN")])
def test_short_form_goes_through_the_checks_of_the_ball(text: str, pieces: str) -> None:
    with pytest.raises(BadInput, match=f"`eps` {pieces}"):
        parse(text)


def test_bad_input_is_a_value_error() -> None:
    assert issubclass(BadInput, ValueError)
