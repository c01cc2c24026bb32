"""Files of others are data: hostile ones end in a sentence, flipped bits are seen, and nothing that they name runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
import torch
from commands import run as run_command
from torch import nn

from epsball.common.errors import BadInput
from epsball.evaluation.result import Evaluation
from epsball.evaluation.verify import verify
from epsball.models.folder import read_model_folder
from epsball.models.model_record import read_record
from epsball.models.weights import load_weights
from epsball.report.html import of_run
from epsball.report.run import Run
from epsball.training import checkpoint

EVERY = 23
FLIPS = 32


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sound") / "sound"
    hostile.sound(place)
    return place


def refused(sound: Path, every: int) -> list[dict[str, Any]]:
    """What became of each EVERY-th hostile case, in a process of its own."""
    work = sound.parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HF_HOME": str(work / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, hostile.__file__, str(work), str(every)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def faults(found: list[dict[str, Any]]) -> list[str]:
    """What a hostile file did that it may not do."""
    rules: dict[str, Callable[[dict[str, Any]], bool]] = {
        "code ran": lambda one: one["ran"],
        "another exit code": lambda one: one["code"] not in (0, 1, 2),
        "a traceback": lambda one: "Traceback" in one["text"],
        "no sentence": lambda one: one["code"] == 2 and "epsball: " not in one["text"],
        "slow": lambda one: one["seconds"] > hostile.MOST_SECONDS,
        "large": lambda one: one["grown"] > hostile.MOST_BYTES,
    }
    return [f"{name}: {one}" for one in found for name, broken in rules.items() if broken(one)]


def test_hostile_files_run_no_code_and_end_in_one_sentence_soon(sound: Path) -> None:
    found = refused(sound, EVERY)
    assert len(found) >= 20
    assert faults(found) == []
    assert sum(one["code"] == 2 for one in found) > len(found) / 2


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_every_hostile_file_runs_no_code_and_ends_in_one_sentence_soon(sound: Path) -> None:
    found = refused(sound, 1)
    assert len(found) >= 321
    assert faults(found) == []


# Flipped bits


def contents(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (str(value.dtype), value.tolist()) for name, value in tensors.items()}


def of_the_run(path: Path) -> Any:
    """All that is read of a run: the result, its report, and what its verification finds."""
    found = Evaluation.load(path)
    network = nn.Sequential(*read_sound())
    load_weights(network, path / "model.safetensors")
    differences = verify(path, network)
    if not differences.agrees:
        raise BadInput("the verification finds differences")
    page = of_run(Run.load(path, found), 5)
    return found.summary(), found.records.to_pydict(), found.adversarial.to_pydict(), found.stages, page, differences


def read_sound() -> list[nn.Module]:
    from epsball.models.registry import build

    return list(build("small-mlp", (1, 8, 8), 10))  # type: ignore[arg-type]


def of_the_folder(path: Path) -> Any:
    """All that is read of a trained model's folder, to evaluate it."""
    return read_record(path).to_record(), contents(read_model_folder(path).state_dict())


def of_the_checkpoint(path: Path) -> Any:
    """All that a resume reads."""
    found = checkpoint.load_latest(path / "training")
    assert found is not None
    return contents(found[1]), json.dumps(found[2]), json.loads((path / "command.json").read_text())["asked"]


READERS: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "run": (of_the_run, ("**/*",)),
    "trained": (of_the_folder, ("model.*", "README.md")),
    "trained ": (of_the_checkpoint, ("training/**/*",)),
}


def flipped(sound: Path, work: Path, flips: int, seed: int) -> tuple[int, list[str]]:
    """How many of so many flips are detected, and those that change something without being so.

    Files take turns; the bit in each is drawn.
    """
    generator = np.random.default_rng(seed)
    detected, unseen = 0, []
    places = []
    for name, (read, patterns) in READERS.items():
        folder = sound / name.strip()
        files = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
        whole = read(folder)
        places += [(folder, read, whole, file.relative_to(folder)) for file in files if file.stat().st_size]
    for turn in range(flips):
        folder, read, whole, file = places[turn % len(places)]
        copy = Path(shutil.copytree(folder, work / folder.name))
        data = bytearray((copy / file).read_bytes())
        bit = int(generator.integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        (copy / file).write_bytes(data)
        try:
            if str(read(copy)) != str(whole).replace(str(folder), str(copy)):
                unseen.append(f"{folder.name}/{file}, bit {bit}")
        except BadInput:
            detected += 1
        shutil.rmtree(copy)
    return detected, unseen


def test_a_flipped_bit_is_detected_or_without_effect(sound: Path, tmp_path: Path) -> None:
    detected, unseen = flipped(sound, tmp_path, FLIPS, seed=0)
    assert unseen == []
    assert detected > FLIPS / 3


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_thousand_flipped_bits_are_detected_or_without_effect(sound: Path, tmp_path: Path) -> None:
    detected, unseen = flipped(sound, tmp_path, 1000, seed=1)
    assert unseen == []
    assert detected > 300


# What a file names does not run, and the remedies do


NETS = """
open('ran', 'w').close()
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a trained folder of a user's own network."""
    here = tmp_path_factory.mktemp("own")
    (here / "their_nets.py").write_text(NETS)
    for command in (
        ("train", "--model", "their_nets:make", "--epochs", "1", "--limit", "60", "--out", "net"),
        ("evaluate", "--model", "their_nets:make", *hostile.SHORT, "--out", "run"),
    ):
        found = run_command(*command, cwd=here)
        assert found.returncode == 0, found.stderr
    (here / "ran").unlink()
    return here


TRUSTING = {
    "evaluate": ("evaluate", "--model", "net", *hostile.SHORT),
    "attack": ("attack", "--model", "net", "--limit", "4", "--rows", "0"),
    "verify": ("verify", "run"),
    "resume": ("train", "--out", "net", "--resume"),
    "train from": ("train", "--model", "net", "--epochs", "1", "--limit", "60", "--out", "next"),
}


@pytest.mark.parametrize("command", TRUSTING.values(), ids=list(TRUSTING))
def test_a_factory_that_a_file_names_runs_only_where_it_is_trusted(own: Path, tmp_path: Path, command: tuple[str, ...]):
    here = Path(shutil.copytree(own, tmp_path / "own"))
    refused = run_command(*command, cwd=here)
    assert refused.returncode == 2
    assert not (here / "ran").exists()
    said = " ".join(refused.stderr.split())
    assert "their_nets:make, which is code that was not run" in said
    named = ["--model", "their_nets:make"]
    if "--weights" in said:  # the folder's, beside the network
        rest = [word for word in command if word not in ("--model", "net")]
        remedies = [[*rest, *named, "--weights", "net/model.safetensors"], [*command, "--trust"]]
    else:
        remedies = [[*command, *named], [*command, "--trust"]]
    assert "--model their_nets:make" in said
    assert "--trust" in said
    for remedy in remedies:
        shutil.rmtree(here / "next", ignore_errors=True)
        obeyed = run_command(*remedy, cwd=here)
        assert obeyed.returncode == 0, obeyed.stderr
        assert (here / "ran").exists()


def test_the_commands_that_a_training_and_a_report_print_work_as_they_are(own: Path, tmp_path: Path) -> None:
    here = Path(shutil.copytree(own, tmp_path / "own"))
    again = run_command(
        "train", "--model", "their_nets:make", "--epochs", "1", "--limit", "60", "--out", "b", "--json", cwd=here
    )
    assert run_command(*json.loads(again.stdout)["next"][1:], "--limit", "8", cwd=here).returncode == 0
    report = run_command("report", "run", cwd=here)
    assert report.returncode == 0
    assert "epsball verify run --model their_nets:make" in (here / "run" / "report.html").read_text()


@pytest.mark.parametrize("value", ["true", "'yes'"])
def test_no_configuration_file_can_trust(tmp_path: Path, value: str) -> None:
    (tmp_path / "c.toml").write_text(f"trust = {value}\n")
    found = run_command("evaluate", "--config", "c.toml", cwd=tmp_path)
    assert found.returncode == 2
    assert "got 'trust'" in found.stderr
