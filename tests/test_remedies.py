"""Every remedy that an error message writes down works when it is obeyed."""

from __future__ import annotations

import ast
import re
import warnings
from functools import cache
from pathlib import Path

import pytest
from remedies import REMEDIES, Remedy

import epsball as eb

SOURCE = Path(eb.__file__).parent
CODE = re.compile(r"\b(?:write|as in|wrap it:)\s+\S")
"""How a message says what to write."""
HOLE = "\0"
"""In the place of what an f-string fills in."""
LEFT_OUT = {
    # The files of a model folder are damaged on purpose, and mended, in tests/models/test_model_folder.py.
    "models/model_record.py": "write --model",
    # What would be obeyed is an installation.
    "models/door.py": "write pip install",
    # No line yet.
    "common/limits.py": "write it",
    "diagnosis/setup.py": "as in (y + 1) % classes",
    "models/folder.py": "write --model",
    "training/surrogate.py": "wrap it: BlackBox(f)",
}
"""Messages without a line, by file and a part of them."""


def text(node: ast.expr) -> str:
    """A string of the source; `HOLE` for what is known only when the program runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text(node.left) + text(node.right)
    return HOLE


def messages(file: Path) -> list[str]:
    """What a file says to a user: the texts of `BadInput`, and the remedies that it hands to checks and rules."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name == "BadInput":
            found += [text(argument) for argument in node.args[:1]]
        elif name == "Rule" or name.startswith("check_"):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            found += [HOLE + one for one in map(text, given) if CODE.search(one)]
    return found


@cache
def written() -> dict[str, re.Pattern[str]]:
    """The messages that say what to write, by file and text, as patterns of what is raised."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        place = file.relative_to(SOURCE).as_posix()
        for message in messages(file):
            if CODE.search(message) and not (place in LEFT_OUT and LEFT_OUT[place] in message):
                pattern = ".*".join(map(re.escape, message.split(HOLE)))
                found[f"{place}: {message.replace(HOLE, '...')}"] = re.compile(pattern, re.DOTALL)
    return found


@cache
def raised(remedy: Remedy) -> str:
    """The message of the call that is refused."""
    with pytest.raises(eb.BadInput) as refused:
        remedy.refused()
    return str(refused.value)


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("remedy", REMEDIES, ids=lambda remedy: remedy.write)
def test_a_remedy_works_when_it_is_obeyed(remedy: Remedy) -> None:
    assert remedy.write in raised(remedy)
    with warnings.catch_warnings():
        remedy.obeyed()


@pytest.mark.filterwarnings("ignore")
def test_every_message_that_says_what_to_write_has_a_line_in_the_table() -> None:
    said = [raised(remedy) for remedy in REMEDIES]
    missing = [name for name, pattern in written().items() if not any(map(pattern.fullmatch, said))]
    assert not missing, "add a line to tests/remedies.py (CONTRIBUTING.md says how) for:\n" + "\n".join(missing)
