"""What the figures of the experiments are put together from: a small image, and the table of figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from epsball.report import plots
from epsball.reproduce.record import Line


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
    axis: Axes, head: str, heads: Sequence[str], lines: Sequence[Line], *, more: tuple[str, Sequence[str]] = ("", ())
) -> None:
    """The lines as text, ours and below them the paper's, in blue; `more` is one more column, for ours."""
    axis.axis("off")
    own = [line for line in lines if line.ours is not None]
    rows = [
        (line.said, line.ours, extra, plots.INK, "normal")
        for line, extra in zip(own, more[1] or [""] * len(own), strict=True)
    ]
    rows += [(f"{line.source}: {line.said}", line.paper, "", plots.BLUE, "bold") for line in lines if line.paper]
    text = {"fontsize": plots.NORMAL, "transform": axis.transAxes, "va": "center", "in_layout": False}
    places = [0.5 + 0.12 * column for column in range(len(heads) + bool(more[0]))]
    rungs = [1 - (row + 0.5) / (len(rows) + 1) for row in range(len(rows) + 1)]
    axis.text(0.05, rungs[0], head, color=plots.GREY, **text)
    for place, said in zip(places, [*heads, *filter(None, more[:1])], strict=True):
        axis.text(place, rungs[0], said, color=plots.GREY, ha="right", **text)
    for (what, values, extra, colour, weight), rung in zip(rows, rungs[1:], strict=True):
        axis.text(0.05, rung, what, color=colour, fontweight=weight, **text)
        said = ["" if value is None else f"{value:.3g}" for value in values or ()]
        for place, value in zip(places, [*said, *filter(None, [extra])], strict=False):
            axis.text(place, rung, value, color=colour, ha="right", **text)
