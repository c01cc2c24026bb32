"""The figures of `direction` and `local_growth`: which way gradients point, and what that gains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from epsball.explain.pictures import made_with, name_of_data, numbers
from epsball.explain.record import percent
from epsball.report import plots

if TYPE_CHECKING:
    from epsball.explain.alignment import Direction


def draw_direction(found: Direction, path: str | Path) -> None:
    """Cosines of pairs, class against class; and for several networks cosines, transfer and agreement."""
    config, several = found.config, len(found.names) > 1
    note = (
        f"{config['rows']} examples of {name_of_data(config)}; {config['attack']} in {config['said']}; transfer: "
        "of the examples that the evaluator has right; agreement: where both are right clean and both err; "
        f"{made_with(config)}"
    )
    title = "Do gradients of other examples, and of other networks, point the same way?"
    figure = plots.page(12.6, 7.4 if several else 4.0, title=title, note=note)
    lines = figure.subfigures(2 if several else 1, 1, squeeze=False, height_ratios=[1, 1.05] if several else [1])
    left, right = lines[0, 0].subplots(1, 2, width_ratios=[1.6, 1])
    _spreads(left, found)
    _grid(right, numbers(found.pairs[0].classes), config["labels"], config["labels"], signed=True)
    title = f"Mean cosine of gradients, class by class ({found.names[0]})"
    right.set_title(title, fontsize=plots.NORMAL, color=plots.INK, loc="left")
    if several:
        names = [name.replace(", ", ",\n") for name in found.names]
        axes = lines[1, 0].subplots(1, 3)
        for axis, matrix, said, signed in (
            (axes[0], found.between, "Mean cosine of two networks' gradients", True),
            (axes[1], found.transfer, "Fooled: made on the row, shown to the column", False),
            (axes[2], found.agreement, "Same wrong class: row and column", False),
        ):
            _grid(axis, numbers(matrix), names if axis is axes[0] else ["" for _ in names], names, signed=signed)
            axis.set_title(said, fontsize=plots.NORMAL, color=plots.INK, loc="left")
        for axis, name, said in ((axes[1], "noise", "steps shuffled"), (axes[2], "by_chance", "by chance")):
            value = found.elsewhere(name)
            if value is not None:
                control = f"between two networks, {said}: {percent(value)}"
                axis.set_xlabel(control, fontsize=plots.SMALL, color=plots.GREY)
    plots.save(figure, path)


def _spreads(axis: Axes, found: Direction) -> None:
    plots.panel(axis, title="Cosines of two different examples of one network", x="cosine")
    kinds = {
        "gradient_same": ("gradients, same class", plots.VERMILION),
        "gradient_other": ("gradients, other class", plots.BLUE),
        "step_same": ("perturbations, same class", plots.ORANGE),
        "step_other": ("perturbations, other class", plots.GREEN),
    }
    axis.axvspan(-found.chance, found.chance, color=plots.FAINT, linewidth=0)
    axis.axvline(0, color=plots.GREY, linewidth=0.8)
    named: set[str] = set()
    for place, pairs in enumerate(found.pairs):
        for k, (name, (said, colour)) in enumerate(kinds.items()):
            quantiles = getattr(pairs, name)
            if quantiles is None:
                continue
            y = place + 0.18 * (k - 1.5)
            axis.plot([quantiles[0], quantiles[4]], [y, y], color=colour, linewidth=1, alpha=0.6)
            axis.plot([quantiles[1], quantiles[3]], [y, y], color=colour, linewidth=3.5, alpha=0.6)
            axis.plot(quantiles[2], y, "o", color=colour, markersize=4, label=said if said not in named else None)
            named.add(said)
    axis.set_yticks(range(len(found.names)), found.names)
    axis.set_ylim(len(found.names) - 0.5, -0.5)
    axis.set_xlim(-1, 1)
    if named:
        plots.legend(axis)
    axis.set_xlabel("cosine: median, quartiles, 5 % to 95 % of the pairs; grey: one standard deviation of random ones",
                    fontsize=plots.SMALL, color=plots.GREY)  # fmt: skip


def _grid(axis: Axes, matrix: np.ndarray, rows: list[str], columns: list[str], *, signed: bool) -> None:
    """A matrix of numbers with its colours: cosines from -1 to 1, or shares from 0 to 1."""
    colours = "RdBu_r" if signed else "Oranges"
    axis.imshow(matrix, cmap=colours, vmin=-1 if signed else 0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(labelsize=plots.SMALL, colors=plots.GREY, length=0)
    for spine in axis.spines.values():
        spine.set(visible=False)
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            said = f"{value:.2f}" if signed else f"{100 * value:.0f} %"
            ink = "white" if abs(value) > 0.65 else plots.INK
            axis.text(j, i, said, ha="center", va="center", fontsize=plots.SMALL, color=ink, in_layout=False)
