"""The figure of `targets`."""

from __future__ import annotations

from matplotlib.figure import Figure

from epsball.explain.analyses.targets import Targets
from epsball.explain.plots import canvas
from epsball.report import plots


def plot(found: Targets) -> Figure:
    """The matrix of shares; shares against the radius; how many classes an example reaches."""
    config, classes = found.config, len(found.targets)
    note = (
        f"{config['rows']:,} examples of {canvas.data_name(found)}, attacked by {config['attack']} once per target and "
        "radius; counted on stored points; misclassified examples are left out"
    )
    figure = canvas.page(found, 12.4, 5.4, title="No image is safe? Every class driven to every other", note=note)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 0.8])
    plots.panel(left, title=f"Driven to the target within {config['ball_name']}, %", x="target", y="source")
    sources, targets = ([canvas.short(name) for name in names] for names in (found.sources, found.targets))
    numbered = classes <= canvas.NUMBERED
    image = canvas.matrix(left, found.shares, sources, targets, numbered=numbered)
    if len(sources) > classes:
        left.axhline(classes - 0.5, color=plots.INK, linewidth=0.8)
    bar = figure.colorbar(image, ax=left, shrink=0.7)
    canvas.percents(bar.ax.yaxis)
    bar.ax.tick_params(labelsize=plots.SMALL, colors=plots.GREY, length=2)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - matplotlib's stubs take it for a list

    plots.panel(middle, title="Within larger balls", x=canvas.eps_label(found), y="share")
    kinds = (
        ("somewhere", "examples that reach some other class", plots.BLUE, "s--"),
        ("mean", "pairs of an example and a class", plots.VERMILION, "o-"),
        ("everywhere", "examples that reach every other class", plots.PURPLE, "^-"),
        ("blank", "pairs, from inputs that show nothing", plots.GREY, "d:"),
    )
    canvas.curves(middle, [reach.eps for reach in found.curve], found.curve, kinds)
    middle.axvline(config["eps"], 0, 1.05 / 1.33, color=plots.GREY, linewidth=0.8)
    middle.set_xlim(left=0)
    canvas.shares(middle, room=0.3)
    plots.legend(middle, place="upper left")

    within = f"other classes, within {config['ball_name']}"
    plots.panel(right, title="Classes that an example reaches", x=within, y="examples")
    right.bar(range(len(found.reached)), found.reached, color=plots.BLUE, width=0.85)
    if numbered:
        right.set_xticks(range(classes))
    return figure
