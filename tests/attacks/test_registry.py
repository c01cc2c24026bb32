"""The registry: a new attack is one file and one line; names, docs, command line and shared tests follow from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import epsball
from epsball.attacks.registry import ATTACKS, attack_class, described, markdown_table, options_of

ROOT = Path(__file__).parents[2]
MI_FGSM = '''"""MI-FGSM: iterated ascent along the accumulated gradient.

Dong et al., "Boosting Adversarial Attacks with Momentum" (CVPR 2018), algorithm 1.
"""

from dataclasses import dataclass

from epsball.attacks.bim import BIM


@dataclass(frozen=True, kw_only=True)
class MIFGSM(BIM):
    """Iterated ascent from x with momentum."""

    steps: int = 10
    step_size: float = 0.1
    momentum: float = 1.0
'''
USE = """
import json, sys
import torch
import epsball as eb
from epsball.attacks.registry import described, markdown_table, parse

assert parse("mi-fgsm:steps=3") == eb.MIFGSM(steps=3)
model, x = torch.nn.Linear(4, 3), torch.rand(40, 4)
run = eb.evaluate(model, (x, model(x).argmax(1)), eb.Linf(eps=0.5), attacks=["mi-fgsm"])
print(json.dumps({"attacks": [stage.attack for stage in run.stages], "fooled": run.stages[1].fooled}))
print(json.dumps(described("mi-fgsm")))
print(markdown_table().splitlines()[-1])
sys.path.insert(0, sys.argv[1])
from doubles import SUITE
assert type(SUITE["mi-fgsm"]) is eb.MIFGSM
"""


def test_a_new_attack_is_one_file_and_one_line(tmp_path: Path) -> None:
    package = tmp_path / "epsball"
    shutil.copytree(Path(epsball.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "attacks" / "mi_fgsm.py").write_text(MI_FGSM)
    with (package / "attacks" / "__init__.pyi").open("a") as stub:
        stub.write("from epsball.attacks.mi_fgsm import MIFGSM as MIFGSM\n")

    def python(*arguments: str) -> list[str]:
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    ran, about, row = python("-c", USE, str(ROOT / "tests"))
    assert json.loads(ran)["attacks"] == ["clean", "mi-fgsm"]
    assert json.loads(ran)["fooled"] > 0
    source = 'Dong et al., "Boosting Adversarial Attacks with Momentum" (CVPR 2018)'
    assert json.loads(about)["source"] == source
    assert row.startswith("| `mi-fgsm` | MIFGSM | grad |")
    assert source in row
    listed = json.loads("".join(python("-m", "epsball", "attacks", "--json")))["attacks"]["mi-fgsm"]
    assert listed == json.loads(about)
    assert listed["options"]["momentum"] == 1.0


@pytest.mark.parametrize("name", ATTACKS)
def test_the_docs_table_has_a_row_for_every_attack_with_its_options(name: str) -> None:
    (row,) = [line for line in markdown_table().splitlines() if line.startswith(f"| `{name}` |")]
    assert described(name)["summary"] in row
    for option, default in options_of(attack_class(name)).items():
        assert f"{option}={default}" in row
    assert row.count("|") == 8  # no cell contains one


def test_every_attack_is_a_public_name_and_its_file_is_named_like_it() -> None:
    for name, (module, cls) in ATTACKS.items():
        assert getattr(epsball, cls) is attack_class(name)
        assert module == f"epsball.attacks.{name.replace('-', '_')}"
