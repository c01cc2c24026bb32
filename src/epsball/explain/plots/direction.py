"""The figure of `direction`."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epsball.explain.analyses.direction import Direction
from epsball.explain.finding import numbers, percent
from epsball.explain.plots import canvas
from epsball.report import plots

KINDS = {
    "gradient_same": ("gradients, same class", plots.VERMILION),
    "gradient_other": ("gradients, other class", plots.BLUE),
    "step_same": ("perturbations, same class", plots.ORANGE),
    "step_other": ("perturbations, other class", plots.GREEN),
}


def plot(found: Direction) -> Figure:
    """Cosines of pairs, class against class; and for several networks cosines, transfer and agreement."""
    config, several = found.config, len(found.names) > 1
    note = (
        f"{config['rows']} examples of {canvas.data_name(found)}; {config['attack']} in {config['ball_name']}; "
        "transfer: of the examples that the column classifies correctly; agreement: where both classify the clean "
        "example correctly and err on the point"
    )
    title = "Do gradients of other examples, and of other networks, point the same way?"
    figure = canvas.page(found, 12.6, 7.4 if several else 4.0, title=title, note=note)
    lines = figure.subfigures(2 if several else 1, 1, squeeze=False, height_ratios=[1, 1.05] if several else [1])
    left, right = lines[0, 0].subplots(1, 2, width_ratios=[1.6, 1])
    _cosines(left, found)
    labels = config["labels"]
    canvas.matrix(right, numbers(found.pairs[0].classes), labels, labels, signed=True)
    canvas.title(right, f"Mean cosine of gradients, class by class ({found.names[0]})")
    if several:
        names = [name.replace(", ", ",\n") for name in found.names]
        for place, (axis, matrix, title, control) in enumerate(
            zip(
                lines[1, 0].subplots(1, 3),
                (found.between, found.transfer, found.agreement),
                (
                    "Mean cosine of two networks' gradients",
                    "Fooled, %: made on the row, tested on the column",
                    "Same wrong class, %: row and column",
                ),
                (None, ("noise", "steps shuffled"), ("by_chance", "by chance")),
                strict=True,
            )
        ):
            canvas.matrix(axis, numbers(matrix), ["" for _ in names] if place else names, names, signed=place == 0)
            canvas.title(axis, title)
            if control is not None and found.elsewhere(control[0]) is not None:
                canvas.small(axis, f"between two networks, {control[1]}: {percent(found.elsewhere(control[0]))}")
    return figure


def _cosines(axis: Axes, found: Direction) -> None:
    plots.panel(axis, title="Cosines of two different examples of one network")
    canvas.small(
        axis,
        "cosine: median, quartiles, 5 % to 95 % of the pairs; grey: one standard deviation of random directions",
    )
    axis.axvspan(-found.chance, found.chance, color=plots.FAINT, linewidth=0)
    axis.axvline(0, color=plots.GREY, linewidth=0.8)
    labelled: set[str] = set()
    for place, pairs in enumerate(found.pairs):
        for k, (name, (label, colour)) in enumerate(KINDS.items()):
            quantiles = getattr(pairs, name)
            if quantiles is None:
                continue
            y = place + 0.18 * (k - 1.5)
            axis.plot([quantiles[0], quantiles[4]], [y, y], color=colour, linewidth=1, alpha=0.6)
            axis.plot([quantiles[1], quantiles[3]], [y, y], color=colour, linewidth=3.5, alpha=0.6)
            axis.plot(quantiles[2], y, "o", color=colour, markersize=4, label=None if label in labelled else label)
            labelled.add(label)
    axis.set_yticks(range(len(found.names)), found.names)
    axis.set_ylim(len(found.names) - 0.5, -0.5)
    axis.set_xlim(-1, 1)
    if labelled:
        plots.legend(axis)
