"""The figures of `conditioning` and `training_changed`: what is inside a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from epsball.explain.pictures import made_with, name_of_data, numbers
from epsball.explain.record import percent
from epsball.report import plots

if TYPE_CHECKING:
    from epsball.explain.side_by_side import Side, TrainingChanged
    from epsball.explain.steepness import Conditioning

MOST_LAYERS = 12
"""Layers that have a line of their own in a table."""


def draw_conditioning(found: Conditioning, path: str | Path) -> None:
    """The singular values of each layer, the steepness found beside what the norms allow, and a table."""
    config = found.config
    note = (
        f"{config['rows']} examples of {name_of_data(config)}, at each the example and {config['samples']} points "
        f"of {config['said']}; gradients towards the {config['rivals']} greatest other logits; Euclidean norm; "
        f"{made_with(config)}"
    )
    figure = plots.page(
        12.6, 4.4, title="How well conditioned are the layers, and how steep is the network?", note=note
    )
    left, middle, table = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
    plots.panel(left, title="Singular values of the layers", x="rank (share of all)", y="singular value", log="y")
    layers = [layer for layer in found.layers if len(layer.singular) > 1][:MOST_LAYERS]
    for place, layer in enumerate(layers):
        values = numbers(layer.singular)
        values = values[values > values[0] * 1e-9]
        at = np.arange(1, len(values) + 1) / min(layer.rows, layer.columns)
        shade = shade_of(place, len(layers))
        left.plot(at, values, color=shade, linewidth=1.6, label=f"{layer.name}: {layer.kind}")
    plots.legend(left, place="lower left")
    steep = numbers(found.steepness)
    steep = steep[np.isfinite(steep) & (steep > 0)]
    plots.panel(
        middle, title="Steepness of differences of logits", x="logits per unit of length", y="examples", log="x"
    )
    if len(steep):
        low, high = steep.min() / 1.3, max(found.allowed, steep.max()) * 1.3
        middle.hist(steep, bins=np.geomspace(low, high, 50).tolist(), color=plots.BLUE, label="found in the ball")
        middle.axvline(
            found.steepest,
            color=plots.BLUE,
            linestyle=":",
            linewidth=1.4,
            label=f"steepest found: {found.steepest:.3g}",
        )
    bound = "allowed by the norms" if found.chain else "√2 x product of norms"
    middle.axvline(found.allowed, color=plots.VERMILION, linewidth=1.6, label=f"{bound}: {found.allowed:.3g}")
    middle.set_ylim(0, 1.4 * middle.get_ylim()[1])
    middle.xaxis.set_major_formatter(plots.Between(labelOnlyBase=False))
    middle.xaxis.set_minor_formatter(plots.Between(labelOnlyBase=False, minor_thresholds=(1, 0.4)))
    plots.legend(middle, place="upper left")
    _layers(table, found)
    plots.save(figure, path)


def shade_of(place: int, of: int) -> str:
    """A colour of the palette while it lasts, then greys."""
    palette = (plots.BLUE, plots.VERMILION, plots.GREEN, plots.ORANGE, plots.PURPLE)
    if of <= len(palette):
        return palette[place]
    return f"{0.15 + 0.65 * place / max(1, of - 1):.3f}"


def _layers(axis: Axes, found: Conditioning) -> None:
    axis.axis("off")
    text = {"fontsize": plots.SMALL, "transform": axis.transAxes, "va": "center", "in_layout": False}
    places = (0.42, 0.66, 0.8, 1.0)
    for place, head in zip(places, ("matrix", "norm", "rank", "condition"), strict=True):
        axis.text(place, 0.97, head, color=plots.GREY, ha="right", **text)
    shown = found.layers[:MOST_LAYERS]
    for line, layer in enumerate(shown):
        y = 0.89 - 0.065 * line
        axis.text(0.0, y, f"{layer.name}: {layer.kind}"[:22], color=plots.INK, **text)
        rank = "-" if layer.rank is None else str(layer.rank)
        condition = "-" if layer.condition is None else f"{layer.condition:.3g}"
        cells = (f"{layer.rows}x{layer.columns}", f"{layer.norm:.3g}", rank, condition)
        for place, cell in zip(places, cells, strict=True):
            axis.text(place, y, cell, color=plots.INK, ha="right", **text)
    y = 0.89 - 0.065 * len(shown) - 0.02
    more = f"{len(found.layers) - len(shown)} more layers; " if len(found.layers) > len(shown) else ""
    axis.text(0.0, y, f"{more}product of all norms", color=plots.GREY, **text)
    axis.text(0.66, y, f"{found.product:.3g}", color=plots.INK, ha="right", fontweight="bold", **text)


def draw_training_changed(found: TrainingChanged, path: str | Path) -> None:
    """Filters and gradients of both networks, each picture scaled to its greatest, and the figures of both."""
    config, sides = found.config, (found.plain, found.trained)
    note = (
        f"{config['rows']} examples of {name_of_data(config)}, {config['said']}; the same units of the first layer; "
        f"near zero: below {100 * config['near']:.0f} % of the greatest of the layer, or gradient; PGD: "
        f"{config['steps']} steps; {made_with(config)}"
    )
    title = "What did adversarial training change? White is zero, red positive, blue negative"
    figure = plots.page(11.4, 6.0, title=title, note=note)
    pictures, table = figure.subplots(1, 2, width_ratios=[1.2, 1])
    _pictures(pictures, found)
    _sides(table, sides)
    plots.save(figure, path)


def _pictures(axis: Axes, found: TrainingChanged) -> None:
    """Two lines of filters a network, and the examples with both gradients, on one canvas of tiles."""
    axis.axis("off")
    names = [found.plain.name, found.trained.name]
    columns = 12
    lines: list[tuple[str, list[np.ndarray], str]] = []
    for name in names:
        filters = [_square(image, found.shapes[f"filters of {name}"]) for image in found.filters[name]]
        for start in range(0, len(filters), columns):
            said = f"{name}: first layer" if start == 0 else ""
            lines.append((said, filters[start : start + columns], "RdBu_r"))
    lines.append(("examples", [_square(image, found.shapes["examples"]) for image in found.examples], "Greys"))
    for name in names:
        gradients = [_square(image, found.shapes["examples"]) for image in found.gradients[name]]
        lines.append((f"{name}: gradients", gradients, "RdBu_r"))
    top = 0.0
    for said, images, colours in lines:
        wide = 1.0 if len(images) > columns / 2 else 2.0
        if said:
            axis.text(0, top + 0.35, said, fontsize=plots.SMALL, color=plots.INK, va="bottom")
            top += 0.45
        for place, image in enumerate(images):
            most = float(np.nanmax(np.abs(image))) or 1.0
            low = 0.0 if colours == "Greys" else -most
            left = place * wide
            axis.imshow(
                image, cmap=colours, vmin=low, vmax=most, interpolation="nearest", aspect="auto",
                extent=(left, left + 0.94 * wide, top + 0.94 * wide, top),
            )  # fmt: skip
        top += wide
    axis.set_xlim(-0.05, columns)
    axis.set_ylim(top, 0)
    axis.set_aspect("equal", anchor="NW")


def _square(image: tuple[float | None, ...], size: tuple[int, int]) -> np.ndarray:
    return numbers(image).reshape(size)


def _sides(axis: Axes, sides: tuple[Side, Side]) -> None:
    axis.axis("off")
    text = {"fontsize": plots.NORMAL, "transform": axis.transAxes, "va": "center", "in_layout": False}

    def middle(values: tuple[float | None, ...]) -> str:
        return "-" if values[1] is None else f"{values[1]:.3g}"

    lines: list[tuple[str, list[str]]] = [
        ("accuracy, clean", [percent(side.clean) for side in sides]),
        ("accuracy, FGSM", [percent(side.fgsm) for side in sides]),
        ("accuracy, PGD", [percent(side.pgd) for side in sides]),
        ("", ["", ""]),
        ("margin, median", [middle(side.gap) for side in sides]),
        ("dual norm of its gradient, median", [middle(side.slope) for side in sides]),
        ("margin / dual norm, median", [middle(side.radius) for side in sides]),
        ("gradient near zero", [percent(side.grey) for side in sides]),
        ("evenness of the gradient", [f"{side.even:.2f}" for side in sides]),
        ("", ["", ""]),
        ("weights near zero, all", [percent(side.near_zero) for side in sides]),
    ]
    for place, layer in enumerate(sides[0].layers[:MOST_LAYERS]):
        others = [side.layers[place] if place < len(side.layers) else None for side in sides]
        lines.append((f"   {layer.name}", ["-" if one is None else percent(one.near_zero) for one in others]))
    for place, side in zip((0.76, 1.0), sides, strict=True):
        axis.text(place, 0.98, side.name, color=plots.GREY, ha="right", **text)
    for line, (said, cells) in enumerate(lines):
        y = 0.92 - 0.047 * line
        axis.text(0.0, y, said, color=plots.INK, **text)
        for place, cell in zip((0.76, 1.0), cells, strict=True):
            axis.text(place, y, cell, color=plots.INK, ha="right", **text)
