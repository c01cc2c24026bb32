"""Shards on Ray workers: the records of one process, whatever a run is made of and whatever goes wrong."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from test_lazy_rows import Stored
from torch import Tensor, nn

import epsball as eb
from epsball import BadInput, evaluate
from epsball.acceleration.plan import AccelerationPlan
from epsball.data.arrays import from_arrays
from epsball.data.examples import Examples
from epsball.evaluation import packing, ray_cluster, workers
from epsball.evaluation.stage_tables import StageTables
from epsball.evaluation.worker import Done
from epsball.problem.objective import SearchWarning

SHAPE = (1, 8, 8)
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves the output of its processes open
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # TorchScript's, and those of Ray's own code
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """One Ray for all tests, which `evaluate` finds initialised, and leaves."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False
        )
        yield ray
        ray.shutdown()


def network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def convolutional() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()


@pytest.fixture(scope="module")
def memory() -> Examples:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (100, *SHAPE), dtype=torch.uint8)
    y = network()(pixels / 255).argmax(1)
    y[::9] = (y[::9] + 1) % 4
    return from_arrays(pixels, y, ids=torch.randperm(200)[:100], classes=4)


def lazy(memory: Examples, kind: type[Stored] = Stored, **more: Any) -> Stored:
    return kind(
        x=memory.x, y=memory.y, classes=4, name="made", shape=SHAPE, ids=memory.ids, lo=0.0, hi=1.0, scale=memory.scale,
        **more,
    )  # fmt: skip


def same(one: eb.Evaluation, other: eb.Evaluation) -> None:
    assert one.records.equals(other.records)
    for mine, yours in zip(one.points(), other.points(), strict=True):
        np.testing.assert_array_equal(mine, yours)


def both(model: Any, data: Any, ball: Any = "linf:0.03", attacks: Any = ("fgsm", "pgd:steps=4"), **more: Any) -> None:
    shared: dict[str, Any] = {"attacks": attacks, "shard_size": 32, "diagnose": 0, "convergence": 0, **more}
    alone = evaluate(model, data, ball, **shared)
    assert int((alone.records["status"].to_numpy(zero_copy_only=False) == "fooled").sum()) > 0
    same(evaluate(model, data, ball, workers=2, **shared), alone)


def stepped(model: Any, x: Tensor, y: Tensor, ball: eb.Ball) -> Tensor:
    return ball.project(x + 0.03 * torch.sign(x - 0.5), x)


def confident(logits: Tensor, task: Any) -> Any:
    return logits.argmax(1) != task.y


def in_a_file(folder: Path) -> Any:
    """A factory's network, whose class and whose helper module are in files that no worker knows by name."""
    (folder / "helper_of_net.py").write_text("WIDTH = 16\n")
    (folder / "my_net.py").write_text(
        "import torch\nfrom torch import nn\nfrom helper_of_net import WIDTH\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.body = nn.Linear(64, WIDTH)\n"
        "        self.head = nn.Linear(WIDTH, 4)\n\n    def forward(self, x):\n"
        "        return self.head(self.body(x.flatten(1)).relu())\n\n\ndef make():\n    return Net()\n"
    )
    return eb.load(f"{folder / 'my_net.py'}:make")  # random weights: to call the factory again would be another network


def local_class(folder: Path) -> Any:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    return Net()


def scripted(folder: Path) -> Any:
    torch.jit.script(network()).save(folder / "net.pt")
    return eb.load(str(folder / "net.pt"), trust=True)


def exported(folder: Path) -> Any:
    dynamic = {"input": {0: torch.export.Dim("n", min=1, max=1024)}}
    torch.export.save(
        torch.export.export(network(), (torch.zeros(32, *SHAPE),), dynamic_shapes=dynamic), folder / "net.pt2"
    )
    model = eb.load(str(folder / "net.pt2"), trust=True)
    with torch.no_grad():  # it is the network of now, and not that of the file
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model


def closure(folder: Path) -> Any:
    net = network()
    return lambda x: net(x)


MODELS: list[Any] = [
    in_a_file,
    scripted,
    closure,
    *(pytest.param(make, marks=pytest.mark.nightly) for make in (local_class, exported)),
]


def test_points_come_back_where_datasets_has_registered_its_types(ray: Any, memory: Examples) -> None:
    from datasets import features

    assert features.Array3D  # what it registers with pyarrow is seen by every table that is unpickled from here on
    both(network(), memory, attacks="fgsm")


@pytest.mark.parametrize("make", MODELS)
def test_models_of_any_kind_are_sent(ray: Any, memory: Examples, tmp_path: Path, make: Callable[[Path], Any]) -> None:
    both(make(tmp_path), memory, "linf:0.2")


OPTIONS: dict[str, dict[str, Any]] = {
    "curve, 8 bits": {"eps": [0.01, 0.05], "storage": "8bit"},
    "min-norm": {"min_norm": True, "attacks": "deepfool"},
    "radii of examples": {"ball": eb.Linf(eps=torch.linspace(0.01, 0.05, 100)), "attacks": ("fgsm", "pgd:steps=4")},
    "targets": {"target": torch.arange(100) % 4, "ball": "linf:0.1"},
    "user attack and success": {"attacks": (stepped, "pgd:steps=4"), "success": confident, "ball": "linf:0.05"},
    "averaged": {"eot": 2},
}


NIGHTLY = pytest.mark.nightly
DAILY = ("curve, 8 bits", "user attack and success", "radii of examples")


@pytest.mark.parametrize("name", [name if name in DAILY else pytest.param(name, marks=NIGHTLY) for name in OPTIONS])
def test_records_are_those_of_one_process(ray: Any, memory: Examples, name: str) -> None:
    both(network(), memory, **OPTIONS[name])


def test_a_transfer_from_a_script_and_an_accelerated_network_are_sent(ray: Any, memory: Examples) -> None:
    both(network(), memory, "linf:0.1", source=torch.jit.script(network(2)))
    both(convolutional(), memory, "linf:0.1", accelerate=AccelerationPlan("graph"))


def test_a_black_box_keeps_its_budget(ray: Any, memory: Examples) -> None:
    net = network()
    box = eb.BlackBox(lambda x: net(torch.from_numpy(x)).detach().numpy(), budget=20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SearchWarning)
        both(box, memory, "linf:0.2", "square")


@dataclass(frozen=True, eq=False, kw_only=True)
class Elsewhere(Stored):
    """Rows that only the process that made them can read."""

    home: int = field(default_factory=os.getpid)

    def available(self) -> bool:
        return os.getpid() == self.home


@pytest.mark.parametrize("kind", [Stored, Elsewhere])
def test_rows_are_read_by_workers_or_sent_to_them(ray: Any, memory: Examples, kind: type[Stored]) -> None:
    source = lazy(memory, kind, broken=frozenset(memory.ids[[3, 50, 51]].tolist()))
    both(network(), source, on_bad="skip")
    with pytest.raises(BadInput, match=r"`data` must hold rows that can be used.*: it is broken"):
        evaluate(network(), source, "linf:0.03", "fgsm", shard_size=32, workers=2)


@pytest.mark.parametrize(("count", "size"), [(1, 32), pytest.param(3, 64, marks=NIGHTLY)])
def test_number_of_workers_and_batch_size_change_no_bit(ray: Any, memory: Examples, count: int, size: int) -> None:
    shared: dict[str, Any] = {"attacks": ("fgsm", "pgd:steps=4"), "shard_size": 20, "diagnose": 0}
    alone = evaluate(network(), memory, "linf:0.03", batch_size=512, **shared)
    same(
        evaluate(network(), memory, "linf:0.03", batch_size=size, workers=count, **shared),
        alone,
    )


def test_what_a_killed_process_left_is_used(ray: Any, memory: Examples, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"attacks": ("fgsm", "pgd:steps=4"), "shard_size": 32, "diagnose": 0}
    whole = evaluate(network(), memory, "linf:0.03", run_dir=tmp_path, **shared)
    for name in ("00001", "00003"):
        (tmp_path / "records" / f"{name}.parquet").unlink()
    kept = tmp_path / "stages" / "00001-00-fgsm.parquet"
    (tmp_path / "stages" / "00003-clean.parquet").unlink()
    lost = sorted((tmp_path / "stages").glob("00001-*pgd*"))
    before = kept.stat().st_mtime_ns
    for path in lost:
        path.unlink()
    assert lost
    again = evaluate(network(), memory, "linf:0.03", run_dir=tmp_path, workers=2, **shared)
    same(again, whole)
    assert kept.stat().st_mtime_ns == before
    same(eb.Evaluation.load(tmp_path), whole)


class OddWarning(UserWarning):
    """A model's own."""


class Odd(nn.Module):
    """Warns at each call, and fails where a row is too dark."""

    def __init__(self, darkest: float = -1.0) -> None:
        super().__init__()
        self.inner, self.darkest = network(), darkest

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("this network is odd", OddWarning, stacklevel=1)
        if float(x.detach()[:, 0, 0, 0].min()) < self.darkest:
            raise ArithmeticError("a row is too dark")
        return self.inner(x)


def test_warnings_and_errors_of_workers_arrive_as_themselves(ray: Any, memory: Examples) -> None:
    with pytest.warns(OddWarning) as warned:
        evaluate(Odd(), memory, "linf:0.03", "fgsm", shard_size=32, diagnose=0, workers=2)
    ours = [one for one in warned if one.category is OddWarning and one.filename.endswith("/workers.py")]
    assert len(ours) == 1
    order = memory.ids.argsort()
    x = memory.x.clone()
    x[order, 0, 0, 0] = torch.linspace(1, 0, 100)
    with pytest.warns(OddWarning), pytest.raises(ArithmeticError, match=r"^a row is too dark\n") as failed:
        evaluate(
            Odd(0.05), from_arrays(x, memory.y, ids=memory.ids, classes=4), "linf:0.001", "fgsm", shard_size=32,
            diagnose=0, workers=2,
        )  # fmt: skip
    assert "In a worker on" in failed.value.__notes__[0]
    assert "a row is too dark" in failed.value.__notes__[0]


class Steep(nn.Module):
    """Fails under attack, not without, at a row that is dark, while a file is there."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.inner, self.mark = network(), str(mark)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and os.path.exists(self.mark) and float(x.detach()[:, 0, 0, 0].min()) < 0.05:
            raise ArithmeticError("a row is too dark")
        return self.inner(x)


def test_a_run_that_an_error_ended_resumes_with_what_its_workers_had_made(
    ray: Any, memory: Examples, tmp_path: Path
) -> None:
    order, x = memory.ids.argsort(), memory.x.clone()
    x[order, 0, 0, 0] = (torch.arange(100) < 96).to(x)  # in the last shard they are dark
    data, model = from_arrays(x, memory.y, ids=memory.ids, classes=4), Steep(tmp_path / "mark")
    shared: dict[str, Any] = {"attacks": ("fgsm", "pgd:steps=4"), "shard_size": 32, "diagnose": 0}
    alone = evaluate(model, data, "linf:0.02", **shared)
    (tmp_path / "mark").touch()
    with pytest.raises(ArithmeticError, match="a row is too dark"):
        evaluate(model, data, "linf:0.02", run_dir=tmp_path / "run", workers=2, **shared)
    clean = tmp_path / "run/stages/00003-clean.parquet"
    made = clean.stat().st_mtime_ns
    assert not (tmp_path / "run/records/00003.parquet").exists()
    (tmp_path / "mark").unlink()
    same(evaluate(model, data, "linf:0.02", run_dir=tmp_path / "run", workers=1, **shared), alone)
    assert clean.stat().st_mtime_ns == made


class Dying(nn.Module):
    """Kills its process the first time that it is called in a worker."""

    def __init__(self, marks: str) -> None:
        super().__init__()
        self.inner, self.marks, self.home = network(), marks, os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.home:
            mark = Path(self.marks)
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), 9)
        return self.inner(x)


@pytest.mark.nightly
def test_a_shard_whose_worker_dies_is_handed_out_again(ray: Any, memory: Examples, tmp_path: Path) -> None:
    model = Dying(str(tmp_path / "died"))
    shared: dict[str, Any] = {"attacks": "fgsm", "shard_size": 32, "diagnose": 0}
    alone = evaluate(model, memory, "linf:0.03", **shared)
    same(evaluate(model, memory, "linf:0.03", workers=2, **shared), alone)
    assert (tmp_path / "died").exists()


def test_ray_that_was_initialised_runs_on_and_nothing_is_left_in_work(ray: Any, memory: Examples) -> None:
    def interrupted(progress: Any) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(
            network(), memory, "linf:0.03", "fgsm", shard_size=8, diagnose=0, workers=2, on_progress=interrupted
        )  # fmt: skip
    assert ray.is_initialized()
    assert ray.get(ray.remote(lambda: 7).remote()) == 7


class Unsendable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lock = network(), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_what_cannot_be_pickled_is_refused(ray: Any, memory: Examples) -> None:
    with pytest.raises(BadInput, match=r"`workers` need a model, attacks and data that can be pickled.*TypeError"):
        evaluate(Unsendable(), memory, "linf:0.03", "fgsm", diagnose=0, workers=2)


class Lost(Exception):
    """In the place of Ray's errors."""


class StandIn:
    """Ray as a driver sees it, whose workers die `deaths` times a shard, and then answer, the `bad` with an error."""

    def __init__(self, deaths: int, bad: tuple[int, ...] = ()) -> None:
        self.exceptions = SimpleNamespace(RayTaskError=type("TaskError", (Lost,), {}), RayError=Lost)
        self.deaths, self.bad, self.cancelled, self.killed = deaths, bad, 0, 0
        self.tries: dict[int, int] = {}

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        return lambda what: self.actor if isinstance(what, type) else self.task

    @property
    def actor(self) -> Any:
        board = SimpleNamespace(read=SimpleNamespace(remote=dict))
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: board))

    @property
    def task(self) -> Any:
        return SimpleNamespace(remote=lambda key, held, job, board: (job.shard, object()))

    def put(self, what: bytes) -> bytes:
        return what

    def wait(self, waiting: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return waiting[-1:], waiting[:-1]

    def get(self, one: Any, timeout: float = 0) -> Any:
        if isinstance(one, dict):
            return one
        shard = one[0]
        self.tries[shard] = self.tries.get(shard, 0) + 1
        if self.tries[shard] <= self.deaths:
            raise Lost("the worker died")
        made = {"clean": pa.table({"id": [shard]})}
        if shard in self.bad:
            return Done(shard, made, error=ArithmeticError(f"of shard {shard}"))
        return Done(shard, made, pa.table({"id": [shard]}))

    def cancel(self, one: Any) -> None:
        self.cancelled += 1

    def kill(self, actor: Any) -> None:
        self.killed += 1


def driver(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, count: int = 2) -> workers.Driver:
    rows = SimpleNamespace(portable=True)
    plan: Any = SimpleNamespace(rows=rows, stages=())
    monkeypatch.setattr(workers, "packed", lambda plan, on_gpu: b"")
    monkeypatch.setattr(workers, "here", lambda ray: None)
    return workers.Driver(stand_in, plan, StageTables(), workers.Workers(count), lambda stage, n: None)


def test_each_shard_is_kept_once_though_its_workers_die(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn(deaths=3)
    one = driver(stand_in, monkeypatch)
    found = dict(one.run(range(7)))
    assert sorted(found) == list(range(7))
    assert all(one.tables.has(shard, "clean") for shard in range(7))
    assert set(stand_in.tries.values()) == {4}
    assert not one.waiting


def test_a_shard_that_kills_every_worker_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn(deaths=workers.MOST_CRASHES)
    one = driver(stand_in, monkeypatch)
    with pytest.raises(RuntimeError, match=r"shard 1 has lost 20 workers; the last: the worker died"):
        list(one.run(range(7)))
    one.close()
    assert (stand_in.cancelled, stand_in.killed) == (0, 1)
    assert stand_in.tries == {0: 1, 1: workers.MOST_CRASHES}


def test_an_error_waits_for_the_shards_in_work_and_keeps_their_stages(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The shard that was handed out last answers first: 3, then 4 with the error, and after it 2, 1, 0."""
    one = driver(StandIn(0, bad=(2, 4)), monkeypatch, count=4)
    found = one.run(range(9))
    assert [next(found)[0] for _ in range(3)] == [3, 1, 0]
    with pytest.raises(ArithmeticError, match="of shard 4"):
        next(found)
    assert [shard for shard in range(9) if one.tables.has(shard, "clean")] == [0, 1, 2, 3, 4]
    for shard in (2, 4):
        assert f"shard {shard} failed, and the run ends when the shards in work have ended: of shard" in caplog.text


def test_other_versions_are_refused_before_anything_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = packing.pickle.dumps(packing.Header("epsball 0.0.1, torch 1.0", (), packing.Numerics.here(), False))
    with pytest.raises(BadInput, match=r"`workers` must have the versions of the driver, epsball 0\.0\.1, torch 1\.0"):
        packing.unpacked(data + b"what is no pickle")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nowhere.invalid:6379", "nonsense"])
def test_an_address_where_nobody_listens_is_refused_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(BadInput, match="`ray` must be the address of a running cluster"),
        ray_cluster.cluster(1, 0, address),
    ):
        pass


def test_gpus_that_this_machine_does_not_have_are_refused(ray: Any, memory: Examples) -> None:
    with pytest.raises(BadInput, match=r"`gpus_per_worker` must be at most the GPUs of this machine, 0, got 1"):
        ray_cluster._check_gpus(ray, 1, here=True)
    with pytest.warns(UserWarning, match="no node of the Ray cluster has 1 GPUs now"):
        ray_cluster._check_gpus(ray, 1, here=False)
    with pytest.raises(BadInput, match=r"whole number, or less than 1 .* got 1\.5"):
        evaluate(network(), memory, "linf:0.03", "fgsm", workers=2, gpus_per_worker=1.5)


def test_more_threads_than_processors_are_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    ray_cluster._check_threads(2)
    with pytest.warns(UserWarning, match="4 workers with 8 threads each share 16 processors.*OMP_NUM_THREADS=4 before"):
        ray_cluster._check_threads(4)
