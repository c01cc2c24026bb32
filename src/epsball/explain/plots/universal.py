"""The figure of `universal`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epsball.explain.analyses.universal import Universal
from epsball.explain.inputs import name_of
from epsball.explain.plots import canvas
from epsball.explain.shared_perturbation import SharedPerturbation
from epsball.report import plots

SHARES = (
    ("per_example", "a step of FGSM for each example", plots.GREY, "^:"),
    ("fitted", "one for all: those it was made on", plots.VERMILION, "s--"),
    ("held_out", "one for all: others", plots.VERMILION, "o-"),
    ("noise", "the same values, shuffled", plots.BLUE, "d-"),
)


def plot(found: Universal) -> Figure:
    """Shares against the radius and against the dimension; the perturbation, and an image with it."""
    config = found.config
    images = len(config["shape"]) in (2, 3)
    note = (
        f"made on {config['fitted_rows']:,} examples of {canvas.data_name(found)}, tested on "
        f"{config['held_out_rows']:,} others, of those that are classified correctly; {config['steps']} steps; "
        f"shuffled in {config['draws']} orders"
    )
    figure = canvas.page(found, 12.4, 4.3, title="One perturbation for all", note=note)
    left, right, *pictures = figure.subplots(
        1, 5 if images else 2, width_ratios=[1.5, 1.5, 1, 1, 1] if images else None
    )
    plots.panel(left, title="On the model", x=canvas.eps_label(found), y="fooled")
    radii = [shared.eps for shared in found.radii]
    _shares(left, found.radii, radii)
    left.set_xticks(radii, [f"{eps:.2g}" for eps in radii])
    plots.legend(left, place="upper left")
    plots.panel(right, title=f"Networks trained at each size, {config['ball_name']}", x="dimension n", log="x")
    grey = {"transform": right.transAxes, "fontsize": plots.SMALL, "color": plots.GREY}
    if found.sizes:
        n = [size[0].n for size in found.sizes]
        _shares(right, [_mean(size) for size in found.sizes], n)
        for size in found.sizes:
            held_out = [shared.held_out for shared in size]
            right.plot([size[0].n] * len(size), held_out, "o", color=plots.VERMILION, markersize=3, alpha=0.5)
        right.text(0.03, 0.95, f"means of {config['networks']} networks;\nsmall: each of them", va="top", **grey)
        plots.ticks(right, n, [f"{size:,}" for size in n])
    else:
        right.text(0.5, 0.5, "no images to resize", ha="center", **grey)
    if images:
        _images(pictures, found)
    return figure


def _mean(size: tuple[SharedPerturbation, ...]) -> SharedPerturbation:
    """What several networks have on average."""
    means = {name: sum(getattr(shared, name) for shared in size) / len(size) for name, *_ in SHARES}
    return replace(size[0], **means)


def _shares(axis: Axes, shared: Sequence[SharedPerturbation], at: Sequence[float]) -> None:
    canvas.curves(axis, at, shared, SHARES)
    canvas.shares(axis, room=0.45)


def _images(axes: list[Axes], found: Universal) -> None:
    config = found.config
    example, delta = (np.array(part).reshape(config["shape"]) for part in (found.example, found.perturbation))
    most = np.abs(delta).max() or 1.0
    lo, hi = config["box"] or (example.min(), example.max() + 1e-9)
    canvas.show(axes[0], (example - lo) / (hi - lo))
    canvas.show_signed(axes[1], delta if delta.ndim == 2 else delta.mean(0), most)
    canvas.show(axes[2], (np.clip(example + delta, lo, hi) - lo) / (hi - lo))
    titles = ("an image", f"the perturbation, -{most:.2g} to {most:.2g}", "the image with it")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=plots.SMALL + 0.5, color=plots.INK)
    share, name = found.at_ball.dominant_share, name_of(config["names"], found.at_ball.dominant)
    canvas.small(axes[2], f"{100 * share:.0f} % of the fooled\nare predicted as {canvas.short(name, 14)}")
