"""Who may import whom, read from the imports themselves; and what must not be imported at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "epsball"

# A part may import those above it.
ORDER = [
    "errors", "suggest", "files", "projections", "noise", "shapes", "ball", "balls", "ball_file", "task", "outputs",
    "losses", "objective", "queries", "acceleration", "fingerprint", "models", "data", "tables", "attacks",
    "cascades", "linear", "certify", "engine", "called", "heads", "hiding", "training", "imitation", "run_dir",
    "storage", "stages", "diagnosis", "evaluation", "active", "worth_while", "shrinking", "shard", "looks", "protocol",
    "recount", "verification", "comparison", "report", "adversarial", "explain", "reproduce", "serve", "cli",
    "__main__",
]  # fmt: skip
WALLS = {"attacks", "linear", "certify"}
NO_TORCH = {"report", "run_dir", "tables", "errors", "suggest", "evaluation", "storage", "comparison"}


def part_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """The modules that a file imports when it is imported or when its functions run, without TYPE_CHECKING blocks."""
    tree = ast.parse(file.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(file for file in SOURCE.rglob("*.py") if file != SOURCE / "__init__.py")


def test_every_part_has_a_place_in_the_order():
    assert {part_of(file) for file in FILES} <= set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_part_imports_only_those_above_it(file: Path):
    here = part_of(file)
    for name in imports(file):
        if not name.startswith("epsball."):
            continue
        there = name.split(".")[1]
        if there in ORDER and there != here:
            assert ORDER.index(there) < ORDER.index(here), f"{here} imports {there}"
            assert not {here, there} <= WALLS, f"{here} and {there} are walled off from each other"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_reports_need_no_torch(file: Path):
    if part_of(file) in NO_TORCH:
        assert not {name for name in imports(file) if name.split(".")[0] == "torch"}


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import epsball",
        "import epsball.attacks; list(epsball.attacks.ATTACKS)",
        "import epsball.cli.main",
        "import epsball.report.sheet",
        "import epsball.report.html",
    ],
)
def test_torch_is_not_imported_before_it_is_needed(statement: str):
    assert "torch" not in loaded_after(statement)


def test_every_public_name_exists():
    import epsball

    for name in epsball.__all__:
        assert getattr(epsball, name) is not None


def test_the_docs_name_every_attack_with_its_options():
    from epsball.attacks.registry import ATTACKS, attack_class, options_of

    lines = (SOURCE.parents[1] / "docs" / "attacks.md").read_text().splitlines()
    for name in ATTACKS:
        (line,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        for option, default in options_of(attack_class(name)).items():
            assert f"{option}={default}" in line
