"""The figure of `linearity`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epsball.explain.analyses.linearity import PIECES, Linearity
from epsball.explain.finding import numbers, percent
from epsball.explain.plots import canvas
from epsball.report import plots

OTHERS = "#BBBBBB"


def plot(found: Linearity) -> Figure:
    """One example's logits; the bands of the label's logit and its rival's; accuracy; R^2 per piece of the line."""
    config, example = found.config, found.example
    note = (
        f"{config['rows']} examples of {canvas.data_name(found)}, {config['ball_name']}; direction: the ball's step "
        f"along the gradient, {'within' if config['boxed'] else 'without'} the box; control: the same steps in a "
        "random order and with random signs"
    )
    title = "How straight are the logits along the fast gradient direction?"
    figure = canvas.page(found, 12.6, 6.6, title=title, note=note)
    one, every, accuracy, share = figure.subplots(2, 2, width_ratios=[1.25, 1]).flat
    where = "step in radii of the ball, t"
    plots.panel(one, title=f"The logits of example {example['id']} (class {example['label']}) at x + t·d", x=where)
    _logits(one, numbers(found.t), numbers(example["logits"]), example["label"])
    plots.panel(every, title="All examples: median, and 5 % to 95 %", x=where)
    for values, colour, label in (
        (found.label, plots.BLUE, "logit of the label"),
        (found.rival, plots.VERMILION, "greatest other logit"),
    ):
        plots.band(every, found.t, numbers(values), colour=colour, label=label, marker="")
    plots.panel(accuracy, title="Accuracy along the line", x=where)
    accuracy.plot(found.t, found.accuracy, color=plots.VERMILION, linewidth=1.6, label="fast gradient direction")
    accuracy.plot(found.t, found.control, "--", color=plots.GREY, linewidth=1.4, label="shuffled, random signs")
    canvas.shares(accuracy)
    for axis in (one, every, accuracy):
        axis.axvspan(-1, 1, color=plots.FAINT, alpha=0.6, linewidth=0)
        axis.set_xlim(found.t[0], found.t[-1])
        plots.legend(axis)
    _explained(share, found)
    return figure


def _logits(axis: Axes, t: np.ndarray, logits: np.ndarray, label: int) -> None:
    predicted = int(np.argmax(logits[np.abs(t - 1).argmin()]))
    for j, line in enumerate(logits.T):
        name = {label: f"class {label}, its label", predicted: f"class {predicted}, predicted at t = 1"}.get(j)
        colour = {label: plots.BLUE, predicted: plots.VERMILION}.get(j, OTHERS)
        axis.plot(t, line, color=colour, linewidth=1.8 if name else 0.9, label=name, zorder=3 if name else 2)
    axis.plot([], [], color=OTHERS, linewidth=0.9, label="the other classes")


def _explained(axis: Axes, found: Linearity) -> None:
    plots.panel(axis, title="Share of the logits' variance that straight lines explain, R²")
    lowest, text = 1.0, {"fontsize": plots.SMALL, "color": plots.INK, "va": "center", "in_layout": False}
    for place, piece in enumerate(PIECES):
        for values, y, colour in (
            (found.explained[piece], place - 0.16, plots.VERMILION),
            (found.explained_control[piece], place + 0.16, plots.GREY),
        ):
            known = numbers(values)
            known = known[np.isfinite(known)]
            if not len(known):
                continue
            low, middle, high = np.quantile(known, (0.05, 0.5, 0.95))
            lowest = min(lowest, low)
            axis.plot([low, high], [y, y], color=colour, linewidth=2.2, alpha=0.45)
            axis.plot(middle, y, "o", color=colour, markersize=5)
            axis.text(0.995, y, percent(middle), transform=axis.get_yaxis_transform(), ha="right", **text)
    axis.set_yticks(range(len(PIECES)), list(PIECES.values()))
    axis.invert_yaxis()
    room = max(1 - lowest, 0.01)
    axis.set_xlim(lowest - 0.06 * room, 1 + 0.14 * room)  # the numbers are at the right
    canvas.percents(axis.xaxis)
    canvas.small(axis, "median, and 5 % to 95 % of the examples; red: fast gradient, grey: shuffled")
