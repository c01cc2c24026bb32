"""Workers, nodes and drivers that are killed at random moments: records are those of an undisturbed single process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import epsball as eb
from epsball import evaluate

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves the output of its processes open
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
KILLS = 10
MARK = "EPSBALL_TEST_OF_FAULTS"
SETTINGS: dict[str, Any] = {"attacks": ("fgsm", "pgd:steps=8"), "shard_size": 8, "diagnose": 0, "convergence": 0}
START = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1", "log_to_driver": False}


class Slow(nn.Module):
    """A network that takes its time until a file is there."""

    def __init__(self, until: Path) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
        self.until = str(until)

    def forward(self, x: Tensor) -> Tensor:
        if not os.path.exists(self.until):
            time.sleep(0.1)
        return self.body(x)


def subject(until: Path, n: int = 240) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model = Slow(until)
    torch.manual_seed(0)
    x = torch.rand(n, 1, 8, 8)
    return model, (x, model.body(x).argmax(1))


def alone(folder: Path) -> eb.Evaluation:
    (folder / "fast").touch()
    model, data = subject(folder / "fast")
    return evaluate(model, data, "linf:0.03", **SETTINGS)


def check(found: eb.Evaluation, folder: Path) -> None:
    expected = alone(folder)
    assert 0 < expected.robust_accuracy < 1
    assert found.records["id"].to_pylist() == list(range(240))
    assert found.records.equals(expected.records)
    for one, other in zip(found.points(), expected.points(), strict=True):
        np.testing.assert_array_equal(one, other)


def processes(mark: str, name: str) -> list[int]:
    """The processes with `mark` in their environment and `name` in their command."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found += [int(folder.name)] if name.encode() in (folder / "cmdline").read_bytes() else []
        except OSError:  # it has ended
            continue
    return found


@contextmanager
def marked(monkeypatch: pytest.MonkeyPatch) -> Any:
    ray = pytest.importorskip("ray")
    mark = uuid4().hex
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield ray, mark
        ray.shutdown()


def test_workers_that_are_killed_lose_and_double_no_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, until, killed = random.Random(0), tmp_path / "enough", []
    with marked(monkeypatch) as (ray, mark):
        ray.init(num_cpus=2, **START)

        def kill() -> None:
            while len(killed) < KILLS and not until.exists():
                time.sleep(draw.uniform(0, 2))
                if running := processes(mark, "ray::_task"):
                    killed.append(draw.choice(running))
                    os.kill(killed[-1], signal.SIGKILL)
            until.touch()

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            model, data = subject(until)
            found = evaluate(model, data, "linf:0.03", workers=2, run_dir=tmp_path / "run", **SETTINGS)
        finally:
            until.touch()
            killer.join()
    assert len(killed) == KILLS
    check(found, tmp_path)


def test_a_node_that_is_lost_loses_and_doubles_no_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    until = tmp_path / "enough"
    with marked(monkeypatch) as (ray, mark):
        from ray.cluster_utils import Cluster

        # at this host's own address: Ray puts that in the place of 127.0.0.1 where it connects to a cluster
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = cluster.add_node(num_cpus=1)
        removed: list[int] = []

        def remove(progress: eb.Progress) -> None:
            if not removed and progress.done:
                assert len(processes(mark, "ray::_task")) == 2
                cluster.remove_node(second, allow_graceful=False)
                removed.append(progress.done)
                until.touch()

        try:
            model, data = subject(until)
            found = evaluate(
                model, data, "linf:0.03", workers=2, ray=cluster.address, on_progress=remove,
                run_dir=tmp_path / "run", **SETTINGS,
            )  # fmt: skip
        finally:
            ray.shutdown()
            cluster.shutdown()
    assert removed
    check(found, tmp_path)


DRIVER = """
import sys
from pathlib import Path
from epsball import evaluate
from test_worker_faults import SETTINGS, subject
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model, data = subject(folder / "enough")
    evaluate(model, data, "linf:0.03", workers=2, run_dir=folder / "run", **SETTINGS)
"""


def test_a_driver_that_is_killed_five_times_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    draw, mark = random.Random(1), uuid4().hex
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {MARK: mark, "PYTHONPATH": paths}
    command = [sys.executable, "-W", "ignore", "-c", DRIVER, str(tmp_path)]
    done = []
    for _ in range(5):
        before = len(list(tmp_path.glob("run/records/*")))
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
            while len(list(tmp_path.glob("run/records/*"))) == before:
                assert process.poll() is None
                time.sleep(0.1)
            time.sleep(draw.uniform(0, 4))
            process.kill()
        done.append(len(list(tmp_path.glob("run/records/*"))))
        while processes(mark, ""):
            time.sleep(0.1)
    assert done[-1] < 30  # it was killed before the end, each time
    (tmp_path / "enough").touch()
    subprocess.run(command, env=environment, check=True)
    check(eb.Evaluation.load(tmp_path / "run"), tmp_path)
