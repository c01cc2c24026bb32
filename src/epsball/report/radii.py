"""The figure of a path over radii: what becomes of the weights, the accuracy and the loss as the attacker grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from epsball.report import plots

NAMED = 6
"""Weights with a colour and a name; the others are grey."""
PALETTE = (plots.BLUE, plots.VERMILION, plots.GREEN, plots.ORANGE, plots.PURPLE, plots.INK)


def draw_path(
    path: str | Path,
    eps: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, "m k"],
    names: Sequence[str],
    *,
    losses: Float[np.ndarray, "2 m"],
    accuracies: Float[np.ndarray, "2 m"] | None,
    unit: str,
    note: str,
) -> None:
    """Write a PNG: weights (named), then accuracies and losses, each clean and worst case, against radii > 0."""
    figure = plots.page(11.4 if accuracies is not None else 8.2, 3.9, title="What a larger radius costs", note=note)
    axes = figure.subplots(1, 2 if accuracies is None else 3)
    _weights(plots.panel(axes[0], title="Weights", x=unit, log="x"), eps, weights, names)
    if accuracies is not None:
        _pair(plots.panel(axes[1], title="Accuracy on the rows fitted", x=unit, log="x"), eps, accuracies)
        axes[1].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _pair(plots.panel(axes[-1], title="Loss on the rows fitted", x=unit, log="x"), eps, losses)
    plots.save(figure, path)


def _weights(axis: Axes, eps: Float[np.ndarray, " m"], weights: Float[np.ndarray, "m k"], names: Sequence[str]) -> None:
    # Those that outlive the others are named: the last to go as the radius grows, then the largest.
    last = np.where(weights != 0, eps[:, None], 0).max(0)
    order = np.lexsort((-np.abs(weights).max(0), -last))
    for place in order[NAMED:].tolist():
        axis.plot(eps, weights[:, place], color="#C4C4C4", linewidth=0.7)
    for place, colour in zip(order[:NAMED].tolist(), PALETTE, strict=False):
        name = str(names[place])
        name = name if len(name) <= 24 else f"{name[:23]}…"
        # A name that begins with an underscore, or holds a dollar, means something to matplotlib.
        label = " " + name.replace("$", r"\$")
        axis.plot(eps, weights[:, place], color=colour, linewidth=1.4, label=label)
    axis.axhline(0, color=plots.GREY, linewidth=0.8)
    plots.legend(axis)


def _pair(axis: Axes, eps: Float[np.ndarray, " m"], values: Float[np.ndarray, "2 m"]) -> None:
    axis.plot(eps, values[0], "--", color=plots.BLUE, linewidth=1.4, label="clean")
    axis.plot(eps, values[1], "-", color=plots.VERMILION, linewidth=1.4, label="worst case")
    plots.legend(axis)
