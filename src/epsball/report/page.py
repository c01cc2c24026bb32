"""One file that asks no one for anything: templates, figures and plotly's own script put into a page.

The page names what it may do in a content policy: its own two scripts, by their digests, its styles, images that are
in the page, and nothing else. Text that comes from a user is escaped by the templates, and by `plain` where plotly
reads it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from epsball.common.atomic_files import write_whole

TEMPLATES = Path(__file__).parent / "templates"
Cell = str | int


@dataclass(frozen=True)
class Table:
    """What a figure shows, or anything else in rows and columns; the first column names the row."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure: traces and layout as plotly reads them, the sentence that says what is to be seen, and the table.

    Colours are names of the style sheet's variables, as in "--worst": they are looked up where the page is shown, in a
    light window or a dark one. `height` is in pixels.
    """

    id: str
    title: str
    description: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    table: Table
    height: int = 320
    notes: tuple[str, ...] = field(default=())

    @property
    def figure(self) -> dict[str, Any]:
        """The figure as JSON can hold it."""
        return {"id": self.id, "data": list(self.data), "layout": self.layout | {"height": self.height}}


def plain(text: object) -> str:
    """A text that plotly shows as it is: it would take < for the beginning of a tag.

    >>> plain("<b>7</b>")
    '&lt;b&gt;7&lt;/b&gt;'
    """
    return html.escape(str(text), quote=False)


def percent(share: float, digits: int = 2) -> str:
    """A share for people.

    >>> percent(0.35556), percent(float("nan"))
    ('35.56 %', 'not known')
    """
    return "not known" if share != share else f"{100 * share:.{digits}f} %"


def counted(count: int) -> str:
    """A number with its thousands apart."""
    return f"{count:,}"


def begun(text: str) -> str:
    """A text with a capital at its beginning."""
    return f"{text[:1].upper()}{text[1:]}"


@cache
def plotly_script() -> str:
    """plotly's own script, from its Python package."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def policy(*scripts: str) -> str:
    """The content policy of a page with these scripts in it, each known by its digest."""
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    allowed = {
        "default-src": "'none'",
        "script-src": digests,
        "style-src": "'unsafe-inline'",  # plotly writes its style sheet into the page
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{what} {whom}" for what, whom in allowed.items())


def render(template: str, *, charts: Sequence[Chart], **context: Any) -> str:
    """The page as text: a template of this package, filled. Without charts plotly's script is left out."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "counted": counted, "begun": begun}
    scripts = [(TEMPLATES / "report.js").read_text()]
    if charts:
        scripts.insert(0, plotly_script())
    return environment.get_template(template).render(
        policy=policy(*scripts),
        scripts=scripts,
        style=(TEMPLATES / "report.css").read_text(),
        figures=_embedded([chart.figure for chart in charts]),
        **context,
    )


def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _embedded(value: Any) -> str:
    """JSON inside a script element: nothing in it can end the element, or begin a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
