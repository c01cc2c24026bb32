"""The figure of the threes and sevens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.special import expit

from epsball.report import plots
from epsball.reproduce.plots.table import picture, table
from epsball.reproduce.sources import STAND_IN
from epsball.reproduce.threes_sevens import ThreesSevens


def draw_threes_sevens(found: ThreesSevens, path: str | Path) -> None:
    """The weights and their sign; test images clean, moved, and moved within the box; the errors beside the paper's."""
    config, model = found.config, found.models[0]
    eps, (lo, hi) = config["eps"], config["box"]
    small = f"{STAND_IN}; " if config["stands_in"] else ""
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
        (f"the weights, {model.name}", "their sign: the step towards a seven"),
        strict=True,
    ):
        picture(axis, values.tolist(), config["shape"], -1.0, 1.0, "RdBu_r")
        axis.set_title(said, fontsize=plots.NORMAL, color=plots.INK)
    rows = right.subplots(3, len(found.shown), squeeze=False)
    heads = ("clean", "moved by eps\nagainst its class", f"moved within\n[{lo:g}, {hi:g}]")
    for line, (axes, head) in enumerate(zip(rows, heads, strict=True)):
        axes[0].set_ylabel(head, fontsize=plots.NORMAL, color=plots.INK)
        for axis, example in zip(axes, found.shown, strict=True):
            x = np.array(example.x) if line == 0 else found.worst(example, boxed=line == 2)
            picture(axis, x.tolist(), config["shape"], lo - eps, hi + eps, "gray")
            score = float(model.score(x))
            predicted = config["pair"][int(score > 0)]
            wrong = predicted != example.label
            style = {"color": plots.VERMILION, "fontweight": "bold"} if wrong else {"color": plots.INK}
            axis.set_xlabel(f"{predicted}: {_likely(score)}", fontsize=plots.NORMAL, labelpad=2, **style)
    pixels = [f"{model.nonzero} of {len(model.weight)}" for model in found.models]
    head = "error in %; confidence in the mistakes, attacked"
    table(below.subplots(), head, found.columns, found.lines, more=("pixels", pixels))
    plots.save(figure, path)


def _likely(score: float) -> str:
    """The probability of what is predicted."""
    share = float(expit(abs(score)))
    return f"{share:.1%}" if share < 0.9995 else "> 99.9%"
