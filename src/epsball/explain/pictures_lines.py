"""The figures of `linearity`, `taylor_gap` and `manifold`: what happens along a line, or a number of components."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from epsball.explain.pictures import made_with, name_of_data, numbers, percents
from epsball.explain.record import percent
from epsball.report import plots

if TYPE_CHECKING:
    from epsball.explain.line import Linearity
    from epsball.explain.subspace import Manifold
    from epsball.explain.taylor import TaylorGap

UNITS = {"cross_entropy": "nats", "margin": "logits"}
"""Of the losses."""


def draw_linearity(found: Linearity, path: str | Path) -> None:
    """One example's logits; the bands of the label's logit and its rival's; accuracy; R^2 per piece of the line."""
    config, shown, t = found.config, found.shown, numbers(found.t)
    note = (
        f"{config['rows']} examples of {name_of_data(config)}, {config['said']}; direction: the ball's step along "
        f"the gradient, {'within' if config['boxed'] else 'without'} the box; control: the same steps in a random "
        f"order and with random signs; {made_with(config)}"
    )
    figure = plots.page(12.6, 6.6, title="How straight are the logits along the fast gradient direction?", note=note)
    grid = figure.subplots(2, 2, width_ratios=[1.25, 1])
    where = "step in radii of the ball, t"
    one, all_of_them, accuracy, share = grid.flat
    plots.panel(one, title=f"The logits of example {shown['id']} (class {shown['label']}) at x + t·d", x=where)
    _logits(one, t, numbers(shown["logits"]), shown["label"])
    plots.panel(all_of_them, title="All examples: median, and 5 % to 95 %", x=where)
    plots.band(all_of_them, found.t, numbers(found.label), colour=plots.BLUE, label="logit of the label", marker="")
    plots.band(
        all_of_them, found.t, numbers(found.rival), colour=plots.VERMILION, label="greatest other logit", marker=""
    )
    plots.panel(accuracy, title="Accuracy along the line", x=where)
    accuracy.plot(t, found.accuracy, color=plots.VERMILION, linewidth=1.6, label="fast gradient direction")
    accuracy.plot(t, found.control, color=plots.GREY, linewidth=1.4, linestyle="--", label="shuffled, random signs")
    accuracy.set_ylim(-0.03, 1.03)
    percents(accuracy.yaxis)
    for axis in (one, all_of_them, accuracy):
        axis.axvspan(-1, 1, color=plots.FAINT, alpha=0.6, linewidth=0)
        axis.set_xlim(t[0], t[-1])
    for axis in (all_of_them, accuracy):
        plots.legend(axis)
    _explained(share, found)
    plots.save(figure, path)


def _logits(axis: Axes, t: np.ndarray, logits: np.ndarray, label: int) -> None:
    fooled = int(np.argmax(logits[np.abs(t - 1).argmin()]))
    for j, line in enumerate(logits.T):
        said = {label: f"class {label}, its label", fooled: f"class {fooled}, predicted at t = 1"}.get(j)
        colour = {label: plots.BLUE, fooled: plots.VERMILION}.get(j, "#BBBBBB")
        axis.plot(t, line, color=colour, linewidth=1.8 if said else 0.9, label=said, zorder=3 if said else 2)
    axis.plot([], [], color="#BBBBBB", linewidth=0.9, label="the other classes")
    plots.legend(axis)


def _explained(axis: Axes, found: Linearity) -> None:
    from epsball.explain.line import PIECES

    plots.panel(axis, title="Share of the logits' variance that straight lines explain, R²")
    lowest, text = 1.0, {"fontsize": plots.SMALL, "color": plots.INK, "va": "center", "in_layout": False}
    for place, piece in enumerate(PIECES):
        for values, shift, colour in (
            (found.explained[piece], -0.16, plots.VERMILION),
            (found.explained_control[piece], 0.16, plots.GREY),
        ):
            there = numbers(values)
            there = there[np.isfinite(there)]
            if not len(there):
                continue
            low, middle, high = np.quantile(there, (0.05, 0.5, 0.95))
            lowest = min(lowest, low)
            axis.plot([low, high], [place + shift] * 2, color=colour, linewidth=2.2, alpha=0.45)
            axis.plot(middle, place + shift, "o", color=colour, markersize=5)
            where = axis.get_yaxis_transform()
            axis.text(0.995, place + shift, percent(middle), transform=where, ha="right", **text)
    axis.set_yticks(range(len(PIECES)), list(PIECES.values()))
    axis.invert_yaxis()
    room = max(1 - lowest, 0.01)
    axis.set_xlim(lowest - 0.06 * room, 1 + 0.14 * room)  # the figures stand at the right
    percents(axis.xaxis)
    said = "median, and 5 % to 95 % of the examples; red: fast gradient, grey: shuffled"
    axis.set_xlabel(said, fontsize=plots.SMALL, color=plots.GREY)


def draw_manifold(found: Manifold, path: str | Path) -> None:
    """The energy outside the leading components, and what the parts inside and outside of them do on their own."""
    config, k = found.config, numbers(found.components)
    note = (
        f"principal components of {config['fit_rows']} examples of {name_of_data(config)}, measured on "
        f"{config['rows']} others; {config['attack']} in {config['said']}; the parts are not clipped to the box; "
        f"{found.config['parts_rows']} examples are right and fooled; {made_with(config)}"
    )
    figure = plots.page(12.6, 4.4, title="Do adversarial perturbations leave the data's subspace?", note=note)
    left, right = figure.subplots(1, 2)
    plots.panel(left, title="Energy outside the k leading components", x="number of components, k")
    for name, (said, colour, line) in {
        "attack": ("adversarial perturbation", plots.VERMILION, "-"),
        "noise": ("noise of equal norm", plots.GREY, "--"),
        "difference": ("difference of two images", plots.BLUE, "-"),
        "images": ("images, less their mean", plots.GREEN, ":"),
    }.items():
        left.plot(k, numbers(found.outside[name]), line, color=colour, linewidth=1.6, label=said)
    left.axvline(found.leading, color=plots.GREY, linewidth=0.8)
    said = {"fontsize": plots.SMALL, "color": plots.GREY, "textcoords": "offset points"}
    left.annotate(
        f" k = {found.leading}:\n 95 % of the variance", (found.leading, 0.93), xytext=(2, 0), va="top", **said
    )
    plots.panel(right, title="What each part of the perturbation does alone", x="number of components, k")
    if found.fooled_inside is not None and found.fooled_outside is not None:
        right.plot(k, found.fooled_inside, color=plots.BLUE, linewidth=1.6, label="the part within the k leading")
        right.plot(k, found.fooled_outside, color=plots.VERMILION, linewidth=1.6, label="the part outside of them")
    noise = found.fooled_noise
    if noise is not None:
        right.axhline(noise, color=plots.GREY, linestyle="--", linewidth=1.2, label="noise of equal norm, all of it")
    right.axvline(found.leading, color=plots.GREY, linewidth=0.8)
    right.set_ylabel("still fooled, of those fooled by the whole", fontsize=plots.SMALL, color=plots.GREY)
    for axis in (left, right):
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlim(0, k[-1])
        percents(axis.yaxis)
    plots.legend(left, place="upper right")
    if noise is None:
        right.text(0.5, 0.5, "no example is right and fooled", transform=right.transAxes, ha="center", color=plots.GREY)
    else:
        plots.legend(right)
    plots.save(figure, path)


def draw_taylor(found: TaylorGap, path: str | Path) -> None:
    """The rise of the loss as predicted and as it is, and what the prediction leaves out of it."""
    ball, config = found.config["ball"], found.config
    note = (
        f"{len(found)} examples; median and, shaded, 5 % to 95 % of them; loss {config['loss']}, ball {ball['class']}"
        f" in [{ball['lo']}, {ball['hi']}]; {config['dtype']}; {made_with(config)}"
    )
    figure = plots.page(9.4, 4.1, title="How far does the first-order story of FGSM carry?", note=note)
    left, right = figure.subplots(1, 2)
    radii = found.eps.tolist()
    change, predicted = found.quantiles(found.change), found.quantiles(found.first_order)
    positive = np.concatenate([change[change > 0], predicted[predicted > 0]])
    scale = "xy" if len(positive) else "x"
    at = f"eps ({ball['class'].lower()}, units of the data)"
    unit = UNITS.get(str(config["loss"]), "units of the loss")
    plots.panel(left, title=f"Rise of the loss at the first-order worst point, in {unit}", x=at, log=scale)
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
    percents(right.yaxis)
    plots.legend(right)
    labels = [f"{eps:.2g}" for eps in radii]
    for axis in (left, right):
        plots.ticks(axis, radii, labels)
    plots.save(figure, path)
