"""Columns by their names: those of data that come in another order than an estimator was fitted to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

import epsball as eb
from epsball.cli.common import Material
from epsball.common.errors import BadInput
from epsball.data.collected import examples_of
from epsball.models.given import as_model
from epsball.problem.inputs import examples_for

pytestmark = pytest.mark.filterwarnings("ignore::epsball.diagnosis.setup_record.SetupWarning")
RNG = np.random.default_rng(0)
X = pd.DataFrame(RNG.standard_normal((60, 3)), columns=list("abc"))
Y = (X["a"] > 0).to_numpy().astype(int)
BALL = eb.Linf(eps=0.2)
FITTED = [LogisticRegression().fit(X, Y), DecisionTreeClassifier(max_depth=2).fit(X, Y)]


def accuracies(model: Any, data: Any) -> tuple[float, float]:
    found = eb.evaluate(model, data, BALL, "fgsm", diagnose=0)
    return found.clean_accuracy, found.robust_accuracy


def test_columns_in_another_order_are_matched_by_name():
    right = accuracies(FITTED[0], (X, Y))
    assert right[0] > 0.9 > accuracies(FITTED[0], (X[list("cba")].to_numpy(), Y))[0]
    other = X[list("cba")]
    for data in ((other, Y), {"x": other, "y": Y}, other.assign(label=Y)):
        assert accuracies(FITTED[0], data) == right


@pytest.mark.parametrize("model", FITTED, ids=["module", "black box"])
def test_columns_are_those_of_the_model_in_its_order(model: Any):
    found = examples_for(as_model(model), (X[list("bca")], Y), BALL)
    assert found.feature_names == ("a", "b", "c")
    np.testing.assert_array_equal(found.x.numpy(), X.to_numpy())


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (
            X.rename(columns={"b": "d"}),
            "the 3 columns that .*, got 3, without b and with d; .*: a, b, c",
        ),
        (X.assign(id=1.0), "got 4, with id"),
        (X[["c", "a"]], "got 2, without b"),
        (X.set_axis(list("aab"), axis=1), "got 3, without c"),
    ],
)
def test_other_columns_are_refused_by_name(frame: pd.DataFrame, said: str):
    with pytest.raises(BadInput, match=said):
        eb.evaluate(FITTED[0], (frame, Y), BALL, "fgsm", diagnose=0)


def test_a_radius_for_each_feature_needs_the_order_of_the_model():
    with pytest.raises(BadInput, match="`eps` must not be given for each feature where"):
        eb.evaluate(FITTED[0], (X[list("cba")], Y), eb.Linf(eps=torch.tensor([[0.1, 0.2, 0.3]])), "fgsm", diagnose=0)


def test_data_without_names_are_taken_by_position():
    assert examples_of((X.set_axis(range(3), axis=1), Y)).feature_names is None
    assert accuracies(FITTED[0], (X.to_numpy(), Y)) == accuracies(FITTED[0], (X, Y))


def test_a_table_in_a_file_is_matched_on_the_command_line(tmp_path: Path):
    skops.io.dump(FITTED[0], tmp_path / "m.skops")
    X[list("cba")].assign(label=Y).to_csv(tmp_path / "t.csv", index=False)
    given = Material(model=str(tmp_path / "m.skops"), data=str(tmp_path / "t.csv"))
    np.testing.assert_allclose(given.examples().x.numpy(), X.to_numpy(), rtol=1e-12)
    X.rename(columns={"b": "d"}).assign(label=Y).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(BadInput, match="without b and with d"):
        given.examples()
