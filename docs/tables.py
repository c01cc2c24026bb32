"""Writes what the pages take from a registry, between two marks: `python docs/tables.py`; a test says when."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from epsball.attacks.registry import markdown_table
from epsball.training.registry import OBJECTIVES, objective_class, options_of

DOCS = Path(__file__).parent


def objectives() -> str:
    """A row for each training objective; `label_smoothing`, which most have, is left out."""
    rows = ["| name | class | minimises | forward and backward passes a step | options | source |", "| --- " * 6 + "|"]
    for name in OBJECTIVES:
        cls = objective_class(name)
        options = ", ".join(f"{k}={v}" for k, v in options_of(cls).items() if k != "label_smoothing")
        summary = (cls.__doc__ or "").partition("\n")[0].replace("|", "\\|")
        rows.append(f"| `{name}` | {cls.__name__} | {summary} | {cls.cost} | {options} | {cls.source} |")
    return "\n".join(rows)


def objective_classes() -> str:
    """The entries of the reference."""
    return "\n".join(f".. autoclass:: epsball.training.{objective_class(name).__name__}" for name in OBJECTIVES)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "attacks.md": ("<!-- {} -->", markdown_table),
    "training.md": ("<!-- {} -->", objectives),
    "reference.md": (".. {}", objective_classes),
}


def filled(page: str) -> str:
    """The text of a page with its table as the registry has it."""
    mark, table = TABLES[page]
    begin, end = (re.escape(mark.format(f"table {word}")) for word in ("begin", "end"))
    text = (DOCS / page).read_text()
    return re.sub(f"({begin}\n\n?).*?(\n\n?{end})", lambda found: found[1] + table() + found[2], text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in TABLES:
        (DOCS / page).write_text(filled(page))
