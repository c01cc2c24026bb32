"""The figure of `boundary`."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epsball.balls.registry import BALLS
from epsball.explain.analyses.boundary import Boundary, Distances
from epsball.explain.finding import numbers
from epsball.explain.plots import canvas
from epsball.report import plots


def plot(found: Boundary) -> Figure:
    """Both distances, norm by norm, and example by example in the ball's norm."""
    config = found.config
    note = (
        f"{config['rows']:,} examples of {canvas.data_name(found)}; adversarial examples: the nearest that "
        f"{', '.join(config['attacks'][found.norms[0].norm])} found, an upper bound; other classes: "
        f"{config['train_rows']:,} training examples"
    )
    title = "Near the boundary? Distances to the nearest adversarial example and the nearest example of another class"
    count = len(found.norms)
    lines = 1 if count < 3 else 2
    columns = math.ceil(count / lines)
    figure = canvas.page(found, 3.8 * columns + 4.6, 0.8 + 3.1 * lines, title=title, note=note)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[3.8 * columns, 4.6]).flat
    axes = left.subplots(lines, columns, squeeze=False)
    for axis, distances in zip(axes.flat, found.norms, strict=False):
        _histograms(axis, distances)
    for axis in axes.flat[count:]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("examples", fontsize=plots.SMALL, color=plots.GREY)
    _pairs(right.subplots(), found.norms[0])
    return figure


def _pairs(axis: Axes, distances: Distances) -> None:
    """Example by example: the distance to the boundary against that to another class."""
    boundary, other = numbers(distances.boundary), numbers(distances.other)
    known = distances.known
    where = f"Example by example, {distances.norm} distance"
    plots.panel(axis, title=where, x="to another class", y="to an adversarial example")
    dots = {"color": plots.VERMILION, "markersize": 3, "alpha": 0.5, "markeredgewidth": 0}
    axis.plot(other[known], boundary[known], "o", **dots)
    ends = np.array([0, other[np.isfinite(other)].max(initial=0) * 1.05 or 1])
    axis.plot(ends, ends / 2, color=plots.INK, linewidth=1, label="half way")
    axis.set_xlim(*ends)
    axis.set_ylim(0, max(boundary[known].max(initial=0), ends[1] / 2) * 1.15)
    plots.legend(axis, place="upper left")


def _histograms(axis: Axes, distances: Distances) -> None:
    norm, ratio = distances.norm, distances.ratio
    times = f": {ratio:.1f} times as far" if math.isfinite(ratio) else ""
    plots.panel(axis, title=f"{norm}{times}", x=f"{norm} distance, {BALLS[norm].unit}", log="x")
    boundary, other = numbers(distances.boundary)[distances.known], numbers(distances.other)
    other = other[np.isfinite(other) & (other > 0)]
    both = np.concatenate([boundary, other])
    if not len(both):
        return
    low, high = max(both.min(), both.max() * 1e-4), both.max()
    edges = np.geomspace(low * 0.95, max(high, low * 1.1) * 1.05, 32)
    kinds = ((boundary, plots.VERMILION, "an adversarial example"), (other, plots.BLUE, "another class"))
    for values, colour, kind in kinds:
        label = f"{kind}, median {np.median(values):.3g}" if len(values) else kind
        axis.hist(np.clip(values, edges[0], edges[-1]), edges, color=colour, alpha=0.75, label=label)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.3)
    plots.legend(axis, place="upper left")
