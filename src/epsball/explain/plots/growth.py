"""The figure of `growth`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epsball.explain.analyses.growth import Growth, GrowthAtSize
from epsball.explain.plots import canvas
from epsball.report import plots

COLOURS = {"normal": plots.BLUE, "shifted": plots.ORANGE, "trained": plots.VERMILION}
ACTIVATIONS = (
    ("predicted", "predicted eps·m·n", plots.VERMILION, "-"),
    ("measured", "measured change", plots.VERMILION, "o"),
    ("boxed", "measured, within the box", plots.VERMILION, "d:"),
    ("clean", "clean |w·x|", plots.BLUE, "s--"),
    ("spread", "std of w·x over images", plots.GREEN, "^:"),
)
ACCURACIES = (
    ("accuracy", "clean", plots.BLUE, "s--"),
    ("fgsm_boxed", "FGSM, within the box", plots.VERMILION, "d:"),
    ("fgsm_accuracy", "FGSM", plots.VERMILION, "o-"),
)


def plot(found: Growth) -> Figure:
    """The change and what it is compared with, a column per kind of weights; |w| and the accuracy in the last one."""
    config = found.config
    one, other = config["pair"]
    kinds = {
        "normal": "Weights drawn from N(0, 1)",
        "shifted": "Weights drawn from N(1, 1)",
        "trained": f"Trained: {one} against {other}",
    }
    note = (
        f"{config['rows']} images of {canvas.data_name(found)} (classes {one} and {other}), resized; "
        f"eps {config['eps']:g}; {config['draws']} draws of weights; logistic regression with C = {config['C']:g} on "
        f"{config['fit_rows']} images"
    )
    title = "A step of eps changes a linear activation by eps·m·n. Does the clean activation keep up?"
    figure = canvas.page(found, 12.6, 6.2, title=title, note=note)
    grid = figure.subplots(2, 4, sharex=True)
    for column, (kind, name) in enumerate(kinds.items()):
        sizes = found.of(kind)
        above, below = grid[:, column]
        plots.panel(above, title=name, y="activation" if column == 0 else "", log="xy")
        canvas.curves(above, [size.n for size in sizes], sizes, ACTIVATIONS)
        plots.panel(below, y="change / clean activation" if column == 0 else "", x="dimension n", log="xy")
        _ratios(below, found, kind)
    for line in grid:
        _share_scale(line[:3])
    plots.legend(grid[0, 0], place="upper left")
    weights, accuracy = grid[:, 3]
    plots.panel(weights, title="Mean size of a weight, m", log="xy")
    for kind in kinds:
        _weights(weights, found, kind)
    low, high = weights.get_ylim()
    weights.set_ylim(low / 2.5, high * 2)
    plots.panel(accuracy, title="Accuracy of the trained classifier", x="dimension n", log="x")
    trained = found.of("trained")
    canvas.curves(accuracy, [size.n for size in trained], trained, ACCURACIES)
    canvas.shares(accuracy)
    plots.legend(accuracy)
    dimensions = sorted({size.n for size in found.sizes})
    for axis in grid.flat:
        plots.ticks(axis, dimensions, [f"{n:,}" for n in dimensions])
    return figure


def _ratios(axis: Axes, found: Growth, kind: str) -> None:
    sizes: Sequence[GrowthAtSize] = found.of(kind)
    kinds = (("per_spread", "change / std", plots.GREEN, "^:"), ("per_clean", "change / |w·x|", plots.BLUE, "s--"))
    labelled = [
        (name, label + canvas.power(found.exponent(kind, name)), colour, line) for name, label, colour, line in kinds
    ]
    canvas.curves(axis, [size.n for size in sizes], sizes, labelled)
    axis.axhline(1, color=plots.GREY, linewidth=0.8)
    plots.legend(axis)


def _weights(axis: Axes, found: Growth, kind: str) -> None:
    sizes, colour = found.of(kind), COLOURS[kind]
    canvas.curves(axis, [size.n for size in sizes], sizes, (("m", kind, colour, "o-"),))
    label, above = {"normal": ("N(0, 1)", False), "shifted": ("N(1, 1)", True), "trained": ("trained", False)}[kind]
    axis.annotate(
        label + canvas.power(found.exponent(kind, "m")),
        (sizes[-1].n, sizes[-1].m),
        xytext=(0, 6 if above else -7),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        fontsize=plots.SMALL,
        color=colour,
    )


def _share_scale(axes: Sequence[Axes]) -> None:
    ends = np.array([axis.get_ylim() for axis in axes])
    for axis in axes:
        axis.set_ylim(ends[:, 0].min(), ends[:, 1].max())
