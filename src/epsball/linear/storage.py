"""A fitted linear model as a file, with skops: reading it runs no code of the file, unlike a pickle.

The types that a file is made of are compared with the literal list below before anything is built, and skops audits the
file once more (`models/skops_file.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.models.skops_file import ENDING, OWN, SCORES, built, types_in

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
    named = types_in(path)
    foreign = sorted(named - TRUSTED)
    if foreign:
        raise BadInput(
            f"`model` must be a linear model of epsball or scikit-learn, but {str(path)!r} holds "
            f"{', '.join(foreign[:5])}{', ...' if len(foreign) > 5 else ''}, which is not trusted; nothing was loaded"
        )
    return built(path, {*OWN, *SCORES} & named)


def check_ending(argument: str, path: Path) -> None:
    """Refuse a file name with another ending than `.skops`."""
    if path.suffix != ENDING:
        raise BadInput(
            f"`{argument}` must end in {ENDING}, got {str(path)!r}; models are stored with skops, since a pickle can "
            "run code when it is read"
        )
