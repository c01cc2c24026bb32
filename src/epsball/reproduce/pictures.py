"""The figures of the reproduced experiments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from scipy.special import expit

from epsball.report import plots

if TYPE_CHECKING:
    from epsball.reproduce.threes_sevens import ThreesSevens


def draw_threes_sevens(found: ThreesSevens, path: str | Path) -> None:
    """The weights and their sign; test images clean, moved, and moved within the box; the errors beside the paper's."""
    config, model = found.config, found.models[0]
    eps, (lo, hi) = config["eps"], config["box"]
    small = "scikit-learn's 8x8 digits stand in for MNIST; " if config["stands_in"] else ""
    note = (
        f"{small}trained on {config['train_rows']:,} images, error over all {config['test_rows']:,} test images; "
        f"shown: the first of each class; grey from {lo - eps:g} to {hi + eps:g} in every row; "
        f"epsball {config['versions']['epsball']}"
    )
    title = f"Threes against sevens: logistic regression under the fast gradient sign method, eps {eps:g}"
    figure = plots.page(12.4, 7.3, title=title, note=note)
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 4.1], height_ratios=[3, 1.2])
    left, right, below = (figure.add_subfigure(part) for part in (grid[0, 0], grid[0, 1], grid[1, :]))
    weight = np.array(model.weight)
    most = float(np.abs(weight).max()) or 1.0
    for axis, values, said in zip(
        left.subplots(2, 1),
        (weight / most, 0.75 * np.sign(weight)),
        (f"the weights, {model.said}", "their sign: the step towards a seven"),
        strict=True,
    ):
        _picture(axis, values, found, -1.0, 1.0, "RdBu_r")
        axis.set_title(said, fontsize=plots.NORMAL, color=plots.INK)
    rows = right.subplots(3, len(found.shown), squeeze=False)
    heads = ("clean", "moved by eps\nagainst its class", f"moved within\n[{lo:g}, {hi:g}]")
    for line, (axes, head) in enumerate(zip(rows, heads, strict=True)):
        axes[0].set_ylabel(head, fontsize=plots.NORMAL, color=plots.INK)
        for axis, example in zip(axes, found.shown, strict=True):
            x = np.array(example.x) if line == 0 else found.worst(example, boxed=line == 2)
            _picture(axis, x, found, lo - eps, hi + eps, "gray")
            score = float(model.score(x))
            predicted = config["pair"][int(score > 0)]
            wrong = predicted != example.label
            style = {"color": plots.VERMILION, "fontweight": "bold"} if wrong else {"color": plots.INK}
            axis.set_xlabel(f"{predicted}: {_likely(score)}", fontsize=plots.NORMAL, labelpad=2, **style)
    _table(below.subplots(), found)
    plots.save(figure, path)


def _likely(score: float) -> str:
    """The probability of what is predicted."""
    share = float(expit(abs(score)))
    return f"{share:.1%}" if share < 0.9995 else "> 99.9%"


def _picture(axis: Axes, values: np.ndarray, found: ThreesSevens, low: float, high: float, colours: str) -> None:
    image = values.reshape(-1, *found.config["shape"][-2:]).mean(0)
    axis.imshow(image, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=plots.FAINT)


def _table(axis: Axes, found: ThreesSevens) -> None:
    axis.axis("off")
    text = {"fontsize": plots.NORMAL, "transform": axis.transAxes, "va": "center", "in_layout": False}
    heads = (
        "clean",
        "moved",
        f"within [{found.config['box'][0]:g}, {found.config['box'][1]:g}]",
        "confidence",
        "pixels",
    )
    places = (0.40, 0.50, 0.62, 0.74, 0.84)
    count = len(found.lines) + 1
    rungs = [1 - (row + 0.5) / count for row in range(count)]
    axis.text(0.08, rungs[0], "error in %; confidence in the mistakes, moved", color=plots.GREY, **text)
    for place, head in zip(places, heads, strict=True):
        axis.text(place, rungs[0], head, color=plots.GREY, ha="right", **text)
    pixels = ["", *(f"{model.nonzero} of {len(model.weight)}" for model in found.models)]
    for line, rung, used in zip(found.lines, rungs[1:], pixels, strict=True):
        colour = plots.BLUE if line.published else plots.INK
        axis.text(0.08, rung, line.said, color=colour, fontweight="bold" if line.published else "normal", **text)
        said = ["" if value is None else f"{value:.1f}" for value in line.values]
        for place, value in zip(places, (*said, used), strict=True):
            axis.text(place, rung, value, color=colour, ha="right", **text)
