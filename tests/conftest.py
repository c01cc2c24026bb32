"""One thread per test process: pytest already runs as many processes as there are cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
