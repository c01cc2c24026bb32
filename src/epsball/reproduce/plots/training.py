"""The figure of adversarial training: first-layer filters of both networks, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import SubFigure

from epsball.report import plots
from epsball.reproduce.nets import PAIR
from epsball.reproduce.notes import small_print
from epsball.reproduce.outcome import percent
from epsball.reproduce.plots.table import picture, table
from epsball.reproduce.training import Training

SIDE = 8
"""Filters in a row of the figure."""


def draw_training(found: Training, path: str | Path) -> None:
    """First-layer filters of the plain and of the trained network, the same units; the errors beside the paper's."""
    config = found.config
    title = f"Adversarial training of maxout networks, eps {config['eps']:g}: filters of the first layer"
    rows = -(-max(map(len, found.filters.values())) // SIDE)
    note = f"{small_print(config)}; filters: the same units in both, each on its own scale, red is positive"
    figure = plots.page(11.4, 3.2 + 0.72 * rows, title=title, note=note)
    grid = figure.add_gridspec(2, 2, height_ratios=[0.3 + 0.72 * rows, 2.5])
    for column, name in enumerate(PAIR):
        part = figure.add_subfigure(grid[0, column])
        fgsm = percent(found.of(name)[0].fgsm.error)
        part.suptitle(f"{name}: FGSM error {fgsm:.1f} %", fontsize=plots.NORMAL, color=plots.INK)
        _filters(part, found.filters[name], config["shape"], rows)
    below = figure.add_subfigure(grid[1, :]).subplots()
    table(below, "error in %; confidence in the mistakes on FGSM examples", found.columns, found.lines)
    plots.save(figure, path)


def _filters(part: SubFigure, filters: Sequence[Sequence[float]], shape: Sequence[int], rows: int) -> None:
    axes = part.subplots(rows, SIDE, squeeze=False).flatten()
    for axis, row in zip(axes, filters, strict=False):
        most = max(map(abs, row)) or 1.0
        picture(axis, row, shape, -most, most, "RdBu_r")
    for axis in axes[len(filters) :]:
        axis.axis("off")
