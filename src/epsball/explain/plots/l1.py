"""The figure of `l1_equivalence`: six logistic regressions side by side."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epsball.explain.analyses.l1 import MODELS, Fit, Form, L1Equivalence
from epsball.explain.finding import percent
from epsball.explain.plots import canvas
from epsball.report import plots

STYLES = {
    "plain": (plots.BLUE, "--"),
    "adversarial": (plots.VERMILION, "-"),
    "gradient": (plots.PURPLE, "-"),
    "l1": (plots.GREEN, "-"),
    "l1_hundredth": (plots.GREEN, ":"),
    "l1_eps": (plots.GREEN, "--"),
}
"""Colour and line of each logistic regression."""
FORMS: tuple[tuple[Form, str, str], ...] = (
    ("exact", "adversarial", "exact: softplus(eps|w| - m) - softplus(-m)"),
    ("gradient", "gradient", "gradient penalty: eps|w| sigma(-m)"),
    ("l1", "l1", "L1, matched: λ|w|"),
)


def plot(found: L1Equivalence) -> Figure:
    """The weights of each model; what each penalty costs an example of a margin; weights by size; the figures."""
    config = found.config
    one, other = config["classes"]
    tested = "the same" if config["test_rows"] is None else f"{config['test_rows']:,} others"
    note = (
        f"fitted to {config['rows']:,} examples of {one} and {other}, accuracies on {tested}; no box; max-norm "
        f"attacker of eps {config['eps']:g}, at its exact optimum; plain: |w|² / (2Cn), C = {config['C']:g}; "
        "gradient penalty: a stationary point, from the adversarial model"
    )
    title = (
        f"Is adversarial training L1 regularisation?  Logistic regression, {one} against {other}, eps {config['eps']:g}"
    )
    figure = canvas.page(found, 13.6, 7.4, title=title, note=note)
    above, below = (figure.add_subfigure(part) for part in figure.add_gridspec(2, 1, height_ratios=[1, 1.4]))
    for axis, fit in zip(above.subplots(1, len(found.fits)), found.fits, strict=True):
        _weights(axis, fit, config["shape"])
    left, middle, right = below.subplots(1, 3, width_ratios=[1.2, 0.85, 1.4])
    _penalties(left, found)
    _sorted_sizes(middle, found)
    _figures(right, found)
    return figure


def _weights(axis: Axes, fit: Fit, shape: tuple[int, ...]) -> None:
    """As an image where the features are one (the channels' sum), else as bars; scaled to the greatest."""
    weight = np.array(fit.weight)
    most = float(np.abs(weight).max()) or 1.0
    if len(shape) in (2, 3) and min(shape[-2:]) > 1:
        canvas.show_signed(axis, weight.reshape(-1, *shape[-2:]).sum(0), most)
    else:
        plots.panel(axis)
        axis.bar(np.arange(len(weight)), weight, width=1.0, color=np.where(weight > 0, plots.VERMILION, plots.BLUE))
        axis.set_ylim(-1.05 * most, 1.05 * most)
    strength = f": λ = {fit.strength:.2g}" if fit.name.startswith("l1") else ""
    axis.set_title(MODELS[fit.name] + strength, fontsize=plots.NORMAL, color=plots.INK)
    endless = "; no minimum" if fit.endless else ""
    canvas.small(
        axis,
        f"$|w|_1$ = {fit.norm:.3g}, greatest {np.abs(weight).max():.3g}\n"
        f"{fit.zeros} of {len(weight)} are zero{endless}",
    )


def _penalties(axis: Axes, found: L1Equivalence) -> None:
    fading, reach = found.fading, found.config["eps"] * found.of("adversarial").norm
    title = "What an example pays for its margin (adversarial model)"
    plots.panel(axis, title=title, x="margin m = y (w·x + b) of the clean example", y="penalty in nats")
    edges = np.array(fading.edges)
    margin = np.linspace(min(edges[0], -1.0), edges[-1], 400)
    height = np.array(fading.counts) / max(fading.counts) * reach * 0.5
    axis.stairs(height, edges, fill=True, color="#D9D9D9", label=f"margins of the {found.config['rows']:,} examples")
    for form, name, formula in FORMS:
        label = f"{formula}; mean {fading.means[form]:.2g}"
        axis.plot(margin, found.penalty(form, margin), color=STYLES[name][0], linewidth=1.8, label=label)
    label = f"L1, λ = eps: eps|w| = {reach:.2g}"
    axis.axhline(reach, color=STYLES["l1_eps"][0], linestyle="--", linewidth=1.2, label=label)
    axis.plot([reach, reach], [0, reach], color=plots.GREY, linewidth=0.8)
    exact, gradient, l1 = (f"{100 * fading.carried[form]:.0f} %" for form, _, _ in FORMS)
    text = (
        f"beyond reach, m > eps|w|:\n{100 * fading.beyond:.0f} % of the examples pay\n{exact} of the exact,\n"
        f"{gradient} of the gradient,\n{l1} of the L1 penalty"
    )
    style = {"fontsize": plots.SMALL, "color": plots.INK, "va": "top", "in_layout": False}
    axis.annotate(text, (reach, 0.97 * reach), xytext=(5, 0), textcoords="offset points", **style)
    axis.set_xlim(margin[0], margin[-1])
    axis.set_ylim(0, 1.62 * reach)
    plots.legend(axis, place="upper right")


def _sorted_sizes(axis: Axes, found: L1Equivalence) -> None:
    title = "Sizes of the weights, the greatest first"
    plots.panel(axis, title=title, x="rank of the feature", y="|weight| / greatest", log="xy")
    for fit in found.fits:
        size = np.sort(np.abs(fit.weight))[::-1]
        size = size[size > 0] / (size[0] or 1.0)
        colour, line = STYLES[fit.name]
        rank = np.arange(1, len(size) + 1)
        axis.plot(rank, size, line, color=colour, linewidth=1.4, label=f"{MODELS[fit.name]}: {len(size)}")
        axis.plot(rank[-1:], size[-1:], "o", color=colour, markersize=3)
    axis.set_ylim(1e-4, 1.4)
    axis.axhline(0.01, color=plots.GREY, linewidth=0.8)
    plots.legend(axis, place="lower left")


def _figures(axis: Axes, found: L1Equivalence) -> None:
    """A table: accuracies on the test data, the four objectives on the training data, the lowest of each marked."""
    best = {cost: min(fit.costs[cost] for fit in found.fits) for cost in found.fits[0].costs}
    lines: list[list[canvas.Cell]] = [["", "clean", "attacked", "J", "exact", "gradient", "L1"]]
    for fit in found.fits:
        costs = [
            (f"{cost:.3f}" if cost < 100 else f"{cost:.0f}", {"fontweight": "bold" if cost == best[name] else "normal"})
            for name, cost in fit.costs.items()
        ]
        name = (MODELS[fit.name], {"color": STYLES[fit.name][0]})
        lines.append([name, percent(fit.accuracy), percent(fit.attacked), *costs])
    heads: list[canvas.Cell] = [(text, {"color": plots.INK}) for text in ("accuracy", "objective, training data")]
    size = plots.SMALL + 0.5
    canvas.table(axis, (0.545, 1.0), [["", *heads]], step=0, size=size)
    canvas.table(axis, (0.40, 0.545, 0.655, 0.77, 0.90, 1.0), lines, top=0.91, step=0.1, size=size)
    text = (
        "J = mean softplus(-m); exact = mean softplus(eps|w| - m), the loss of every\n"
        "example at its worst point; gradient = J + eps|w| mean sigma(-m);\n"
        "L1 = J + λ|w|, λ = eps mean sigma(-m) at the adversarial model.\n"
        "Bold: the lowest of its column."
    )
    axis.text(0.0, 0.02, text, color=plots.GREY, fontsize=plots.SMALL, transform=axis.transAxes, in_layout=False)
