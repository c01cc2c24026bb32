"""How far a run is, read while it is not finished, or while another process writes it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from commands import run as run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import epsball as eb
from epsball.common.errors import BadInput
from epsball.common.intervals import wilson
from epsball.data.bad_row import BadRow
from epsball.evaluation import run_directory
from epsball.evaluation.result import Evaluation
from epsball.evaluation.run_lock import LockHolder, RunLock
from epsball.evaluation.status import TIMED, RunStatus, run_status
from epsball.report.html import write_report
from epsball.report.run import Run

SHARDS, SIZE = 9, 8
N = SHARDS * SIZE - 3
RUN: dict[str, Any] = {"attacks": ["fgsm", "pgd:steps=3"], "shard_size": SIZE, "diagnose": 0}


def net() -> nn.Module:
    model = nn.Linear(6, 3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(N, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = net()(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3
    return x, y


def evaluated(path: Path, **more: Any) -> Evaluation:
    return eb.evaluate(net(), data(), eb.Linf(eps=0.15, lo=0, hi=1), run_dir=path, **(RUN | more))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    path = tmp_path_factory.mktemp("status") / "run"
    found = evaluated(path)
    assert 5 < found.count("fooled") < 50
    return path, found


@pytest.fixture
def run(finished: tuple[Path, Evaluation], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def renoted(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write a table again with other notes."""
    table = run_directory.load(path)
    run_directory.save(path, run_directory.with_notes(table, change(run_directory.notes(table))))


def test_a_finished_run_has_the_figures_of_its_evaluation(finished: tuple[Path, Evaluation]) -> None:
    path, found = finished
    status = run_status(path)
    assert (status.state, status.finished, status.holder) == ("finished", True, None)
    assert (status.n, status.done, status.shards, status.shards_done) == (N, N, SHARDS, SHARDS)
    assert (status.in_work, status.bad, status.seconds_left) == ((), (), 0)
    assert status.so_far is not None
    figures = (status.so_far.n, status.so_far.clean_accuracy, status.so_far.robust_accuracy, status.so_far.interval)
    assert figures == (N, found.clean_accuracy, found.robust_accuracy, found.interval)
    assert RunStatus.from_json(status.to_json()) == status


@given(draw=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_there_counts_and_what_is_not_is_named(
    finished: tuple[Path, Evaluation], tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject
) -> None:
    whole, found = finished
    path = Path(shutil.copytree(whole, tmp_path_factory.mktemp("part") / "run"))
    files = sorted([*path.glob("stages/*"), *path.glob("records/*")])
    for file in draw.draw(st.sets(st.sampled_from(files))):
        file.unlink()
    done, in_work = [], []
    for shard in range(SHARDS):
        stages = {file.stem[6:] for file in path.glob(f"stages/{shard:05d}-*")}
        before = {file.stem[6:] for file in whole.glob(f"stages/{shard:05d}-*")}
        if (path / f"records/{shard:05d}.parquet").exists() and stages == before:
            done.append(shard)
        elif stages:
            in_work.append((shard, stages))
    status = run_status(path)
    assert status.shards_done == len(done)
    assert [(one.shard, set(one.done)) for one in status.in_work] == in_work
    assert all({*one.done, *one.to_come} == {"clean", "00-fgsm", "01-pgd"} for one in status.in_work)
    rows = np.concatenate([np.zeros(0, int), *[np.arange(SIZE * i, min(SIZE * (i + 1), N)) for i in done]]).astype(int)
    assert status.done == len(rows)
    assert status.state == ("finished" if len(done) == SHARDS else "unfinished")
    if not done:
        assert status.so_far is None
        assert (status.rate, status.rate_from, status.seconds_left) == (None, None, None)
        return
    assert status.so_far is not None
    robust = np.array(found.records["status"].to_pylist())[rows] == "robust"
    assert status.so_far.robust_accuracy == robust.mean()
    assert status.so_far.interval == wilson(int(robust.sum()), len(rows))
    assert status.rate_from == "stages"
    assert status.rate is not None
    assert status.seconds_left == (N - len(rows)) / status.rate


def seconds_of(path: Path, shards: range) -> float:
    files = [file for shard in shards for file in path.glob(f"stages/{shard:05d}-*")]
    return sum(run_directory.notes(run_directory.load(file))["stage"]["seconds"] for file in files)


def test_without_a_process_the_rate_is_that_of_the_last_stages_seconds(run: Path) -> None:
    (run / f"records/{SHARDS - 1:05d}.parquet").unlink()
    status = run_status(run)
    assert SHARDS <= TIMED
    assert status.rate == pytest.approx((SHARDS - 1) * SIZE / seconds_of(run, range(SHARDS - 1)))
    assert status.rate_from == "stages"


@pytest.fixture
def held(run: Path) -> Iterator[datetime]:
    """The run, held by a process that began a minute ago: when that was."""
    began = datetime.now().astimezone().replace(microsecond=0) - timedelta(minutes=1)
    lock = RunLock(run)
    holder = LockHolder(os.getpid(), os.uname().nodename, "epsball evaluate", began.isoformat())
    (run / ".lock").write_text(holder.to_json())
    yield began
    lock.close()


def test_with_a_process_the_rate_is_that_of_the_records_it_wrote(run: Path, held: datetime) -> None:
    """An earlier process wrote three shards, days ago; this one two in ten seconds after its first."""
    for shard in range(6, SHARDS):
        (run / f"records/{shard:05d}.parquet").unlink()
    ages = {0: -9e5, 1: -8e5, 2: -7e5, 3: 20, 4: 27, 5: 30}
    for shard, age in ages.items():
        at = held.timestamp() + age
        os.utime(run / f"records/{shard:05d}.parquet", (at, at))
    status = run_status(run)
    assert (status.state, status.rate_from) == ("running", "files")
    assert status.rate == pytest.approx(2 * SIZE / 10)
    assert status.seconds_left == pytest.approx((N - 6 * SIZE) / (2 * SIZE / 10))


def test_a_process_that_finished_no_two_shards_yet_has_the_rate_of_the_stages(run: Path, held: datetime) -> None:
    for file in run.glob("records/*"):
        os.utime(file, (0, 0))
    at = held.timestamp() + 1
    os.utime(run / "records/00000.parquet", (at, at))
    (run / "records/00008.parquet").unlink()
    assert run_status(run).rate_from == "stages"


def test_after_the_last_shard_a_process_is_running_still(run: Path, held: datetime) -> None:
    status = run_status(run)
    assert (status.state, status.finished, status.seconds_left) == ("running", True, 0)


BAD = [BadRow(3, "a/3.png", "cut off"), BadRow(5, "row 5 of b", "NaN")]


def test_rows_that_could_not_be_used_are_listed_and_done(run: Path) -> None:
    def with_bad(*bad: BadRow) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda notes: notes | {"bad": [row.to_record() for row in bad]}

    renoted(run / "stages/00000-clean.parquet", with_bad(*BAD))
    records = run_directory.load(run / "records/00000.parquet")
    run_directory.save(run / "records/00000.parquet", records.slice(2))
    assert (run_status(run).bad, run_status(run).done) == (tuple(BAD), N)
    late = BadRow(70, "a/70.png", "16 bits")
    renoted(run / "stages/00008-clean.parquet", with_bad(late))
    (run / "records/00008.parquet").unlink()
    status = run_status(run)
    assert status.bad == (*BAD, late)
    assert status.done == 8 * SIZE


def of_bad_rows_only(run: Path, shard: int) -> None:
    """Make a finished shard one of which no row could be used."""
    bad = [BadRow(id, f"a/{id}.png", "cut off").to_record() for id in range(shard * SIZE, (shard + 1) * SIZE)]
    renoted(run / f"stages/{shard:05d}-clean.parquet", lambda notes: notes | {"bad": bad})
    records = run_directory.load(run / f"records/{shard:05d}.parquet")
    run_directory.save(run / f"records/{shard:05d}.parquet", records.slice(0, 0))


def test_shards_without_a_row_that_could_be_used_count_as_done(run: Path, held: datetime) -> None:
    for shard in range(3):
        of_bad_rows_only(run, shard)
        at = held.timestamp() + 10 * shard
        os.utime(run / f"records/{shard:05d}.parquet", (at, at))
    for shard in range(3, SHARDS):
        (run / f"records/{shard:05d}.parquet").unlink()
    status = run_status(run)
    assert (status.done, status.so_far) == (3 * SIZE, None)
    assert (status.rate, status.rate_from) == (pytest.approx(2 * SIZE / 20), "files")
    assert status.seconds_left == pytest.approx((N - 3 * SIZE) / (2 * SIZE / 20))
    for shard in (1, 2):
        (run / f"records/{shard:05d}.parquet").unlink()
    status = run_status(run)
    assert (status.done, status.rate, status.rate_from, status.seconds_left) == (SIZE, None, None, None)
    done = run_command("status", str(run))
    assert done.returncode == 1, done.stderr
    assert "No result yet: no row of the finished shards could be used." in done.stdout


def test_a_minimum_norm_run_has_a_median_distance(tmp_path: Path) -> None:
    found = evaluated(tmp_path / "run", attacks=["fmn:steps=5"], min_norm=True)
    so_far = run_status(tmp_path / "run").so_far
    assert so_far is not None
    assert so_far.median_distance == found.quantiles((0.5,))[0][1]


NOTES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "bad rows that are none": lambda notes: notes | {"bad": [{"id": "x"}]},
    "bad rows that are a number": lambda notes: notes | {"bad": 7},
    "no stage": lambda notes: {name: value for name, value in notes.items() if name != "stage"},
    "a stage that is text": lambda notes: notes | {"stage": "clean"},
}


@pytest.mark.parametrize("name", NOTES)
def test_notes_that_no_run_writes_are_refused_in_a_sentence(name: str, run: Path) -> None:
    renoted(run / "stages/00008-clean.parquet", NOTES[name])
    with pytest.raises(BadInput, match=r"must hold whole tables, but .*; restore them"):
        run_status(run)


def test_records_that_no_run_writes_are_refused_in_a_sentence(run: Path) -> None:
    file = run / "records/00002.parquet"
    table = run_directory.load(file)
    run_directory.save(file, table.drop_columns(["status"]))
    with pytest.raises(BadInput, match="must hold whole tables, but no column status; restore them"):
        run_status(run)
    run_directory.save(file, table.replace_schema_metadata())
    with pytest.raises(BadInput, match="must hold whole tables, but 'stages'; restore them"):
        run_status(run)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"00002.parquet is missing or damaged .*; delete it"):
        run_status(run)


def test_a_folder_without_a_run_is_refused_and_one_that_is_being_started_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"`run` must be a directory with a run's config.json, got .*/none; was it"):
        run_status(tmp_path / "none")
    lock = RunLock(tmp_path)
    with pytest.raises(BadInput, match=rf"got {tmp_path} \(it is being started by process {os.getpid()} on .*\); was"):
        run_status(tmp_path)
    lock.close()


def test_a_status_needs_no_torch(finished: tuple[Path, Evaluation]) -> None:
    code = f"from epsball.evaluation.status import run_status; run_status({str(finished[0])!r})\n"
    code += "import sys; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


# While another process writes


def read_while_written(path: Path, reads: int, read: Callable[[Path], int]) -> None:
    """Count finished examples by `read`, so often and in unfinished runs, while a process makes run after run."""
    here = Path(__file__)
    script = f"import sys; sys.path.insert(0, {str(here.parent)!r}); from {here.stem} import evaluated\n"
    script += "from pathlib import Path; import shutil\nfolder = Path(sys.argv[1])\n"
    script += "for turn in range(10**6): evaluated(folder / f'run-{turn:06d}', shard_size=2)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found: list[int] = []
    with subprocess.Popen([sys.executable, "-c", script, str(path)], env=environment) as writer:
        try:
            while len(found) < reads or len({count for count in found if 0 < count < N}) < 4:
                assert writer.poll() is None
                runs = sorted(path.glob("run-*"))
                for older in runs[:-2]:
                    shutil.rmtree(older)
                if runs and (runs[-1] / "config.json").exists():
                    found.append(read(runs[-1]))
                else:
                    time.sleep(0.01)
        finally:
            writer.kill()


@pytest.mark.parametrize("reads", [40, pytest.param(1000, marks=pytest.mark.nightly)])
@pytest.mark.timeout(600)
def test_a_reader_never_meets_a_damaged_file_while_another_process_writes(tmp_path: Path, reads: int) -> None:
    def read(run: Path) -> int:
        before = run_status(run)
        assert before.done == min(2 * before.shards_done, N)
        if before.done:
            found = Evaluation.load(run, partial=True)
            assert len(found) >= before.done
            assert len(found.points()[0]) == found.count("fooled")
        return before.done

    read_while_written(tmp_path, reads, read)


# The command


def test_the_command_says_all_of_it_within_eighty_columns(run: Path, held: datetime) -> None:
    renoted(run / "stages/00000-clean.parquet", lambda notes: notes | {"bad": [row.to_record() for row in BAD * 4]})
    for shard in (1, 3, 4, 5, 6, 7, 8):
        (run / f"records/{shard:05d}.parquet").unlink()
    (run / "stages/00001-01-pgd.parquet").unlink()
    done = run_command("status", str(run))
    assert done.returncode == 1, done.stderr
    text = re.sub(r"\s+", " ", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
    for part in (
        f"state running, by process {os.getpid()} on {os.uname().nodename} since",
        "done 24 of 69 examples (34.8%), 2 of 9 shards",
        "examples/s (",
        "time left",
        "in work shard 1: clean, 00-fgsm done; 01-pgd to come",
        "and 2 more shards",
        "bad 8 rows could not be used a/3.png: cut off row 5 of b: NaN",
        "and 3 more",
        "robust accuracy so far",
        "on 16 examples",
        "no random sample",
    ):
        assert part in text, (part, text)


def test_the_command_exits_with_whether_the_run_is_finished(run: Path, tmp_path: Path) -> None:
    done = run_command("status", str(run), "--json")
    assert done.returncode == 0
    assert RunStatus.from_record(json.loads(done.stdout)) == run_status(run)
    for file in run.glob("records/*"):
        file.unlink()
    done = run_command("status", str(run))
    assert done.returncode == 1
    assert "not finished, and no process that is seen here works on it" in re.sub(r"\s+", " ", done.stdout)
    assert "No result yet: no shard is finished." in done.stdout
    assert "unknown: no shard is finished" in done.stdout
    assert run_command("status", str(tmp_path)).returncode == 2


# The evaluation of what is finished


def unfinished(run: Path) -> np.ndarray:
    """Take away the records of one shard and a stage of another: the rows of the others."""
    (run / "records/00002.parquet").unlink()
    (run / "stages/00005-00-fgsm.parquet").unlink()
    return np.array([row for row in range(N) if row // SIZE not in (2, 5)])


def test_an_unfinished_run_loads_as_the_evaluation_of_its_finished_shards(
    run: Path, finished: tuple[Path, Evaluation]
) -> None:
    whole = finished[1]
    rows = unfinished(run)
    with pytest.raises(BadInput, match=r"is not finished: 1 of 9 shards are missing; .*partial=True"):
        Evaluation.load(run)
    found = Evaluation.load(run, partial=True)
    assert found.records == whole.records.take(pa.array(rows))
    assert found.shards_missing == 2
    assert found.unfinished is not None
    assert "2 of 9 shards are missing" in found.unfinished
    assert f"{len(rows)} of {N} examples" in found.unfinished
    assert found.unfinished in repr(found)
    assert found.unfinished in found.summary()["unfinished"]
    assert "the run is not finished" in found.reliability
    ids, points = found.points()
    kept = np.isin(whole.points()[0], rows)
    assert np.array_equal(ids, whole.points()[0][kept])
    assert np.array_equal(points, whole.points()[1][kept])
    for stage in found.stages:
        files = [run / f"stages/{shard:05d}-{stage.name}.parquet" for shard in range(SHARDS) if shard not in (2, 5)]
        assert stage.attacked == sum(run_directory.load(file).num_rows for file in files if file.exists())


def test_a_finished_run_is_the_same_partial_or_not(finished: tuple[Path, Evaluation]) -> None:
    found = Evaluation.load(finished[0], partial=True)
    assert found == Evaluation.load(finished[0]) == finished[1]
    assert (found.shards_missing, found.unfinished) == (0, None)


def test_a_run_without_a_finished_shard_has_no_evaluation(run: Path, tmp_path: Path) -> None:
    for file in run.glob("records/*"):
        file.unlink()
    for use in (lambda: Evaluation.load(run, partial=True), lambda: write_report(run)):
        with pytest.raises(BadInput, match="holds a run of which no shard is finished; epsball status"):
            use()


def test_the_report_of_an_unfinished_run_says_so_first(run: Path) -> None:
    rows = unfinished(run)
    done = run_command("report", str(run))
    assert done.returncode == 0, done.stderr
    assert "not finished: 2 of 9 shards are missing" in re.sub(r"\s+", " ", done.stdout)
    page = (run / "report.html").read_text()
    begin = page.index("<body>")
    assert begin < page.index("Not finished.") < page.index("Robust accuracy")
    assert f"{len(rows)} of {N} examples" in page[page.index("Not finished.") :][:300]
    assert not (run / "card.md").exists()
    assert not (run / "robustbench.json").exists()


def test_the_report_of_a_finished_run_says_nothing_of_that(run: Path) -> None:
    assert "Not finished." not in write_report(run).read_text()
    assert (run / "card.md").exists()


def test_the_report_lists_the_rows_that_could_not_be_used(run: Path) -> None:
    many = [BadRow(id, f"a/{id}<b>.png", "cut off & more") for id in range(60)]
    renoted(run / "stages/00000-clean.parquet", lambda notes: notes | {"bad": [row.to_record() for row in many]})
    (run / "records/00001.parquet").unlink()
    found = Evaluation.load(run, partial=True)
    assert found.summary()["bad"] == [row.to_record() for row in many]
    page = write_report(run).read_text()
    assert page.count("60 rows could not be used") == 2  # a doubt below the result, and in the set-up
    assert "60 rows could not be used, of 121." in page[: page.index('id="setup"')]
    setup = page[page.index('id="setup"') : page.index('id="accuracy"')]
    assert setup.count("cut off &amp; more") == Run.most_bad < 60
    assert "<strong>a/7&lt;b&gt;.png</strong> (id 7): cut off &amp; more" in setup
    assert "The first 50 are listed" in setup
