"""A fitted linear model as a file, with skops: reading it runs no code of the file, unlike a pickle.

A skops file names the types that it is made of. They are compared with the literal list below before anything is built;
skops then audits the file once more, with only those of the list that it does not trust by itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from sklearn.base import BaseEstimator

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput

ENDING = ".skops"

OWN = (
    "epsball.linear.hinge.RobustLinearSVC",
    "epsball.linear.logistic.RobustLogisticRegression",
    "epsball.linear.paths.RobustLogisticRegressionCV",
    "epsball.linear.regression.RobustRegressor",
)
# The functions that score features are named, never called, when a model is read.
SCORES = tuple(
    f"sklearn.feature_selection.{place}"
    for place in (
        "_univariate_selection.f_classif",
        "_univariate_selection.chi2",
        "_univariate_selection.f_regression",
        "_mutual_info.mutual_info_classif",
    )
)
TRUSTED = frozenset(
    {
        *OWN,
        *SCORES,
        *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str", "tuple")),
        *(f"numpy.{name}" for name in ("bool", "float32", "float64", "int32", "int64", "ndarray", "str_")),
        *(
            f"sklearn.{place}"
            for place in (
                "decomposition._pca.PCA",
                "decomposition._truncated_svd.TruncatedSVD",
                "discriminant_analysis.LinearDiscriminantAnalysis",
                "feature_selection._from_model.SelectFromModel",
                "feature_selection._rfe.RFE",
                "feature_selection._univariate_selection.SelectKBest",
                "feature_selection._univariate_selection.SelectPercentile",
                "feature_selection._variance_threshold.VarianceThreshold",
                "linear_model._logistic.LogisticRegression",
                "linear_model._logistic.LogisticRegressionCV",
                "linear_model._passive_aggressive.PassiveAggressiveClassifier",
                "linear_model._perceptron.Perceptron",
                "linear_model._ridge.RidgeClassifier",
                "linear_model._ridge.RidgeClassifierCV",
                "linear_model._sgd_fast.Hinge",
                "linear_model._sgd_fast.ModifiedHuber",
                "linear_model._sgd_fast.SquaredHinge",
                "linear_model._stochastic_gradient.SGDClassifier",
                "pipeline.Pipeline",
                "preprocessing._data.MaxAbsScaler",
                "preprocessing._data.MinMaxScaler",
                "preprocessing._data.RobustScaler",
                "preprocessing._data.StandardScaler",
                "preprocessing._label.LabelBinarizer",
                "svm._classes.LinearSVC",
            )
        ),
    }
)
"""Every type that a file may hold: what `epsball.linear.affine` folds, and what that is made of."""


def save(model: BaseEstimator, path: str | Path, *, features: Sequence[str] | None = None) -> None:
    """Write a fitted model to a `.skops` file, the whole file or none.

    `features` are the d names of its columns, kept as scikit-learn does in `feature_names_in_`; the model handed over
    stays as it is. Raises `BadInput` for another ending, and for what `load` would refuse.
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
        with ZipFile(path) as file:
            named = _types(json.loads(file.read("schema.json")))
    except FileNotFoundError as error:
        raise BadInput(f"`model` must be a file, but there is no {str(path)!r}") from error
    except BadZipFile as error:
        why = "it is a pickle, which would run code when it is read" if _is_pickle(path) else "it is no skops file"
        raise BadInput(f"`model` must be saved with skops, but {str(path)!r}: {why}; write skops.io.dump") from error
    except (KeyError, ValueError, RecursionError, NotImplementedError, RuntimeError, EOFError) as error:
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
    except Exception as error:  # whatever skops and numpy stumble over in a file that was changed
        raise _broken(path, error) from error
    if not isinstance(model, BaseEstimator):
        raise BadInput(f"`model` must be an estimator, but {str(path)!r} holds {type(model).__name__}")
    return model


def check_ending(argument: str, path: Path) -> None:
    """Refuse a file that is not called what it is."""
    if path.suffix != ENDING:
        raise BadInput(
            f"`{argument}` must end in {ENDING}, got {str(path)!r}; models are kept with skops, since a pickle can run "
            "code when it is read"
        )


def _types(node: Any) -> set[str]:
    """The types that a schema names, anywhere in it."""
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
