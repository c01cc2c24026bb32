"""What Linux says of memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from epsball.common import memory
from epsball.common.memory import free_memory, peak_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says it")
SIZE = 1 << 26


def test_the_peak_of_a_call_is_what_it_held_and_has_freed() -> None:
    peak_memory(lambda: b"x" * (2 * SIZE))  # an earlier, higher peak does not count
    found = peak_memory(lambda: b"x" * SIZE)
    assert found is None or SIZE * 0.95 <= found < SIZE * 1.5


def test_memory_of_a_control_group_counts_with_its_cached_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = free_memory()
    assert whole is None or whole > 1 << 20
    for name, text in (("max", "5000\n"), ("used", "4000\n"), ("memory.stat", "anon 7\ncached 300\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "GROUPS", ((tmp_path, "max", "used", "cached"),))
    assert free_memory() == 1300
    (tmp_path / "max").write_text("max\n")  # no limit
    assert (free_memory() or 0) > 1300
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "none")
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    calls = []
    assert free_memory() is None
    assert peak_memory(lambda: calls.append(1)) is None
    assert calls == [1]
