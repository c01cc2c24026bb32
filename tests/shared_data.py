"""Where the shared image sets are; tests that need them skip where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def shared_data(name: str) -> Path:
    """The folder of "mnist" or "cifar10": in $EPSBALL_DATA, else in ../shared/data beside the checkout; else skip."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EPSBALL_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"needs the shared data set {name}: no folder {folder}; set EPSBALL_DATA")
    return folder
