"""What the figures of the analyses share: the page, curves, matrices, tables, and how names and images are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from epsball.balls.registry import BALLS
from epsball.explain.finding import Finding
from epsball.report import plots

NUMBERED = 20
"""Classes up to which they are named on an axis, and the cells of their matrix hold a number."""

Cell = str | tuple[str, dict[str, Any]]
"""A cell of a table: its text, and what differs in its style."""
Curve = tuple[str, str, str, str]
"""A curve of some records: the name of their attribute, the label, the colour, and matplotlib's format."""


def page(found: Finding, width: float, height: float, *, title: str, note: str) -> Figure:
    """An empty figure of `width` x `height` inches; its small print ends with the seed and the version."""
    seed = "" if found.config["seed"] is None else f"seed {found.config['seed']}; "
    return plots.page(width, height, title=title, note=f"{note}; {seed}epsball {found.config['versions']['epsball']}")


def data_name(found: Finding) -> str:
    """The data, without the folders that they are in."""
    return Path(found.config["data"]).name


def curves(axis: Axes, at: Sequence[float], records: Sequence[object], curves: Iterable[Curve]) -> None:
    """A line per curve through an attribute of each record; none where a record has None."""
    for name, label, colour, form in curves:
        values = [getattr(record, name) for record in records]
        if None not in values:
            axis.plot(at, values, form, color=colour, markersize=4, linewidth=1.4, label=label)


def percents(axis: Axis) -> None:
    """Label an axis of shares from 0 to 1 in per cent."""
    axis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))


def shares(axis: Axes, *, room: float = 0.03) -> None:
    """A vertical axis of shares from 0 to 1, with `room` above them."""
    axis.set_ylim(-0.03, 1 + room)
    axis.set_yticks(np.linspace(0, 1, 6))
    percents(axis.yaxis)


def matrix(
    axis: Axes,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    signed: bool = False,
    numbered: bool = True,
) -> Any:
    """A matrix with its colours and numbers, returned to be keyed: cosines from -1 to 1, or shares from 0 to 1."""
    image = axis.imshow(values, cmap="RdBu_r" if signed else "Blues", vmin=-1 if signed else 0, vmax=1, aspect="auto")
    axis.grid(False)
    axis.tick_params(labelsize=plots.SMALL, colors=plots.GREY, length=0)
    for spine in axis.spines.values():
        spine.set(visible=False)
    if numbered:
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(rows)), rows)
        size = plots.SMALL if len(columns) <= 12 else plots.SMALL - 2.5
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                text = f"{value:.2f}" if signed else f"{100 * value:.0f}"
                ink = "white" if abs(value) > 0.6 else plots.INK
                axis.text(j, i, text, ha="center", va="center", fontsize=size, color=ink, in_layout=False)
    return image


def table(
    axis: Axes,
    places: Sequence[float],
    lines: Sequence[Sequence[Cell]],
    *,
    top: float = 0.98,
    step: float,
    size: float = plots.SMALL,
) -> None:
    """A table in place of a panel: the first line grey, the first column left, the others ending at `places`."""
    axis.axis("off")
    for line, cells in enumerate(lines):
        y = top - step * (line + 0.4 * (line > 0))
        for column, (place, cell) in enumerate(zip((0.0, *places), cells, strict=True)):
            text, own = cell if isinstance(cell, tuple) else (cell, {})
            style: dict[str, Any] = {
                "color": plots.INK if line else plots.GREY,
                "ha": "right" if column else "left",
            } | own
            axis.text(place, y, text, fontsize=size, transform=axis.transAxes, va="center", in_layout=False, **style)


def title(axis: Axes, text: str) -> None:
    """The title of a panel that is no graph."""
    axis.set_title(text, fontsize=plots.NORMAL, color=plots.INK, loc="left")


def small(axis: Axes, text: str) -> None:
    """A line of small print below a panel."""
    axis.set_xlabel(text, fontsize=plots.SMALL, color=plots.GREY)


def power(exponent: float | None) -> str:
    """How a quantity grows with the dimension n; nothing where it is not known.

    >>> power(0.5), power(None)
    (' ~ n$^{0.50}$', '')
    """
    return "" if exponent is None else f" ~ n$^{{{round(exponent, 2) + 0.0:.2f}}}$"


def short(name: str, most: int = 8) -> str:
    """A name that takes no more than `most` letters.

    >>> short("aeroplane")
    'aeropla…'
    """
    return name if len(name) <= most else name[: most - 1] + "…"


def eps_label(found: Finding) -> str:
    """What an axis of radii says."""
    norm = found.config["ball_name"].split()[0]
    return f"eps ({norm}, {BALLS[norm].unit})"


def show(axis: Axes, image: np.ndarray) -> None:
    """(c, h, w) or (h, w) in [0, 1]: colours where there are three channels, else the mean of them in grey."""
    if image.ndim == 3:
        image = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    axis.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    framed(axis)


def show_signed(axis: Axes, image: np.ndarray, most: float) -> None:
    """(h, w) from -most to most: white is zero, red positive, blue negative."""
    axis.imshow(image, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    framed(axis)


def framed(axis: Axes) -> None:
    """No ticks, and a faint frame."""
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=plots.FAINT)
