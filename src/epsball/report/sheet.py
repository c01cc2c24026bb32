"""The panda figure, for any images: the example, the sign of the gradient, the adversarial image.

After Goodfellow, Shlens and Szegedy (ICLR 2015), figure 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput


@dataclass(frozen=True)
class Row:
    """One line of the sheet. Images are (C, H, W) or (H, W), with C 1 or 3, in the units of [`lo`, `hi`]."""

    original: np.ndarray
    direction: np.ndarray
    adversarial: np.ndarray
    said_before: str
    said_after: str


def draw(rows: Sequence[Row], path: str | Path, *, lo: float, hi: float, ball: str, title: str = "") -> None:
    """Write the sheet as a PNG, whole or not at all.

    Raises `BadInput` where a row is no image.
    """
    if not rows:
        raise BadInput("`rows` must hold at least one example, got none; attack more examples, or with a larger eps")
    figure = Figure(figsize=(7.2, 0.75 + 2.35 * len(rows)), dpi=150, layout="constrained")
    figure.patch.set_facecolor("white")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    heads = ("example", "sign of the gradient", f"adversarial ({ball})")
    for line, (row, axes) in enumerate(zip(rows, grid, strict=True)):
        pictures = (_picture(row.original, lo, hi), _picture(row.direction, -1, 1), _picture(row.adversarial, lo, hi))
        for axis, picture, head, said in zip(axes, pictures, heads, (row.said_before, "", row.said_after), strict=True):
            grey = {"cmap": "gray", "vmin": 0, "vmax": 1} if picture.ndim == 2 else {}
            axis.imshow(picture, interpolation="nearest", **grey)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(said, fontsize=9)
            if line == 0:
                axis.set_title(head, fontsize=10)
            for spine in axis.spines.values():
                spine.set(color="0.8", linewidth=0.5)
    if title:
        figure.suptitle(title, fontsize=11)
    with matplotlib.rc_context({"savefig.facecolor": "white"}):
        write_whole(Path(path), lambda draft: figure.savefig(draft, format="png"))


def _picture(image: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """(H, W) or (H, W, 3) in [0, 1]."""
    image = np.asarray(image, dtype=np.float64)
    if image.ndim == 3 and image.shape[0] in (1, 3):
        image = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[-1] == 3):
        raise BadInput(f"`rows` must hold images (C, H, W) or (H, W), C 1 or 3, got {image.shape}; leave the sheet out")
    return ((image - lo) / (hi - lo)).clip(0, 1)
