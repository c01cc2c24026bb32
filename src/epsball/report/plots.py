"""How the figures look: one page, quiet axes, a few colours that colour-blind readers tell apart.

The palette is that of Okabe and Ito ("Color Universal Design", 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator

from epsball.common.atomic_files import write_whole

BLUE, VERMILION, GREEN, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7"
INK, GREY, FAINT = "#222222", "#6B6B6B", "#E6E6E6"
SMALL, NORMAL, LARGE = 7.5, 9.0, 12.0
"""Font sizes in points."""


class Between(LogFormatter):
    """Labels between the powers of ten, where there is room: 60 and 0.6 rather than 6e-01."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def page(width: float, height: float, *, title: str, note: str = "") -> Figure:
    """An empty figure of `width` x `height` inches, with its headline and below everything a line of small print."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=LARGE, color=INK, x=0.01, ha="left", fontweight="bold")
    if note:
        figure.supxlabel(note, fontsize=SMALL, color=GREY, x=0.01, ha="left")
    return figure


def panel(axis: Axes, *, title: str = "", x: str = "", y: str = "", log: str = "") -> Axes:
    """Dress one panel; `log` names the axes with a logarithmic scale: "", "x", "y" or "xy"."""
    if "x" in log:
        axis.set_xscale("log")
    if "y" in log:
        axis.set_yscale("log", nonpositive="clip")
        axis.yaxis.set_minor_formatter(Between(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
    axis.set_title(title, fontsize=NORMAL, color=INK, loc="left")
    axis.set_xlabel(x, fontsize=SMALL, color=GREY)
    axis.set_ylabel(y, fontsize=SMALL, color=GREY)
    axis.tick_params(which="both", labelsize=SMALL, colors=GREY, length=2)
    axis.grid(True, which="major", color=FAINT, linewidth=0.7)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set(visible=side in ("left", "bottom"), color="#B0B0B0", linewidth=0.7)
    return axis


def ticks(axis: Axes, at: Sequence[float], labels: Sequence[str]) -> None:
    """Label the logarithmic x axis where the measurements are, > 0 and rising; those without room stay unlabelled."""
    apart = np.log(at[-1] / at[0]) / 8
    shown, last = [], -np.inf
    for place, label in zip(np.log(at), labels, strict=True):
        shown.append(label if place - last >= apart else "")
        last = place if shown[-1] else last
    axis.xaxis.set_major_locator(FixedLocator(list(at)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels(shown)


def band(
    axis: Axes,
    at: Sequence[float],
    quantiles: np.ndarray,
    *,
    colour: str,
    label: str,
    dashed: bool = False,
    marker: str = "o",
) -> None:
    """A median line between two quantiles: `quantiles` (3, k) holds the low one, the median and the high one."""
    low, middle, high = quantiles
    axis.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    for edge in (low, high):
        axis.plot(at, edge, color=colour, linewidth=0.6, alpha=0.6)
    line = "--" if dashed else "-"
    axis.plot(at, middle, color=colour, linestyle=line, linewidth=1.6, marker=marker, markersize=3.5, label=label)


Place = Literal["best", "upper left", "upper right", "lower left", "lower right"]


def legend(axis: Axes, *, place: Place = "best") -> None:
    """A legend without a frame."""
    axis.legend(loc=place, fontsize=SMALL, frameon=False, labelcolor=INK, handlelength=2.2)


def save(figure: Figure, path: str | Path) -> None:
    """Write a PNG, whole or not at all."""
    write_whole(Path(path), lambda draft: figure.savefig(draft, format="png"))
