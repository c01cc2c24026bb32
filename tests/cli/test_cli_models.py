"""`--model SPEC`: what the door did is said in terminal and report, and a run is verified by the same spec."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run

from epsball.cli import models as listing
from epsball.common.json_files import write_json
from epsball.models.doors import DOORS

NETS = """
import torch
from torch import nn
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
class Estimator:
    pass
"""
SHORT = ("--limit", "20", "--attacks", "fgsm", "--diagnose", "0")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("doors")
    (here / "door_nets.py").write_text(NETS)
    space: dict = {}
    exec(NETS, space)
    state = space["model"]().state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, here / "last.pth.tar")
    return here


def test_models_lists_every_door() -> None:
    listed = run("models", "--json")
    assert {one["name"] for one in json.loads(listed.stdout)} == {door.name for door in DOORS}
    shown = " ".join(run("models").stdout.split())
    assert all(door.spec.split()[0] in shown for door in DOORS)


def test_a_door_is_installed_with_all_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"timm", "torchvision"}
    monkeypatch.setattr(listing, "find_spec", lambda name: name if name in found else None)
    assert listing._needs("timm") == "installed"
    found.remove("torchvision")
    assert listing._needs("timm") == "pip install 'epsball[timm]'"


def test_the_door_and_what_was_done_are_said_and_the_run_is_verified(place: Path) -> None:
    spec = ("--model", "door_nets.py:model", "--weights", "last.pth.tar")
    done = run("evaluate", *spec, *SHORT, "--out", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "door_nets.py:model with last.pth.tar (factory) The prefix module. of the names in the file" in said
    assert "The prefix module. of the names" in (place / "run" / "report.html").read_text()
    refused = run("verify", "run", cwd=place)
    assert refused.returncode == 2
    assert "add --model door_nets.py:model, or --trust" in " ".join(refused.stderr.split())
    for agreed in (("--trust",), ("--model", "door_nets.py:model"), ("--trust", "--data", "digits")):
        verified = run("verify", "run", *agreed, cwd=place)
        assert verified.returncode == 0, verified.stderr
    command = json.loads((place / "run" / "command.json").read_text())
    command["subject"]["model" if "model" in command["subject"] else "spec"] = "evil.py:make\n\x1b[31mred"
    command.pop("checksum", None)
    write_json(place / "run" / "command.json", command)
    hostile = run("verify", "run", cwd=place)
    assert hostile.returncode == 2
    assert "\x1b" not in hostile.stderr
    assert "evil.py:make" in hostile.stderr


def test_a_network_may_be_used_as_a_black_box(place: Path) -> None:
    done = run(
        *("evaluate", "--model", "door_nets.py:model", "--black-box", "--limit", "8"),
        *("--attacks", "square:steps=20", "--diagnose", "0", "--json"),
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backwards"] == 0


def test_a_misspelt_file_is_one_sentence(place: Path) -> None:
    done = run("evaluate", "--model", "door_net.py:model", *SHORT, cwd=place)
    assert done.returncode == 2
    assert "did you mean 'door_nets.py'" in " ".join(done.stderr.split())


def test_what_a_terminal_would_obey_does_not_reach_it(place: Path) -> None:
    done = run("evaluate", "--model", "\x1b[31mred.py", *SHORT, cwd=place)
    assert done.returncode == 2
    assert "[31mred.py:FUNCTION" in " ".join(done.stderr.split())
    assert "\x1b" not in done.stderr


def test_an_array_in_double_precision_is_cast_to_the_model(place: Path) -> None:
    x, y = np.random.default_rng(0).random((12, 1, 8, 8)), np.arange(12) % 10
    np.savez(place / "double.npz", x=x, y=y, lo=0.0, hi=1.0)
    done = run("evaluate", "--model", "door_nets.py:model", "--data", "double.npz", *SHORT[2:], cwd=place)
    assert done.returncode == 0, done.stderr


def test_only_what_a_folder_can_build_again_is_trained(place: Path) -> None:
    (place / "net.onnx").write_bytes(b"")
    done = run("train", "--model", "net.onnx", "--limit", "20", cwd=place)
    assert done.returncode == 2
    assert "got net.onnx (ONNX); in Python, epsball.fit(epsball.load('net.onnx'), ...)" in " ".join(done.stderr.split())
