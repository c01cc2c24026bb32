"""The lock of a run directory: one process writes, and the file says which one.

The lock is flock's, which the system releases when a process ends, also a killed one. So what a dead process left in
the file locks nobody out. Between hosts flock is as good as their shared file system: NFS and most others pass it on to
the server, some keep it to one host, some have none. Where that matters, the texts say so.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from epsball.common.errors import BadInput
from epsball.common.limits import check_file, read_bytes
from epsball.common.printable import printable
from epsball.common.record import Record

try:
    import fcntl
except ImportError:  # such as Windows
    fcntl = None

TRIES, PAUSE = 10, 0.02
"""So often, and after so many seconds, is the lock tried: `holder_of` has it for a moment, too."""
SHOWN = 200
"""Characters of a command line."""


@dataclass(frozen=True)
class LockHolder(Record):
    """The process that holds a run directory: its number and host, its command, and when it took the lock (ISO 8601).

    `alive` is false where that process has ended, but one that it started holds the lock still.
    """

    pid: int
    host: str
    command: str
    since: str
    alive: bool = True

    @property
    def sentence(self) -> str:
        """Who it is, in words: process 1234 on HOST since 12:34 (epsball evaluate --out runs/a)."""
        began = datetime.fromisoformat(self.since).astimezone()
        today = began.date() == datetime.now().astimezone().date()
        since = f"since {began:%H:%M}" if today else f"since {began:%Y-%m-%d %H:%M}"
        who = f"process {self.pid} on {self.host}"
        if not self.alive:
            who = f"a process that {who} started before it ended"
        return printable(f"{who} {since} ({self.command})")


class RunLock:
    """The lock of the run in `folder`, held by this process from here to `close`.

    Raises `BadInput` where another process holds it, with its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / ".lock"
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            check_file(path, remedy="delete it")
            shared = self._take()
            before = _read(path)
            if shared and before is not None and before.host != socket.gethostname():
                warnings.warn(
                    f"`run_dir` {folder} was not closed by {before.sentence}. Where the file system passes locks on "
                    "between hosts, as NFS does, that process has ended; where it does not, look whether it runs still",
                    stacklevel=4,
                )
            self._write(_this_process().to_json())
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        """Let other processes have the directory."""
        with suppress(OSError):
            os.ftruncate(self._file, 0)
        os.close(self._file)

    def _take(self) -> bool:
        """Take the lock. Whether there are locks at all."""
        for left in reversed(range(TRIES)):
            try:
                if fcntl is not None:
                    fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fcntl is not None
            except BlockingIOError as error:
                if not left:
                    holder = holder_of(self.folder)
                    who = "another process" if holder is None else holder.sentence
                    raise BadInput(f"`run_dir` {self.folder} is in use by {who}; wait for it, or stop it") from error
                time.sleep(PAUSE)
            except OSError as error:
                warnings.warn(
                    f"`run_dir` {self.folder} is on a file system without locks ({error.strerror}): make sure that no "
                    "other process writes to it",
                    stacklevel=5,
                )
                break
        return False

    def _write(self, text: str) -> None:
        """Put a text into the file: a reader sees nothing, or a beginning, which is no JSON, or the whole."""
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)


def holder_of(folder: Path) -> LockHolder | None:
    """The process that holds the lock of a run directory now; None where none does, or it does not say who it is.

    A process on another host is seen where the file system passes locks on.
    """
    path = folder / ".lock"
    try:
        check_file(path)
        file = os.open(path, os.O_RDONLY)
    except (OSError, BadInput):
        return None
    try:
        if fcntl is None:
            return None
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        pass
    except OSError:  # no locks here
        return None
    finally:
        os.close(file)
    found = _read(path)
    if found is None or found.host != socket.gethostname():
        return found
    return replace(found, alive=_runs(found.pid))


def _read(path: Path) -> LockHolder | None:
    """What a lock file says; None where it says nothing."""
    try:
        found = LockHolder.from_json(read_bytes(path).decode())
        datetime.fromisoformat(found.since)
        return found
    except (OSError, ValueError):  # also of a file that is being written
        return None


def _this_process() -> LockHolder:
    name, *arguments = sys.argv or ["python"]
    name = Path(name).parent.name if name.endswith("__main__.py") else Path(name).name
    command = printable(shlex.join([name, *arguments]))
    command = command if len(command) <= SHOWN else f"{command[: SHOWN - 3]}..."
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return LockHolder(os.getpid(), socket.gethostname(), command, since)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True
