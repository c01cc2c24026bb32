"""Labels by the names of their classes, where data and model both hold names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from epsball.common.errors import BadInput
from epsball.data.examples import Examples

log = logging.getLogger(__name__)


def numbered_like(data: Examples, names: Sequence[str] | None) -> Examples:
    """The data with its labels numbered as in `names`, those of the model's outputs in their order.

    A folder of images that lacks a class numbers those after it one lower: their names say what they are. Labels stay
    as they are where data or model have no names, or not a single name in common: nothing can be compared then.

    Raises `BadInput` where some classes of the data are, and others are not, among the names, unless those in common
    have the same numbers.

    >>> from epsball.data.arrays import from_arrays
    >>> data = from_arrays([[0.0], [1.0]], ["cat", "emu"], label_names=["cat", "emu"])
    >>> numbered_like(data, ["cat", "dog", "emu"]).y
    tensor([0, 2])
    """
    own = data.label_names
    if own is None or names is None or own == tuple(names):
        return data
    places = {name: place for place, name in enumerate(names)}
    common = [name for name in own if name in places]
    if not common:
        return data
    unknown = [name for name in own if name not in places]
    if unknown:
        if all(place == places[name] for place, name in enumerate(own) if name in places):
            return data
        raise BadInput(
            f"`data` must have classes that the model knows, got {', '.join(unknown[:5])}, while {common[0]} and "
            f"{len(common) - 1} others are known, with other numbers; give the classes the model's names, "
            f"{', '.join(list(places)[:5])}{', ...' if len(places) > 5 else ''}, or leave those examples out"
        )
    log.info("labels are matched with the model's by name: %s", ", ".join(own))
    place_of = torch.tensor([places[name] for name in own], device=data.y.device)
    return replace(data, y=place_of[data.y], classes=len(places), label_names=tuple(names))
