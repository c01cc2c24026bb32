"""Folders of models of others: each is refused in one sentence, runs no code, and costs little."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hub_hostile
import pytest
from hub_models import saved

pytest.importorskip("transformers")

MOST_SECONDS = 5
"""Of processor time."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    saved(folder / "model")
    return folder


def check(found: dict[str, Any]) -> None:
    assert found["kind"] == ("opened" if found["name"] == "nothing" else "BadInput"), found
    assert "\n" not in found["said"]
    assert not found["ran"]
    assert found["seconds"] < MOST_SECONDS, found
    assert found["grown"] < hub_hostile.MOST_BYTES, found


@pytest.mark.parametrize("name", hub_hostile.CASES)
def test_a_hostile_folder_is_refused_in_one_sentence_and_runs_nothing(name, sound, tmp_path):
    check(hub_hostile.opened(sound, tmp_path / "here", name))


@pytest.mark.nightly
def test_hostile_folders_are_refused_within_a_gibibyte(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, hub_hostile.__file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 1 + len(hub_hostile.CASES)
    for one in found[1:]:
        check(one)
