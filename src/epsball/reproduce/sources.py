"""Where an experiment's data are: a folder that is named, or the one in $EPSBALL_DATA, or what is always there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.data.load import load_data

STAND_IN = "scikit-learn's 8x8 digits stand in for MNIST"
"""What is said wherever they do."""


@dataclass(frozen=True, eq=False)
class Source:
    """Training and test examples; `stands_in`: they are not the paper's data."""

    train: Examples
    test: Examples
    stands_in: bool


def mnist(data: str | Path | None = None) -> Source:
    """MNIST from `data`, a folder of parquet files or a data set's name, else from $EPSBALL_DATA/mnist, else digits.

    scikit-learn's 8x8 digits stand in where `data` is None and there is no such folder. Raises `BadInput` where `data`
    cannot be read.
    """
    found = _folder("mnist") if data is None else data
    return _splits("data", "digits" if found is None else found)


def cifar10(data: str | Path | None = None) -> Source | None:
    """CIFAR-10 from `data`, as for `mnist`, else from $EPSBALL_DATA/cifar10; None where there is no such folder."""
    found = _folder("cifar10") if data is None else data
    return None if found is None else _splits("cifar", found)


def _folder(name: str) -> Path | None:
    folder = Path(os.environ["EPSBALL_DATA"]) / name if os.environ.get("EPSBALL_DATA") else None
    return folder if folder is not None and folder.is_dir() else None


def _splits(name: str, data: str | Path) -> Source:
    if str(data).endswith(".npz"):
        raise BadInput(f"`{name}` must have the splits train and test, which {str(data)!r} has not; name a folder")
    train, test = (load_data(data, split=split) for split in ("train", "test"))
    return Source(train, test, stands_in=str(data) == "digits")
