"""`epsball train` and the folder it writes, end to end: trained, evaluated, interrupted, resumed, refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from epsball import PGD
from epsball.cli import main as cli
from epsball.cli.train_report import ProgressDisplay
from epsball.evaluation.result import Evaluation
from epsball.models.folder import read_model_folder
from epsball.models.model_record import read_record
from epsball.training.augment import Augment
from epsball.training.config import TrainingConfig
from epsball.training.fgsm_mix import FGSMMix
from epsball.training.fit_result import Progress
from epsball.training.registry import OBJECTIVES, options_of, parse

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONWARNINGS": "default"}
COMMAND = [sys.executable, "-m", "epsball"]
QUICK = ["--epochs", "2", "--limit", "300"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process and an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        with warnings.catch_warnings():  # the command line takes over how they are shown
            code = cli.run(arguments)
        return code, *capsys.readouterr()

    return run


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def same(one: str | Path, other: str | Path) -> bool:
    first, second = weights(one), weights(other)
    return list(first) == list(second) and all(torch.equal(value, second[name]) for name, value in first.items())


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_evaluate_on_a_trained_folder_gives_the_accuracies_in_its_record(run: Run, tmp_path: Path):
    code, output, progress = run("train", "--epochs", "3", "--ball", "linf:0.05", "--out", "runs/a")
    assert code == 0, progress
    assert max(map(len, output.splitlines())) <= 80
    assert re.search(r"^held out +143( +\d+\.\d\d%){3}$", output, re.MULTILINE)
    assert re.search(r"^test +360( +\d+\.\d\d%){3}$", output, re.MULTILINE)
    assert "objective fgsm-mix" in output
    following = "epsball evaluate --model runs/a --data digits --ball linf:0.05"
    assert f"next: {following}" in output
    assert re.search(r"^epoch 3 of 3: loss \d\.\d+, clean \d+\.\d%, FGSM \d+\.\d%, PGD-10 \d+\.\d%$", progress, re.M)
    record = read_record("runs/a")
    found = {part.on: part for part in record.accuracies}
    assert (record.spec, record.classes, record.shape) == ("small-mlp", 10, (1, 8, 8))
    assert record.training["config"]["held_out"] == 143  # a tenth
    code, output, error = run(*following.split()[1:], "--attacks", "fgsm", "--json", "--out", "runs/b")
    assert code == 0, error
    result = json.loads(output)
    assert result["clean_accuracy"] == pytest.approx(found["test"].clean)
    assert result["robust_accuracy"] == pytest.approx(found["test"].fgsm)
    # A run with a folder is found finished, and verifies from anywhere.
    code, output, error = run(*following.split()[1:], "--attacks", "fgsm", "--out", "runs/b")
    assert code == 0, error
    assert f"robust accuracy {Evaluation.load('runs/b').robust_accuracy:.2%}" in output
    os.chdir("runs")
    code, output, error = run("verify", "b", "--data", "digits")
    assert code == 0, error
    assert "no differences" in output


def test_attack_explain_and_source_accept_a_folder(run: Run):
    assert run("train", *QUICK, "--objective", "plain", "--out", "net")[0] == 0
    code, output, error = run("attack", "--model", "net", "--attack", "fgsm", "--limit", "30", "--json", "--out", "adv")
    assert code == 0, error
    assert json.loads(output)["n"] == 30
    code, output, error = run("explain", "taylor", "--model", "net", "--limit", "30", "--eps", "0.1", "--json")
    assert code == 0, error
    code, output, error = run("evaluate", "--model", "net", "--source", "net", "--limit", "30", "--attacks", "fgsm")
    assert code == 0, error
    assert "source net" in output
    for flags, refused in (
        (["--model", "net", "--weights", "w.safetensors"], "`--weights` must be left out with the folder net"),
        (
            ["--model", "net", "--source", "net", "--source-weights", "w.pt"],
            "`--source` net: weights must be left out",
        ),
        (["--model", "nett"], "did you mean 'net'"),
        (["--model", "adv"], "adv, which has no model.json"),
    ):
        code, _, error = run("evaluate", "--limit", "30", *flags)
        assert code == 2
        assert refused in one_line(error)
    np.savez("other.npz", x=np.zeros((2, 5), dtype=np.float32), y=np.array([0, 1]))
    code, _, error = run("evaluate", "--model", "net", "--data", "other.npz")
    assert code == 2
    assert "must have examples of shape (1, 8, 8)" in one_line(error)


def test_a_toml_file_and_flags_of_the_same_names_give_the_same_weights(run: Run):
    Path("a.toml").write_text(
        'epochs = 2\nlimit = 200\nobjective = "fgsm-mix:alpha=0.7"\nball = "l2:0.5"\nbatch_size = 64\n'
        'weight-decay = 1e-3\nschedule = "cosine"\naccelerate = false\nchannels-last = false\nlr = 0.1\nout = "a"\n'
    )
    assert run("train", "--config", "a.toml", "--lr", "0.002")[0] == 0  # flags override the file
    flags = [
        "--epochs",
        "2",
        "--limit",
        "200",
        "--objective",
        "fgsm-mix:alpha=0.7",
        "--ball",
        "l2:0.5",
        "--lr",
        "0.002",
    ]
    flags += ["--batch-size", "64", "--weight-decay", "1e-3", "--schedule", "cosine", "--no-accelerate", "--out", "b"]
    assert run("train", *flags)[0] == 0
    assert same("a", "b")
    first, second = read_record("a"), read_record("b")
    assert first.training["config"] == second.training["config"]
    assert (first.options["objective"], first.training["config"]["lr"]) == ("fgsm-mix:alpha=0.7", 0.002)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "Did you mean --epochs"),
        (["--epochs", "0"], "`--epochs` must be a whole number >= 1, got 0"),
        (["--lr", "0"], "`--lr` must be > 0"),
        (["--optimizer", "adamm"], 'Did you mean "adam"'),
        (["--on-overfit", "rolback"], 'Did you mean "rollback"'),
        (["--hold-out", "-1"], "`--hold-out` must be a whole number >= 0"),
        (["--hold-out", "300", "--limit", "300"], "`--hold-out` must be below the 300 examples"),
        (["--objective", "fgsm-mixx"], "did you mean 'fgsm-mix'"),
        (["--objective", "fgsm-mix:alhpa=0.7"], "did you mean 'alpha'"),
        (["--objective", "fgsm-mix:alpha"], "must be KEY=VALUE with a key of"),
        (["--objective", "fgsm-mix:alpha=big"], "`fgsm-mix:alpha` must be of type float, got 'big'"),
        (["--objective", "fgsm-mix:batch-norm=seperate"], "did you mean 'separate'"),
        (["--objective", "augment:attack=pdg"], "did you mean 'pgd'"),
        (["--ball", "l3:1"], "`--ball` must be"),
        (["--data", "digitz"], "did you mean 'digits'"),
        (["--split", "tarin"], "did you mean 'train'"),
        (["--model", "small-mpl"], "did you mean 'small-mlp'"),
        (["--weights", "nothing.safetensors"], "`--weights` must be an existing file"),
        (["--config", "nothing.toml"], "`--config` must be a TOML file, got nothing.toml"),
        (["--config", "epoch.toml"], "did you mean 'epochs'"),
        (["--config", "text.toml"], "[epochs]"),
        (["--config", "broken.toml"], "`--config` must be a TOML file"),
        (["--out", "epoch.toml"], "`--out` must be a folder, got the file epoch.toml"),
        (["--out", "full"], "full holds something; add --resume"),
        (["--out", "full", "--resume"], "must hold a training for --resume, but holds something"),
    ],
)
def test_bad_usage_is_refused_and_leaves_no_files(run: Run, tmp_path: Path, arguments: list[str], message: str):
    Path("epoch.toml").write_text("epoch = 3\n")
    Path("text.toml").write_text('epochs = "three"\n')
    Path("broken.toml").write_text("epochs = \n")
    Path("full").mkdir()
    Path("full", "something").touch()
    before = sorted(tmp_path.rglob("*"))
    code, out, error = run("train", *arguments)
    assert (code, out) == (2, "")
    assert message in one_line(error)
    assert "Traceback" not in error
    if "hold-out" not in arguments[0]:  # refused only after the data are loaded
        assert sorted(tmp_path.rglob("*")) == before


def test_a_command_refused_after_loading_leaves_the_folder_free(run: Run):
    assert run("train", "--hold-out", "300", "--limit", "300", "--out", "net")[0] == 2
    code, _, error = run("train", *QUICK, "--objective", "plain", "--out", "net")
    assert code == 0, error


def test_json_is_all_of_stdout(run: Run):
    code, output, error = run("train", *QUICK, "--hold-out", "0", "--json", "--out", "net")
    assert code == 0, error
    record = json.loads(output)
    assert [part["on"] for part in record["accuracies"]] == ["test"]  # nothing is held out
    assert record["training"]["config"]["hold_out"] == 0
    assert len(record["training"]["epochs"]) == 2
    assert (record["objective"], record["data"], record["out"]) == ("fgsm-mix", "digits", "net")
    assert record["next"][:4] == ["epsball", "evaluate", "--model", "net"]


def test_resume_starts_or_repeats_a_training_and_refuses_other_options(run: Run):
    arguments = ["train", *QUICK, "--objective", "plain", "--lr", "0.01", "--out", "net"]
    assert run(*arguments, "--resume")[0] == 0
    before = {name: value.clone() for name, value in weights("net").items()}
    code, _, error = run(*arguments)
    assert code == 2
    assert "add --resume to continue" in one_line(error)
    for changed, message in (
        (["--epochs", "3"], "`--epochs` must be what it was for --resume, 2 in net, got 3"),
        (
            ["--objective", "plain:label_smoothing=0.1"],
            "`--objective` must be what it was for --resume, 'plain' in net",
        ),
        (["--ball", "linf:0.2"], "`--ball` must be what it was"),
        (["--seed", "1"], "`--seed` must be what it was"),
        (["--hold-out", "30"], "`--hold-out` must be what it was for --resume, None in net, got 30"),
    ):
        code, _, error = run("train", "--out", "net", "--resume", *changed)
        assert code == 2
        assert message in one_line(error)
    code, _, error = run("train", "--out", "net", "--resume")  # options that are left out are as they were
    assert code == 0, error
    assert read_record("net").training["config"]["lr"] == 0.01
    assert all(torch.equal(value, before[name]) for name, value in weights("net").items())


def test_a_restart_by_torchrun_resumes_the_training(run: Run, monkeypatch: pytest.MonkeyPatch):
    arguments = ["train", *QUICK, "--objective", "plain", "--out", "net"]
    assert run(*arguments)[0] == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    code, _, error = run(*arguments)
    assert code == 0, error


def test_an_interrupted_training_resumes_to_the_same_weights(run: Run, monkeypatch: pytest.MonkeyPatch):
    arguments = ["train", "--objective", "pgd:steps=2", "--epochs", "3", "--limit", "200", "--average", "ema", "--out"]

    def stopped(self: ProgressDisplay, at: Progress) -> None:
        if at.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ProgressDisplay, "__call__", stopped)
        code, _, error = run(*arguments, "stopped")
    assert code == 130
    assert "in stopped; the same command with --resume resumes it." in one_line(error)
    code, _, error = run("evaluate", "--model", "stopped")
    assert code == 2
    assert "`epsball train --out stopped --resume` continues" in one_line(error)
    code, _, error = run("train", "--out", "stopped", "--resume")
    assert code == 0, error
    assert run(*arguments, "whole")[0] == 0
    assert same("stopped", "whole")
    assert read_record("stopped").accuracies == read_record("whole").accuracies


def test_a_signal_stops_a_training_without_a_traceback(tmp_path: Path):
    arguments = ["train", "--objective", "plain", "--epochs", "100000", "--batch-size", "700", "--out", "stopped"]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job has it ignored
    )
    while process.poll() is None and not list((tmp_path / "stopped" / "training").glob("checkpoint-*")):
        time.sleep(0.01)  # poll: the signal is to come in the middle of the training
    process.send_signal(signal.SIGINT)
    _, output = process.communicate()
    assert process.returncode == 130, output
    assert "in stopped; the same command with --resume resumes it." in one_line(output)
    assert "Traceback" not in output


FACTORY = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
"""


def test_a_users_network_of_one_logit_trains_on_data_without_a_box(run: Run):
    Path("train_nets.py").write_text(FACTORY)
    generator = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = generator.normal(size=(80, 5)) + 3 * (2 * y[:, None] - 1)
    np.savez("rows.npz", x=x.astype(np.float32), y=y)
    flags = ["--model", "train_nets:make", "--data", "rows.npz", "--ball", "l2:0.5", "--lo=-20"]
    code, output, error = run("train", *flags, "--epochs", "20", "--batch-size", "16", "--lr", "0.01", "--out", "net")
    assert code == 0, error
    assert "model     train_nets:make, 57 parameters" in output
    assert "test" not in output  # an .npz has no other split
    (next_one,) = re.findall("next: epsball (.*)", output)
    assert next_one == "evaluate --model net --data rows.npz --ball l2:0.5 --lo=-20.0 --trust"
    code, output, error = run(*next_one.split(), "--json")
    assert code == 0, error
    assert json.loads(output)["clean_accuracy"] > 0.9


def test_a_convolutional_network_trains_on_colour_images_in_bytes(run: Run):
    generator = np.random.default_rng(0)
    y = np.arange(64) % 2
    x = generator.integers(0, 128, (64, 3, 8, 8)) + 127 * y[:, None, None, None]
    np.savez("colours.npz", x=x.astype(np.uint8), y=y)
    flags = ["--data", "colours.npz", "--ball", "linf:8/255", "--epochs", "3", "--batch-size", "16"]
    code, output, error = run("train", *flags, "--out", "net")
    assert code == 0, error
    assert "small-cnn, " in output
    assert "colours.npz: 64 examples, 3x8x8, in [0, 1]" in output
    assert max(map(len, output.splitlines())) <= 80
    code, _, error = run("evaluate", "--model", "net", "--data", "colours.npz", "--attacks", "fgsm")
    assert code == 0, error


def test_a_training_that_starts_with_a_folder_uses_its_weights(run: Run):
    assert run("train", *QUICK, "--objective", "plain", "--lr", "0.01", "--out", "first")[0] == 0
    little = ["--lr", "1e-12", "--objective", "plain", "--epochs", "1", "--limit", "300", "--hold-out", "0"]
    code, output, error = run("train", "--model", "first", *little, "--out", "second")
    assert code == 0, error
    assert "small-mlp, 17,610 parameters, begun with first" in output
    record = read_record("second")
    assert (record.spec, record.options["model"]) == ("small-mlp", "first")
    for name, value in weights("first").items():
        assert torch.allclose(weights("second")[name], value, atol=1e-6)
    assert read_model_folder("second") is not None
    code, output, error = run("train", "--weights", "first/model.safetensors", *little, "--out", "third")
    assert code == 0, error
    assert "begun with first/model.safetensors" in output
    assert same("second", "third")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_and_resumes(run: Run, name: str):
    """The record names the objective in the same words in another process."""
    arguments = ["train", "--epochs", "2", "--limit", "64", "--objective", name, "--out", "net"]
    code, _, error = run(*arguments)
    assert code == 0, error
    code, _, error = run(*arguments, "--resume")
    assert code == 0, error
    assert " at 0x" not in read_record("net").training["config"]["objective"]


def test_options_of_an_attack_or_objective_inside_an_objective_are_parsed():
    text = "augment:attack=(pgd:steps=3,restarts=2),every=2,objective=(fgsm-mix:alpha=0.7,alpha-end=none)"
    made = parse(text)
    assert made == Augment(attack=PGD(steps=3, restarts=2), every=2, objective=FGSMMix(alpha=0.7))
    assert options_of(Augment)["attack"] == "FGSM"


def test_list_shows_every_objective_with_its_options(run: Run):
    code, output, error = run("train", "--list", "--json")
    assert code == 0, error
    listed = json.loads(output)["objectives"]
    assert list(listed) == list(OBJECTIVES)
    assert listed["fgsm-mix"]["options"]["alpha"] == 0.5
    output = run("train", "--list")[1]
    assert max(map(len, output.splitlines())) <= 80
    for name, entry in listed.items():
        assert name in output
        assert all(f"{option}=" in output for option in entry["options"])
    assert not Path("trained").exists()


def test_help_names_every_setting_in_80_columns_without_torch():
    code = "import sys; from epsball.cli.main import run; run(['train', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=False)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for field in fields(TrainingConfig):
        assert f"--{field.name.replace('_', '-')} " in done.stdout
    for option in ("--objective", "--ball", "--data", "--model", "--out", "--resume", "--config", "--list", "--json"):
        assert f"{option} " in done.stdout
    assert "List the objectives." in done.stdout


def test_two_processes_write_one_folder_and_one_report(run: Run, tmp_path: Path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "epsball"]
    arguments = ["train", *QUICK, "--batch-size", "50", "--json", "--out"]
    done = subprocess.run(
        [*launcher, *arguments, "both"], capture_output=True, text=True, env=ENV, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["training"]["config"]["processes"] == 2
    assert done.stderr.count("epoch 2 of 2") == 1
    assert run(*arguments, "alone")[0] == 0
    for name, value in weights("alone").items():
        assert torch.allclose(weights("both")[name], value, atol=1e-4)


def test_a_process_that_is_not_the_first_only_writes_checkpoints(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("epsball.training.distributed.join_torchrun", lambda: False)
    assert run("train", "--ball", "l3:1", "--out", "net") == (2, "", "")
    assert run("train", *QUICK, "--objective", "plain", "--out", "net") == (0, "", "")
    assert sorted(entry.name for entry in Path("net").iterdir()) == ["training"]  # checkpoints are written by all
