"""Parts of the figures: a small image, and the table of an experiment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from epsball.report import plots
from epsball.reproduce.reproduction import Line


def picture(axis: Axes, values: Sequence[float], shape: Sequence[int], low: float, high: float, colours: str) -> None:
    """A flat image of `shape` (..., h, w), in colour where that is (3, h, w); `low` is black and `high` white."""
    image = np.array(values, dtype=np.float64).reshape(-1, *shape[-2:])
    if len(image) == 3:
        axis.imshow(((image - low) / (high - low)).clip(0, 1).transpose(1, 2, 0), interpolation="nearest")
    else:
        axis.imshow(image.mean(0), cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=plots.FAINT)


def table(
    axis: Axes,
    heading: str,
    columns: Sequence[str],
    lines: Sequence[Line],
    *,
    more: tuple[str, Sequence[str]] = ("", ()),
) -> None:
    """The lines as text, ours and below them the paper's, in blue; `more` is one more column, for ours."""
    axis.axis("off")
    own = [line for line in lines if line.ours is not None]
    rows = [
        (line.label, line.ours, extra, plots.INK, "normal")
        for line, extra in zip(own, more[1] or [""] * len(own), strict=True)
    ]
    rows += [(f"{line.source}: {line.label}", line.paper, "", plots.BLUE, "bold") for line in lines if line.paper]
    text = {"fontsize": plots.NORMAL, "transform": axis.transAxes, "va": "center", "in_layout": False}
    places = [0.5 + 0.12 * number for number in range(len(columns) + bool(more[0]))]
    heights = [1 - (row + 0.5) / (len(rows) + 1) for row in range(len(rows) + 1)]
    axis.text(0.05, heights[0], heading, color=plots.GREY, **text)
    for place, column in zip(places, [*columns, *filter(None, more[:1])], strict=True):
        axis.text(place, heights[0], column, color=plots.GREY, ha="right", **text)
    for (what, values, extra, colour, weight), height in zip(rows, heights[1:], strict=True):
        axis.text(0.05, height, what, color=colour, fontweight=weight, **text)
        shown = ["" if value is None else f"{value:.3g}" for value in values or ()]
        for place, value in zip(places, [*shown, *filter(None, [extra])], strict=False):
            axis.text(place, height, value, color=colour, ha="right", **text)
