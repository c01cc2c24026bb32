"""The causes that are named for labels of other classes, and for classes without an example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import epsball as eb
from epsball.data.arrays import from_arrays
from epsball.data.class_names import numbered_like
from epsball.diagnosis.setup_labels import class_findings

PLACES = np.arange(120) % 3
X = np.eye(3)[PLACES] + 0.1 * np.random.default_rng(0).standard_normal((120, 3))
MODEL = LogisticRegression().fit(X, np.array(["cat", "dog", "emu"])[PLACES])


def test_a_class_beyond_the_outputs_of_the_model_is_refused_by_its_name():
    data = from_arrays(X, np.where(np.arange(120) < 9, 3, PLACES), label_names=["cat", "dog", "emu", "zebra"])
    with pytest.raises(eb.BadInput, match="classes that the model knows, got zebra, while cat and 2 others are known;"):
        eb.evaluate(MODEL, data, "linf:0.1", "fgsm", diagnose=0)
    rest = data.rows(slice(9, None))
    assert numbered_like(rest, ["cat", "dog", "emu"]) is rest


def test_names_that_the_model_has_not_are_the_cause_of_another_numbering():
    data = from_arrays(X, (PLACES + 1) % 3, label_names=["Gnu", "Hen", "Ibex"])
    with pytest.warns(eb.SetupWarning, match=r"the data's classes \(Gnu, Hen, Ibex\) are none of the model's"):
        eb.evaluate(MODEL, data, "linf:0.1", "fgsm", diagnose=0)
    nameless = from_arrays(X, (PLACES + 1) % 3)
    with pytest.warns(eb.SetupWarning, match="labels are too high by one"):
        eb.evaluate(MODEL, nameless, "linf:0.1", "fgsm", diagnose=0)


@pytest.mark.parametrize(("step", "cause"), [(1, "were the first rows taken"), (7, "the data have no example of some")])
def test_first_rows_are_the_cause_of_missing_classes_only_where_they_may_have_been_taken(step: int, cause: str):
    y = torch.arange(100) // 25  # of 10 classes, sorted
    (found,) = class_findings(y, step * torch.arange(100), 10, None)
    assert found.name == "classes-missing"
    assert cause in found.cause
