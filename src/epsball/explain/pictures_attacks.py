"""The figures of the analyses that attack: targets, one perturbation for all, the boundary, rubbish."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from epsball.explain.record import name_of
from epsball.report import plots

if TYPE_CHECKING:
    from epsball.explain.nearness import Boundary, Distances
    from epsball.explain.noise_inputs import Example, Rubbish
    from epsball.explain.one_for_all import Shared, Universal
    from epsball.explain.targeted import Targets

NUMBERED = 20
"""Classes up to which the cells of a matrix hold a number."""
SHARE = PercentFormatter(1, decimals=0, symbol=" %")


def draw_targets(found: Targets, path: str | Path) -> None:
    """The matrix of shares; shares against the radius; how many classes an example reaches."""
    config, classes = found.config, len(found.targets)
    note = (
        f"{config['rows']:,} examples of {_name(config)}, attacked by {config['attack']} once per target and radius; "
        f"counted on stored points; misclassified examples are left out; seed {config['seed']}; "
        f"epsball {config['versions']['epsball']}"
    )
    figure = plots.page(12.4, 5.4, title="No image is safe? Every class driven to every other", note=note)
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 0.8])
    plots.panel(left, title=f"Driven to the target within {config['said']}", x="target", y="source")
    shares = found.shares
    picture = left.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    left.grid(False)
    if classes <= NUMBERED:
        left.set_xticks(range(classes), [_short(name) for name in found.targets])
        left.set_yticks(range(len(found.sources)), [_short(name) for name in found.sources])
        size = plots.SMALL if classes <= 12 else plots.SMALL - 2.5
        for (row, column), share in np.ndenumerate(shares):
            if np.isfinite(share):
                colour = "white" if share > 0.55 else plots.INK
                left.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=size, color=colour)
    if len(found.sources) > classes:
        left.axhline(classes - 0.5, color=plots.INK, linewidth=0.8)
    bar = figure.colorbar(picture, ax=left, format=SHARE, shrink=0.7)
    bar.ax.tick_params(labelsize=plots.SMALL, colors=plots.GREY, length=2)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue] - matplotlib's stubs take it for a list

    plots.panel(middle, title="Within larger balls", x=f"eps ({config['said'].split()[0]})", y="share")
    eps = [one.eps for one in found.curve]
    for name, said, colour, marker in (
        ("somewhere", "images that reach some other class", plots.BLUE, "s--"),
        ("mean", "pairs of an image and a class", plots.VERMILION, "o-"),
        ("everywhere", "images that reach every other class", plots.PURPLE, "^-"),
        ("nothing", "pairs, from images that show nothing", plots.GREY, "d:"),
    ):
        values = [getattr(one, name) for one in found.curve]
        if None not in values:
            middle.plot(eps, values, marker, color=colour, markersize=4, linewidth=1.4, label=said)
    middle.axvline(config["eps"], 0, 1.02 / 1.32, color=plots.GREY, linewidth=0.8)
    middle.set_ylim(-0.02, 1.3)
    middle.set_yticks(np.linspace(0, 1, 6))
    middle.set_xlim(left=0)
    middle.yaxis.set_major_formatter(SHARE)
    plots.legend(middle, place="upper left")

    plots.panel(right, title="Classes that an image reaches", x=f"other classes, within {config['said']}", y="images")
    right.bar(range(len(found.reached)), found.reached, color=plots.BLUE, width=0.85)
    if classes <= NUMBERED:
        right.set_xticks(range(classes))
    plots.save(figure, path)


def draw_universal(found: Universal, path: str | Path) -> None:
    """Shares against the radius and against the dimension; the perturbation, and an image with it."""
    config = found.config
    images = len(config["shape"]) in (2, 3)
    note = (
        f"made on {config['fitted_rows']:,} examples, shown to {config['held_rows']:,} others of {_name(config)} that "
        f"the model is right about; {config['steps']} steps; its values shuffled: {config['draws']} orders; "
        f"seed {config['seed']}; epsball {config['versions']['epsball']}"
    )
    figure = plots.page(12.4, 4.3, title="One perturbation for all images", note=note)
    one, *rest = figure.subplots(1, 5 if images else 2, width_ratios=[1.5, 1.5, 1, 1, 1] if images else None)
    plots.panel(one, title="On the model", x=f"eps ({config['said'].split()[0]})", y="fooled")
    _shares(one, found.radii, [each.eps for each in found.radii])
    one.set_xticks([each.eps for each in found.radii], [f"{each.eps:.2g}" for each in found.radii])
    plots.legend(one, place="upper left")
    two = plots.panel(rest[0], title=f"Networks trained at each size, {config['said']}", x="dimension n", log="x")
    if found.sizes:
        n = [each.n for each in found.sizes]
        _shares(two, found.sizes, n)
        plots.ticks(two, n, [f"{size:,}" for size in n])
    else:
        two.text(0.5, 0.5, "no images to resize", transform=two.transAxes, ha="center", color=plots.GREY)
    if images:
        _triple(rest[1:], found)
    plots.save(figure, path)


def _shares(axis: Axes, shared: tuple[Shared, ...], at: list[float] | list[int]) -> None:
    for name, said, colour, marker in (
        ("each", "a step of FGSM for each image", plots.GREY, "^:"),
        ("fitted", "one for all: the images it was made on", plots.VERMILION, "s--"),
        ("held", "one for all: other images", plots.VERMILION, "o-"),
        ("noise", "the same values, shuffled", plots.BLUE, "d-"),
    ):
        values = [getattr(one, name) for one in shared]
        axis.plot(at, values, marker, color=colour, markersize=4, linewidth=1.4, label=said)
    axis.set_ylim(-0.02, 1.45)
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.yaxis.set_major_formatter(SHARE)


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
        _image(axis, image)
        axis.set_title(title, fontsize=plots.SMALL + 0.5, color=plots.INK)
    axes[1].imshow(signed, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    said = f"{100 * found.at_ball.dominant_share:.0f} % of the fooled\nare taken for {_short(name, 14)}"
    axes[2].set_xlabel(said, fontsize=plots.SMALL, color=plots.GREY)


def draw_boundary(found: Boundary, path: str | Path) -> None:
    """Both distances, norm by norm, and example by example in the ball's norm."""
    config = found.config
    note = (
        f"{config['rows']:,} examples of {_name(config)}; fooling points: the nearest that "
        f"{', '.join(config['attacks'][found.norms[0].norm])} found, an upper bound; other classes: "
        f"{config['train_rows']:,} training examples; seed {config['seed']}; epsball {config['versions']['epsball']}"
    )
    title = "Near the boundary? The least fooling distance beside that to the nearest image of another class"
    figure = plots.page(3.1 * len(found.norms) + 4.6, 4.2, title=title, note=note)
    *axes, last = figure.subplots(1, len(found.norms) + 1, width_ratios=[1] * len(found.norms) + [1.35], squeeze=False)[
        0
    ]
    for axis, one in zip(axes, found.norms, strict=True):
        _distances(axis, one)
    axes[0].set_ylabel("examples", fontsize=plots.SMALL, color=plots.GREY)
    one = found.norms[0]
    near, other = np.array(one.boundary), np.array(one.other)
    plots.panel(last, title=f"Example by example, {one.norm}", x="to another class", y="to a fooling point")
    last.plot(other[one.right], near[one.right], "o", color=plots.VERMILION, markersize=3, alpha=0.5, markeredgewidth=0)
    ends = np.array([0, other[np.isfinite(other)].max(initial=0) * 1.05 or 1])
    last.plot(ends, ends / 2, color=plots.INK, linewidth=1, label="half way")
    last.set_xlim(*ends)
    last.set_ylim(0, max(near[one.right].max(initial=0), ends[1] / 2) * 1.15)
    plots.legend(last, place="upper left")
    plots.save(figure, path)


def _distances(axis: Axes, one: Distances) -> None:
    plots.panel(axis, title=f"{one.norm}: {one.ratio:.1f} times as far", x=f"{one.norm} distance", log="x")
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
        f"{config['draws']:,} draws; framed: p > .5 after the step, which is FGSM within {config['said']} from uniform "
        f"noise; model of {_name(config)}; seed {config['seed']}; epsball {config['versions']['epsball']}"
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
    for axis, title in ((left, f"Called some class with p > {SURE:g}"), (middle, "Mean of the greatest p")):
        plots.panel(axis, title=title)
        axis.set_xticks(range(len(kinds)), [KINDS[kind].replace(" in ", "\nin ") for kind in kinds])
        axis.set_ylim(0, 1.35)
        axis.set_yticks(np.linspace(0, 1, 6))
        axis.yaxis.set_major_formatter(SHARE)
        axis.grid(False, axis="x")
    plots.legend(left, place="upper left")
    _called(right, found)
    if pictured:
        for axis, example in zip(parts[1].subplots(2, count, squeeze=False).T, found.examples, strict=True):
            _stepped(axis, example, found)
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
        axis.set_xticks(range(len(names)), [_short(name) for name in names])
    axis.grid(False, axis="x")
    plots.legend(axis)


def _stepped(axes: np.ndarray, example: Example, found: Rubbish) -> None:
    config = found.config
    lo, hi = config["box"]
    name = config["names"][example.target]
    for axis, flat, p in ((axes[0], example.x, example.before), (axes[1], example.x_adv, example.after)):
        _image(axis, (np.array(flat).reshape(config["shape"]) - lo) / (hi - lo))
        axis.set_xlabel(f"p = {p:.2g}", fontsize=plots.SMALL, color=plots.INK)
    axes[0].set_title(_short(name), fontsize=plots.NORMAL, color=plots.INK)
    if example.after > 0.5:
        for spine in axes[1].spines.values():
            spine.set(visible=True, color=plots.VERMILION, linewidth=2)


def _image(axis: Axes, image: np.ndarray) -> None:
    """(c, h, w) or (h, w) in [0, 1]: colours where there are three channels, else the mean of them in grey."""
    if image.ndim == 3:
        image = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    axis.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=plots.FAINT)


def _short(name: str, most: int = 8) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _name(config: dict) -> str:
    return Path(config["data"]).name
