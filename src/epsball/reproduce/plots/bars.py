"""The figure of an experiment that is its table: bars of our figures beside the paper's, and rows of small pictures."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import SubFigure

from epsball.report import plots
from epsball.reproduce.notes import small_print
from epsball.reproduce.plots.table import picture
from epsball.reproduce.reproduction import Reproduction, Strip


def draw_bars(found: Reproduction, path: str | Path) -> None:
    """A panel of bars for each column of the table, and below them the strips."""
    strips, note = found.strips, small_print(found.config)
    bars, tall = 0.75 + 0.5 * len(found.lines), 1.15
    figure = plots.page(11.4, 0.9 + bars + tall * len(strips), title=found.title, note=note)
    heights = [bars, tall * len(strips)] if strips else [bars]
    above, *below = (figure.add_subfigure(part) for part in figure.add_gridspec(len(heights), 1, height_ratios=heights))
    _bars(above, found)
    for part in below:
        _strips(part, strips)
    plots.save(figure, path)


def _bars(figure: SubFigure, found: Reproduction) -> None:
    places = np.arange(len(found.lines))[::-1]
    compared = any(line.paper for line in found.lines)
    for number, (axis, column) in enumerate(
        zip(figure.subplots(1, len(found.columns), sharey=True, squeeze=False)[0], found.columns, strict=True)
    ):
        plots.panel(axis, title=f"{column}, %")
        axis.grid(False, axis="y")
        ours = [None if line.ours is None else line.ours[number] for line in found.lines]
        kinds = [(ours, 0.2 if compared else 0.0, "ours", plots.VERMILION)]
        if compared:
            papers = [None if line.paper is None else line.paper[number] for line in found.lines]
            kinds.append((papers, -0.2, "the paper", plots.BLUE))
        for values, shift, label, colour in kinds:
            axis.barh(places + shift, [value or 0.0 for value in values], 0.36, color=colour, label=label)
            for place, value in zip(places + shift, values, strict=True):
                text = "" if value is None else f"{value:.4g}" if shift < 0 else f"{value:.3g}"
                axis.text((value or 0.0) + 1.5, place, text, va="center", fontsize=plots.SMALL, color=plots.INK)
        axis.set(xlim=(0, 116), xticks=range(0, 101, 25), yticks=places)
        axis.set_yticklabels([line.label for line in found.lines], fontsize=plots.NORMAL, color=plots.INK)
        if number == 0 and compared:
            key = {"loc": "upper right", "ncols": 2, "fontsize": plots.NORMAL, "frameon": False}
            figure.get_figure(root=True).legend(*axis.get_legend_handles_labels(), **key)


def _strips(figure: SubFigure, strips: tuple[Strip, ...]) -> None:
    most = max(len(strip.tiles) for strip in strips)
    for axes, strip in zip(figure.subplots(len(strips), most, squeeze=False), strips, strict=True):
        for axis in axes[len(strip.tiles) :]:
            axis.axis("off")
        for axis, tile in zip(axes, strip.tiles, strict=False):
            colours = "RdBu_r" if strip.signed else "gray"
            picture(axis, tile.pixels, strip.shape, strip.low, strip.high, colours)
            style = {"color": plots.VERMILION, "fontweight": "bold"} if tile.wrong else {"color": plots.INK}
            axis.set_xlabel(tile.caption, fontsize=plots.SMALL, labelpad=2, **style)
        axes[0].set_ylabel(
            _lines(strip.label), fontsize=plots.SMALL, color=plots.INK, rotation=0, ha="right", va="center", labelpad=8
        )


def _lines(text: str, width: int = 22) -> str:
    """The text in lines of at most so many characters."""
    return "\n".join(textwrap.wrap(text, width))
