"""One page for a reproduced paper: every published figure beside ours, the experiments with their figures, in one file.

It reads the PNG files that the experiments drew.
"""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from epsball.common.version import __version__
from epsball.report import page
from epsball.reproduce.reproduction import Reproduction, shared_notes
from epsball.reproduce.sources import STAND_IN

PAGE = "index.html"


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One published figure, of the experiment `name`, and ours: of the line `label` under the `column`, in percent."""

    name: str
    label: str
    column: str
    source: str
    paper: float
    ours: float


def side_by_side(found: Mapping[str, Reproduction]) -> tuple[Beside, ...]:
    """Every published figure that has one of ours beside it, in the order of the experiments.

    The same figure of the same networks in another experiment is left out.

    >>> from epsball.reproduce.reproduction import Line, Reproduction
    >>> lines = (Line("net", (1.5, None), (1.0, 9.0)), Line("wide net", None, (2.0, None)))
    >>> found = Reproduction(title="T", columns=("clean", "FGSM"), lines=lines, notes=(), strips=(), config={})
    >>> [(one.label, one.column, one.paper, one.ours) for one in side_by_side({"t": found, "again": found})]
    [('net', 'clean', 1.0, 1.5)]
    """
    rows: list[Beside] = []
    known: dict[tuple[float, float], str] = {}
    for name, record in found.items():
        for line in record.lines:
            for column, paper, ours in zip(record.columns, line.paper or (), line.ours or (), strict=False):
                if paper is not None and ours is not None and known.setdefault((paper, ours), name) == name:
                    rows.append(
                        Beside(name=name, label=line.label, column=column, source=line.source, paper=paper, ours=ours)
                    )
    return tuple(rows)


def write_page(
    found: Mapping[str, Reproduction],
    out: Path,
    *,
    paper: str,
    command: str,
    seconds: float,
    left_out: Mapping[str, str] | None = None,
) -> Path:
    """Write OUT/index.html, one file with the figures in it; where it is.

    `found` are the experiments by name, whose figures OUT/NAME.png must be there; `left_out` those that were not run,
    with the reason; `command` reproduces it, and took `seconds`.
    """
    pictures = {name: base64.b64encode((out / f"{name}.png").read_bytes()).decode() for name in found}
    shared = shared_notes(found.values())
    rows, datas = side_by_side(found), {str(record.config["data"]) for record in found.values()}
    versions = {what: version for record in found.values() for what, version in record.config["versions"].items()}
    about = (
        ("paper", paper),
        ("data", ", ".join(sorted(datas))),
        ("made by", command),
        ("took", f"{seconds:,.0f} s of wall time on {platform.machine()}, {_threads(found)}"),
        ("versions", ", ".join(f"{what} {version}" for what, version in versions.items())),
    )
    text = page.render(
        "reproduction.html",
        charts=(),
        title="Explaining and harnessing adversarial examples, reproduced",
        made_by=f"epsball {__version__}",
        found=found,
        titles={name: [part.strip() for part in record.title.rpartition(":")] for name, record in found.items()},
        shared=shared,
        rows=rows,
        about=about,
        pictures=pictures,
        left_out=left_out or {},
        stands_in=STAND_IN if any(record.config["stands_in"] for record in found.values()) else "",
    )
    page.write(out / PAGE, text)
    return out / PAGE


def _threads(found: Mapping[str, Reproduction]) -> str:
    counts = {record.config["threads"] for record in found.values() if "threads" in record.config}
    return " or ".join(f"{count} thread{'s' if count > 1 else ''}" for count in sorted(counts)) or "threads not known"
