"""All analyses at once: one that fails does not stop the others, and the page makes no request."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from nets import batch_of, mlp

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.explain.analyses.rubbish import Rubbish
from epsball.explain.hypotheses import HYPOTHESES, chosen
from epsball.explain.plots.registry import PLOTS
from epsball.explain.runner import RUN, Case, answers
from epsball.report.findings import Entry, write_findings

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "default"}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("explain", *arguments, cwd=cwd)


def table(classes: int = 3) -> Case:
    """Examples that are no images."""
    x, y = batch_of(40, (6,), classes)
    data = from_arrays(x.float(), y, lo=0, hi=1, classes=classes)
    parts = (data.rows(slice(0, None, 2)), data.rows(slice(1, None, 2)))
    return Case(model=mlp((6,), classes).float(), data=parts[0], train=parts[1], ball=eb.Linf(eps=0.1, lo=0, hi=1))


def test_every_hypothesis_has_an_analysis():
    assert list(RUN) == list(HYPOTHESES) == list(chosen())
    assert chosen(["Rubbish", "targets"]) == ("targets", "rubbish")
    with pytest.raises(BadInput, match="did you mean 'rubbish'"):
        chosen(["rubish"])


def test_an_analysis_that_fails_gives_its_reason_and_the_others_run():
    case = table()
    started = []
    found = {one.name: one for one in answers(case, on_progress=lambda *at: started.append(at))}
    assert started == [(done, len(HYPOTHESES), name) for done, name in enumerate(HYPOTHESES)]
    assert list(found) == list(HYPOTHESES)
    for name in ("growth", "local-growth"):
        assert found[name].found is None
        assert "must be images" in found[name].reason
        assert found[name].summary()["sentence"] is None
    failed = {name: one.reason for name, one in found.items() if one.found is None}
    assert set(failed) <= {"growth", "local-growth", "l1"}, failed  # eps of L1 may be too large for random labels
    for one in found.values():
        if one.found is not None:
            assert one.reason == ""
            json.dumps(one.summary())
            assert re.search(r"\d", one.found.sentence)
            assert type(one.found).from_json(one.found.to_json()).sentence == one.found.sentence


def test_a_finding_without_a_sentence_or_a_figure_gives_its_reason_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from epsball.explain import runner

    def undrawn(found: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setitem(PLOTS, Rubbish, undrawn)
    monkeypatch.setattr("epsball.explain.analyses.linearity.Linearity.sentence", property(lambda self: 1 / 0))
    monkeypatch.setitem(runner.RUN, "l1", lambda case, tell: (_ for _ in ()).throw(BadInput("`eps` is too large")))
    found = {one.name: one for one in answers(table(), ("linearity", "conditioning", "rubbish", "l1"), out=tmp_path)}
    assert found["rubbish"].reason == "ValueError: no ink"
    assert found["linearity"].reason == "ZeroDivisionError: division by zero"
    assert found["l1"].reason == "`eps` is too large"
    assert [name for name, one in found.items() if one.found is not None] == ["conditioning"]
    assert {"conditioning.json", "conditioning.png"} <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("logits", ["constant", "nan"])
def test_constant_and_nan_logits_are_reported_without_nan(logits: str, tmp_path: Path):
    case = table()
    value = {"constant": 0.0, "nan": math.nan}[logits]

    def model(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] * 0 + value

    case = Case(model=model, data=case.data, train=case.train, ball=case.ball)
    names = ("targets", "universal", "boundary", "linearity", "taylor", "manifold", "rubbish")
    for one in answers(case, names, out=tmp_path):
        text = one.reason if one.found is None else one.found.sentence
        assert not re.search(r"\bnan\b|\binf\b|None|Error", text), text
        if logits == "nan" and one.name in ("targets", "universal", "boundary", "rubbish"):
            assert "must " in one.reason


def test_an_error_of_the_model_is_the_reason_of_each_analysis():
    class Fails(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError("no such layer")

    case = table()
    failing = Case(model=Fails(), data=case.data, train=case.train, ball=case.ball)
    found = {one.name: one for one in answers(failing, ("targets", "rubbish", "l1", "boundary"))}
    assert found["rubbish"].reason == "NotImplementedError: no such layer"
    assert list(found) == ["targets", "boundary", "rubbish", "l1"]


def test_the_page_makes_no_request_and_escapes_what_a_user_wrote(tmp_path: Path):
    from PIL import Image

    Image.new("RGB", (4, 3), "red").save(tmp_path / "l1.png")
    evil = "<script>alert(1)</script>"
    entries = [
        Entry(name="l1", title="L1", claim="It is.", sentence=f"It is not {evil} 1.", reason=""),
        Entry(name="growth", title="Growth", claim="It does.", sentence="", reason=f"no images {evil}"),
    ]
    write_findings(entries, [("data", evil)], tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert evil not in text
    assert text.count("data:image/png;base64,") == 1
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "Not measured: no images" in text
    assert "![L1](l1.png)" in (tmp_path / "index.md").read_text()


def test_the_command_writes_every_file_within_80_columns(tmp_path: Path):
    only = ("linearity", "taylor", "conditioning", "rubbish", "l1")
    options = ["--limit", "40", "--epochs", "2", "--out", "o"]
    done = run("--only", *only, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    files = sorted(file.name for file in (tmp_path / "o").iterdir())
    assert files == sorted(["index.html", "index.md", *(f"{n}.{end}" for n in only for end in ("json", "png"))])
    text = " ".join(done.stdout.split())
    for name in only:
        record = json.loads((tmp_path / "o" / f"{name}.json").read_text())
        assert f"({name}, " in text
        if "sentence" in record:
            assert " ".join(record["sentence"].split()) in text


def test_analyses_run_on_a_users_own_data_or_are_refused_with_a_reason(tmp_path: Path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", x=rng.random((60, 5), dtype=np.float32), y=np.arange(60) % 2)
    (tmp_path / "mine.py").write_text("import torch\ndef model():\n    return torch.nn.Linear(5, 2)\n")
    both = ["--model", "mine:model", "--data", "mine.npz", "--json"]
    done = run("mine:model", "mine.npz", "--only", "growth", "boundary", "rubbish", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rubbish"]["hypothesis"] == "Rubbish inputs"
    assert found["rubbish"]["found"]["config"]["draws"] == 1000
    assert "must be images" in found["growth"]["reason"]
    assert found["growth"]["found"] is None
    assert found["boundary"]["found"]["config"]["rows"] == 30
    done = run("rubbish", "--model", "mine:model", cwd=tmp_path)
    assert done.returncode == 2
    assert "`--model` must take x (n, *shape), got rows of shape (1, 8, 8)" in done.stderr
    done = run("local-growth", *both, cwd=tmp_path)
    assert done.returncode == 2
    assert "images" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tailor"], "did you mean 'taylor'"),
        (["--only", "tailor"], "did you mean 'taylor'"),
        (["rubbish", "--ball", "linf:0"], "`--ball` must have one radius > 0"),
        (["smal-mlp"], "did you mean 'small-mlp'"),
        (["--data", "digitz"], "did you mean 'digits'"),
    ],
)
def test_bad_usage_exits_with_2_and_a_message(arguments: list[str], message: str, tmp_path: Path):
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "explain").exists()


def test_help_is_80_columns_wide_and_imports_no_torch():
    for arguments in (["explain", "--help"], ["explain", "rubbish", "--help"]):
        code = (
            f"import sys; from epsball.cli.main import run; run({arguments!r}); "
            "loaded = {'torch', 'matplotlib', 'plotly', 'jinja2'} & set(sys.modules); assert not loaded, loaded"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=False)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 80
