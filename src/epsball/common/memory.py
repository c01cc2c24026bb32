"""How much memory a call takes and how much there is, where Linux says it; elsewhere nothing is known (None).

Linux ends a process that takes more than there is, without an error that it could answer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PROCESS, MACHINE = Path("/proc/self"), Path("/proc/meminfo")
GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Control groups of both versions: their folder, the most bytes, those in use, and those of cached files among them."""


def peak_memory(call: Callable[[], object]) -> int | None:
    """Run `call`; the bytes that the process held at most meanwhile, beyond those that it held before."""
    try:
        (PROCESS / "clear_refs").write_text("5")  # the peak is counted from here
        before = _kilobytes(PROCESS / "status", "VmRSS")
    except (OSError, ValueError, KeyError):
        call()
        return None
    call()
    return 1024 * (_kilobytes(PROCESS / "status", "VmHWM") - before)


def free_memory() -> int | None:
    """The bytes that this process could still take: of the machine's, and of its control group's."""
    try:
        free = [1024 * _kilobytes(MACHINE, "MemAvailable")]
    except (OSError, ValueError, KeyError):
        return None
    for folder, most, used, cached in GROUPS:
        try:
            room = int((folder / most).read_text()) - int((folder / used).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            free.append(room + next(int(line.split()[1]) for line in lines if line.startswith(f"{cached} ")))
        except (OSError, ValueError, StopIteration):  # no such group, or one without a limit
            continue
    return min(free)


def _kilobytes(file: Path, name: str) -> int:
    """The number of a line such as `VmRSS:   225980 kB`."""
    lines = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0])
