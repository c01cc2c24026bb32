"""ONNX files of others are data: none runs code, takes a gigabyte or long, and each ends in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

import hostile_onnx


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.nightly)])
def test_hostile_onnx_files_run_no_code_and_end_in_one_sentence_soon(every: int, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, hostile_onnx.__file__, str(tmp_path), str(every)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["name"] for one in found] == list(hostile_onnx.cases(every))
    rules: dict[str, Callable[[dict[str, Any]], bool]] = {
        "code ran": lambda one: one["ran"],
        "another error": lambda one: one["kind"] == "error",
        "not refused": lambda one: one["kind"] != ("read" if one["name"] in hostile_onnx.SOUND else "refused"),
        "no sentence": lambda one: one["kind"] == "refused" and not 20 < len(one["text"].splitlines()[0]) < 700,
        "more than a line": lambda one: one["kind"] == "refused" and "\n" in one["text"],
        "slow": lambda one: one["seconds"] > hostile_onnx.MOST_SECONDS,
        "large": lambda one: one["grown"] > hostile_onnx.MOST_BYTES,
    }
    assert [f"{name}: {one}" for one in found for name, broken in rules.items() if broken(one)] == []
