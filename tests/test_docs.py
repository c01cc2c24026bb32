"""The documentation is complete: every public name, attack and objective is in it, and its links work."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from doc_tables import tables

import epsball
from epsball import explain, linear
from epsball.attacks.registry import ATTACKS
from epsball.training.registry import OBJECTIVES

DOCS = Path(__file__).parents[1] / "docs"
REFERENCE = set(re.findall(r"^\.\. auto\w+:: epsball\.([\w.]+)$", (DOCS / "reference.md").read_text(), re.M))


def test_every_public_name_is_in_the_reference() -> None:
    names = {name for name in epsball.__all__ if not isinstance(getattr(epsball, name), ModuleType)}
    missing = {name for name in names if not name.startswith("_")} - REFERENCE
    missing |= {f"explain.{name}" for name in explain.__all__} - REFERENCE
    missing |= {f"linear.{name}" for name in linear.__all__ if name not in epsball.__all__} - REFERENCE
    missing |= {f"training.{cls}" for _, cls in OBJECTIVES.values()} - REFERENCE
    missing |= {cls for _, cls in ATTACKS.values()} - REFERENCE
    assert not missing


@pytest.mark.parametrize("page", tables.TABLES)
def test_the_tables_of_the_pages_are_those_of_the_registries(page: str) -> None:
    assert tables.filled(page) == (tables.DOCS / page).read_text(), "run python docs/tables.py"


def test_every_link_to_a_page_or_picture_exists() -> None:
    links = {
        (page.name, link)
        for page in DOCS.glob("*.md")
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    }
    assert len(links) > 20
    assert not [(page, link) for page, link in links if not (DOCS / link).exists()]


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set(re.findall(r"^([\w-]+)$", (DOCS / "index.md").read_text(), re.M))
    assert not {page.stem for page in DOCS.glob("*.md")} - listed - {"index"}
