"""One thread per test process: pytest already runs as many processes as there are cores. Fixtures for all tests."""

import os

import matrix
import pytest
from browser import chromium as chromium

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    matrix.mark(items)
