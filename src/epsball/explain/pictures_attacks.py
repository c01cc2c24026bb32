"""The figures of the analyses that attack: targets, one perturbation for all, the boundary, rubbish."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from epsball.balls.registry import BALLS
from epsball.explain.pictures import made_with, name_of_data, percents, short, show
from epsball.explain.record import name_of
from epsball.report import plots

if TYPE_CHECKING:
    from epsball.explain.climb import Shared
    from epsball.explain.nearness import Boundary, Distances
    from epsball.explain.noise_inputs import Example, Rubbish
    from epsball.explain.one_for_all import Universal
    from epsball.explain.targeted import Targets

NUMBERED = 20
"""Classes up to which the cells of a matrix hold a number."""


def draw_targets(found: Targets, path: str | Path) -> None:
    """The matrix of shares; shares against the radius; how many classes an example reaches."""
    config, classes = found.config, len(found.targets)
    note = (
        f"{config['rows']:,} examples of {name_of_data(config)}, attacked by {config['attack']} once per target and "
        f"radius; counted on stored points; misclassified examples are left out; {made_with(config)}"
    )
    figure = plots.page(12.4, 5.4, title="No image is safe? Every class driven to every other", note=note)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 0.8])
    plots.panel(left, title=f"Driven to the target within {config['said']}", x="target", y="source")
    shares = found.shares
    picture = left.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    left.grid(False)
    if classes <= NUMBERED:
        left.set_xticks(range(classes), [short(name) for name in found.targets])
        left.set_yticks(range(len(found.sources)), [short(name) for name in found.sources])
        size = plots.SMALL if classes <= 12 else plots.SMALL - 2.5
        for (row, column), share in np.ndenumerate(shares):
            if np.isfinite(share):
                colour = "white" if share > 0.55 else plots.INK
                left.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=size, color=colour)
    if len(found.sources) > classes:
        left.axhline(classes - 0.5, color=plots.INK, linewidth=0.8)
    bar = figure.colorbar(picture, ax=left, shrink=0.7)
    percents(bar.ax.yaxis)
    bar.ax.tick_params(labelsize=plots.SMALL, colors=plots.GREY, length=2)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - matplotlib's stubs take it for a list

    plots.panel(middle, title="Within larger balls", x=_eps(config), y="share")
    eps = [one.eps for one in found.curve]
    for name, said, colour, marker in (
        ("somewhere", "examples that reach some other class", plots.BLUE, "s--"),
        ("mean", "pairs of an example and a class", plots.VERMILION, "o-"),
        ("everywhere", "examples that reach every other class", plots.PURPLE, "^-"),
        ("nothing", "pairs, from inputs that show nothing", plots.GREY, "d:"),
    ):
        values = [getattr(one, name) for one in found.curve]
        if None not in values:
            middle.plot(eps, values, marker, color=colour, markersize=4, linewidth=1.4, label=said)
    middle.axvline(config["eps"], 0, 1.02 / 1.32, color=plots.GREY, linewidth=0.8)
    middle.set_ylim(-0.02, 1.3)
    middle.set_yticks(np.linspace(0, 1, 6))
    middle.set_xlim(left=0)
    percents(middle.yaxis)
    plots.legend(middle, place="upper left")

    within = f"other classes, within {config['said']}"
    plots.panel(right, title="Classes that an example reaches", x=within, y="examples")
    right.bar(range(len(found.reached)), found.reached, color=plots.BLUE, width=0.85)
    if classes <= NUMBERED:
        right.set_xticks(range(classes))
    plots.save(figure, path)


def draw_universal(found: Universal, path: str | Path) -> None:
    """Shares against the radius and against the dimension; the perturbation, and an image with it."""
    config = found.config
    images = len(config["shape"]) in (2, 3)
    note = (
        f"made on {config['fitted_rows']:,} examples of {name_of_data(config)}, shown to {config['held_rows']:,} "
        f"others, of those that are predicted rightly; {config['steps']} steps; shuffled in {config['draws']} orders; "
        f"{made_with(config)}"
    )
    figure = plots.page(12.4, 4.3, title="One perturbation for all", note=note)
    one, *rest = figure.subplots(1, 5 if images else 2, width_ratios=[1.5, 1.5, 1, 1, 1] if images else None)
    plots.panel(one, title="On the model", x=_eps(config), y="fooled")
    _shares(one, found.radii, [each.eps for each in found.radii])
    one.set_xticks([each.eps for each in found.radii], [f"{each.eps:.2g}" for each in found.radii])
    plots.legend(one, place="upper left")
    two = plots.panel(rest[0], title=f"Networks trained at each size, {config['said']}", x="dimension n", log="x")
    if found.sizes:
        n = [size[0].n for size in found.sizes]
        _shares(two, [_mean(size) for size in found.sizes], n)
        for size in found.sizes:  # each network by itself
            held = [one.held for one in size]
            two.plot([one.n for one in size], held, "o", color=plots.VERMILION, markersize=3, alpha=0.5)
        two.text(0.03, 0.95, f"means of {config['networks']} networks;\nsmall: each of them", transform=two.transAxes,
                 va="top", fontsize=plots.SMALL, color=plots.GREY)  # fmt: skip
        plots.ticks(two, n, [f"{size:,}" for size in n])
    else:
        two.text(0.5, 0.5, "no images to resize", transform=two.transAxes, ha="center", color=plots.GREY)
    if images:
        _triple(rest[1:], found)
    plots.save(figure, path)


SHARES = ("each", "fitted", "held", "noise")


def _mean(size: tuple[Shared, ...]) -> Shared:
    """What several networks have on average."""
    return replace(size[0], **{name: sum(getattr(one, name) for one in size) / len(size) for name in SHARES})


def _shares(axis: Axes, shared: Sequence[Shared], at: list[float] | list[int]) -> None:
    for name, said, colour, marker in (
        ("each", "a step of FGSM for each example", plots.GREY, "^:"),
        ("fitted", "one for all: those it was made on", plots.VERMILION, "s--"),
        ("held", "one for all: others", plots.VERMILION, "o-"),
        ("noise", "the same values, shuffled", plots.BLUE, "d-"),
    ):
        values = [getattr(one, name) for one in shared]
        axis.plot(at, values, marker, color=colour, markersize=4, linewidth=1.4, label=said)
    axis.set_ylim(-0.02, 1.45)
    axis.set_yticks(np.linspace(0, 1, 6))
    percents(axis.yaxis)


def _triple(axes: list[Axes], found: Universal) -> None:
    config = found.config
    example, delta = (np.array(part).reshape(config["shape"]) for part in (found.example, found.perturbation))
    most = np.abs(delta).max() or 1.0
    lo, hi = config["box"] or (example.min(), example.max() + 1e-9)
    moved = np.clip(example + delta, lo, hi)
    name = name_of(config["names"], found.at_ball.dominant)
    signed = delta if delta.ndim == 2 else delta.mean(0)
    for axis, image, title in (
        (axes[0], (example - lo) / (hi - lo), "an image"),
        (axes[1], signed, f"the perturbation, -{most:.2g} to {most:.2g}"),
        (axes[2], (moved - lo) / (hi - lo), "the image with it"),
    ):
        show(axis, image)
        axis.set_title(title, fontsize=plots.SMALL + 0.5, color=plots.INK)
    axes[1].imshow(signed, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    said = f"{100 * found.at_ball.dominant_share:.0f} % of the fooled\nare taken for {short(name, 14)}"
    axes[2].set_xlabel(said, fontsize=plots.SMALL, color=plots.GREY)


def draw_boundary(found: Boundary, path: str | Path) -> None:
    """Both distances, norm by norm, and example by example in the ball's norm."""
    config = found.config
    note = (
        f"{config['rows']:,} examples of {name_of_data(config)}; fooling points: the nearest that "
        f"{', '.join(config['attacks'][found.norms[0].norm])} found, an upper bound; other classes: "
        f"{config['train_rows']:,} training examples; {made_with(config)}"
    )
    title = "Near the boundary? The least fooling distance beside that to the nearest example of another class"
    count = len(found.norms)
    lines = 1 if count < 3 else 2
    columns = math.ceil(count / lines)
    figure = plots.page(3.8 * columns + 4.6, 0.8 + 3.1 * lines, title=title, note=note)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[3.8 * columns, 4.6]).flat
    axes = left.subplots(lines, columns, squeeze=False)
    for axis, one in zip(axes.flat, found.norms, strict=False):
        _distances(axis, one)
    for axis in axes.flat[count:]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel("examples", fontsize=plots.SMALL, color=plots.GREY)
    last = right.subplots()
    one = found.norms[0]
    near, other = np.array(one.boundary), np.array(one.other)
    plots.panel(last, title=f"Example by example, {one.norm} distance", x="to another class", y="to a fooling point")
    last.plot(other[one.right], near[one.right], "o", color=plots.VERMILION, markersize=3, alpha=0.5, markeredgewidth=0)
    ends = np.array([0, other[np.isfinite(other)].max(initial=0) * 1.05 or 1])
    last.plot(ends, ends / 2, color=plots.INK, linewidth=1, label="half way")
    last.set_xlim(*ends)
    last.set_ylim(0, max(near[one.right].max(initial=0), ends[1] / 2) * 1.15)
    plots.legend(last, place="upper left")
    plots.save(figure, path)


def _eps(config: dict[str, Any]) -> str:
    norm = config["said"].split()[0]
    return f"eps ({norm}, {BALLS[norm].unit})"


def _distances(axis: Axes, one: Distances) -> None:
    far = f": {one.ratio:.1f} times as far" if math.isfinite(one.ratio) else ""
    plots.panel(axis, title=f"{one.norm}{far}", x=f"{one.norm} distance, {BALLS[one.norm].unit}", log="x")
    near, other = np.array(one.boundary)[one.right], np.array(one.other)
    other = other[np.isfinite(other) & (other > 0)]
    both = np.concatenate([near, other])
    if not len(both):
        return
    low, high = max(both.min(), both.max() * 1e-4), both.max()
    edges = np.geomspace(low * 0.95, max(high, low * 1.1) * 1.05, 32)
    for values, colour, said in ((near, plots.VERMILION, "a fooling point"), (other, plots.BLUE, "another class")):
        label = f"{said}, median {np.median(values):.3g}" if len(values) else said
        axis.hist(np.clip(values, edges[0], edges[-1]), edges, color=colour, alpha=0.75, label=label)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.3)
    plots.legend(axis, place="upper left")


def draw_rubbish(found: Rubbish, path: str | Path) -> None:
    """What inputs are called some class, by kind and reading; noise before and after a step to each class."""
    from epsball.explain.noise_inputs import KINDS, READINGS, SURE

    config = found.config
    pictured = bool(found.examples) and len(config["shape"]) in (2, 3)
    count = len(found.examples) if pictured else 0
    note = (
        f"{config['draws']:,} draws; below: the softmax p of a class before and after a step of FGSM to it within "
        f"{config['said']}, framed where p > .5; model of {name_of_data(config)}; {made_with(config)}"
    )
    figure = plots.page(11.6, 6.0 if pictured else 3.6, title="Rubbish inputs: noise that is called a class", note=note)
    parts = figure.subfigures(2, 1, height_ratios=[1.25, 1], squeeze=False)[:, 0] if pictured else [figure]
    left, middle, right = parts[0].subplots(1, 3, width_ratios=[1, 1, 1.2])
    kinds = [kind for kind in KINDS if any(one.kind == kind for one in found.called)]
    for place, (reading, said) in enumerate(READINGS.items()):
        at = np.arange(len(kinds)) + 0.38 * (place - 0.5)
        shares = [found.of(kind, reading).share for kind in kinds]
        means = [found.of(kind, reading).mean for kind in kinds]
        colour = (plots.VERMILION, plots.BLUE)[place]
        for axis, values in ((left, shares), (middle, means)):
            bars = axis.bar(at, values, 0.36, color=colour, label=said)
            axis.bar_label(bars, [f"{100 * v:.0f}" for v in values], fontsize=plots.SMALL, color=plots.INK)
    for axis, title in ((left, f"UserAttack some class with p > {SURE:g}"), (middle, "Mean of the greatest p")):
        plots.panel(axis, title=title)
        axis.set_xticks(range(len(kinds)), [KINDS[kind].replace(" in ", "\nin ") for kind in kinds])
        axis.set_ylim(0, 1.35)
        axis.set_yticks(np.linspace(0, 1, 6))
        percents(axis.yaxis)
        axis.grid(False, axis="x")
    plots.legend(left, place="upper left")
    _called(right, found)
    if pictured:
        grid = parts[1].subplots(2, count, squeeze=False)
        for axes, example in zip(grid.T, found.examples, strict=True):
            _stepped(axes, example, found)
        for axis, said in zip(grid[:, 0], ("uniform noise", "a step later"), strict=True):
            axis.set_ylabel(said, fontsize=plots.SMALL, color=plots.GREY)
    plots.save(figure, path)


def _called(axis: Axes, found: Rubbish) -> None:
    names = found.config["names"]
    plots.panel(axis, title="What it is called (softmax, p > .5)", y="inputs")
    if any(one.kind == "uniform" for one in found.called):
        pairs = (("normal", -0.2, plots.VERMILION, "N(0, I)"), ("uniform", 0.2, plots.ORANGE, "uniform"))
    else:
        pairs = (("normal", 0.0, plots.VERMILION, "N(0, I)"),)
    for kind, shift, colour, said in pairs:
        counts = found.of(kind).classes
        axis.bar(np.arange(len(counts)) + shift, counts, 0.8 / len(pairs), color=colour, label=said)
    if len(names) <= NUMBERED:
        axis.set_xticks(range(len(names)), [short(name) for name in names])
    axis.grid(False, axis="x")
    plots.legend(axis)


def _stepped(axes: np.ndarray, example: Example, found: Rubbish) -> None:
    config = found.config
    lo, hi = config["box"]
    name = config["names"][example.target]
    for axis, flat, p in ((axes[0], example.x, example.before), (axes[1], example.x_adv, example.after)):
        show(axis, (np.array(flat).reshape(config["shape"]) - lo) / (hi - lo))
        axis.set_xlabel(f"p = {p:.2g}", fontsize=plots.SMALL, color=plots.INK)
    axes[0].set_title(f"to {short(name)}", fontsize=plots.NORMAL, color=plots.INK)
    if example.after > 0.5:
        for spine in axes[1].spines.values():
            spine.set(visible=True, color=plots.VERMILION, linewidth=2)
