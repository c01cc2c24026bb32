"""`epsball explain`, end to end, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest

from epsball.explain import Growth, TaylorGap

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}
LINEAR = (
    "import torch\n"
    "def model():\n"
    "    net = torch.nn.Linear(5, 1)\n"
    "    with torch.no_grad():\n"
    "        net.weight.copy_(torch.tensor([[3.0, 2.0, -1.0, 1.0, 4.0]])); net.bias.zero_()\n"
    "    return net\n"
)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("explain", *arguments, cwd=cwd)


def test_growth_with_no_argument_prints_its_figures_within_80_columns(tmp_path: Path):
    done = run("growth", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert sorted(file.name for file in (tmp_path / "explain").iterdir()) == ["growth.json", "growth.png"]
    found = Growth.from_json((tmp_path / "explain" / "growth.json").read_text())
    assert found.config["sides"] == (7, 14, 28, 56, 112)
    assert found.config["pair"] == (3, 7)
    assert f"{found.of('trained')[0].fgsm_accuracy:.1%}" in done.stdout
    assert "12,544" in done.stdout


def test_taylor_with_no_argument_prints_its_figures_within_80_columns(tmp_path: Path):
    done = run("taylor", "--epochs", "3", "--limit", "64", "--out", "o", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert sorted(file.name for file in (tmp_path / "o").iterdir()) == ["taylor.json", "taylor.png"]
    found = TaylorGap.from_json((tmp_path / "o" / "taylor.json").read_text())
    assert found.change.shape == (64, 8)
    assert found.config["dtype"] == "float64"
    assert f"{found.quantiles(found.relative)[1, -1]:.1%}" in done.stdout


def test_json_is_alone_on_stdout(tmp_path: Path):
    options = ["growth", "--sides", "4", "8", "--eps", "8/255", "--draws", "2", "--pair", "1", "0", "--json"]
    done = run(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["config"]["eps"] == 8 / 255
    assert printed["config"]["pair"] == [1, 0]
    assert [size["n"] for size in printed["sizes"]] == [16, 16, 16, 64, 64, 64]


def test_a_users_own_linear_model_has_no_gap_in_the_margin(tmp_path: Path):
    (tmp_path / "mine.py").write_text(LINEAR)
    x = np.array([[-2.0, 2.0, 1.0, -3.0, 1.0]], dtype=np.float32)
    np.savez(tmp_path / "mine.npz", x=x, y=np.array([0]))
    options = ["taylor", "--model", "mine:model", "--data", "mine.npz", "--eps", "0.3", "0.15", "--json"]
    for loss, change in (("margin", 0.3 * 11), ("cross_entropy", np.log1p(np.exp(-2 + 3.3)) - np.log1p(np.exp(-2)))):
        done = run(*options, "--loss", loss, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        radii = json.loads(done.stdout)["radii"]
        assert [radius["eps"] for radius in radii] == [0.15, 0.3]
        assert radii[1]["change"][1] == pytest.approx(change, rel=1e-12)
        assert (abs(radii[1]["gap"][1]) < 1e-12) == (loss == "margin")
    narrow = run(*options, "--float32", cwd=tmp_path)
    assert json.loads(narrow.stdout)["config"]["dtype"] == "float32"


def test_images_without_another_split_are_halved(tmp_path: Path):
    generator = np.random.default_rng(0)
    y = np.arange(40) % 2
    np.savez(
        tmp_path / "pictures.npz", x=generator.random((40, 1, 6, 6), dtype=np.float32) + y[:, None, None, None], y=y
    )
    done = run("growth", "--data", "pictures.npz", "--sides", "3", "6", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["config"]["rows"], printed["config"]["fit_rows"]) == (20, 20)
    assert printed["config"]["box"] == [None, None]
    assert all(size["boxed"] == size["measured"] for size in printed["sizes"])


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["growth", "--pair", "3", "12"], "`--pair` must be two different labels"),
        (["growth", "--eps", "a"], "`--eps` must be a number or a fraction"),
        (["growth", "--eps", "0"], "`--eps` must be > 0"),
        (["growth", "--sides", "7", "0"], "`--sides` must be a whole number >= 1"),
        (["growth", "--data", "digitz"], "did you mean 'digits'"),
        (["growth", "--data", "table.npz"], "must be images"),
        (["taylor", "--loss", "margins"], "did you mean 'margin'"),
        (["taylor", "--eps", "0", "--epochs", "1"], "`--eps` must be radii > 0"),
        (["taylor", "--ball", "l3:1"], "`--ball` must be"),
        (["tailor"], "taylor"),
    ],
)
def test_bad_usage_exits_with_2_and_a_message(arguments: list[str], printed: str, tmp_path: Path):
    np.savez(tmp_path / "table.npz", x=np.eye(4, dtype=np.float32), y=np.arange(4) % 2)
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert printed in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "explain").exists()


def test_help_is_80_columns_wide_and_imports_no_torch(tmp_path: Path):
    for arguments in (["explain", "--help"], ["explain", "growth", "--help"], ["explain", "taylor", "--help"]):
        code = (
            f"import sys; from epsball.cli.main import run; run({arguments!r}); import epsball.explain; "
            "import epsball.report.plots; assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=False)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 80
