"""The door of skops files: a fitted estimator of scikit-learn as a file, which runs no code when it is read.

A skops file is an archive: a schema in JSON that names the types it is made of, and arrays in numpy's format. Sizes are
checked before anything is unpacked; skops then builds only what it trusts, or what is listed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from scipy.sparse import load_npz
from sklearn.base import BaseEstimator

from epsball.common.errors import BadInput
from epsball.common.limits import check_arrays, check_file, check_unpacked, parse_json
from epsball.models.black_box import BlackBox
from epsball.models.door import Asked, Loaded
from epsball.models.estimators import opened

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

INNER = tuple(
    f"sklearn.{place}"
    for place in (
        "calibration._CalibratedClassifier",
        "calibration._SigmoidCalibration",
        "calibration._TemperatureScaling",
        "neural_network._stochastic_optimizers.AdamOptimizer",
        "neural_network._stochastic_optimizers.SGDOptimizer",
        "utils._bunch.Bunch",
    )
)
"""Parts of scikit-learn's models that skops does not know: plain objects of arrays and numbers."""
SPARSE = tuple(f"scipy.sparse._{kind}.{kind}_{what}" for kind in ("csr", "csc") for what in ("matrix", "array"))
"""Sparse arrays, whose places are checked (`_check_members`): scipy's own code trusts them."""


def open_skops(asked: Asked) -> Loaded:
    """The classifier in the skops file `asked.spec`, as `estimators.opened` has it.

    With `trust`, types that skops does not trust are let through: those of others may run their code, and a tree or a
    k-d tree that was tampered with can crash the process. Raises `BadInput` for files that are not there, broken, or
    far larger than they are long, for pickles, for types that are not trusted, by their names, and for what is no
    classifier of numbers.
    """
    path = Path(asked.spec).expanduser()
    if asked.weights is not None:
        raise BadInput(f"`weights` must be left out with {str(path)!r}, which has its own, got {asked.weights}")
    named = types_in(path)
    trusted = {*OWN, *SCORES, *INNER, *SPARSE} & named
    foreign = untrusted(path) - trusted
    if foreign and not asked.trust:
        raise BadInput(
            f"`model` must be made of types that skops trusts, but {str(path)!r} holds {_listed(foreign)}; "
            "if you know who wrote the file, write --trust (in Python trust=True)"
        )
    estimator = built(path, trusted | foreign)
    try:
        loaded = opened(estimator, black_box=asked.black_box, compare=asked.trust)
        features = getattr(estimator, "n_features_in_", None)
        if isinstance(loaded.model, BlackBox) and features is not None:
            loaded.model.function(np.zeros((1, features)))
    except BadInput:
        raise
    except Exception as error:  # whatever numbers that do not fit each other lead to
        raise _broken(path, error) from error
    if not foreign:
        return loaded
    return replace(loaded, notes=(*loaded.notes, f"trusted: {_listed(foreign)}"))


def types_in(path: Path) -> set[str]:
    """The types that a skops file names, after its sizes have been checked. Raises `BadInput`."""
    try:
        check_arrays(path)
        with ZipFile(path) as file:
            if file.getinfo("schema.json").file_size > MOST_SCHEMA:
                raise BadInput(f"its schema must have at most {MOST_SCHEMA:,} bytes")
            _check_members(path, file)
            return _types(parse_json(file.read("schema.json")))
    except FileNotFoundError as error:
        raise BadInput(f"`model` must be a file, but there is no {str(path)!r}") from error
    except BadZipFile as error:
        why = "it is a pickle, which would run code when it is read" if _is_pickle(path) else "it is no skops file"
        raise BadInput(f"`model` must be saved with skops, but {str(path)!r}: {why}; write skops.io.dump") from error
    except Exception as error:  # whatever the readers meet in a damaged file
        raise _broken(path, error) from error


def _check_members(path: Path, file: ZipFile) -> None:
    """Raise `BadInput` for members other than arrays, and for sparse arrays (archives themselves) that are unsound."""
    claimed, size = 0, check_file(path)
    for member in file.infolist():
        if member.filename.endswith(".npz"):
            content = BytesIO(file.read(member))
            with ZipFile(content) as inner:
                claimed += sum(part.file_size for part in check_arrays(path, inner))
            check_unpacked(path, claimed, size)
            content.seek(0)
            array: Any = load_npz(content)
            if array.format not in ("csr", "csc"):
                raise BadInput(f"its sparse arrays must be of rows or columns, not {array.format}")
            array.check_format()
        elif member.filename != "schema.json" and not member.filename.endswith(".npy"):
            raise BadInput(f"it must hold a schema and arrays, not {member.filename[:80]!r}")


def untrusted(path: Path) -> set[str]:
    """The types in a skops file that skops itself does not trust. Raises `BadInput`."""
    import skops.io  # it imports all of scikit-learn

    try:
        return set(skops.io.get_untrusted_types(file=path))
    except Exception as error:  # whatever skops and numpy raise for a file that was changed
        raise _broken(path, error) from error


def built(path: Path, trusted: Iterable[str]) -> BaseEstimator:
    """The estimator in a skops file whose types have been looked at. Raises `BadInput`."""
    import skops.io

    try:
        model = skops.io.load(path, trusted=sorted(trusted))
    except Exception as error:
        raise _broken(path, error) from error
    if not isinstance(model, BaseEstimator):
        raise BadInput(f"`model` must be an estimator, but {str(path)!r} holds {type(model).__name__}")
    return model


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


def _listed(types: Iterable[str]) -> str:
    found = sorted(types)
    return ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1) == b"\x80"


def _broken(path: Path, error: Exception) -> BadInput:
    why = " ".join(str(error).split())[:200]
    return BadInput(f"`model` must be a whole skops file, but {str(path)!r} cannot be read: {why}")
