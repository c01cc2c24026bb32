"""The figure of `taylor_gap`."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from epsball.explain.analyses.taylor import TaylorGap
from epsball.explain.plots import canvas
from epsball.report import plots

UNITS = {"cross_entropy": "nats", "margin": "logits"}
"""Of the losses."""


def plot(found: TaylorGap) -> Figure:
    """The rise of the loss as predicted and as it is, and what the prediction leaves out of it."""
    ball, config = found.config["ball"], found.config
    note = (
        f"{len(found)} examples; median and, shaded, 5 % to 95 % of them; loss {config['loss']}, ball {ball['class']}"
        f" in [{ball['lo']}, {ball['hi']}]; {config['dtype']}"
    )
    figure = canvas.page(found, 9.4, 4.1, title="How good is the first-order approximation of FGSM?", note=note)
    left, right = figure.subplots(1, 2)
    radii = found.eps.tolist()
    change, predicted = found.quantiles(found.change), found.quantiles(found.first_order)
    positive = np.concatenate([change[change > 0], predicted[predicted > 0]])
    at = f"eps ({ball['class'].lower()}, units of the data)"
    rise = f"Rise of the loss at the first-order worst point, in {UNITS.get(str(config['loss']), 'units of the loss')}"
    plots.panel(left, title=rise, x=at, log="xy" if len(positive) else "x")
    plots.band(left, radii, predicted, colour=plots.BLUE, label="first order: gradient · step", dashed=True)
    plots.band(left, radii, change, colour=plots.VERMILION, label="true change", marker="s")
    if len(positive):
        left.set_ylim(positive.min() / 2, positive.max() * 2)
    plots.legend(left, place="upper left")
    plots.panel(right, title="What the first order leaves out, as a share of the rise", x=at, log="x")
    relative = found.quantiles(found.relative)
    plots.band(right, radii, relative, colour=plots.PURPLE, label="(true change - first order) / |true change|")
    right.axhline(0, color=plots.GREY, linewidth=0.8)
    known = relative[np.isfinite(relative)]
    if len(known):
        right.set_ylim(max(-2.0, known.min() - 0.05), min(1.05, known.max() + 0.05))
    canvas.percents(right.yaxis)
    plots.legend(right)
    for axis in (left, right):
        plots.ticks(axis, radii, [f"{eps:.2g}" for eps in radii])
    return figure
