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
from epsball.reproduce.nets import ADVERSARIAL, PAIR, PLAIN, percent
from epsball.reproduce.record import Line

if TYPE_CHECKING:
    from epsball.reproduce.controls import Controls
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
    _table(below, "error in %; confidence in the mistakes on FGSM examples", found.heads, found.lines)
    plots.save(figure, path)


def _filters(part: SubFigure, filters: Sequence[Sequence[float]], shape: Sequence[int], rows: int) -> None:
    axes = part.subplots(rows, SIDE, squeeze=False).flatten()
    for axis, row in zip(axes, filters, strict=False):
        most = max(map(abs, row)) or 1.0
        _picture(axis, row, shape, -most, most, "RdBu_r")
    for axis in axes[len(filters) :]:
        axis.axis("off")


def draw_controls(found: Controls, path: str | Path) -> None:
    """Error on FGSM examples and confidence in the mistakes, for each way of training, ours and the paper's."""
    from epsball.reproduce.controls import OBJECTIVES, PAPER
    from epsball.reproduce.threes_sevens import EPS

    config = found.config
    title = f"Noise of the same size is no adversarial training: maxout networks, eps {config['eps']:g}"
    figure = plots.page(10.6, 4.4, title=title, note=_note(config))
    names, at_papers = list(OBJECTIVES), config["eps"] == EPS
    places = np.arange(len(names))[::-1]
    panels = (
        ("error on FGSM examples, %", [percent(found.mean(name)[1].error) for name in names], 0),
        ("mean confidence in those mistakes, %", [percent(found.mean(name)[1].confidence) for name in names], 1),
    )
    for axis, (head, ours, which) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        plots.panel(axis, title=head)
        axis.grid(False, axis="y")
        bars = [(ours, 0.19 if at_papers else 0.0, "ours", plots.VERMILION)]
        if at_papers:
            bars.append(([PAPER[name][which] for name in names], -0.19, "the paper", plots.BLUE))
        for values, shift, label, colour in bars:
            lengths = [0.0 if value is None else value for value in values]
            axis.barh(places + shift, lengths, 0.34, color=colour, label=label)
            for place, value in zip(places + shift, values, strict=True):
                said = "no mistakes" if value is None else f"{value:.1f}"
                axis.text((value or 0.0) + 1.2, place, said, va="center", fontsize=plots.SMALL, color=plots.INK)
        axis.set(xlim=(0, 112), xticks=range(0, 101, 20), yticks=places)
        axis.set_yticklabels(names, fontsize=plots.NORMAL, color=plots.INK)
        if which == 0:
            axis.legend(loc="lower right", fontsize=plots.NORMAL, frameon=False, labelcolor=plots.INK)
    plots.save(figure, path)


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
    rows = right.subplots(len(heads), len(found.shown), squeeze=False)
    for column, example in enumerate(found.shown):
        for row, picture in enumerate(example.pictures):
            axis = rows[row, column]
            _picture(axis, picture.x, config["shape"], lo - eps, hi + eps, "gray")
            _say(axis, picture, example.label)
            if column == 0:
                axis.set_ylabel(heads[picture.maker], fontsize=plots.NORMAL, color=plots.INK)
    plots.save(figure, path)


def _matrix(axis: Axes, found: Transfer) -> None:
    from epsball.reproduce.threes_sevens import EPS
    from epsball.reproduce.transfer import PAPER

    makers, judges = list(PAPER), list(PAIR)
    ours = np.array([[found.mean(maker, judge).error for judge in judges] for maker in makers])
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


def _say(axis: Axes, picture: Picture, label: int) -> None:
    """What the networks predict, the plain one first; wrong ones in colour."""
    for line, said in enumerate(PAIR):
        predicted, sure = picture.predicted[said], picture.sure[said]
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


def _picture(axis: Axes, values: Sequence[float], shape: Sequence[int], low: float, high: float, colours: str) -> None:
    axis.imshow(
        np.array(values).reshape(-1, *shape[-2:]).mean(0), cmap=colours, vmin=low, vmax=high, interpolation="nearest"
    )
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=plots.FAINT)


def _table(axis: Axes, head: str, heads: Sequence[str], lines: Sequence[Line]) -> None:
    """The lines as text, the paper's in blue."""
    axis.axis("off")
    text = {"fontsize": plots.NORMAL, "transform": axis.transAxes, "va": "center", "in_layout": False}
    places = [0.62 + 0.12 * column for column in range(len(heads))]
    rungs = [1 - (row + 0.5) / (len(lines) + 1) for row in range(len(lines) + 1)]
    axis.text(0.1, rungs[0], head, color=plots.GREY, **text)
    for place, said in zip(places, heads, strict=True):
        axis.text(place, rungs[0], said, color=plots.GREY, ha="right", **text)
    for line, rung in zip(lines, rungs[1:], strict=True):
        colour = plots.BLUE if line.published else plots.INK
        axis.text(0.1, rung, line.said, color=colour, fontweight="bold" if line.published else "normal", **text)
        for place, value in zip(places, line.values, strict=True):
            said = "" if value is None else f"{value:.3g}" if line.published else f"{value:.2f}"
            axis.text(place, rung, said, color=colour, ha="right", **text)


def _note(config: dict[str, Any]) -> str:
    small = "scikit-learn's 8x8 digits stand in for MNIST; " if config["stands_in"] else ""
    dropout = f"dropout {config['dropout']} %" if config["dropout"] else "no dropout"
    seeds = len(config["seeds"])
    return (
        f"{small}{config['units']:,} units, {dropout}, {config['epochs']} epochs of {config['train_rows']:,} images, "
        f"{seeds} seed{'s' if seeds > 1 else ''}; error over all {config['test_rows']:,} test images; "
        f"epsball {config['versions']['epsball']}"
    )
