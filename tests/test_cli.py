"""The command line, end to end, as a user runs it: in processes of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import epsball
from epsball.evaluation import Evaluation

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
COMMAND = [sys.executable, "-m", "epsball"]
QUICK = ["--limit", "64", "--epochs", "3"]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=ENV, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("cli") / "run"
    return run("evaluate", *QUICK, "--out", str(out)), out


def test_evaluate_with_no_argument_gives_a_verdict_that_fits_80_columns():
    done = run("evaluate")
    assert done.returncode == 0, done.stderr
    assert "robust accuracy" in done.stdout
    assert "digits: 360 examples, 1x8x8, in [0, 1]" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_run_directory_holds_the_verdict_and_the_network(finished):
    done, out = finished
    assert done.returncode == 0, done.stderr
    found = Evaluation.load(out)
    assert f"robust accuracy {found.robust_accuracy:.2%}" in done.stdout
    card = json.loads((out / "model.json").read_text())
    assert card["model"] == "small-mlp"
    assert card["seed"] == 0
    assert card["training"]["config"]["epochs"] == 3
    assert (out / "model.safetensors").exists()


def test_the_same_command_again_finds_the_run_finished(finished):
    done, out = finished
    again = run("evaluate", *QUICK, "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert "trained earlier" in again.stdout
    assert again.stdout.splitlines()[-3] == done.stdout.splitlines()[-3]


def test_another_command_on_the_same_directory_is_refused_by_name(finished):
    _, out = finished
    other = run("evaluate", *QUICK, "--out", str(out), "--ball", "linf:0.2")
    assert other.returncode == 2
    assert "another `ball`" in other.stderr


def test_json_on_stdout_and_nothing_else():
    done = run("evaluate", *QUICK, "--json", "--attacks", "fgsm", "pgd:steps=5", "--eps", "0.02", "8/255")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["n"] == 64
    assert [point["eps"] for point in verdict["curve"]] == [0.02, 8 / 255]
    assert verdict["robust_accuracy"] == verdict["curve"][-1]["robust_accuracy"]
    assert verdict["config"]["seed"] == 0
    assert len(verdict["stages"]) == 5


@pytest.mark.parametrize(("share", "code"), [("0.0", 0), ("1", 1)])
def test_fail_under(share: str, code: int):
    assert run("evaluate", *QUICK, "--attacks", "fgsm", "--fail-under", share).returncode == code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "--attacks", "pdg"], "did you mean 'pgd'"),
        (["evaluate", "--modell", "small-mlp"], "--model"),
        (["evalate"], "evaluate"),
        (["evaluate", "--model", "small-mpl"], "did you mean 'small-mlp'"),
        (["evaluate", "--ball", "l3:1"], "`ball` must be"),
        (["evaluate", "--ball", "linf:-1"], "`eps` must be >= 0"),
        (["evaluate", "--ball", "l0:3", "--lo=-inf"], "`lo` and `hi` must be finite in L0"),
        (["evaluate", "--data", "digitz"], "digits"),
        (["evaluate", "--fail-under", "50"], "--fail-under"),
        (["evaluate", "--attacks", "pgd:stepz=3"], "did you mean 'steps'"),
        (["evaluate", "--split", "tset"], "test"),
        (["attack", "--weights", "nothing.safetensors"], "existing file"),
        (["evaluate", "--limit", "many"], "limit"),
        (["evaluate", "--data", "rows.npz"], "`weights` must be given"),
    ],
)
def test_bad_usage_exits_with_2_and_says_what_to_do(arguments: list[str], said: str, tmp_path: Path):
    np.savez(tmp_path / "rows.npz", x=np.eye(3, dtype=np.float32), y=np.arange(3))
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_never_imports_torch():
    for arguments in (["--help"], ["evaluate", "--help"], ["attack", "--help"], ["--version"]):
        code = f"import sys; from epsball.cli import run; run({arguments!r}); assert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == epsball.__version__


def test_help_fits_80_columns_and_names_every_option():
    said = run("evaluate", "--help").stdout
    assert max(map(len, said.splitlines())) <= 80
    for option in ("--model", "--weights", "--data", "--ball", "--attacks", "--eps", "--out", "--json", "--fail-under"):
        assert option in said


def test_the_list_of_attacks():
    listed = json.loads(run("attacks", "--json").stdout)
    assert listed["pgd"]["options"]["steps"] == 40
    assert set(listed) == set(epsball.attacks.ATTACKS)
    assert max(map(len, run("attacks").stdout.splitlines())) <= 80


def test_attack_writes_the_set_and_the_sheet(tmp_path: Path):
    import datasets
    from PIL import Image

    out = tmp_path / "made"
    done = run("attack", *QUICK, "--attack", "fgsm", "--out", str(out), "--rows", "3", "--ball", "linf:0.2", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["accuracy"] < figures["clean_accuracy"]
    loaded = datasets.load_dataset(
        "parquet", data_files=str(out / "adversarial.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert np.array(loaded[0]["x_adv"]).shape == (1, 8, 8)
    assert sum(loaded["fooled"]) == figures["fooled"]
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 800
        assert len(np.unique(np.asarray(sheet.convert("L")))) > 20


def test_a_users_own_model_data_and_one_logit(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def model():\n"
        "    net = torch.nn.Linear(5, 1)\n"
        "    with torch.no_grad():\n"
        "        net.weight.copy_(torch.tensor([[3.0, 2.0, -1.0, 1.0, 4.0]])); net.bias.zero_()\n"
        "    return net\n"
    )
    x = np.array([[-2.0, 2.0, 1.0, -3.0, 1.0]], dtype=np.float32)
    np.savez(tmp_path / "mine.npz", x=x, y=np.array([0]))
    for eps, robust in (("0.15", 1.0), ("0.3", 0.0)):
        done = run(
            "evaluate", "--model", "mine:model", "--data", "mine.npz", "--ball", f"linf:{eps}", "--json", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        verdict = json.loads(done.stdout)
        assert (verdict["clean_accuracy"], verdict["robust_accuracy"]) == (1.0, robust)


def test_colour_images_from_a_folder(tmp_path: Path):
    from PIL import Image

    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "pets" / split / label
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(0, 128, (8, 8, 3)) + (127 if label == "dog" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    out = tmp_path / "out"
    done = run("attack", "--data", str(tmp_path / "pets"), "--ball", "linf:0.5", "--out", str(out), "--epochs", "20")
    assert done.returncode == 0, done.stderr
    assert "12 examples, 3x8x8" in done.stdout
    assert (out / "sheet.png").exists()


LONG = ["evaluate", "--epochs", "1", "--attacks", "pgd:steps=400,starts=20", "--ball", "linf:0.001"]


def started(out: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, *LONG, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    while process.poll() is None and not list(out.glob("stages/*.parquet")):
        time.sleep(0.01)  # poll: the signal is to come in the middle of the run
    return process


def test_an_interrupt_exits_with_130_and_says_how_to_go_on(tmp_path: Path):
    process = started(tmp_path / "run")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "goes on from there" in said
    assert "Traceback" not in said
    assert list((tmp_path / "run").glob("stages/*-clean.parquet"))


def test_a_killed_run_goes_on_with_the_network_it_had(tmp_path: Path):
    out = tmp_path / "run"
    process = started(out)
    process.kill()
    process.communicate()
    weights = (out / "model.safetensors").read_bytes()
    before = {file: file.stat().st_mtime_ns for file in out.glob("stages/*.parquet")}
    assert before
    process = started(out)
    process.kill()
    process.communicate()
    assert (out / "model.safetensors").read_bytes() == weights
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())
