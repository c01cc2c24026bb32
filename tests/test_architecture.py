"""Which package may import which, read from the import statements; and what must not be imported at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "epsball"

ROOMS = [
    "common", "balls", "models", "data", "problem", "attacks", "acceleration", "linear", "certify", "training",
    "engine", "diagnosis", "evaluation", "report", "explain", "serve", "reproduce", "cli",
]  # fmt: skip
"""A room may import those before it, never one after it: not inside a function, not under TYPE_CHECKING either."""
WALLS = {"attacks", "linear", "certify"}
"""Rooms that never import each other."""
NO_TORCH = [
    "report", "common/errors.py", "data/tables.py", "evaluation/run_directory.py",
    "evaluation/result.py", "evaluation/point_storage.py", "evaluation/compare.py",
]  # fmt: skip
FRONTS = {"__init__.py", "__main__.py"}


def module_of(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(file): file for file in sorted(SOURCE.rglob("*.py"))}


def imports(file: Path) -> set[str]:
    """All that a file imports: at its top, inside functions, under TYPE_CHECKING; a front's stub counts with it."""
    sources = [file, file.with_suffix(".pyi")] if file.with_suffix(".pyi").exists() else [file]
    found: set[str] = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source.read_text()))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in FILES else node.module)
    return found


IMPORTS = {module: {name for name in imports(file) if name in FILES} - {module} for module, file in FILES.items()}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else None


def test_the_root_holds_only_its_front_and_the_rooms():
    assert {file.name for file in SOURCE.glob("*.py")} == FRONTS
    assert {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"} <= set(ROOMS)


@pytest.mark.parametrize("module", FILES)
def test_a_file_imports_only_rooms_above_its_own(module: str):
    here = room_of(module)
    for name in IMPORTS[module]:
        there = room_of(name)
        if here is None:  # the package's own front
            continue
        assert there is not None, f"{module} imports the package's front; import {name} from its room"
        assert ROOMS.index(there) <= ROOMS.index(here), f"{module} imports {name}"
        assert here == there or not {here, there} <= WALLS, f"{here} and {there} are walled off from each other"


def test_imports_are_acyclic():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_docstring(room: str):
    front = SOURCE / room / "__init__.py"
    if not front.parent.exists():
        pytest.skip(f"{room} is not there yet")
    assert ast.get_docstring(ast.parse(front.read_text()))


def test_files_have_at_most_400_lines():
    long = {module: lines for module, file in FILES.items() if (lines := len(file.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize(
    "module", [m for m, f in FILES.items() if str(f.relative_to(SOURCE)).startswith(tuple(NO_TORCH))]
)
def test_reports_import_no_torch(module: str):
    assert not {name for name in imports(FILES[module]) if name.split(".")[0] == "torch"}


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import epsball",
        "from epsball.attacks.registry import ATTACKS; list(ATTACKS)",
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
