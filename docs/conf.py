"""Sphinx's settings: `pip install -c constraints.txt -e '.[docs]' && sphinx-build -W -b html docs build/docs`."""

from __future__ import annotations

import re

import epsball

project = "epsball"
author = "The epsball authors"
copyright = "The epsball authors, Apache-2.0"
release = version = epsball.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"epsball {release}"
html_show_sphinx = False
html_copy_source = False
pygments_style = "tango"
pygments_dark_style = "monokai"
nitpicky = False  # shapes such as "n *shape" are no names that a reference could lead to

myst_heading_anchors = 3
smartquotes = False  # --flags stay as they are typed
default_role = "code"  # `x` in a docstring is code, as it is in Markdown
autodoc_member_order = "bysource"
autodoc_preserve_defaults = False  # it reads sources, where functions with a configuration have no defaults
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")


def literal(lines: list[str]) -> list[str]:
    """Docstrings are plain text with code in backticks: what else reStructuredText would take for markup is escaped.

    Doctests, and what is indented below a line that ends in "::", are left as they are.

    >>> literal(["eps |w|_1 of `a * b`, *x", "", ">>> 2 ** 3"])
    ['eps \\\\|w\\\\|_1 of `a * b`, \\\\*x', '', '>>> 2 ** 3']
    """
    out, code = [], False
    for line in lines:
        code = (code and bool(line.strip())) or line.lstrip().startswith(">>>")
        parts = [line] if code else CODE.split(line)
        out.append("".join(p if code or k % 2 else MARKUP.sub(r"\\\g<0>", p) for k, p in enumerate(parts)))
    return out


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", lambda app, what, name, obj, options, lines: _escape(lines))  # type: ignore[attr-defined]


def _escape(lines: list[str]) -> None:
    lines[:] = literal(lines)
