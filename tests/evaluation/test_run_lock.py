"""The lock of a run directory names the process that holds it, and what a dead process left locks nobody out."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from epsball.common.errors import BadInput
from epsball.evaluation import run_lock
from epsball.evaluation.run_directory import RunDir
from epsball.evaluation.run_lock import LockHolder, RunLock, holder_of

HOST = socket.gethostname()
LEFT = LockHolder(4242, "elsewhere", "epsball evaluate --out run", "2026-01-02T03:04:05+00:00")


def in_a_process(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that takes the lock of the folder sys.argv[1], says so, and goes on with `script`."""
    begin = "import os, sys; from pathlib import Path; from epsball.evaluation.run_lock import RunLock\n"
    begin += "lock = RunLock(Path(sys.argv[1])); print('taken', flush=True)\n"
    command = [sys.executable, "-c", begin + script, *arguments]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    return process


def test_who_is_refused_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    with in_a_process("sys.stdin.read()", str(tmp_path), "--steps", "a b") as process:
        with pytest.raises(BadInput) as refused:
            RunDir(tmp_path, {})
        assert re.fullmatch(
            rf"`run_dir` {tmp_path} is in use by process {process.pid} on {re.escape(HOST)} since \d\d:\d\d "
            rf"\(-c {tmp_path} --steps 'a b'\); wait for it, or stop it",
            str(refused.value),
        )
        found = holder_of(tmp_path)
        assert found is not None
        assert (found.pid, found.host, found.alive) == (process.pid, HOST, True)
        process.kill()
    assert (tmp_path / ".lock").read_text() != ""  # it had no time to tidy up
    assert holder_of(tmp_path) is None
    RunDir(tmp_path, {}).close()
    assert (tmp_path / ".lock").read_text() == ""


def test_the_child_of_a_dead_process_that_holds_the_lock_is_told_apart(tmp_path: Path) -> None:
    process = in_a_process("if os.fork(): os._exit(0)\nsys.stdin.read()", str(tmp_path))
    process.wait()
    found = holder_of(tmp_path)
    assert found is not None
    assert not found.alive
    with pytest.raises(BadInput, match=rf"by a process that process {process.pid} on .* started before it ended since"):
        RunLock(tmp_path)
    process.communicate()


def test_a_holder_of_another_day_is_shown_with_its_date() -> None:
    assert re.search(r" on elsewhere since 2026-01-0[123] \d\d:\d4 \(epsball evaluate --out run\)$", LEFT.sentence)


def test_what_another_host_left_is_a_warning_that_says_what_the_lock_proves(tmp_path: Path) -> None:
    LEFT.save(tmp_path / ".lock")
    with pytest.warns(UserWarning, match="was not closed by process 4242 on elsewhere since .* Where the file system"):
        RunLock(tmp_path).close()
    RunLock(tmp_path).close()  # it was closed now


@pytest.mark.parametrize("left", ["", "{", "[]", '{"pid": 1}', LEFT.to_json()[:-9], "\x00" * 99, "9" * 5000])
def test_what_is_no_holder_locks_nobody_out(left: str, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(left)
    assert holder_of(tmp_path) is None
    lock = RunLock(tmp_path)
    found = holder_of(tmp_path)
    assert found is not None
    assert found.pid == os.getpid()
    (tmp_path / ".lock").write_text(left)  # while it is held
    assert holder_of(tmp_path) is None
    with pytest.raises(BadInput, match="in use by another process; wait"):
        RunLock(tmp_path)
    lock.close()


def test_a_number_that_no_process_has_is_no_process(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    LockHolder(1 << 70, HOST, "x", LEFT.since).save(tmp_path / "other")
    (tmp_path / ".lock").write_text((tmp_path / "other").read_text())
    found = holder_of(tmp_path)
    assert found is not None
    assert not found.alive
    lock.close()


def test_a_file_system_without_locks_is_warned_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_lock.fcntl, "flock", none)
    with pytest.warns(UserWarning, match="is on a file system without locks .* make sure that no other process"):
        lock = RunLock(tmp_path)
    assert holder_of(tmp_path) is None
    lock.close()


def test_a_pipe_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    assert holder_of(tmp_path) is None
    with pytest.raises(BadInput, match="must be a regular file, got a named pipe; delete it"):
        RunLock(tmp_path)


def test_readers_do_not_lock_a_writer_out(tmp_path: Path) -> None:
    RunLock(tmp_path).close()
    done = threading.Event()
    seen = []

    def read() -> None:
        while not done.is_set():
            seen.append(holder_of(tmp_path))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(10):
            RunLock(tmp_path).close()
    finally:
        done.set()
        reader.join()
    assert {None if one is None else one.pid for one in seen} <= {None, os.getpid()}
