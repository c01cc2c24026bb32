"""The figure of `manifold`."""

from __future__ import annotations

from matplotlib.figure import Figure

from epsball.explain.analyses.manifold import Manifold
from epsball.explain.finding import numbers
from epsball.explain.plots import canvas
from epsball.report import plots

SUBJECTS = {
    "attack": ("adversarial perturbation", plots.VERMILION, "-"),
    "noise": ("noise of equal norm", plots.GREY, "--"),
    "difference": ("difference of two images", plots.BLUE, "-"),
    "images": ("images, less their mean", plots.GREEN, ":"),
}


def plot(found: Manifold) -> Figure:
    """The energy outside the leading components, and what the parts inside and outside of them do on their own."""
    config, k = found.config, found.components
    note = (
        f"principal components of {config['fit_rows']} examples of {canvas.data_name(found)}, measured on "
        f"{config['rows']} others; {config['attack']} in {config['ball_name']}; the parts are not clipped to the box; "
        f"{config['parts_rows']} correctly classified examples are fooled"
    )
    figure = canvas.page(found, 12.6, 4.4, title="Do adversarial perturbations leave the data's subspace?", note=note)
    left, right = figure.subplots(1, 2)
    plots.panel(left, title="Energy outside the k leading components", x="number of components, k")
    for name, (label, colour, line) in SUBJECTS.items():
        left.plot(k, numbers(found.outside[name]), line, color=colour, linewidth=1.6, label=label)
    text = {"fontsize": plots.SMALL, "color": plots.GREY}
    where = (found.leading, 0.93)
    label = f" k = {found.leading}:\n 95 % of the variance"
    left.annotate(label, where, xytext=(2, 0), va="top", textcoords="offset points", **text)
    plots.legend(left, place="upper right")
    plots.panel(right, title="What each part of the perturbation does alone", x="number of components, k")
    right.set_ylabel("still fooled, of those fooled by the whole", **text)
    if found.fooled_inside is None or found.fooled_outside is None or found.fooled_noise is None:
        nobody = "no correctly classified example is fooled"
        right.text(0.5, 0.5, nobody, transform=right.transAxes, ha="center", color=plots.GREY)
    else:
        right.plot(k, found.fooled_inside, color=plots.BLUE, linewidth=1.6, label="the part within the k leading")
        right.plot(k, found.fooled_outside, color=plots.VERMILION, linewidth=1.6, label="the part outside of them")
        noise = {"color": plots.GREY, "linestyle": "--", "linewidth": 1.2}
        right.axhline(found.fooled_noise, label="noise of equal norm, all of it", **noise)
        plots.legend(right)
    for axis in (left, right):
        axis.axvline(found.leading, color=plots.GREY, linewidth=0.8)
        axis.set_xlim(0, k[-1])
        canvas.shares(axis)
    return figure
