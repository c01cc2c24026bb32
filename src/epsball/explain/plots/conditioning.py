"""The figure of `conditioning`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epsball.explain.analyses.conditioning import Conditioning
from epsball.explain.finding import numbers
from epsball.explain.plots import canvas
from epsball.report import plots

MOST_LAYERS = 12
"""Layers that have a line of their own in a table."""


def plot(found: Conditioning) -> Figure:
    """The singular values of each layer, the steepness found beside what the norms allow, and a table."""
    config = found.config
    note = (
        f"{config['rows']} examples of {canvas.data_name(found)}, at each the example and {config['samples']} points "
        f"of {config['ball_name']}; gradients towards the {config['rivals']} greatest other logits; Euclidean norm"
    )
    title = "How well conditioned are the layers, and how steep is the network?"
    figure = canvas.page(found, 12.6, 4.4, title=title, note=note)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    plots.panel(left, title="Singular values of the layers", x="rank (share of all)", y="singular value", log="y")
    layers = [layer for layer in found.layers if len(layer.singular) > 1][:MOST_LAYERS]
    for place, layer in enumerate(layers):
        values = numbers(layer.singular)
        values = values[values > values[0] * 1e-9]
        at = np.arange(1, len(values) + 1) / min(layer.rows, layer.columns)
        left.plot(at, values, color=_shade(place, len(layers)), linewidth=1.6, label=f"{layer.name}: {layer.kind}")
    plots.legend(left, place="lower left")
    _steepness(middle, found)
    _layers(right, found)
    return figure


def _shade(place: int, of: int) -> str:
    """A colour of the palette while it lasts, then greys."""
    palette = (plots.BLUE, plots.VERMILION, plots.GREEN, plots.ORANGE, plots.PURPLE)
    return palette[place] if of <= len(palette) else f"{0.15 + 0.65 * place / max(1, of - 1):.3f}"


def _steepness(axis: Axes, found: Conditioning) -> None:
    steep = numbers(found.steepness)
    steep = steep[np.isfinite(steep) & (steep > 0)]
    title = "Steepness of differences of logits"
    plots.panel(axis, title=title, x="logits per unit of length", y="examples", log="x")
    if len(steep):
        low, high = steep.min() / 1.3, max(found.bound, steep.max()) * 1.3
        axis.hist(steep, bins=np.geomspace(low, high, 50).tolist(), color=plots.BLUE, label="found in the ball")
        steepest = {"color": plots.BLUE, "linestyle": ":", "linewidth": 1.4}
        axis.axvline(found.steepest, label=f"steepest found: {found.steepest:.3g}", **steepest)
    bound = "allowed by the norms" if found.chain else "√2 x product of norms"
    axis.axvline(found.bound, color=plots.VERMILION, linewidth=1.6, label=f"{bound}: {found.bound:.3g}")
    axis.set_ylim(0, 1.4 * axis.get_ylim()[1])
    axis.xaxis.set_major_formatter(plots.Between(labelOnlyBase=False))
    axis.xaxis.set_minor_formatter(plots.Between(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
    plots.legend(axis, place="upper left")


def _layers(axis: Axes, found: Conditioning) -> None:
    shown = found.layers[:MOST_LAYERS]
    lines: list[list[canvas.Cell]] = [["", "matrix", "norm", "rank", "condition"]]
    for layer in shown:
        rank = "-" if layer.rank is None else str(layer.rank)
        condition = "-" if layer.condition is None else f"{layer.condition:.3g}"
        size = f"{layer.rows}x{layer.columns}"
        lines.append([f"{layer.name}: {layer.kind}"[:22], size, f"{layer.norm:.3g}", rank, condition])
    more = f"{len(found.layers) - len(shown)} more layers; " if len(found.layers) > len(shown) else ""
    product = (f"{found.product:.3g}", {"fontweight": "bold"})
    lines.append([(f"{more}product of all norms", {"color": plots.GREY}), "", product, "", ""])
    canvas.table(axis, (0.42, 0.66, 0.8, 1.0), lines, step=0.065)
