"""Labels by the names of their classes, where data and model both hold names."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.data.lazy_examples import LazyExamples

log = logging.getLogger(__name__)

Data = TypeVar("Data", bound=Examples | LazyExamples)

NUMERAL = re.compile(r"-?\d+")


def numbered_like(data: Data, names: Sequence[str] | None) -> Data:
    """The data with its labels numbered as in `names`, those of the model's outputs in their order.

    A folder of images that lacks a class numbers those after it one lower: their names say what they are. Names that
    differ in case, or in a space, "-" or "_", are the same. Labels stay as they are where data or model have no names,
    or not a single name in common: nothing can be compared then. Where the model's names are whole numbers (an
    estimator that was fitted to labels 1, 2, 3), labels without names are these.

    Raises `BadInput` for a label that is none of such numbers, and where some classes of the data are, and others are
    not, among the names, unless those in common have the same numbers and the model has outputs for the others.

    >>> from epsball.data.arrays import from_arrays
    >>> data = from_arrays([[0.0], [1.0]], ["cat", "emu"], label_names=["cat", "emu"])
    >>> numbered_like(data, ["Cat", "Dog", "Emu"]).y
    tensor([0, 2])
    """
    if names is None or data.label_names == tuple(names):
        return data
    if data.label_names is None:
        return _numbered_by_value(data, tuple(names))
    places = {name: place for place, name in enumerate(names)}
    own = _spelled_like(data.label_names, names)
    common = [name for name in own if name in places]
    if not common:
        return data
    unknown = [name for name in own if name not in places]
    if unknown:
        same = all(place == places[name] for place, name in enumerate(own) if name in places)
        beyond = [own[label] for label in _used(data) if label >= len(places)]
        if same and not beyond:
            return data
        raise BadInput(
            f"`data` must have classes that the model knows, got {', '.join((beyond if same else unknown)[:5])}, while "
            f"{common[0]} and {len(common) - 1} others are known{'' if same else ', with other numbers'}; give the "
            f"classes the model's names, {', '.join(list(places)[:5])}{', ...' if len(places) > 5 else ''}, or leave "
            "those examples out"
        )
    if own != tuple(names):
        log.info("labels are matched with the model's by name: %s", ", ".join(own))
    return _renumbered(data, torch.tensor([places[name] for name in own]), tuple(names))


def are_values(names: Sequence[str]) -> bool:
    """Whether names of classes are whole numbers other than their places, as of an estimator fitted to -1 and 1.

    >>> are_values(["-1", "1"]), are_values(["0", "1"]), are_values(["cat", "dog"])
    (True, False, False)
    """
    return all(NUMERAL.fullmatch(name) for name in names) and list(names) != list(map(str, range(len(names))))


def _used(data: Examples | LazyExamples) -> list[int]:
    """The labels of the data; all of them, where they are not known before the rows are read."""
    return list(range(data.classes)) if data.y is None else data.y[data.y >= 0].unique().tolist()


def _renumbered(data: Data, place_of: Tensor, names: tuple[str, ...]) -> Data:
    """The data with label k as `place_of[k]`; a label that cannot be used stays -1."""
    known: dict[str, object] = {"classes": len(names), "label_names": names}
    if isinstance(data, LazyExamples):  # labels that come with its rows, too
        before = data.places
        known["places"] = place_of if before is None else torch.where(before < 0, before, place_of[before.clamp(min=0)])
    if data.y is None:
        return replace(data, **known)
    place_of = place_of.to(data.y.device)
    return replace(data, y=torch.where(data.y < 0, data.y, place_of[data.y.clamp(min=0)]), **known)


def _numbered_by_value(data: Data, names: tuple[str, ...]) -> Data:
    """The data with labels that are values, as in names ("1", "2", "3"), as places among them."""
    if not are_values(names):
        return data
    places = {int(name): place for place, name in enumerate(names)}
    used = _used(data)
    unknown = [label for label in used if label not in places]
    if unknown:
        raise BadInput(
            f"`y` must hold the labels that the model was fitted to, {', '.join(names[:10])}, got {unknown[0]}; give "
            "each example the label that the model would give it"
        )
    log.info("labels are the model's: %s", ", ".join(names))
    highest = max(used, default=-1) if data.y is not None else max(places)
    return _renumbered(data, torch.tensor([places.get(label, -1) for label in range(highest + 1)]), names)


def _spelled_like(own: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Names of the data as the model spells them, where they differ in case, or in a space, "-" or "_"."""
    spelling = {_folded(name): name for name in names}
    if len(spelling) < len(names) or len(set(map(_folded, own))) < len(own):
        return tuple(own)
    return tuple(spelling.get(_folded(name), name) for name in own)


def _folded(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").casefold().split()) if name.strip("-_ ") else name
