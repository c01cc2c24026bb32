"""The figure of a path over radii: weights, accuracy and loss of a linear model against the attacker's radius."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from epsball.report import plots

NAMED = 6
"""Weights that have a colour and a name; the others are grey."""
PALETTE = (plots.BLUE, plots.VERMILION, plots.GREEN, plots.ORANGE, plots.PURPLE, plots.INK)


@dataclass(frozen=True, kw_only=True, eq=False)
class RadiusPath:
    """Models over radii `eps` > 0: named weights, and losses and accuracies, clean (row 0) and worst case (row 1).

    `unit` labels the radii, `note` is the small print.
    """

    eps: Float[np.ndarray, " m"]
    weights: Float[np.ndarray, "m k"]
    names: Sequence[str]
    losses: Float[np.ndarray, "2 m"]
    accuracies: Float[np.ndarray, "2 m"] | None
    unit: str
    note: str


def draw_path(found: RadiusPath, path: str | Path) -> None:
    """Write the figure as a PNG."""
    wide = found.accuracies is not None
    figure = plots.page(11.4 if wide else 8.2, 3.9, title="What a larger radius costs", note=found.note)
    axes = figure.subplots(1, 3 if wide else 2)
    _weights(plots.panel(axes[0], title="Weights", x=found.unit, log="x"), found.eps, found.weights, found.names)
    if found.accuracies is not None:
        _pair(plots.panel(axes[1], title="Training accuracy", x=found.unit, log="x"), found.eps, found.accuracies)
        axes[1].yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    _pair(plots.panel(axes[-1], title="Training loss", x=found.unit, log="x"), found.eps, found.losses)
    plots.save(figure, path)


def _weights(axis: Axes, eps: Float[np.ndarray, " m"], weights: Float[np.ndarray, "m k"], names: Sequence[str]) -> None:
    # Named are the weights that stay nonzero up to the largest radius, then the largest ones.
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
