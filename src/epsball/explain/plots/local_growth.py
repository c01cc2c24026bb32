"""The figure of `local_growth`."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from epsball.explain.analyses.local_growth import LocalGrowth
from epsball.explain.plots import canvas
from epsball.report import plots

CHANGES = (
    ("gain", "linearised gain", plots.VERMILION, "o-"),
    ("boxed", "the same within the box", plots.VERMILION, "o:"),
    ("true_gain", "in truth, within the box", plots.PURPLE, "s--"),
    ("noise", "noise of equal norm, linearised", plots.GREY, "^--"),
    ("margin", "margin at the examples", plots.BLUE, "s-"),
)
RATIOS = (("ratio", "gain / noise", plots.VERMILION, "o-"), ("per_margin", "gain / margin", plots.BLUE, "o-"))
ACCURACIES = (
    ("clean", "clean", plots.BLUE, "s-"),
    ("noisy", "noise of equal norm", plots.GREY, "^--"),
    ("attacked", "one step along the gradient", plots.VERMILION, "o-"),
)


def plot(found: LocalGrowth) -> Figure:
    """Gain, noise and margin against n; their ratios beside the square root of n; the accuracies."""
    config, sizes = found.config, found.sizes
    n = [size.n for size in sizes]
    note = (
        f"{config['network']}, trained at each size on {config['fit_rows']} images of {canvas.data_name(found)} for "
        f"about {config['steps']} steps, measured on {config['rows']}, medians; {config['ball_name']}; noise: the step "
        "in a random order and with random signs"
    )
    title = "Does the gain of a small step grow with the dimension, for the linearisation of a network?"
    figure = canvas.page(found, 12.6, 4.4, title=title, note=note)
    left, middle, right = figure.subplots(1, 3)
    plots.panel(left, title="Change of the margin, in logits", x="dimension n", log="xy")
    plots.panel(middle, title="Ratios", x="dimension n", log="xy")
    for axis, curves in ((left, CHANGES), (middle, RATIOS)):
        labelled = [
            (name, label + canvas.power(found.exponent(name)), colour, line) for name, label, colour, line in curves
        ]
        canvas.curves(axis, n, sizes, labelled)
    middle.plot(n, np.sqrt(n), color=plots.GREY, linestyle=":", linewidth=1.2, label="square root of n")
    middle.axhline(1, color=plots.GREY, linewidth=0.8)
    plots.panel(right, title="Accuracy", x="dimension n", log="x")
    canvas.curves(right, n, sizes, ACCURACIES)
    canvas.shares(right)
    low, high = left.get_ylim()
    left.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
    for axis in (left, middle, right):
        plots.ticks(axis, n, [f"{count:,}" for count in n])
    plots.legend(left, place="upper left")
    plots.legend(middle, place="upper left")
    plots.legend(right)
    return figure
