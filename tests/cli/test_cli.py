"""The command line, end to end; in separate processes where the process itself is tested."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from commands import run

import epsball
from epsball.attacks.registry import ATTACKS
from epsball.cli import main as cli
from epsball.evaluation import run_directory
from epsball.evaluation.result import Evaluation

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
COMMAND = [sys.executable, "-m", "epsball"]
QUICK = ["--limit", "64", "--epochs", "3"]
CHEAP = [*QUICK, "--attacks", "fgsm", "pgd"]


def alone(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as a user runs it."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=ENV, cwd=cwd, check=False)


def widest(text: str, path: Path) -> int:
    """The longest line, but for those that name a path."""
    return max(len(line) for line in text.splitlines() if str(path) not in line)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    out = tmp_path_factory.mktemp("cli") / "run"
    return alone("evaluate", *CHEAP, "--diagnose", "16", "--out", str(out)), out


def test_evaluate_with_no_argument_prints_robust_accuracy_in_80_columns():
    done = alone("evaluate")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"robust accuracy \d\d\.\d\d% \(95% interval \d\d\.\d-\d\d\.\d%\), clean accuracy \d\d\.\d\d%", done.stdout
    )
    assert "digits: 360 examples, 1x8x8, in [0, 1]" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_run_directory_holds_the_result_and_the_network(finished):
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
    again = alone("evaluate", *CHEAP, "--diagnose", "16", "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert "trained earlier" in again.stdout
    assert again.stdout.splitlines()[-3] == done.stdout.splitlines()[-3]


def test_another_command_on_the_same_directory_is_refused_by_name(finished):
    _, out = finished
    other = alone("evaluate", *CHEAP, "--out", str(out), "--ball", "linf:0.2")
    assert other.returncode == 2
    assert "another `--ball`" in other.stderr


def test_json_is_all_of_stdout():
    done = alone("evaluate", *QUICK, "--json", "--attacks", "fgsm", "pgd:steps=5", "--eps", "0.02", "8/255")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["n"] == 64
    assert [point["eps"] for point in result["curve"]] == [0.02, 8 / 255]
    assert result["robust_accuracy"] == result["curve"][-1]["robust_accuracy"]
    assert result["config"]["seed"] == 0
    assert len(result["stages"]) == 5


@pytest.mark.parametrize(("share", "code"), [("0.0", 0), ("1", 1)])
def test_fail_under_sets_the_exit_code(share: str, code: int):
    done = run("evaluate", *QUICK, "--attacks", "fgsm", "--fail-under", share)
    assert done.returncode == code
    assert ("is below --fail-under 1" in done.stderr) == (code == 1)
    assert "Reliability: not checked" in done.stdout


def test_fail_under_fails_for_a_result_that_is_not_to_be_relied_on():
    masked = ["--model", "broken-defence:quantised", "--attacks", "pgd:steps=5", "--diagnose", "16", "--json"]
    done = run("evaluate", *QUICK, *masked, "--fail-under", "0.01")
    assert done.returncode == 1
    message = " ".join(done.stderr.split())
    assert "exit code 1: Reliability checks failed: zero-gradients" in message
    assert "--allow-unreliable ignores it" in message
    assert "below" not in message
    assert json.loads(done.stdout)["doubts"]
    for share, code in (("0.01", 0), ("1", 1)):  # a low result fails all the same
        done = run("evaluate", *QUICK, *masked, "--fail-under", share, "--allow-unreliable")
        assert done.returncode == code, done.stderr
    assert run("evaluate", *QUICK, *masked).returncode == 0  # nothing was asked


@pytest.mark.parametrize(("bad", "code"), [(2, 0), (3, 1)])
def test_fail_under_fails_where_more_than_a_tenth_of_the_rows_are_bad(tmp_path: Path, bad: int, code: int):
    (tmp_path / "net.py").write_text(
        "import torch\n\n\ndef make():\n    net = torch.nn.Linear(3, 3)\n    net.weight.data = torch.eye(3)\n"
        "    net.bias.data.zero_()\n    return net\n"
    )
    x = np.random.default_rng(0).random((20, 3), np.float32)
    y = x.argmax(1)
    x[::3][:bad] = np.nan
    np.savez(tmp_path / "rows.npz", x=x, y=y)
    flags = ["--model", "net.py:make", "--data", "rows.npz", "--attacks", "fgsm", "--ball", "linf:0.01"]
    done = run(
        "evaluate", *flags, "--diagnose", "0", "--on-bad", "skip", "--out", "out", "--fail-under", "0", cwd=tmp_path
    )
    shown = f"{bad} rows could not be used"
    assert done.returncode == code, done.stderr
    assert done.stdout.count(shown) == 1
    assert done.stderr.count(shown) == code
    assert (f"exit code 1: {shown}, of 20. --allow-unreliable ignores it." in done.stderr) == (code == 1)
    for page in ("report.html", "card.md"):
        text = (tmp_path / "out" / page).read_text().partition('id="setup"')[0]
        assert text.count(shown) == 1
        assert (f"{shown}, of 20." in text) == (code == 1)


def test_exit_codes_are_in_the_help_and_the_docs():
    shown = " ".join(run("--help").stdout.split())
    docs = (Path(__file__).parents[2] / "docs" / "howto.md").read_text()
    for code, meaning in cli.EXIT_CODES.items():
        assert f"{code} {meaning.split(':')[0]}" in shown
        assert f"| {code} | {meaning.split(':')[0]}" in docs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--attacks", "pdg"], "did you mean 'pgd'"),
        (["evaluate", "--modell", "small-mlp"], "--model"),
        (["evalate"], "evaluate"),
        (["evaluate", "--model", "small-mpl"], "did you mean 'small-mlp'"),
        (["evaluate", "--ball", "l3:1"], "`--ball` must be"),
        (["evaluate", "--ball", "linf:-1"], "`--ball` linf:-1: eps must be >= 0"),
        (["evaluate", "--ball", "l0:3", "--lo=-inf"], "`--lo` and `--hi` must be finite in L0"),
        (["evaluate", "--data", "digitz"], "digits"),
        (["evaluate", "--fail-under", "50"], "--fail-under"),
        (["evaluate", "--attacks", "pgd:stepz=3"], "did you mean 'steps'"),
        (["evaluate", "--split", "tset"], "test"),
        (["attack", "--weights", "nothing.safetensors"], "existing file"),
        (["evaluate", "--limit", "many"], "limit"),
        (["evaluate", "--data", "rows.npz"], "`--weights` must be given"),
        (["evaluate", "--attacks", "worst-of(fgsm, pdg)"], "did you mean 'pgd'"),
        (["evaluate", "--attacks", "worst-of(fgsm"], "worst-of(A, B, ...)"),
        (["evaluate", "--attacks", "standard", "--ball", "l0:3"], "`--ball` must be linf or l2 or l1 for standard"),
        (["evaluate", "--attacks", "l1-apgd"], "`--ball` must be l1 for L1APGD, got linf"),
        (["evaluate", "--eot", "0"], "`--eot` must be a whole number >= 1"),
        (["evaluate", "--storage", "9bit"], "--storage"),
        (["evaluate", "--source-weights", "net.safetensors"], "`--source` must name the network"),
        (["verify", "nothing"], "`run` must be a directory"),
        (["compare", "nothing", "nothing"], "must be a run directory"),
    ],
)
def test_bad_usage_exits_with_2_and_a_helpful_message(arguments: list[str], message: str, tmp_path: Path):
    np.savez(tmp_path / "rows.npz", x=np.eye(3, dtype=np.float32), y=np.arange(3))
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_never_imports_torch():
    for arguments in (["--help"], ["evaluate", "--help"], ["attack", "--help"], ["--version"]):
        code = f"import sys; from epsball.cli.main import run; run({arguments!r}); assert 'torch' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == epsball.__version__


def test_help_fits_80_columns_and_names_every_option():
    output = run("evaluate", "--help").stdout
    assert max(map(len, output.splitlines())) <= 80
    for option in ("--model", "--weights", "--data", "--ball", "--attacks", "--eps", "--out", "--json", "--fail-under"):
        assert option in output
    for option in ("--eot", "--source", "--source-weights", "--storage"):
        assert option in output


def test_attacks_lists_every_attack_alias_and_protocol():
    listed = json.loads(run("attacks", "--json").stdout)
    assert listed["attacks"]["pgd"]["options"]["steps"] == 40
    assert listed["attacks"]["l1-apgd"]["norms"] == ["l1"]
    assert set(listed["attacks"]) == set(ATTACKS)
    assert listed["aliases"]["apgd-t"] == "apgd:loss=dlr,n_targets=9"
    assert listed["protocols"]["standard"]["linf"] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    output = run("attacks").stdout
    assert max(map(len, output.splitlines())) <= 80
    for name in (*listed["attacks"], *listed["aliases"], *listed["protocols"], "worst-of"):
        assert name in output


def test_attack_writes_the_adversarial_set_and_the_contact_sheet(tmp_path: Path):
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


def test_a_users_model_with_one_logit_and_own_data_are_evaluated(tmp_path: Path):
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
    for call, eps, robust in ((alone, "0.15", 1.0), (run, "0.3", 0.0)):
        done = call(
            "evaluate", "--model", "mine:model", "--data", "mine.npz", "--ball", f"linf:{eps}", "--json", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["clean_accuracy"], result["robust_accuracy"]) == (1.0, robust)


def test_colour_images_of_a_folder_are_attacked(tmp_path: Path):
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


# verify and compare


def test_the_command_of_a_run_is_stored_for_verify(finished):
    _, out = finished
    command = json.loads((out / "command.json").read_text())
    assert command["command"] == ["epsball", "evaluate", *CHEAP, "--diagnose", "16", "--out", str(out)]
    assert command["subject"]["data"] == "digits"
    assert command["subject"]["limit"] == 64
    assert command["flags"]["attacks"] == ["fgsm", "pgd"]
    assert command["flags"]["eps"] is None  # not given
    assert Evaluation.load(out).config["protocol"] == ["fgsm", "pgd"]


def test_a_run_verifies_and_a_changed_one_does_not(finished, tmp_path: Path):
    _, out = finished
    done = run("verify", str(out), "--data", "digits", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no differences" in done.stdout
    assert "64 clean predictions made anew (all)" in done.stdout
    summary = json.loads(run("verify", str(out), "--json").stdout)
    assert (summary["agrees"], summary["differences"]) == (True, [])
    assert summary["fooled"] == summary["confirmed"] == Evaluation.load(out).count("fooled")
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    path = copy / "records" / "00000.parquet"
    table = run_directory.load(path)
    rows = [row | {"linf": row["linf"] and row["linf"] / 2} for row in table.to_pylist()]
    run_directory.save(path, pa.Table.from_pylist(rows, table.schema))
    done = run("verify", str(copy))
    assert done.returncode == 1, done.stderr
    assert widest(done.stdout, tmp_path) <= 80
    fooled = Evaluation.load(out).points()[0]
    assert f"{len(fooled)} differences on {len(fooled)} examples: {len(fooled)} distance" in done.stdout
    assert str(fooled[0]) in done.stdout
    summary = json.loads(run("verify", str(copy), "--json").stdout)
    assert {row["id"] for row in summary["differences"]} == set(fooled.tolist())


def test_a_run_verifies_only_with_its_own_model(finished, tmp_path: Path):
    _, out = finished
    done = run("verify", str(out), "--model", "small-cnn")
    assert done.returncode == 2
    assert "`--weights` must be given" in done.stderr
    other = tmp_path / "other"
    assert run("evaluate", *QUICK, "--seed", "1", "--out", str(other), "--attacks", "fgsm").returncode == 0
    done = run("verify", str(out), "--weights", str(other / "model.safetensors"))
    assert done.returncode == 1, done.stderr
    assert "1 model" in done.stdout
    (other / "command.json").unlink()
    done = run("verify", str(other))
    assert done.returncode == 2
    assert "`--model` must be given" in done.stderr
    weights = str(other / "model.safetensors")
    assert run("verify", str(other), "--model", "small-mlp", "--weights", weights).returncode == 0


def test_a_transfer_in_bytes_to_a_users_weights_verifies_from_elsewhere(tmp_path: Path):
    """Weights named relative to where the run was made; the source is trained in the run, and stored."""
    from epsball.models.registry import build
    from epsball.models.weights import save_weights

    here = tmp_path / "here"
    here.mkdir()
    save_weights(build("small-mlp", (1, 8, 8), 10, seed=4), here / "net.safetensors")
    arguments = ["--weights", "net.safetensors", "--source", "small-mlp", "--storage", "8bit", "--eot", "2"]
    arguments += [*CHEAP, "--ball", "linf:0.3", "--out", "run"]
    done = run("evaluate", *arguments, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "source small-mlp, trained here: 3 epochs, seed 1" in done.stdout
    assert "stored in 8 bits" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 80
    card = json.loads((here / "run" / "source.json").read_text())
    assert (card["model"], card["seed"]) == ("small-mlp", 1)
    assert not (here / "run" / "model.safetensors").exists()
    again = run("evaluate", *arguments, cwd=here)
    assert "source small-mlp, trained earlier" in again.stdout
    assert Evaluation.load(here / "run").config["eot"] == 2
    done = run("verify", "here/run", "--data", "digits", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean of 2 model calls" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--storage", "8bit", "--lo=-inf", "--hi", "inf"], "`--storage` '8bit' must have a box"),
        (["--binarization-test", "4", "--source", "small-cnn"], "`--binarization-test` must be 0 with `--source`"),
        (["--eps", "0.1", "0.1"], "`--eps` must be distinct"),
        (["--eps", "0.1", "-0.1"], "eps"),
    ],
)
def test_a_command_is_refused_before_a_network_is_trained(arguments: list[str], message: str, tmp_path: Path):
    done = run("evaluate", *QUICK, *arguments, "--out", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


FACTORY = """
import torch
def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
"""


def test_a_users_module_or_table_that_is_missing_is_named_with_its_folder(tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    (here / "mymod.py").write_text(FACTORY)
    done = run("evaluate", "--limit", "20", "--model", "mymod:make", "--source", "mymod:mak", cwd=here)
    assert done.returncode == 2
    assert "`--source` mymod:mak:" in " ".join(done.stderr.split())
    made = run("evaluate", "--limit", "20", "--model", "mymod:make", "--attacks", "fgsm", "--out", "run", cwd=here)
    assert made.returncode == 0, made.stderr
    assert run("verify", "run", "--trust", cwd=here).returncode == 0
    done = run("verify", "../here/run", "--trust", cwd=there)
    assert done.returncode == 2
    assert f"the run was made in {here}" in " ".join(done.stderr.split())
    (here / "run" / "command.json").unlink()
    for damage in (lambda raw: raw[:100], lambda raw: b""):
        path = here / "run" / "stages" / "00000-clean.parquet"
        path.write_bytes(damage(path.read_bytes()))
        for command in (["verify", "run", "--model", "mymod:make"], ["compare", "run", "run"]):
            done = run(*command, cwd=here)
            assert done.returncode == 2, done.stderr
            assert "00000-clean.parquet is missing or damaged" in " ".join(done.stderr.split())


def test_a_run_interrupted_in_its_binarization_test_can_be_verified_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    arguments = ["evaluate", *QUICK, "--attacks", "fgsm", "--binarization-test", "4", "--out", str(out)]
    with warnings.catch_warnings(), monkeypatch.context() as patched:  # the command line takes over how they are shown
        patched.setattr("epsball.evaluation.evaluate.run_binarization_test", interrupted)
        assert cli.run(arguments) == 130
    capsys.readouterr()
    command = (out / "command.json").read_text()
    done = run("verify", str(out))
    assert done.returncode == 0, done.stderr
    other = run("evaluate", *QUICK, "--attacks", "pgd", "--lo=-1", "--out", str(out))
    assert other.returncode == 2
    assert (out / "command.json").read_text() == command  # a refused command is not stored
    assert run(*arguments).returncode == 0


def test_a_run_without_weights_trains_again_to_the_same_bits(finished, tmp_path: Path):
    _, out = finished
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    done = run("evaluate", *CHEAP, "--diagnose", "16", "--out", str(copy))
    assert done.returncode == 0, done.stderr
    assert (copy / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_compare_fits_80_columns_and_names_what_differs(finished, tmp_path: Path):
    _, out = finished
    other = tmp_path / "other"
    names = ["apgd-ce:steps=10", "worst-of(apgd-t:steps=5,n_targets=3, square:steps=20)"]
    done = run("evaluate", *QUICK, "--out", str(other), "--attacks", *names, "--eps", "0.05", "0.2")
    assert done.returncode == 0, done.stderr
    assert widest(done.stdout, tmp_path) <= 80
    stages = Evaluation.load(other).stages
    assert [stage.attack for stage in stages[1:4]] == [names[0], "apgd-t:steps=5,n_targets=3", "square:steps=20"]
    done = run("compare", str(out), str(other))
    assert done.returncode == 0, done.stderr
    assert widest(done.stdout, tmp_path.parent) <= 80
    assert "they differ in radii, attacks" in done.stdout
    assert "the runs differ in radii, attacks, so the cause may be any" in " ".join(done.stdout.split())
    summary = json.loads(run("compare", str(out), str(other), "--json").stdout)
    assert summary["both"] + summary["only_a"] + summary["only_b"] + summary["neither"] == summary["n"] == 64
    assert summary["accuracy_b"] == Evaluation.load(other).robust_accuracy
    assert len(summary["ids_only_a"]) == summary["only_a"] > 0


LONG = ["evaluate", "--epochs", "1", "--attacks", "pgd:steps=400,restarts=20", "--ball", "linf:0.001"]


def started(out: Path) -> subprocess.Popen[str]:
    command = [*COMMAND, *LONG, "--out", str(out)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job has it ignored
    )
    while process.poll() is None and not list(out.glob("stages/*.parquet")):
        time.sleep(0.01)  # poll: the signal is to come in the middle of the run
    return process


def test_an_interrupt_exits_with_130_and_explains_how_to_resume(tmp_path: Path):
    process = started(tmp_path / "run")
    process.send_signal(signal.SIGINT)
    _, output = process.communicate()
    assert process.returncode == 130, output
    assert "resumes it" in output
    assert "Traceback" not in output
    assert list((tmp_path / "run").glob("stages/*-clean.parquet"))


def test_a_killed_run_resumes_with_its_network(tmp_path: Path):
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
