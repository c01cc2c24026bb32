"""Encoded images that are decoded when they are asked for, wherever their bytes are: in files, or in arrow tables.

All come out in one size and one mode. The size is that of most images that are looked at beforehand, some from the
whole range; images are grey where all of those are. Decoding is spread over threads: Pillow leaves Python's lock while
it decodes and resizes.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int64

from epsball.common.errors import BadInput
from epsball.data.arrays import PIXEL
from epsball.data.bad_row import BadRow
from epsball.data.examples import Examples
from epsball.data.image_decoding import NotNow, pixels_of
from epsball.data.known_labels import KnownLabels
from epsball.data.lazy_examples import Block, LazyExamples, digest, listed
from epsball.models.preparation import Preparation

log = logging.getLogger(__name__)

LOOKED_AT = 32
"""So many images say which size and mode they have, and whether the preparation changes them."""
THREADS = min(8, os.cpu_count() or 1)
COLOUR = "it is in colour, while the images that were looked at are grey; save it as grey, or all of them as RGB"


class Stored(Protocol):
    """Where the encoded images are; it can be pickled."""

    def sources(self, ids: Sequence[int]) -> Sequence[str | Any | None]:
        """The path of each image, or the bytes of its file, or None where there is nothing."""
        ...

    def name_of(self, id: int) -> str | None:
        """The name of its file, where it has one."""
        ...

    def identity(self, ids: Int64[torch.Tensor, " n"]) -> str:
        """A digest of what these rows are."""
        ...

    def available(self) -> bool:
        """Whether the files are there."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class LazyImages(LazyExamples):
    """Images of one size, 8-bit values divided by 255."""

    stored: Stored
    preparation: Preparation | None

    def fetch(self, ids: Sequence[int]) -> Block:
        """The images, decoded; those that are broken, or of another size or mode, are bad rows."""
        pixels = np.empty((len(ids), *self.shape[1:], self.shape[0]), np.uint8)
        kept, bad = [], []
        for place, found in enumerate(_decoded(self.stored, ids, self.preparation)):
            reason = found if isinstance(found, str) else self._unlike(found[0].shape)
            if reason is not None:
                bad.append(BadRow(ids[place], self.name_of(ids[place]), reason))
                continue
            pixels[len(kept)] = found[0]  # a grey image among colours has three channels alike
            kept.append(place)
        x = torch.from_numpy(pixels[: len(kept)]).permute(0, 3, 1, 2)
        x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(PIXEL)
        return Block(x=x, kept=torch.tensor(kept, dtype=torch.long), bad=tuple(bad))

    def _unlike(self, shape: Sequence[int]) -> str | None:
        channels, height, width = self.shape
        if tuple(shape[:2]) != (height, width):
            return (
                f"it is {shape[0]}x{shape[1]} (HxW), but data must hold images of one size, and most are "
                f"{height}x{width}; resize the files, or take a model that comes with a preparation, which resizes"
            )
        return COLOUR if shape[2] > channels else None

    def name_of(self, id: int) -> str:
        """The file of an image, or else its row."""
        return _named(self.stored, id, self.name)

    def identity(self) -> str:
        """A digest of the files, their labels, and what is done to the images."""
        return digest(self.stored.identity(self.ids), self.ids, self.y, self.label_names, self.preparation, self.shape)

    def available(self) -> bool:
        """Whether the files are there."""
        return self.stored.available()

    def whole(self) -> Examples:
        """All images, in memory: in colour where one of them is, whichever were looked at."""
        if self.bad_labels:
            return super().whole()  # which says so before an image is read
        found, bad = self.collected(slice(None))
        if any(row.reason == COLOUR for row in bad):
            return replace(self, shape=(3, *self.shape[1:])).whole()
        if bad:
            raise BadInput(self.refusal(bad, len(self)))
        return found


def lazy_images(
    stored: Stored,
    labels: KnownLabels,
    name: str,
    rows: np.ndarray | None = None,
    preparation: Preparation | None = None,
) -> LazyImages:
    """The images of the row numbers `rows` (None: all). Raises `BadInput` where none of those looked at can be used."""
    ids = np.arange(len(labels.y)) if rows is None else rows
    looked_at = ids[np.unique(np.linspace(0, len(ids) - 1, LOOKED_AT).round().astype(int))].tolist()
    found = dict(zip(looked_at, _decoded(stored, looked_at, preparation), strict=True))
    usable = {id: one for id, one in found.items() if not isinstance(one, str)}
    if not usable:
        bad = [BadRow(id, _named(stored, id, name), str(why)) for id, why in found.items()]
        raise BadInput(f"`data` must hold images that can be read, but of {name!r} none could: {listed(bad)}")
    (height, width), _ = Counter(pixels.shape[:2] for pixels, _ in usable.values()).most_common(1)[0]
    channels = max(pixels.shape[2] for pixels, _ in usable.values())
    if any(changed for _, changed in usable.values()):
        log.info("images of %s are prepared for the model: %s", name, preparation)
        name = f"{name} ({preparation})"
    return LazyImages(
        name=name, shape=(channels, height, width), ids=torch.from_numpy(ids), lo=0.0, hi=1.0, scale=PIXEL,
        stored=stored, preparation=preparation, **labels.of_rows(ids),
    )  # fmt: skip


def _named(stored: Stored, id: int, name: str) -> str:
    return stored.name_of(id) or f"row {id} of {name}"


Decoded = tuple[np.ndarray, bool] | str
"""The pixels and whether the preparation changed them, or why there are none."""


def _decoded(stored: Stored, ids: Sequence[int], preparation: Preparation | None) -> list[Decoded]:
    sources = stored.sources(ids)
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(partial(_one, preparation=preparation), sources))


def _one(source: str | Any | None, preparation: Preparation | None) -> Decoded:
    try:
        return pixels_of(source, preparation)
    except NotNow:
        raise
    except BadInput as error:
        return str(error)
