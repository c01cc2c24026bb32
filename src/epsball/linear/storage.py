"""A fitted linear model as a file, with skops: reading it runs no code of the file, unlike a pickle.

A skops file names the types that it is made of. They are compared with the literal lists below before anything is
built. Then skops audits the file once more, with only those types that it does not trust by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from sklearn.base import BaseEstimator

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.common.limits import check_arrays, parse_json

ENDING = ".skops"
MOST_SCHEMA = 64 << 20
"""Bytes of the text in a file that says what its model is made of."""

OWN = (
    "epsball.linear.hinge.RobustLinearSVC",
    "epsball.linear.logistic.RobustLogisticRegression",
    "epsball.linear.paths.RobustLogisticRegressionCV",
    "epsball.linear.regression.RobustRegressor",
)
SCORES = tuple(
    f"sklearn.feature_selection._{place}"
    for place in (
        "univariate_selection.f_classif",
        "univariate_selection.chi2",
        "univariate_selection.f_regression",
        "mutual_info.mutual_info_classif",
    )
)
"""Functions that score features: named in a file, never called when it is read."""

TYPES = {
    "builtins": "bool dict float int list str tuple",
    "numpy": "bool float32 float64 int32 int64 ndarray str_",
    "sklearn.decomposition": "_pca.PCA _truncated_svd.TruncatedSVD",
    "sklearn.discriminant_analysis": "LinearDiscriminantAnalysis",
    "sklearn.feature_selection._univariate_selection": "SelectKBest SelectPercentile",
    "sklearn.feature_selection": "_from_model.SelectFromModel _rfe.RFE _variance_threshold.VarianceThreshold",
    "sklearn.linear_model._logistic": "LogisticRegression LogisticRegressionCV",
    "sklearn.linear_model._passive_aggressive": "PassiveAggressiveClassifier",
    "sklearn.linear_model._perceptron": "Perceptron",
    "sklearn.linear_model._ridge": "RidgeClassifier RidgeClassifierCV",
    "sklearn.linear_model._sgd_fast": "Hinge ModifiedHuber SquaredHinge",
    "sklearn.linear_model._stochastic_gradient": "SGDClassifier",
    "sklearn.pipeline": "Pipeline",
    "sklearn.preprocessing._data": "MaxAbsScaler MinMaxScaler RobustScaler StandardScaler",
    "sklearn.preprocessing._label": "LabelBinarizer",
    "sklearn.svm._classes": "LinearSVC",
}
TRUSTED = frozenset({*OWN, *SCORES, *(f"{place}.{name}" for place in TYPES for name in TYPES[place].split())})
"""Every type that a file may hold: what `epsball.linear.affine` folds, and the parts of these."""


def save(model: BaseEstimator, path: str | Path, *, features: Sequence[str] | None = None) -> None:
    """Write a fitted model to a `.skops` file, the whole file or none.

    `features` are the d names of its columns, stored as scikit-learn's `feature_names_in_`; the caller's model is not
    changed. Raises `BadInput` for another ending, and for what `load` would refuse.
    """
    import skops.io

    path = Path(path)
    check_ending("out", path)
    if features is not None:
        model = copy(model)
        model.feature_names_in_ = np.array(features, dtype=object)  # pyright: ignore[reportAttributeAccessIssue]
    data = skops.io.dumps(model)
    foreign = set(skops.io.get_untrusted_types(data=data)) - TRUSTED
    if foreign:
        raise BadInput(f"`model` must be made of types that `load` trusts, got {', '.join(sorted(foreign))}")
    write_whole(path, lambda draft: draft.write_bytes(data))


def load(path: str | Path) -> BaseEstimator:
    """The fitted model in a `.skops` file.

    Raises `BadInput` for files that are not there, pickles, broken files, and files that hold a type which is not in
    `TRUSTED`, by its name.
    """
    path = Path(path)
    check_ending("model", path)
    try:
        check_arrays(path)
        with ZipFile(path) as file:
            if file.getinfo("schema.json").file_size > MOST_SCHEMA:
                raise BadInput(f"its schema must have at most {MOST_SCHEMA:,} bytes")
            named = _types(parse_json(file.read("schema.json")))
    except FileNotFoundError as error:
        raise BadInput(f"`model` must be a file, but there is no {str(path)!r}") from error
    except BadZipFile as error:
        why = "it is a pickle, which would run code when it is read" if _is_pickle(path) else "it is no skops file"
        raise BadInput(f"`model` must be saved with skops, but {str(path)!r}: {why}; write skops.io.dump") from error
    except Exception as error:  # whatever the readers meet in a damaged file
        raise _broken(path, error) from error
    foreign = sorted(named - TRUSTED)
    if foreign:
        raise BadInput(
            f"`model` must be a linear model of epsball or scikit-learn, but {str(path)!r} holds "
            f"{', '.join(foreign[:5])}{', ...' if len(foreign) > 5 else ''}, which is not trusted; nothing was loaded"
        )
    import skops.io  # it imports all of scikit-learn

    try:
        model = skops.io.load(path, trusted=sorted({*OWN, *SCORES} & named))
    except Exception as error:  # whatever skops and numpy raise for a file that was changed
        raise _broken(path, error) from error
    if not isinstance(model, BaseEstimator):
        raise BadInput(f"`model` must be an estimator, but {str(path)!r} holds {type(model).__name__}")
    return model


def check_ending(argument: str, path: Path) -> None:
    """Refuse a file name with another ending than `.skops`."""
    if path.suffix != ENDING:
        raise BadInput(
            f"`{argument}` must end in {ENDING}, got {str(path)!r}; models are stored with skops, since a pickle can "
            "run code when it is read"
        )


def _types(node: Any) -> set[str]:
    """The types that a schema names at any depth."""
    found, waiting = set(), [node]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if "__class__" in part or "__module__" in part:
                found.add(f"{part.get('__module__')}.{part.get('__class__')}")
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
    return found


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1) == b"\x80"


def _broken(path: Path, error: Exception) -> BadInput:
    why = " ".join(str(error).split())[:200]
    return BadInput(f"`model` must be a whole skops file, but {str(path)!r} cannot be read: {why}")
