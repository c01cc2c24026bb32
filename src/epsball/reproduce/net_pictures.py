"""The figures of the experiments with maxout networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import SubFigure

from epsball.report import plots
from epsball.reproduce.drawing import picture, table
from epsball.reproduce.nets import ADVERSARIAL, PAIR, PLAIN, percent, seen
from epsball.reproduce.sources import STAND_IN

if TYPE_CHECKING:
    from epsball.reproduce.training import Training
    from epsball.reproduce.transfer import Picture, Transfer

ERROR = LinearSegmentedColormap.from_list("error", ["#FFFFFF", plots.VERMILION])
"""From no error to all."""
SIDE = 8
"""Filters in a row of the figure."""


def draw_training(found: Training, path: str | Path) -> None:
    """First-layer filters of the plain and of the trained network, the same units; the errors beside the paper's."""
    config = found.config
    title = f"Adversarial training of maxout networks, eps {config['eps']:g}: filters of the first layer"
    rows = -(-max(map(len, found.filters.values())) // SIDE)
    note = f"{_note(config)}; filters: the same units in both, each on its own scale, red is positive"
    figure = plots.page(11.4, 3.2 + 0.72 * rows, title=title, note=note)
    grid = figure.add_gridspec(2, 2, height_ratios=[0.3 + 0.72 * rows, 2.5])
    for column, said in enumerate(PAIR):
        part = figure.add_subfigure(grid[0, column])
        fgsm = percent(found.of(said)[0].fgsm.error)
        part.suptitle(f"{said}: FGSM error {fgsm:.1f} %", fontsize=plots.NORMAL, color=plots.INK)
        _filters(part, found.filters[said], config["shape"], rows)
    below = figure.add_subfigure(grid[1, :]).subplots()
    table(below, "error in %; confidence in the mistakes on FGSM examples", found.heads, found.lines)
    plots.save(figure, path)


def _filters(part: SubFigure, filters: Sequence[Sequence[float]], shape: Sequence[int], rows: int) -> None:
    axes = part.subplots(rows, SIDE, squeeze=False).flatten()
    for axis, row in zip(axes, filters, strict=False):
        most = max(map(abs, row)) or 1.0
        picture(axis, row, shape, -most, most, "RdBu_r")
    for axis in axes[len(filters) :]:
        axis.axis("off")


def draw_transfer(found: Transfer, path: str | Path) -> None:
    """The matrix of errors, the paper's below ours; examples, and what both networks say of them."""
    from epsball.reproduce.transfer import CLEAN

    config = found.config
    eps, (lo, hi) = config["eps"], config["box"]
    note = f"{_note(config)}; shown: the first of each class; grey from {lo - eps:g} to {hi + eps:g}"
    title = f"Do FGSM examples of one maxout network fool the other? eps {eps:g}"
    figure = plots.page(12.6, 5.6, title=title, note=note)
    grid = figure.add_gridspec(1, 2, width_ratios=[1, 1.75])
    left, right = (figure.add_subfigure(grid[0, column]) for column in range(2))
    _matrix(left.subplots(), found)
    heads = {CLEAN: "clean", PLAIN: "made on\nthe plain one", ADVERSARIAL: "made on\nthe trained one"}
    right.supxlabel(" ", fontsize=plots.LARGE)  # room for the last captions
    rows = right.subplots(len(heads), len(found.shown), squeeze=False)
    for column, example in enumerate(found.shown):
        for row, point in enumerate(example.pictures):
            axis = rows[row, column]
            picture(axis, point.x, config["shape"], lo - eps, hi + eps, "gray")
            _say(axis, point, example.label)
            if column == 0:
                axis.set_ylabel(heads[point.maker], fontsize=plots.NORMAL, color=plots.INK)
    plots.save(figure, path)


def _matrix(axis: Axes, found: Transfer) -> None:
    from epsball.reproduce.threes_sevens import EPS
    from epsball.reproduce.transfer import PAPER

    makers, judges = list(PAPER), list(PAIR)
    ours = np.array([[found.mean(maker, evaluator).error for evaluator in judges] for maker in makers])
    axis.imshow(ours, cmap=ERROR, vmin=0, vmax=1, aspect="auto")
    for row, maker in enumerate(makers):
        for column in range(len(judges)):
            colour = "white" if ours[row, column] > 0.6 else plots.INK
            style: dict[str, Any] = {"ha": "center", "color": colour}
            axis.text(column, row, f"{100 * ours[row, column]:.1f} %", va="bottom", fontsize=plots.LARGE, **style)
            paper = PAPER[maker][column]
            if paper is not None and found.config["eps"] == EPS:
                axis.text(column, row + 0.06, f"the paper: {paper:g} %", va="top", fontsize=plots.SMALL, **style)
    axis.set_title("error in % over all test images", fontsize=plots.NORMAL, color=plots.INK, loc="left", pad=8)
    axis.set(xticks=range(len(judges)), yticks=range(len(makers)))
    axis.set_xticklabels(["of the plain\nnetwork", "of the adversarially\ntrained one"], fontsize=plots.NORMAL)
    axis.set_yticklabels(["clean", "made on\nthe plain\none", "made on\nthe trained\none"], fontsize=plots.NORMAL)
    axis.tick_params(length=0, colors=plots.INK)
    for spine in axis.spines.values():
        spine.set(color=plots.FAINT)


def _say(axis: Axes, point: Picture, label: int) -> None:
    """What the networks predict, the plain one first; wrong ones in colour."""
    for line, said in enumerate(PAIR):
        predicted, sure = point.predicted[said], point.sure[said]
        share = f"{sure:.0%}" if sure < 0.995 else "> 99%"
        wrong = predicted != label
        axis.text(
            0.5,
            -0.05 - 0.17 * line,
            f"{'plain' if said == PLAIN else 'trained'}: {predicted}, {share}",
            transform=axis.transAxes,
            ha="center",
            va="top",
            fontsize=plots.SMALL,
            color=plots.VERMILION if wrong else plots.INK,
            fontweight="bold" if wrong else "normal",
        )


def _note(config: dict[str, Any]) -> str:
    small = f"{STAND_IN}; " if config["stands_in"] else ""
    dropout = f"dropout {config['dropout']} %" if config["dropout"] else "no dropout"
    seeds = len(config["seeds"])
    return (
        f"{small}{config['units']:,} units, {dropout}, {seen(config)}, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; error over all {config['test_rows']:,} test images; "
        f"epsball {config['versions']['epsball']}"
    )
