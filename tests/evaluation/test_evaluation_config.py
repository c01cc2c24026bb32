"""The configuration of an evaluation: keywords of `evaluate`, flags of the command line, and a TOML file."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from commands import run

from epsball.common.errors import BadInput
from epsball.evaluation.config import EvaluationConfig
from epsball.evaluation.evaluate import evaluate

OBJECTS = {"target", "source", "run_dir", "success", "on_progress"}
"""Keywords of `evaluate` that are no plain values."""


def test_the_keywords_of_evaluate_are_the_fields_with_their_defaults():
    keywords = {
        name: parameter.default
        for name, parameter in inspect.signature(evaluate).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name not in OBJECTS
    }
    assert keywords == vars(EvaluationConfig())


def test_every_field_is_documented_and_is_a_flag():
    shown = run("evaluate", "--help").stdout
    for name in EvaluationConfig.names():
        assert re.search(rf"^    {name}\n        \S", EvaluationConfig.__doc__ or "", re.MULTILINE), name
        assert f"--{name.replace('_', '-')} " in shown


def test_radii_are_numbers_or_fractions_and_sorted():
    assert EvaluationConfig(eps=("8/255", 0.01)).radii == (0.01, 8 / 255)
    assert EvaluationConfig().radii is None
    with pytest.raises(BadInput, match="`eps` must be distinct"):
        EvaluationConfig(eps=("0.5", 1 / 2))


def test_a_toml_file_sets_flags_and_the_command_line_overrides_it(tmp_path: Path):
    (tmp_path / "run.toml").write_text('eps = [0.05]\nattacks = ["fgsm"]\nlimit = 20\nepochs = 1\ndiagnose = 0\n')
    done = run("evaluate", "--config", "run.toml", "--eps", "0.1", "0.2", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"radii": [\n      0.1,\n      0.2\n    ]' in done.stdout
    assert '"n": 20' in done.stdout
    (tmp_path / "run.toml").write_text("epoch = 1\n")
    done = run("evaluate", "--config", "run.toml", cwd=tmp_path)
    assert (done.returncode, "did you mean 'epochs'" in done.stderr) == (2, True)
