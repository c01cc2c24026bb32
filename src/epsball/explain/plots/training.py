"""The figure of `training_changed`."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epsball.explain.analyses.training import Image, TrainingChanged
from epsball.explain.finding import numbers, percent
from epsball.explain.plots import canvas
from epsball.explain.plots.conditioning import MOST_LAYERS
from epsball.report import plots

COLUMNS = 12


def plot(found: TrainingChanged) -> Figure:
    """Filters and gradients of both networks, each picture scaled to its greatest, and the figures of both."""
    config = found.config
    note = (
        f"{config['rows']} examples of {canvas.data_name(found)}, {config['ball_name']}; the same units of the first "
        f"layer; near zero: below {100 * config['near']:.0f} % of the greatest of the layer, or gradient; PGD: "
        f"{config['steps']} steps"
    )
    title = "What did adversarial training change? White is zero, red positive, blue negative"
    figure = canvas.page(found, 11.4, 6.0, title=title, note=note)
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    _pictures(left, found)
    _figures(right, found)
    return figure


def _pictures(axis: Axes, found: TrainingChanged) -> None:
    """Two lines of filters a network, and the examples with both gradients, on one canvas of tiles."""
    axis.axis("off")
    names = (found.plain.name, found.trained.name)

    def images(flat: tuple[Image, ...], shape: str) -> list[np.ndarray]:
        return [numbers(image).reshape(found.shapes[shape]) for image in flat]

    lines: list[tuple[str, list[np.ndarray]]] = []
    for name in names:
        filters = images(found.filters[name], f"filters of {name}")
        lines.append((f"{name}: first layer", filters[:COLUMNS]))
        lines += [("", filters[start : start + COLUMNS]) for start in range(COLUMNS, len(filters), COLUMNS)]
    lines.append(("examples", images(found.examples, "examples")))
    lines += [(f"{name}: gradients", images(found.gradients[name], "examples")) for name in names]
    top = 0.0
    for label, tiles in lines:
        size = 1.0 if len(tiles) > COLUMNS / 2 else 2.0
        if label:
            axis.text(0, top + 0.35, label, fontsize=plots.SMALL, color=plots.INK, va="bottom")
            top += 0.45
        for place, tile in enumerate(tiles):
            most = float(np.nanmax(np.abs(tile))) or 1.0
            grey = label == "examples"
            left, right = place * size, (place + 0.94) * size
            axis.imshow(
                tile,
                cmap="Greys" if grey else "RdBu_r",
                vmin=0.0 if grey else -most,
                vmax=most,
                interpolation="nearest",
                aspect="auto",
                extent=(left, right, top + 0.94 * size, top),
            )
        top += size
    axis.set_xlim(-0.05, COLUMNS)
    axis.set_ylim(top, 0)
    axis.set_aspect("equal", anchor="NW")


def _figures(axis: Axes, found: TrainingChanged) -> None:
    networks = (found.plain, found.trained)

    def shares(label: str, name: str) -> list[canvas.Cell]:
        return [label, *(percent(getattr(network, name)) for network in networks)]

    def medians(label: str, name: str) -> list[canvas.Cell]:
        values = [getattr(network, name)[1] for network in networks]
        return [label, *("-" if value is None else f"{value:.3g}" for value in values)]

    lines: list[list[canvas.Cell]] = [
        ["", *(network.name for network in networks)],
        shares("accuracy, clean", "clean"),
        shares("accuracy, FGSM", "fgsm"),
        shares("accuracy, PGD", "pgd"),
        ["", "", ""],
        medians("margin, median", "margin"),
        medians("dual norm of its gradient, median", "dual_norm"),
        medians("margin / dual norm, median", "radius"),
        shares("gradient near zero", "gradient_near_zero"),
        ["evenness of the gradient", *(f"{network.evenness:.2f}" for network in networks)],
        ["", "", ""],
        shares("weights near zero, all", "near_zero"),
    ]
    for place, layer in enumerate(found.plain.layers[:MOST_LAYERS]):
        same = [network.layers[place] if place < len(network.layers) else None for network in networks]
        lines.append([f"   {layer.name}", *("-" if one is None else percent(one.near_zero) for one in same)])
    canvas.table(axis, (0.76, 1.0), lines, step=0.047, size=plots.NORMAL)
