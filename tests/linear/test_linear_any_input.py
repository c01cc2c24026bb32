"""Whatever is given to a function of `linear`, it answers or refuses in its own words: no other library's traceback."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from torch import nn

import epsball as eb
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput

DTYPES = [np.float64, np.float32, np.float16, np.int64, np.uint8, np.bool_]
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, 3.0, -0.25, 1e-300, 1e300, 1e20, math.inf, math.nan, 0.1])
PLAIN = st.sampled_from([0.0, 1.0, -1.0, 0.5, 2.0, -0.25, 0.1])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
MATRICES = st.tuples(st.integers(0, 9), st.integers(1, 3))


@st.composite
def numbers(draw: st.DrawFn) -> Any:
    """An array of mostly sane numbers in one of many forms."""
    shape = draw(st.one_of(MATRICES, MATRICES, SHAPES))
    values = draw(hnp.arrays(np.float64, shape, elements=draw(st.sampled_from([PLAIN, PLAIN, PLAIN, NUMBERS]))))
    with np.errstate(all="ignore"):
        values = values.astype(draw(st.sampled_from([np.float64] * 4 + DTYPES)))
    form = draw(st.sampled_from(["array"] * 6 + ["tensor", "list", "frame", "sparse", "text", "object", "complex"]))
    if form == "tensor":
        return torch.from_numpy(values)
    if form == "frame":
        return pd.DataFrame(values) if values.ndim == 2 else pd.Series(values.ravel())
    if form == "sparse":
        return sparse.csr_array(np.atleast_2d(values)) if values.ndim <= 2 and values.dtype != np.float16 else values
    kinds = {
        "list": lambda: values.tolist(),
        "text": lambda: values.astype(str),
        "object": lambda: values.astype(object),
    }
    return kinds.get(form, lambda: values.astype(complex) if form == "complex" else values)()


LABELS = st.one_of(
    st.lists(st.sampled_from([0, 1]), max_size=9),
    st.lists(st.sampled_from([0, 1, 2, -1, 0.5, "a", "b", True, None, math.nan]), max_size=9),
    hnp.arrays(np.int64, SHAPES, elements=st.integers(-1, 3)),
    st.sampled_from([0, 1, "a", None, 1.5, {"a": 1}, object()]),
    numbers(),
)


@st.composite
def balls(draw: st.DrawFn) -> Any:
    """Mostly balls, some with parts of odd shapes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(["linf:0.1", "l0:1", "linf", 0.1, None, "l2:1/4", "l1:-1"]))
    norm = draw(st.sampled_from(sorted(BALLS)))
    parts: dict[str, Any] = {"eps": draw(st.sampled_from([0, 0.1, 0.5, 1, 2, math.inf, 1e-200, 1e200]))}
    if draw(st.booleans()) or norm == "l0":
        parts |= {"lo": -4.0, "hi": 5.0}
    if draw(st.integers(0, 4)) == 0:
        shape = draw(SHAPES)
        name = draw(st.sampled_from(["eps", "lo", "hi", "mask"]))
        parts[name] = torch.ones(shape, dtype=torch.bool) if name == "mask" else torch.full(shape, 0.5)
    return BALLS[norm](**parts)


FRAME = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0], [1.0, 3.0]])
MODELS = [
    LogisticRegression().fit(FRAME, [0, 1, 1, 0]),
    LogisticRegression().fit(pd.DataFrame(FRAME, columns=["a", "b"]), ["a", "b", "b", "a"]),
    LogisticRegression(),
    LinearRegression().fit(FRAME, [0, 1, 1, 0]),
    make_pipeline(StandardScaler(), LogisticRegression()).fit(FRAME, [0, 1, 2, 0]),
    make_pipeline(PolynomialFeatures(), LogisticRegression()).fit(FRAME, [0, 1, 2, 0]),
    eb.RobustLogisticRegression(0.1).fit(FRAME, [0, 1, 1, 0]),
    nn.Linear(2, 3),
    nn.Sequential(nn.Flatten(), nn.Linear(3, 1)),
    nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
    "model",
    None,
]
WEIGHTS = st.one_of(numbers(), numbers(), st.sampled_from(MODELS))
RADII = st.one_of(
    st.sampled_from([0, 0.1, 1.0, 1e-9, 1e9, -1, math.inf, math.nan, None, "0.1", [0.1, 0.2], 3]), numbers()
)
WEIGHTS_OF_ROWS = st.one_of(st.none(), st.none(), st.none(), numbers())
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "norm": st.sampled_from(["linf", "l2", "l1", "l0", 2]),
        "penalty": st.sampled_from([None, "l1", "l2", "x"]),
        "C": st.sampled_from([1.0, 1e-9, 1e9, 0, "1"]),
        "fit_intercept": st.booleans(),
        "max_iter": st.sampled_from([1, 30, 2.5]),
    },
)
ESTIMATORS = [eb.RobustLogisticRegression, eb.RobustLinearSVC, eb.RobustRegressor, eb.RobustLogisticRegressionCV]


def answers(function: Any, *arguments: Any, **more: Any) -> Any:
    """What the function returns; None where it refuses in its own words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*arguments, **more)
    except (BadInput, NotFittedError):
        return None


def check_attacks(data: st.DataObject) -> None:
    weight, x, y, target = (data.draw(part) for part in (WEIGHTS, numbers(), LABELS, st.none() | LABELS))
    bias = data.draw(st.one_of(st.none(), st.none(), numbers()))
    try:
        ball = data.draw(balls())
    except BadInput:
        return
    for function in (eb.linear.optimum, eb.linear.minimal_eps):
        answers(function, weight, bias, x, y, ball, target)
    answers(eb.linear.affine, weight)


def check_training(data: st.DataObject) -> None:
    X, y, eps, weight = (data.draw(part) for part in (numbers(), LABELS, RADII, WEIGHTS_OF_ROWS))
    if data.draw(st.booleans()) and not sparse.issparse(X) and np.ndim(X) == 2 and len(X):
        y = np.arange(len(X)) % data.draw(st.integers(1, 3))  # labels that fit
    model = data.draw(st.sampled_from(ESTIMATORS))(eps, **data.draw(OPTIONS))
    fitted = answers(model.fit, X, y, weight)
    other, labels, radius = data.draw(st.just(X) | numbers()), data.draw(st.just(y) | LABELS), data.draw(RADII)
    if fitted is not None:
        answers(fitted.worst_loss, other, labels, radius, sample_weight=weight)
        if not isinstance(fitted, eb.RobustRegressor):
            answers(fitted.robust_score, other, labels, radius, sample_weight=weight)
    scale = data.draw(st.just(1.0) | RADII)
    loss = data.draw(st.sampled_from(["logistic", "hinge", "squared"]))
    answers(eb.linear.eps_max, X, y, loss=loss, norm=data.draw(st.sampled_from(["linf", "l2", "l1"])), scale=scale)
    answers(eb.linear.eps_path, X, y, eps=radius, estimator=eb.RobustLogisticRegression(0.1), sample_weight=weight)


EVERY_DAY = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
AT_NIGHT = settings(EVERY_DAY, max_examples=6000, derandomize=False, print_blob=True)


@EVERY_DAY
@given(st.data())
def test_exact_attacks_raise_nothing_foreign(data: st.DataObject) -> None:
    check_attacks(data)


@EVERY_DAY
@given(st.data())
def test_robust_training_raises_nothing_foreign(data: st.DataObject) -> None:
    check_training(data)


@pytest.mark.nightly
@AT_NIGHT
@given(st.data())
def test_exact_attacks_raise_nothing_foreign_in_many_tries(data: st.DataObject) -> None:
    check_attacks(data)


@pytest.mark.nightly
@settings(AT_NIGHT, max_examples=2000)
@given(st.data())
def test_robust_training_raises_nothing_foreign_in_many_tries(data: st.DataObject) -> None:
    check_training(data)
