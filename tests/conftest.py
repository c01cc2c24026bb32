"""One thread per test process: pytest already runs as many processes as there are cores. Fixtures for all tests."""

import os

from browser import chromium as chromium

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
