"""The figure of `l1_equivalence`: six logistic regressions side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from epsball.explain.pictures import made_with
from epsball.explain.record import percent
from epsball.report import plots

if TYPE_CHECKING:
    from epsball.explain.l1 import Fit, Form, L1Equivalence

SHOWN = {
    "plain": (plots.BLUE, "--"),
    "adversarial": (plots.VERMILION, "-"),
    "gradient": (plots.PURPLE, "-"),
    "l1": (plots.GREEN, "-"),
    "l1_hundredth": (plots.GREEN, ":"),
    "l1_eps": (plots.GREEN, "--"),
}
"""Colour and line of each logistic regression."""


def draw_l1(found: L1Equivalence, path: str | Path) -> None:
    """The weights of each model; what each penalty costs an example of a margin; weights by size; the figures."""
    config = found.config
    one, other = config["classes"]
    tested = "the same" if config["test_rows"] is None else f"{config['test_rows']:,} others"
    note = (
        f"fitted to {config['rows']:,} examples of {one} and {other}, accuracies on {tested}; no box; max-norm "
        f"attacker of eps {config['eps']:g}, at its exact optimum; plain: |w|² / (2Cn), C = {config['C']:g}; "
        f"gradient penalty: a stationary point, from the adversarial model; {made_with(config)}"
    )
    title = (
        f"Is adversarial training L1 regularisation?  Logistic regression, {one} against {other}, eps {config['eps']:g}"
    )
    figure = plots.page(13.6, 7.4, title=title, note=note)
    above, below = (figure.add_subfigure(part) for part in figure.add_gridspec(2, 1, height_ratios=[1, 1.4]))
    for axis, fit in zip(above.subplots(1, len(found.fits)), found.fits, strict=True):
        _weights(axis, fit, found)
    left, middle, right = below.subplots(1, 3, width_ratios=[1.2, 0.85, 1.4])
    _penalties(left, found)
    _sorted_sizes(middle, found)
    _figures(right, found)
    plots.save(figure, path)


def _said(fit: Fit) -> str:
    from epsball.explain.l1 import MODELS

    return MODELS[fit.name]


def _weights(axis: Axes, fit: Fit, found: L1Equivalence) -> None:
    """As an image where the features are one (the channels' sum), else as bars; scaled to the greatest."""
    shape, weight = found.config["shape"], np.array(fit.weight)
    most = float(np.abs(weight).max()) or 1.0
    if len(shape) in (2, 3) and min(shape[-2:]) > 1:
        image = weight.reshape(-1, *shape[-2:]).sum(0)
        axis.imshow(image, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(color=plots.FAINT)
    else:
        plots.panel(axis)
        axis.bar(np.arange(len(weight)), weight, width=1.0, color=np.where(weight > 0, plots.VERMILION, plots.BLUE))
        axis.set_ylim(-1.05 * most, 1.05 * most)
    strength = f": λ = {fit.strength:.2g}" if fit.name.startswith("l1") else ""
    axis.set_title(_said(fit) + strength, fontsize=plots.NORMAL, color=plots.INK)
    lines = [f"$|w|_1$ = {fit.norm:.3g}, greatest {np.abs(weight).max():.3g}", f"{fit.zeros} of {len(weight)} are zero"]
    if fit.endless:
        lines[1] += "; no minimum"
    axis.set_xlabel("\n".join(lines), fontsize=plots.SMALL, color=plots.GREY)


def _penalties(axis: Axes, found: L1Equivalence) -> None:
    fading, reach = found.fading, found.config["eps"] * found.of("adversarial").norm
    title = "What an example pays for its margin (adversarial model)"
    plots.panel(axis, title=title, x="margin m = y (w·x + b) of the clean example", y="penalty in nats")
    edges = np.array(fading.edges)
    margin = np.linspace(min(edges[0], -1.0), edges[-1], 400)
    height = np.array(fading.counts) / max(fading.counts) * reach * 0.5
    axis.stairs(height, edges, fill=True, color="#D9D9D9", label=f"margins of the {found.config['rows']:,} examples")
    forms: tuple[tuple[Form, str, str], ...] = (
        ("exact", "adversarial", "exact: softplus(eps|w| - m) - softplus(-m)"),
        ("gradient", "gradient", "gradient penalty: eps|w| sigma(-m)"),
        ("l1", "l1", "L1, matched: λ|w|"),
    )
    for form, name, said in forms:
        label = f"{said}; mean {fading.means[form]:.2g}"
        axis.plot(margin, found.penalty(form, margin), color=SHOWN[name][0], linewidth=1.8, label=label)
    axis.axhline(
        reach, color=SHOWN["l1_eps"][0], linestyle="--", linewidth=1.2, label=f"L1, λ = eps: eps|w| = {reach:.2g}"
    )
    axis.plot([reach, reach], [0, reach], color=plots.GREY, linewidth=0.8)
    beyond, carried = fading.beyond, fading.carried
    said = (
        f"beyond reach, m > eps|w|:\n{100 * beyond:.0f} % of the examples pay\n{100 * carried['exact']:.0f} % of the "
        f"exact,\n{100 * carried['gradient']:.0f} % of the gradient,\n{100 * carried['l1']:.0f} % of the L1 penalty"
    )
    style = {
        "fontsize": plots.SMALL,
        "color": plots.INK,
        "va": "top",
        "in_layout": False,
        "textcoords": "offset points",
    }
    axis.annotate(said, (reach, 0.97 * reach), xytext=(5, 0), **style)
    axis.set_xlim(margin[0], margin[-1])
    axis.set_ylim(0, 1.62 * reach)
    plots.legend(axis, place="upper right")


def _sorted_sizes(axis: Axes, found: L1Equivalence) -> None:
    title = "Sizes of the weights, the greatest first"
    plots.panel(axis, title=title, x="rank of the feature", y="|weight| / greatest", log="xy")
    for fit in found.fits:
        size = np.sort(np.abs(fit.weight))[::-1]
        there = size[size > 0]
        colour, line = SHOWN[fit.name]
        label = f"{_said(fit)}: {len(there)}"
        if len(there):
            axis.plot(np.arange(1, len(there) + 1), there / there[0], line, color=colour, linewidth=1.4, label=label)
            axis.plot(len(there), there[-1] / there[0], "o", color=colour, markersize=3)
        else:
            axis.plot([], [], line, color=colour, label=label)
    axis.set_ylim(1e-4, 1.4)
    axis.axhline(0.01, color=plots.GREY, linewidth=0.8)
    plots.legend(axis, place="lower left")


def _figures(axis: Axes, found: L1Equivalence) -> None:
    """A table: accuracies on the test data, the four objectives on the training data, the lowest of each marked."""
    axis.axis("off")
    heads = ("clean", "attacked", "J", "exact", "gradient", "L1")
    places = (0.40, 0.545, 0.655, 0.77, 0.90, 1.0)
    best = {cost: min(fit.costs[cost] for fit in found.fits) for cost in ("plain", "exact", "gradient", "l1")}
    text = {"fontsize": plots.SMALL + 0.5, "transform": axis.transAxes, "va": "center", "in_layout": False}
    axis.text(0.545, 0.98, "accuracy", color=plots.INK, ha="right", **text)
    axis.text(1.0, 0.98, "objective, training data", color=plots.INK, ha="right", **text)
    for place, head in zip(places, heads, strict=True):
        axis.text(place, 0.91, head, color=plots.GREY, ha="right", **text)
    for line, fit in enumerate(found.fits):
        y = 0.81 - 0.105 * line
        axis.text(0.0, y, _said(fit), color=SHOWN[fit.name][0], **text)
        accuracies = (percent(fit.accuracy), percent(fit.attacked))
        costs = [f"{cost:.3f}" if cost < 100 else f"{cost:.0f}" for cost in fit.costs.values()]
        lowest = [False, False, *(fit.costs[name] == best[name] for name in best)]
        for place, said, bold in zip(places, (*accuracies, *costs), lowest, strict=True):
            weight = "bold" if bold else "normal"
            axis.text(place, y, said, color=plots.INK, ha="right", fontweight=weight, **text)
    said = (
        "J = mean softplus(-m); exact = mean softplus(eps|w| - m), the loss of every\n"
        "example at its worst point; gradient = J + eps|w| mean sigma(-m);\n"
        "L1 = J + λ|w|, λ = eps mean sigma(-m) at the adversarial model.\n"
        "Bold: the lowest of its column."
    )
    axis.text(0.0, 0.02, said, color=plots.GREY, **(text | {"va": "bottom", "fontsize": plots.SMALL}))
