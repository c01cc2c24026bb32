"""The proof that branch and bound leaves behind: the leaves of a row's tree, stored, read again and bounded anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.certify.boxes import BOXES, tightened
from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional
from epsball.certify.graph import Graph
from epsball.certify.intermediate import Intermediate
from epsball.certify.multipliers import Held, Network, Pieces
from epsball.certify.rounding import Rounding
from epsball.certify.splits import Leaf, Neurons, covers, cut, domains_of
from epsball.common.errors import BadInput

CHUNK = 1 << 20
"""Leaves times neurons that are bounded at once."""
PARTS = ("splits", "multipliers", "tightened", "neurons", "slopes", "of")
T = TypeVar("T")
AGAIN = "run the evaluation again in a new directory"


def leaf_bounds(
    graph: Graph, regions: Regions, found: Intermediate, row: Functional, leaves: Sequence[Leaf]
) -> Float[Tensor, " l"]:
    """A lower bound of `row`, one functional of the output, in each leaf, in the precision of the graph.

    `found` holds the bounds of every node in the whole region. The row is proved where the leaves cover it (`covers`)
    and the least of these bounds is above 0.
    """
    neurons = Neurons(graph)
    low, high = (table[row.example] for table in neurons.intervals(found.bounds))
    owners: dict[tuple[int, ...], list[int]] = {}
    for place, leaf in enumerate(leaves):
        owners.setdefault(leaf.box, []).append(place)
    bounds = torch.full((len(leaves),), torch.inf, dtype=graph.dtype)
    size = max(1, CHUNK // max(1, neurons.count))
    for boxes in _chunks(list(owners), BOXES):
        at = {box: i for i, box in enumerate(boxes)}
        around, inside = regions, found
        if boxes == [()]:
            at[()] = int(row.example[0])
        else:
            around = regions.rows(row.example.expand(len(boxes)))
            cuts = cut(boxes, low.expand(len(boxes), -1), high.expand(len(boxes), -1))
            rounding = None if found.rounding is None else Rounding(graph, found.rounding.unit)
            inside = tightened(graph, around, *cuts, rounding)
        for these in _chunks([place for box in boxes for place in owners[box]], size):
            part = [leaves[place] for place in these]
            bounds[these] = _bounds(graph, around, inside, row, torch.tensor([at[leaf.box] for leaf in part]), part)
    return bounds


def _chunks(items: list[T], size: int) -> list[list[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _bounds(
    graph: Graph, regions: Regions, found: Intermediate, row: Functional, box: Tensor, leaves: Sequence[Leaf]
) -> Tensor:
    """The bounds of leaves in the boxes (L,) that they are in."""
    neurons = Neurons(graph)
    network = Network(graph, regions, neurons, found.lines)
    low, high = (table[box] for table in neurons.intervals(found.bounds))
    domains = domains_of(leaves, low.new_full((len(leaves),), -torch.inf), low, high)
    held = Held(network, domains, Pieces.of(neurons, domains.low, domains.high))
    rows = replace(row.rows(torch.zeros_like(box)), example=box)
    bound = found.bound(graph, graph.output, rows, held, regions)
    size = torch.maximum(domains.low.abs(), domains.high.abs())
    terms = (held.coefficient.abs() + held.price.abs()) * size  # of which one is taken from the other
    return bound - 4 * torch.finfo(bound.dtype).eps * terms.sum(1)


def to_arrays(leaves: Sequence[Leaf]) -> dict[str, np.ndarray]:
    """Leaves as arrays: `splits` (L, depth), 0 where a leaf is less deep, `multipliers` (L, depth), `tightened` (L,).

    `slopes` (S, U) are of the `neurons` (U,), and `of` (L,) says which are a leaf's: a leaf often has its parent's.
    """
    depth = max((len(leaf.splits) for leaf in leaves), default=0)
    splits, multipliers = np.zeros((len(leaves), depth), np.int32), np.zeros((len(leaves), depth), np.float16)
    for place, leaf in enumerate(leaves):
        splits[place, : len(leaf.splits)] = leaf.splits
        multipliers[place, : len(leaf.splits)] = leaf.multipliers
    slopes = torch.stack([leaf.slopes for leaf in leaves]).numpy()
    neurons = np.flatnonzero((slopes != slopes[:1]).any(0) | (slopes[0] != 0)).astype(np.int32)
    unique, of = np.unique(slopes[:, neurons], axis=0, return_inverse=True)
    return {
        "splits": splits, "multipliers": multipliers,
        "tightened": np.array([leaf.tightened for leaf in leaves], dtype=np.int32),
        "neurons": neurons, "slopes": unique, "of": of.reshape(-1).astype(np.int32),
    }  # fmt: skip


def from_arrays(arrays: Mapping[str, np.ndarray], graph: Graph) -> list[Leaf]:
    """The leaves again, checked: they cover the region, their neurons exist, multipliers and slopes are sound.

    Raises `BadInput` where they do not.
    """
    neurons = Neurons(graph)
    splits, multipliers, known, columns, slopes, of = _checked(arrays, neurons.count)
    table = torch.zeros(len(slopes), neurons.count, dtype=torch.float16)
    table[:, torch.from_numpy(columns.astype(np.int64))] = torch.from_numpy(slopes.astype(np.float16))
    table = torch.maximum(table.clamp_max(1), neurons.least.half())
    leaves = []
    for row, prices, first, which in zip(
        splits.tolist(), multipliers.tolist(), known.tolist(), of.tolist(), strict=True
    ):
        depth = row.index(0) if 0 in row else len(row)
        leaves.append(Leaf(tuple(row[:depth]), table[which], tuple(prices[:depth]), min(first, depth)))
    if not covers([leaf.splits for leaf in leaves]):
        raise _refused("leaves that cover the region", "splits that are not those of a full binary tree")
    return leaves


def _checked(arrays: Mapping[str, np.ndarray], count: int) -> list[np.ndarray]:
    """The arrays in the order of `PARTS`; raises `BadInput` where they do not fit together, or the network."""
    if any(part not in arrays for part in PARTS):
        raise _refused("all arrays of leaves", f"{', '.join(sorted(arrays))}")
    found = [arrays[part] for part in PARTS]
    splits, multipliers, known, columns, slopes, of = found
    shapes = [array.ndim for array in found] == [2, 2, 1, 1, 2, 1]
    if not shapes or multipliers.shape != splits.shape or len(known) != len(splits) or len(of) != len(splits):
        raise _refused("arrays of leaves that fit together", "others")
    if slopes.shape[1] != len(columns) or not _within(columns, 0, count) or not _within(of, 0, len(slopes)):
        raise _refused("slopes of the neurons of the network", "others")
    if not _within(splits, -count, count + 1) or not _within(known, 0, splits.shape[1] + 1):
        raise _refused(f"splits of the {count} neurons of the network", "others")
    if not np.isfinite(multipliers).all() or (multipliers < 0).any() or not np.isfinite(slopes).all():
        raise _refused("finite slopes and multipliers of at least 0", "others")
    return found


def _within(index: np.ndarray, least: int, end: int) -> bool:
    """Whether the entries are whole numbers from `least` on and below `end`."""
    return index.dtype.kind == "i" and (not index.size or (int(index.min()) >= least and int(index.max()) < end))


def _refused(rule: str, got: str) -> BadInput:
    return BadInput(f"`certificate` must hold {rule}, got {got}; {AGAIN}")
