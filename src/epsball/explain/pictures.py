"""The figures of the analyses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from epsball.report import plots

if TYPE_CHECKING:
    from epsball.explain.dimension import Growth, Rung
    from epsball.explain.l1 import Fit, Form, L1Equivalence
    from epsball.explain.taylor import TaylorGap

SHOWN = {
    "plain": (plots.BLUE, "--"),
    "adversarial": (plots.VERMILION, "-"),
    "gradient": (plots.PURPLE, "-"),
    "l1": (plots.GREEN, "-"),
    "l1_hundredth": (plots.GREEN, ":"),
    "l1_eps": (plots.GREEN, "--"),
}
"""Colour and line of each logistic regression."""
COLOURS = {"normal": plots.BLUE, "shifted": plots.ORANGE, "trained": plots.VERMILION}


def draw_growth(found: Growth, path: str | Path) -> None:
    """The change and what it is compared with, a column per kind of weights; |w| and the accuracy in the last one."""
    config = found.config
    one, other = config["pair"]
    kinds = {
        "normal": "Weights drawn from N(0, 1)",
        "shifted": "Weights drawn from N(1, 1)",
        "trained": f"Trained: {one} against {other}",
    }
    note = (
        f"{config['rows']} images of {Path(config['data']).name} (classes {one} and {other}), resized; "
        f"eps {config['eps']:g}; {config['draws']} draws of weights; logistic regression with C = {config['C']:g} on "
        f"{config['fit_rows']} images; seed {config['seed']}; epsball {config['versions']['epsball']}"
    )
    title = "A step of eps changes a linear activation by eps·m·n. Does the clean activation keep up?"
    figure = plots.page(12.6, 6.2, title=title, note=note)
    grid = figure.subplots(2, 4, sharex=True)
    for column, (kind, name) in enumerate(kinds.items()):
        rungs = found.of(kind)
        above, below = grid[0, column], grid[1, column]
        plots.panel(above, title=name, y="activation" if column == 0 else "", log="xy")
        _activations(above, rungs)
        plots.panel(below, title="", y="change / clean activation" if column == 0 else "", x="dimension n", log="xy")
        _ratios(below, found, kind)
    _share_scale([grid[0, column] for column in range(3)])
    _share_scale([grid[1, column] for column in range(3)])
    plots.legend(grid[0, 0], place="upper left")
    size, accuracy = plots.panel(grid[0, 3], title="Mean size of a weight, m", log="xy"), grid[1, 3]
    for kind in kinds:
        _sizes(size, found, kind)
    low, high = size.get_ylim()
    size.set_ylim(low / 2.5, high * 2)
    plots.panel(accuracy, title="Accuracy of the trained classifier", x="dimension n", log="x")
    _accuracies(accuracy, found.of("trained"))
    dimensions = sorted({rung.n for rung in found.rungs})
    for axis in grid.flat:
        plots.ticks(axis, dimensions, [f"{n:,}" for n in dimensions])
    plots.save(figure, path)


def _activations(axis: Axes, rungs: tuple[Rung, ...]) -> None:
    n = [rung.n for rung in rungs]
    axis.plot(n, [r.predicted for r in rungs], color=plots.VERMILION, linewidth=1.6, label="predicted eps·m·n")
    axis.plot(n, [r.measured for r in rungs], "o", color=plots.VERMILION, markersize=5, label="measured change")
    hollow = {"color": plots.VERMILION, "markersize": 5, "markerfacecolor": "white"}
    axis.plot(n, [r.boxed for r in rungs], "o", **hollow, label="measured, within the box")
    axis.plot(n, [r.clean for r in rungs], "s--", color=plots.BLUE, markersize=3.5, linewidth=1.2, label="clean |w·x|")
    spread = {"color": plots.GREEN, "markersize": 4, "linewidth": 1.2}
    axis.plot(n, [r.spread for r in rungs], "^:", **spread, label="std of w·x over images")


def _ratios(axis: Axes, found: Growth, kind: str) -> None:
    rungs = found.of(kind)
    for name, colour, marker, said in (
        ("per_spread", plots.GREEN, "^:", "change / std"),
        ("per_clean", plots.BLUE, "s--", "change / |w·x|"),
    ):
        label = f"{said}{_power(found, kind, name)}"
        values = [getattr(r, name) for r in rungs]
        axis.plot([r.n for r in rungs], values, marker, color=colour, markersize=4, linewidth=1.2, label=label)
    axis.axhline(1, color=plots.GREY, linewidth=0.8)
    plots.legend(axis)


def _sizes(axis: Axes, found: Growth, kind: str) -> None:
    rungs = found.of(kind)
    axis.plot([r.n for r in rungs], [r.m for r in rungs], "o-", color=COLOURS[kind], markersize=4, linewidth=1.4)
    said, above = {"normal": ("N(0, 1)", False), "shifted": ("N(1, 1)", True), "trained": ("trained", False)}[kind]
    axis.annotate(
        said + _power(found, kind, "m"),
        (rungs[-1].n, rungs[-1].m),
        xytext=(0, 6 if above else -7),
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        fontsize=plots.SMALL,
        color=COLOURS[kind],
    )


def _accuracies(axis: Axes, rungs: tuple[Rung, ...]) -> None:
    for name, colour, marker, said in (
        ("accuracy", plots.BLUE, "s--", "clean"),
        ("fgsm_boxed", plots.VERMILION, "o:", "FGSM, within the box"),
        ("fgsm_accuracy", plots.VERMILION, "o-", "FGSM"),
    ):
        face = "white" if name == "fgsm_boxed" else colour
        shares = [getattr(r, name) for r in rungs]
        (line,) = axis.plot([r.n for r in rungs], shares, marker, color=colour, markersize=4, linewidth=1.2, label=said)
        line.set_markerfacecolor(face)
    axis.set_ylim(-0.02, 1.04)
    axis.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    plots.legend(axis)


def _power(found: Growth, kind: str, name: str) -> str:
    """How it grows with n, as measured: nothing where it cannot be said."""
    exponent = round(found.exponent(kind, name), 2)
    return f" ~ n$^{{{exponent + 0.0:.2f}}}$" if np.isfinite(exponent) else ""


def _share_scale(axes: list[Axes]) -> None:
    ends = np.array([axis.get_ylim() for axis in axes])
    for axis in axes:
        axis.set_ylim(ends[:, 0].min(), ends[:, 1].max())


def draw_taylor(found: TaylorGap, path: str | Path) -> None:
    """The rise of the loss as predicted and as it is, and what the prediction leaves out of it."""
    ball, config = found.config["ball"], found.config
    note = (
        f"{len(found)} examples; median and, shaded, 5 % to 95 % of them; loss {config['loss']}, ball {ball['class']}"
        f" in [{ball['lo']}, {ball['hi']}]; {config['dtype']}; epsball {config['versions']['epsball']}"
    )
    figure = plots.page(9.4, 4.1, title="How far does the first-order story of FGSM carry?", note=note)
    left, right = figure.subplots(1, 2)
    radii = found.eps.tolist()
    change, predicted = found.quantiles(found.change), found.quantiles(found.first_order)
    positive = np.concatenate([change[change > 0], predicted[predicted > 0]])
    scale = "xy" if len(positive) else "x"
    plots.panel(left, title="Rise of the loss at the first-order worst point", x="eps", log=scale)
    plots.band(left, radii, predicted, colour=plots.BLUE, label="first order: gradient · step", dashed=True)
    plots.band(left, radii, change, colour=plots.VERMILION, label="true change", marker="s")
    if len(positive):
        left.set_ylim(positive.min() / 2, positive.max() * 2)
    plots.legend(left, place="upper left")
    plots.panel(right, title="Gap, as a share of the true change", x="eps", log="x")
    relative = found.quantiles(found.relative)
    plots.band(right, radii, relative, colour=plots.PURPLE, label="(true - first order) / |true|")
    right.axhline(0, color=plots.GREY, linewidth=0.8)
    known = relative[np.isfinite(relative)]
    if len(known):
        right.set_ylim(max(-2.0, known.min() - 0.05), min(1.05, known.max() + 0.05))
    right.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    plots.legend(right)
    labels = [f"{eps:.2g}" for eps in radii]
    for axis in (left, right):
        plots.ticks(axis, radii, labels)
    plots.save(figure, path)


def draw_l1(found: L1Equivalence, path: str | Path) -> None:
    """The weights of each model; what each penalty costs an example of a margin; weights by size; the figures."""
    config = found.config
    one, other = config["classes"]
    tested = "the same" if config["test_rows"] is None else f"{config['test_rows']:,} others"
    note = (
        f"fitted to {config['rows']:,} examples of {one} and {other}, accuracies on {tested}; no box; max-norm "
        f"attacker of eps {config['eps']:g}, at its exact optimum; plain: |w|² / (2Cn), C = {config['C']:g}; "
        f"gradient penalty: a stationary point, from the adversarial model; epsball {config['versions']['epsball']}"
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
        f"beyond reach, m > eps|w|:\n{beyond:.0%} of the examples pay\n{carried['exact']:.0%} of the exact,\n"
        f"{carried['gradient']:.0%} of the gradient,\n{carried['l1']:.0%} of the L1 penalty"
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
        accuracies = (f"{fit.accuracy:.1%}", f"{fit.attacked:.1%}")
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
