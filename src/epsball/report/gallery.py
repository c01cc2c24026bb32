"""Adversarial examples, the weakest first: the example, the perturbation, and the prediction.

Images of any number of channels become PNGs inside the page, tables bars and numbers. What is shown is bounded, in
number and in bytes, so that a report of any run can be sent by e-mail.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pyarrow as pa

from epsball.report.run import Run

SHOWN = 60
BYTES = 2_300_000
"""The most that all images take in the page."""
SIDE = 112
"""Larger images are shown reduced to this many pixels."""
CHANNELS = 9
"""The most channels that are shown, side by side, of what is neither grey nor red, green and blue."""
FEATURES = 8
"""Features of a table's row that are shown: those that changed most."""


@dataclass(frozen=True)
class Feature:
    """A number of a row before and after; `size` is its change as a share of the largest, signed."""

    name: str
    before: str
    after: str
    size: float


@dataclass(frozen=True)
class Example:
    """An example and its adversarial one. Images are data addresses, "" for a row of a table, which has `features`."""

    id: int
    key: int
    label: str
    before: str
    before_confidence: float
    after: str
    after_confidence: float
    attack: str
    distance: str
    original: str
    perturbation: str
    adversarial: str
    amplified: float
    side: int
    features: tuple[Feature, ...]


@dataclass(frozen=True)
class Gallery:
    """The examples shown, weakest first, of `total`. `labels` are the classes: key, name, number shown."""

    examples: tuple[Example, ...]
    total: int
    labels: tuple[tuple[int, str, int], ...]
    images: bool
    reduced: bool


def gallery(run: Run, shown: int = SHOWN) -> Gallery:
    """The gallery of a run with at most `shown` examples: of each class its weakest, in turn."""
    records = run.found.records
    fooled = np.flatnonzero(records["status"].to_numpy(zero_copy_only=False) == "fooled")
    distance, confidence = (
        records[name].to_numpy(zero_copy_only=False).astype(float)[fooled]
        for name in ("distance", "adversarial_confidence")
    )
    label = records["label"].to_numpy()[fooled]
    chosen = fooled[_chosen(distance, confidence, label, shown)]
    ids, shape = records["id"].to_numpy()[chosen], tuple(run.config["data"]["shape"])
    known, z = run.found.points(ids)
    rows = np.searchsorted(known, ids)
    x, z = run.found.originals(ids)[rows].astype(np.float64), z[rows].astype(np.float64)
    lo, hi = run.box or ((float(x.min()), float(x.max())) if x.size else (0.0, 1.0))
    images = len(shape) >= 2
    chosen_examples: list[Example] = []
    size = 0
    for row, one in enumerate(records.take(pa.array(chosen)).to_pylist()):
        pictures, amplified, side = ("", "", ""), 1.0, 0
        if images:
            pictures, amplified, side = _pictures(x[row], z[row], lo, hi)
        size += sum(map(len, pictures))
        if size > BYTES and chosen_examples:
            break
        clean = one["clean_prediction"]
        chosen_examples.append(
            Example(
                id=one["id"],
                key=one["label"],
                label=run.label(one["label"]),
                before=run.label(clean),
                before_confidence=_share(one["clean_confidence"]),
                after=run.label(one["adversarial_prediction"]),
                after_confidence=_share(one["adversarial_confidence"]),
                attack=one["attack"],
                distance=f"{one['distance']:.4g}",
                original=pictures[0],
                perturbation=pictures[1],
                adversarial=pictures[2],
                amplified=amplified,
                side=side,
                features=() if images else _features(x[row].reshape(-1), z[row].reshape(-1)),
            )
        )
    keys = sorted({one.key for one in chosen_examples})
    labels = tuple((key, run.label(key), sum(one.key == key for one in chosen_examples)) for key in keys)
    reduced = images and max(shape[-2:]) > SIDE
    return Gallery(tuple(chosen_examples), len(fooled), labels, images, reduced)


def _chosen(distance: np.ndarray, confidence: np.ndarray, label: np.ndarray, shown: int) -> np.ndarray:
    """The places of the examples to show: the weakest of each class in turn.

    The weakest are the nearest, and of those at one distance, as far as it is shown, the most confident mistakes.
    """
    rounded = np.array([float(f"{value:.4g}") for value in distance.tolist()])
    order = np.lexsort((-confidence, rounded))
    turn = np.zeros(len(distance), np.int64)
    seen: dict[int, int] = {}
    for place in order.tolist():
        turn[place] = seen.get(int(label[place]), 0)
        seen[int(label[place])] = int(turn[place]) + 1
    place_in_order = np.argsort(order)
    first = np.lexsort((place_in_order, turn))[:shown]
    return first[np.argsort(place_in_order[first])]


def _share(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _pictures(x: np.ndarray, z: np.ndarray, lo: float, hi: float) -> tuple[tuple[str, str, str], float, int]:
    """Example, perturbation and adversarial example as data addresses; the amplification; the width in pixels."""
    delta = z - x
    widest = float(np.abs(delta).max()) / ((hi - lo) or 1.0)
    amplified = 0.5 / widest if widest else 1.0
    scaled = [(x - lo) / ((hi - lo) or 1), 0.5 + amplified * delta / ((hi - lo) or 1), (z - lo) / ((hi - lo) or 1)]
    drawn = [_flat(part) for part in scaled]
    return tuple(map(_png, drawn)), amplified, drawn[0].shape[1]  # type: ignore[return-value]


def _flat(image: np.ndarray) -> np.ndarray:
    """An image (..., H, W) in [0, 1] as (H, W) or (H, W, 3), at most `SIDE` wide and high; other channels tiled."""
    image = image.reshape(-1, *image.shape[-2:])
    height, width = image.shape[1:]
    step = math.ceil(max(height, width) / SIDE)
    if step > 1:  # the mean of squares; what is left over at the edge is cut
        cut = image[:, : height - height % step or height, : width - width % step or width]
        by = (min(step, height), min(step, width))
        image = cut.reshape(len(cut), cut.shape[1] // by[0], by[0], cut.shape[2] // by[1], by[1]).mean((2, 4))
    if len(image) == 3:
        return image.transpose(1, 2, 0)
    if len(image) == 1:
        return image[0]
    image = image[:CHANNELS]
    columns = math.ceil(math.sqrt(len(image)))
    blank = np.ones((-len(image) % columns, *image.shape[1:]))
    tiles = np.concatenate([image, blank]).reshape(-1, columns, *image.shape[1:])
    return tiles.transpose(0, 2, 1, 3).reshape(-1, columns * image.shape[2])


def _png(image: np.ndarray) -> str:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.rint(image.clip(0, 1) * 255).astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _features(x: np.ndarray, z: np.ndarray) -> tuple[Feature, ...]:
    delta = z - x
    most = float(np.abs(delta).max()) or 1.0
    order: Sequence[int] = np.argsort(-np.abs(delta), kind="stable")[:FEATURES].tolist()
    return tuple(Feature(str(at), f"{x[at]:.4g}", f"{z[at]:.4g}", float(delta[at] / most)) for at in order)
