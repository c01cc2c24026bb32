"""The figures of `growth` and `local_growth`: what a small step gains, by size of the image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from epsball.explain.pictures import made_with, name_of_data, percents, power
from epsball.report import plots

if TYPE_CHECKING:
    from epsball.explain.dimension import Growth, Rung
    from epsball.explain.linearised import LocalGrowth

COLOURS = {"normal": plots.BLUE, "shifted": plots.ORANGE, "trained": plots.VERMILION}


def draw_growth(found: Growth, path: str | Path) -> None:
    """The change and what it is compared with, a column per kind of weights; |w| and the accuracy in the last one."""
    config = found.config
    one, other = config["pair"]
    kinds = {
        "normal": "Weights drawn from N(0, 1)",
        "shifted": "Weights drawn from N(1, 1)",
        "trained": f"Trained: {one} against {other}",
    }
    note = (
        f"{config['rows']} images of {name_of_data(config)} (classes {one} and {other}), resized; "
        f"eps {config['eps']:g}; {config['draws']} draws of weights; logistic regression with C = {config['C']:g} on "
        f"{config['fit_rows']} images; {made_with(config)}"
    )
    title = "A step of eps changes a linear activation by eps·m·n. Does the clean activation keep up?"
    figure = plots.page(12.6, 6.2, title=title, note=note)
    grid = figure.subplots(2, 4, sharex=True)
    for column, (kind, name) in enumerate(kinds.items()):
        rungs = found.of(kind)
        above, below = grid[0, column], grid[1, column]
        plots.panel(above, title=name, y="activation" if column == 0 else "", log="xy")
        _activations(above, rungs)
        plots.panel(below, title="", y="change / clean activation" if column == 0 else "", x="dimension n", log="xy")
        _ratios(below, found, kind)
    _share_scale([grid[0, column] for column in range(3)])
    _share_scale([grid[1, column] for column in range(3)])
    plots.legend(grid[0, 0], place="upper left")
    size, accuracy = plots.panel(grid[0, 3], title="Mean size of a weight, m", log="xy"), grid[1, 3]
    for kind in kinds:
        _sizes(size, found, kind)
    low, high = size.get_ylim()
    size.set_ylim(low / 2.5, high * 2)
    plots.panel(accuracy, title="Accuracy of the trained classifier", x="dimension n", log="x")
    _accuracies(accuracy, found.of("trained"))
    dimensions = sorted({rung.n for rung in found.rungs})
    for axis in grid.flat:
        plots.ticks(axis, dimensions, [f"{n:,}" for n in dimensions])
    plots.save(figure, path)


def _activations(axis: Axes, rungs: tuple[Rung, ...]) -> None:
    n = [rung.n for rung in rungs]
    axis.plot(n, [r.predicted for r in rungs], color=plots.VERMILION, linewidth=1.6, label="predicted eps·m·n")
    axis.plot(n, [r.measured for r in rungs], "o", color=plots.VERMILION, markersize=5, label="measured change")
    hollow = {"color": plots.VERMILION, "markersize": 5, "markerfacecolor": "white"}
    axis.plot(n, [r.boxed for r in rungs], "o", **hollow, label="measured, within the box")
    axis.plot(n, [r.clean for r in rungs], "s--", color=plots.BLUE, markersize=3.5, linewidth=1.2, label="clean |w·x|")
    spread = {"color": plots.GREEN, "markersize": 4, "linewidth": 1.2}
    axis.plot(n, [r.spread for r in rungs], "^:", **spread, label="std of w·x over images")


def _ratios(axis: Axes, found: Growth, kind: str) -> None:
    rungs = found.of(kind)
    for name, colour, marker, said in (
        ("per_spread", plots.GREEN, "^:", "change / std"),
        ("per_clean", plots.BLUE, "s--", "change / |w·x|"),
    ):
        label = f"{said}{power(found.exponent(kind, name))}"
        values = [getattr(r, name) for r in rungs]
        axis.plot([r.n for r in rungs], values, marker, color=colour, markersize=4, linewidth=1.2, label=label)
    axis.axhline(1, color=plots.GREY, linewidth=0.8)
    plots.legend(axis)


def _sizes(axis: Axes, found: Growth, kind: str) -> None:
    rungs = found.of(kind)
    axis.plot([r.n for r in rungs], [r.m for r in rungs], "o-", color=COLOURS[kind], markersize=4, linewidth=1.4)
    said, above = {"normal": ("N(0, 1)", False), "shifted": ("N(1, 1)", True), "trained": ("trained", False)}[kind]
    axis.annotate(
        said + power(found.exponent(kind, "m")),
        (rungs[-1].n, rungs[-1].m),
        xytext=(0, 6 if above else -7),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        fontsize=plots.SMALL,
        color=COLOURS[kind],
    )


def _accuracies(axis: Axes, rungs: tuple[Rung, ...]) -> None:
    for name, colour, marker, said in (
        ("accuracy", plots.BLUE, "s--", "clean"),
        ("fgsm_boxed", plots.VERMILION, "o:", "FGSM, within the box"),
        ("fgsm_accuracy", plots.VERMILION, "o-", "FGSM"),
    ):
        face = "white" if name == "fgsm_boxed" else colour
        shares = [getattr(r, name) for r in rungs]
        (line,) = axis.plot([r.n for r in rungs], shares, marker, color=colour, markersize=4, linewidth=1.2, label=said)
        line.set_markerfacecolor(face)
    axis.set_ylim(-0.02, 1.04)
    percents(axis.yaxis)
    plots.legend(axis)


def _share_scale(axes: list[Axes]) -> None:
    ends = np.array([axis.get_ylim() for axis in axes])
    for axis in axes:
        axis.set_ylim(ends[:, 0].min(), ends[:, 1].max())


def draw_local_growth(found: LocalGrowth, path: str | Path) -> None:
    """Gain, noise and gap against n; their ratios beside the square root of n; the accuracies."""
    config, steps = found.config, found.steps
    n = [step.n for step in steps]
    note = (
        f"{config['network']}, trained at each size on {config['fit_rows']} images of {name_of_data(config)} for "
        f"about {config['steps']} steps, measured on {config['rows']}, medians; {config['said']}; noise: the step in a "
        f"random order and with random signs; {made_with(config)}"
    )
    title = "Does the gain of a small step grow with the dimension, for a network where it stands?"
    figure = plots.page(12.6, 4.4, title=title, note=note)
    left, middle, last = figure.subplots(1, 3)

    plots.panel(left, title="Change of the margin, in logits", x="dimension n", log="xy")
    for name, said, colour, line in (
        ("gain", "linearised gain", plots.VERMILION, "o-"),
        ("boxed", "the same within the box", plots.VERMILION, "o:"),
        ("rise", "in truth, within the box", plots.PURPLE, "s--"),
        ("noise", "noise of equal norm, linearised", plots.GREY, "^--"),
        ("gap", "margin at the examples", plots.BLUE, "s-"),
    ):
        values = [getattr(step, name) for step in steps]
        left.plot(n, values, line, color=colour, markersize=4, linewidth=1.4, label=said + power(found.exponent(name)))
    plots.panel(middle, title="Ratios", x="dimension n", log="xy")
    for name, said, colour in (("ratio", "gain / noise", plots.VERMILION), ("reach", "gain / margin", plots.BLUE)):
        values = [getattr(step, name) for step in steps]
        middle.plot(
            n, values, "o-", color=colour, markersize=4, linewidth=1.4, label=said + power(found.exponent(name))
        )
    middle.plot(n, np.sqrt(n), color=plots.GREY, linestyle=":", linewidth=1.2, label="square root of n")
    middle.axhline(1, color=plots.GREY, linewidth=0.8)
    plots.panel(last, title="Accuracy", x="dimension n", log="x")
    for name, said, colour, line in (
        ("clean", "clean", plots.BLUE, "s-"),
        ("noisy", "noise of equal norm", plots.GREY, "^--"),
        ("attacked", "one step along the gradient", plots.VERMILION, "o-"),
    ):
        values = [getattr(step, name) for step in steps]
        last.plot(n, values, line, color=colour, markersize=4, linewidth=1.4, label=said)
    last.set_ylim(-0.03, 1.03)
    percents(last.yaxis)
    low, high = left.get_ylim()
    left.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
    for axis in (left, middle, last):
        plots.ticks(axis, n, [f"{count:,}" for count in n])
    plots.legend(left, place="upper left")
    plots.legend(middle, place="upper left")
    plots.legend(last)
    plots.save(figure, path)
