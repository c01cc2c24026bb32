"""The door for timm: its checks run in a process of their own, with a stand-in where there is no torchvision."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import timm_checks

if find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, timm_checks.__file__, str(tmp_path_factory.mktemp("timm"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: said for line in done.stdout.splitlines() for name, said in json.loads(line).items()}


@pytest.mark.parametrize("name", timm_checks.CHECKS)
def test_timm(name, found):
    assert found[name] is None, found[name]


def test_the_stand_in_stays_in_its_process(found):
    assert "torchvision" not in sys.modules
