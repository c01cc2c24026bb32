"""One example or many, numbers and labels of any form: taken at their values, or refused with a remedy that works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from torch import nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.linear.exact import minimal_eps, optimum

W, X = [3.0, 2.0, -1.0, 1.0, 4.0], [-2.0, 2.0, 1.0, -3.0, 1.0]
BALL = eb.Linf(eps=0.3)
FORMS: dict[str, Callable[[Any], Any]] = {
    "list": list,
    "array": np.array,
    "float32": np.float32,
    "whole": lambda values: np.array(values, dtype=int),
    "tensor": torch.tensor,
    "series": pd.Series,
    "reversed memory": lambda values: np.array(values[::-1])[::-1],
    "big-endian": lambda values: np.array(values, dtype=">f8"),
    "objects": lambda values: np.array(values, dtype=object),
}


def check_founding_example(weight: Any, bias: Any, x: Any, y: Any) -> None:
    found = optimum(weight, bias, x, y, BALL)
    delta = torch.tensor([[0.3, 0.3, -0.3, 0.3, 0.3]])
    torch.testing.assert_close(found.delta.float(), delta, rtol=0, atol=3e-7)
    assert found.gain.item() == pytest.approx(3.3, rel=1e-14)
    assert found.x_adv.shape == (1, 5)
    assert (found.prediction_before.item(), found.prediction_after.item()) == (0, 1)
    assert minimal_eps(weight, bias, x, y, BALL).item() == pytest.approx(2 / 11, rel=1e-14)


@pytest.mark.parametrize("form", FORMS)
def test_the_founding_example_is_one_example_in_every_form(form: str) -> None:
    """Cross Validated 332997, w and x one-dimensional as printed there."""
    make = FORMS[form]
    for y in (0, [0], np.int64(0), torch.tensor(0), [[0]], [-1], False):
        check_founding_example(make(W), 0.0, make(X), y)
    check_founding_example(make(W), None, make(X), 0)
    check_founding_example(np.array(W)[None], [0], make(X), 0)
    check_founding_example([[0.0] * 5, W], 0, make(X), 0)


def test_one_example_is_one_example_for_models_and_images() -> None:
    layer = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(W)[None])
    check_founding_example(layer, None, X, 0)
    frame = pd.DataFrame([X, X], columns=list("abcde"))
    model = RidgeClassifier().fit(pd.DataFrame(np.eye(5), columns=list("abcde")), [0, 1, 0, 1, 1])
    one, many = optimum(model, None, frame.iloc[0], 0, BALL), optimum(model, None, frame, 0, BALL)
    assert one.margin.tolist() == many.margin[:1].tolist()
    draw = torch.Generator().manual_seed(0)
    weight, image = torch.randn(4, 3, 2, 5, generator=draw), torch.rand(3, 2, 5, generator=draw)
    ball = eb.Linf(eps=0.1, lo=0, hi=1)
    for given in (weight, weight.reshape(4, 30)):
        found = optimum(given, None, image, 2, ball)
        assert found.x_adv.shape == (1, 3, 2, 5)
        assert torch.equal(found.margin, optimum(weight, None, image[None], 2, ball).margin)


def test_what_may_be_one_example_or_many_is_refused_and_both_remedies_work() -> None:
    weight, x = torch.eye(3).double(), torch.rand(3, 3, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(
        BadInput, match=r"may be one example or 3.*write x\[None\] for one, or y with one class per row"
    ):
        optimum(weight, None, x, 0, BALL)
    assert optimum(weight, None, x[None], 0, BALL).margin.shape == (1,)
    assert optimum(weight, None, x, [0, 0, 0], BALL).margin.shape == (3,)


@pytest.mark.parametrize("function", [optimum, minimal_eps])
def test_shapes_that_do_not_match_are_refused_and_the_remedy_works(function: Any) -> None:
    w = np.array(W)
    with pytest.raises(
        BadInput, match=r"`x` must be \(n, 5\) for `weight` \(5,\), got \(4,\); one example has 5 numbers"
    ):
        function(w, 0.0, X[:4], 0, BALL)
    with pytest.raises(BadInput, match=r"`weight` must be \(4,\) or \(classes, 4\) for x \(2, 4\), got \(5,\)"):
        function(w, 0.0, np.ones((2, 4)), 0, BALL)
    with pytest.raises(BadInput, match=r"examples of one feature are x\[:, None\], with one weight per class"):
        function(w[:2], 0.0, X, [0] * 5, BALL)
    function(w[:2, None], 0.0, np.array(X)[:, None], [0] * 5, BALL)
    with pytest.raises(BadInput, match=r"got a scalar; write x.reshape\(1, 1\)"):
        function([2.0], 0.0, np.array(0.5), 0, BALL)
    function([2.0], 0.0, np.array(0.5).reshape(1, 1), 0, BALL)
    with pytest.raises(BadInput, match="`x` must have features"):
        function(np.ones((2, 1)), 0.0, np.ones((3, 0)), 0, BALL)
    with pytest.raises(BadInput, match=r"`weight` must have a row for each class, got \(0, 5\)"):
        function(np.ones((0, 5)), 0.0, X, 0, BALL)
    function([2.0], 0.0, X, [0] * 5, BALL)  # five examples of one feature


WEIGHT = np.array([[1.0, -1.0, 0.5], [0.25, 2.0, -0.5]])
ROWS = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0], [3.0, 0.0, 1.0]])
LABELS = np.array([0, 1, 0])


@pytest.mark.parametrize(
    "x",
    [
        ROWS.astype(np.float32),
        ROWS.astype(np.float16),
        ROWS.astype(int),
        ROWS.astype(np.uint8),
        ROWS.astype(np.uint64),
        ROWS.tolist(),
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS).astype({0: "Int64", 1: int, 2: "float32"}),
        torch.tensor(ROWS).int(),
        torch.tensor(ROWS).bfloat16(),
        torch.tensor(ROWS, requires_grad=True),
        np.asfortranarray(ROWS),
    ],
    ids=lambda x: f"{type(x).__name__} {getattr(x, 'dtype', '')}",
)
@pytest.mark.parametrize("w", [WEIGHT, WEIGHT.astype(np.float32), pd.DataFrame(WEIGHT), torch.tensor(WEIGHT).half()])
def test_numbers_are_taken_at_their_values_whatever_their_form(x: Any, w: Any) -> None:
    expected = optimum(WEIGHT, None, ROWS, LABELS, eb.L2(eps=0.3))
    for y in (LABELS, LABELS.tolist(), LABELS[:, None], pd.Series(LABELS), LABELS == 1, LABELS.astype(float)):
        found = optimum(w, None, x, y, "l2:0.3")
        assert torch.equal(found.margin, expected.margin)
        assert torch.equal(found.y, expected.y)


def test_labels_of_minus_one_and_one_are_those_of_one_logit() -> None:
    w, y = WEIGHT[0], np.array([-1, 1, -1])
    assert optimum(w, None, ROWS, y, BALL).y.tolist() == [0, 1, 0]
    assert optimum(w, None, ROWS, [1, 1, 1], BALL).y.tolist() == [1, 1, 1]
    assert optimum(w, None, ROWS, y, BALL, target=-1).rival.tolist() == [0, 0, 0]
    with pytest.raises(BadInput, match="got -1; number the classes from 0"):
        optimum(WEIGHT, None, ROWS, y, BALL)
    with pytest.raises(BadInput, match="got -1; one logit has 0 and 1"):
        optimum(w, None, ROWS, [-1, 0, 1], BALL)


def test_one_hot_labels_are_refused_and_argmax_works() -> None:
    y = np.eye(2)[LABELS]
    with pytest.raises(BadInput, match=r"`y` must be \(3,\).*one-hot: y.argmax\(1\)"):
        optimum(WEIGHT, None, ROWS, y, BALL)
    assert optimum(WEIGHT, None, ROWS, y.argmax(1), BALL).y.tolist() == LABELS.tolist()
    with pytest.raises(BadInput, match=r"got 'a'; number the classes from 0, or give the model and its labels"):
        optimum(WEIGHT, None, ROWS, ["a", "b", "a"], BALL)
    model = LogisticRegression().fit(ROWS, ["a", "b", "a"])
    assert optimum(model, None, ROWS, ["a", "b", "a"], BALL).y.tolist() == [0, 1, 0]


REFUSED = {
    "sparse": (sparse.csr_array(ROWS), lambda x: x.toarray(), r"must be dense, got csr_array; write `x.toarray\(\)`"),
    "torch sparse": (torch.tensor(ROWS).to_sparse(), lambda x: x.to_dense(), "must be a dense tensor"),
    "complex": (ROWS.astype(complex), lambda x: x.real, "must be numbers that doubles hold"),
    "complex tensor": (torch.tensor(ROWS) * 1j, lambda x: x.imag, "one that is complex"),
    "longdouble": (ROWS.astype(np.longdouble), lambda x: x.astype("float64"), r"write `.astype\('float64'\)`"),
    "text": (ROWS.astype(str), lambda x: x.astype("float64"), "must be numbers that doubles hold"),
    "ragged": ([[1.0], [1.0, 2.0, 3.0]], lambda x: ROWS, "must be numbers in rows of one length"),
    "missing": (pd.DataFrame(ROWS).astype("Int64").replace(3, pd.NA), lambda x: x.fillna(3), "missing values"),
    "too large": (ROWS.astype(int) * (2**53 + 1), lambda x: x // 2**53, "whole numbers up to 2"),
    "float8": (torch.tensor(ROWS).to(torch.float8_e5m2), lambda x: x.float(), r"write x.float\(\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_numbers_that_cannot_be_taken_are_refused_and_the_remedy_works(name: str) -> None:
    x, remedy, words = REFUSED[name]
    with pytest.raises(BadInput, match=words):
        optimum(WEIGHT, None, x, LABELS, BALL)
    expected = optimum(WEIGHT, None, ROWS, LABELS, BALL)
    torch.testing.assert_close(optimum(WEIGHT, None, remedy(x), LABELS, BALL).margin, expected.margin)


def test_columns_in_another_order_are_refused_and_the_remedy_works() -> None:
    frame = pd.DataFrame(ROWS, columns=["a", "b", "c"])
    model = LogisticRegression().fit(frame, LABELS)
    expected = optimum(model, None, frame, LABELS, BALL)
    other = frame[["c", "a", "b"]]
    with pytest.raises(BadInput, match=r"columns in the order .* write x\[model.feature_names_in_\]"):
        optimum(model, None, other, LABELS, BALL)
    assert torch.equal(optimum(model, None, other[model.feature_names_in_], LABELS, BALL).margin, expected.margin)
    with pytest.raises(BadInput, match="these are not in both: c, d"):
        optimum(model, None, frame.rename(columns={"c": "d"}), LABELS, BALL)
