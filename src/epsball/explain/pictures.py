"""What the figures of the analyses share: how numbers, names and images are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import PercentFormatter

from epsball.report import plots


def percents(axis: Axis) -> None:
    """Label an axis of shares from 0 to 1 in per cent."""
    axis.set_major_formatter(PercentFormatter(1, decimals=None, symbol=" %"))


def numbers(values: object) -> np.ndarray:
    """Nested tuples with None as an array with NaN."""
    return np.array(values, dtype=np.float64)


def name_of_data(config: dict[str, Any]) -> str:
    """The data, without the folders that they are in."""
    return Path(config["data"]).name


def made_with(config: dict[str, Any]) -> str:
    """The end of the small print."""
    seed = "" if config["seed"] is None else f"seed {config['seed']}; "
    return f"{seed}epsball {config['versions']['epsball']}"


def power(exponent: float | None) -> str:
    """How a quantity grows with the dimension n; nothing where it is not known.

    >>> power(0.5), power(None)
    (' ~ n$^{0.50}$', '')
    """
    return "" if exponent is None else f" ~ n$^{{{round(exponent, 2) + 0.0:.2f}}}$"


def short(name: str, most: int = 8) -> str:
    """A name that takes no more than `most` letters.

    >>> short("aeroplane")
    'aeropla…'
    """
    return name if len(name) <= most else name[: most - 1] + "…"


def show(axis: Axes, image: np.ndarray) -> None:
    """(c, h, w) or (h, w) in [0, 1]: colours where there are three channels, else the mean of them in grey."""
    if image.ndim == 3:
        image = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(0)
    axis.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=plots.FAINT)
