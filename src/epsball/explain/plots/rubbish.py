"""The figure of `rubbish`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epsball.explain.analyses.rubbish import KINDS, READINGS, SURE, NoiseStep, Rubbish
from epsball.explain.plots import canvas
from epsball.report import plots


def plot(found: Rubbish) -> Figure:
    """How often the model is sure, by kind and reading; noise before and after a step to each class."""
    config = found.config
    pictured = bool(found.examples) and len(config["shape"]) in (2, 3)
    note = (
        f"{config['draws']:,} draws; below: the softmax p of a class before and after a step of FGSM to it within "
        f"{config['ball_name']}, framed where p > .5; model of {canvas.data_name(found)}"
    )
    title = "Rubbish inputs: noise that is predicted as a class"
    figure = canvas.page(found, 11.6, 6.0 if pictured else 3.6, title=title, note=note)
    parts = figure.subfigures(2, 1, height_ratios=[1.25, 1], squeeze=False)[:, 0] if pictured else [figure]
    left, middle, right = parts[0].subplots(1, 3, width_ratios=[1, 1, 1.2])
    kinds = [kind for kind in KINDS if any(confidence.kind == kind for confidence in found.confidences)]
    for shift, colour, (reading, label) in zip(
        (-0.19, 0.19), (plots.VERMILION, plots.BLUE), READINGS.items(), strict=True
    ):
        for axis, name in ((left, "share"), (middle, "mean")):
            values = [getattr(found.of(kind, reading), name) for kind in kinds]
            bars = axis.bar(np.arange(len(kinds)) + shift, values, 0.36, color=colour, label=label)
            axis.bar_label(bars, [f"{100 * v:.0f}" for v in values], fontsize=plots.SMALL, color=plots.INK)
    for axis, title in ((left, f"Inputs of which some class has p > {SURE:g}"), (middle, "Mean of the greatest p")):
        plots.panel(axis, title=title)
        axis.set_xticks(range(len(kinds)), [KINDS[kind].replace(" in ", "\nin ") for kind in kinds])
        canvas.shares(axis, room=0.35)
        axis.set_ylim(bottom=0)
        axis.grid(False, axis="x")
    plots.legend(left, place="upper left")
    _predictions(right, found)
    if pictured:
        grid = parts[1].subplots(2, len(found.examples), squeeze=False)
        for axes, example in zip(grid.T, found.examples, strict=True):
            _step(axes, example, found)
        for axis, label in zip(grid[:, 0], ("uniform noise", "a step later"), strict=True):
            axis.set_ylabel(label, fontsize=plots.SMALL, color=plots.GREY)
    return figure


def _predictions(axis: Axes, found: Rubbish) -> None:
    names = found.config["names"]
    plots.panel(axis, title="Predicted as (softmax, p > .5)", y="inputs")
    kinds = [("normal", plots.VERMILION, "N(0, I)"), ("uniform", plots.ORANGE, "uniform")]
    kinds = kinds if any(confidence.kind == "uniform" for confidence in found.confidences) else kinds[:1]
    for place, (kind, colour, label) in enumerate(kinds):
        counts = found.of(kind).classes
        at = np.arange(len(counts)) + 0.4 * (place - (len(kinds) - 1) / 2)
        axis.bar(at, counts, 0.8 / len(kinds), color=colour, label=label)
    if len(names) <= canvas.NUMBERED:
        axis.set_xticks(range(len(names)), [canvas.short(name) for name in names])
    axis.grid(False, axis="x")
    plots.legend(axis)


def _step(axes: np.ndarray, example: NoiseStep, found: Rubbish) -> None:
    config = found.config
    lo, hi = config["box"]
    for axis, image, p in ((axes[0], example.x, example.before), (axes[1], example.x_adv, example.after)):
        canvas.show(axis, (np.array(image).reshape(config["shape"]) - lo) / (hi - lo))
        axis.set_xlabel(f"p = {p:.2g}", fontsize=plots.SMALL, color=plots.INK)
    name = canvas.short(config["names"][example.target])
    axes[0].set_title(f"to {name}", fontsize=plots.NORMAL, color=plots.INK)
    if example.after > SURE:
        for spine in axes[1].spines.values():
            spine.set(visible=True, color=plots.VERMILION, linewidth=2)
