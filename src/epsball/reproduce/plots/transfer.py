"""The figure of transfer: the matrix of errors, and examples with the predictions of both networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from epsball.report import plots
from epsball.reproduce.nets import ADVERSARIAL, PAIR, PLAIN
from epsball.reproduce.notes import small_print
from epsball.reproduce.outcome import EPS
from epsball.reproduce.plots.table import picture
from epsball.reproduce.transfer import CLEAN, PAPER, ShownPoint, Transfer

ERROR = LinearSegmentedColormap.from_list("error", ["#FFFFFF", plots.VERMILION])
"""From no error to all."""


def draw_transfer(found: Transfer, path: str | Path) -> None:
    """The matrix of errors, the paper's below ours; examples with the predictions of both networks."""
    config = found.config
    eps, (lo, hi) = config["eps"], config["box"]
    note = f"{small_print(config)}; shown: the first of each class; grey from {lo - eps:g} to {hi + eps:g}"
    title = f"Do FGSM examples of one maxout network fool the other? eps {eps:g}"
    figure = plots.page(12.6, 5.6, title=title, note=note)
    grid = figure.add_gridspec(1, 2, width_ratios=[1, 1.75])
    left, right = (figure.add_subfigure(grid[0, column]) for column in range(2))
    _matrix(left.subplots(), found)
    labels = {CLEAN: "clean", PLAIN: "made on\nthe plain one", ADVERSARIAL: "made on\nthe trained one"}
    right.supxlabel(" ", fontsize=plots.LARGE)  # room for the last captions
    rows = right.subplots(len(labels), len(found.shown), squeeze=False)
    for column, example in enumerate(found.shown):
        for row, point in enumerate(example.points):
            axis = rows[row, column]
            picture(axis, point.x, config["shape"], lo - eps, hi + eps, "gray")
            _caption(axis, point, example.label)
            if column == 0:
                axis.set_ylabel(labels[point.maker], fontsize=plots.NORMAL, color=plots.INK)
    plots.save(figure, path)


def _matrix(axis: Axes, found: Transfer) -> None:
    makers, evaluators = list(PAPER), list(PAIR)
    ours = np.array([[found.mean(maker, evaluator).error for evaluator in evaluators] for maker in makers])
    axis.imshow(ours, cmap=ERROR, vmin=0, vmax=1, aspect="auto")
    for row, maker in enumerate(makers):
        for column in range(len(evaluators)):
            colour = "white" if ours[row, column] > 0.6 else plots.INK
            style: dict[str, Any] = {"ha": "center", "color": colour}
            axis.text(column, row, f"{100 * ours[row, column]:.1f} %", va="bottom", fontsize=plots.LARGE, **style)
            paper = PAPER[maker][column]
            if paper is not None and found.config["eps"] == EPS:
                axis.text(column, row + 0.06, f"the paper: {paper:g} %", va="top", fontsize=plots.SMALL, **style)
    axis.set_title("error in % over all test images", fontsize=plots.NORMAL, color=plots.INK, loc="left", pad=8)
    axis.set(xticks=range(len(evaluators)), yticks=range(len(makers)))
    axis.set_xticklabels(["of the plain\nnetwork", "of the adversarially\ntrained one"], fontsize=plots.NORMAL)
    axis.set_yticklabels(["clean", "made on\nthe plain\none", "made on\nthe trained\none"], fontsize=plots.NORMAL)
    axis.tick_params(length=0, colors=plots.INK)
    for spine in axis.spines.values():
        spine.set(color=plots.FAINT)


def _caption(axis: Axes, point: ShownPoint, label: int) -> None:
    """The predictions of both networks, the plain one first; mistakes in colour."""
    for line, name in enumerate(PAIR):
        predicted, confidence = point.predicted[name], point.confidence[name]
        share = f"{confidence:.0%}" if confidence < 0.995 else "> 99%"
        wrong = predicted != label
        axis.text(
            0.5,
            -0.05 - 0.17 * line,
            f"{'plain' if name == PLAIN else 'trained'}: {predicted}, {share}",
            transform=axis.transAxes,
            ha="center",
            va="top",
            fontsize=plots.SMALL,
            color=plots.VERMILION if wrong else plots.INK,
            fontweight="bold" if wrong else "normal",
        )
