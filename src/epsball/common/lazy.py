"""Public names that are imported when they are first used, so that `--help` answers without importing torch.

A package's `__init__.pyi` lists them, one line a name (`from epsball.attacks.pgd import PGD as PGD`): type checkers
read that file, and so does this one. A line `from epsball.attacks import *` takes over the names of another package.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2]


@cache
def names_in(package: str) -> dict[str, str]:
    """The public names of a package, in the order of its stub, and the module that each comes from.

    >>> names_in("epsball.balls")["Linf"]
    'epsball.balls.linf'
    """
    stub = SOURCE.joinpath(*package.split("."), "__init__.pyi")
    names: dict[str, str] = {}
    for line in ast.parse(stub.read_text()).body:
        if isinstance(line, ast.ImportFrom) and line.module:
            for part in line.names:
                names |= names_in(line.module) if part.name == "*" else {part.name: line.module}
    return names


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` for a package whose names its stub lists."""
    names = names_in(package)

    def getter(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = names[name]
        inside = SOURCE.joinpath(*module.split("."), name)
        if inside.is_dir() or inside.with_suffix(".py").is_file():
            return import_module(f"{module}.{name}")
        return getattr(import_module(module), name)

    return getter, lambda: sorted(names), sorted(names)
