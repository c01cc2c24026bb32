"""The proof that branch and bound leaves behind: the leaves of a row's tree, stored, read again and bounded anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.certify.concretise import Regions
from epsball.certify.functionals import Functional
from epsball.certify.graph import Graph
from epsball.certify.intermediate import Intermediate
from epsball.certify.multipliers import Held, Network, Pieces
from epsball.certify.splits import Leaf, Neurons, covers, domains_of
from epsball.common.errors import BadInput

CHUNK = 1 << 20
"""Leaves times neurons that are bounded at once."""
AGAIN = "run the evaluation again in a new directory"


def leaf_bounds(
    graph: Graph, regions: Regions, found: Intermediate, row: Functional, leaves: Sequence[Leaf]
) -> Float[Tensor, " l"]:
    """A lower bound of `row`, one functional of the output, in each leaf, in the precision of the graph.

    `found` holds the bounds of every node in the whole region. The row is proved where the leaves cover it (`covers`)
    and the least of these bounds is above 0.
    """
    neurons = Neurons(graph)
    network = Network(graph, regions, neurons, found.lines)
    low, high = (table[row.example] for table in neurons.intervals(found.bounds))
    bounds = []
    chunk = max(1, CHUNK // max(1, neurons.count))
    for start in range(0, len(leaves), chunk):
        part = leaves[start : start + chunk]
        unknown = low.new_full((len(part),), -torch.inf)
        domains = domains_of(part, unknown, low.expand(len(part), -1), high.expand(len(part), -1))
        held = Held(network, domains, Pieces.of(neurons, domains.low, domains.high))
        rows = row.rows(torch.zeros(len(part), dtype=torch.long, device=low.device))
        bound = found.bound(graph, graph.output, rows, held, regions)
        size = torch.maximum(domains.low.abs(), domains.high.abs())
        terms = (held.coefficient.abs() + held.price.abs()) * size  # of which one is taken from the other
        bounds.append(bound - 4 * torch.finfo(bound.dtype).eps * terms.sum(1))
    return torch.cat(bounds)


def to_arrays(leaves: Sequence[Leaf]) -> dict[str, np.ndarray]:
    """Leaves as arrays: `splits` (L, depth), 0 where a leaf is less deep, `multipliers` (L, depth), and the slopes.

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
        "splits": splits, "multipliers": multipliers, "neurons": neurons, "slopes": unique,
        "of": of.reshape(-1).astype(np.int32),
    }  # fmt: skip


def from_arrays(arrays: Mapping[str, np.ndarray], graph: Graph) -> list[Leaf]:
    """The leaves again, checked: they cover the region, their neurons exist, multipliers and slopes are sound.

    Raises `BadInput` where they do not.
    """
    neurons = Neurons(graph)
    try:
        splits, multipliers, columns, slopes, of = (
            arrays[name] for name in ("splits", "multipliers", "neurons", "slopes", "of")
        )
        sizes = splits.shape == multipliers.shape and len(of) == len(splits) and slopes.shape[1:] == columns.shape
    except (KeyError, IndexError, TypeError):
        sizes = False
    if not sizes:
        raise _refused("arrays of leaves that fit together", "others")
    if splits.size and int(np.abs(splits.astype(np.int64)).max()) > neurons.count:
        raise _refused(f"splits of the {neurons.count} neurons of the network", "others")
    if not _within(columns, neurons.count) or not _within(of, len(slopes)):
        raise _refused("slopes of the neurons of the network", "others")
    if not np.isfinite(multipliers).all() or (multipliers < 0).any() or not np.isfinite(slopes).all():
        raise _refused("finite slopes and multipliers of at least 0", "others")
    table = torch.zeros(len(slopes), neurons.count, dtype=torch.float16)
    table[:, torch.from_numpy(columns.astype(np.int64))] = torch.from_numpy(slopes.astype(np.float16))
    table = torch.maximum(table.clamp_max(1), neurons.least.half())
    leaves = []
    for row, prices, which in zip(splits.tolist(), multipliers.tolist(), of.tolist(), strict=True):
        depth = row.index(0) if 0 in row else len(row)
        leaves.append(Leaf(tuple(row[:depth]), table[which], tuple(prices[:depth])))
    if not covers([leaf.splits for leaf in leaves]):
        raise _refused("leaves that cover the region", "splits that are not those of a full binary tree")
    return leaves


def _within(index: np.ndarray, count: int) -> bool:
    return index.dtype.kind == "i" and (not index.size or (int(index.min()) >= 0 and int(index.max()) < count))


def _refused(rule: str, got: str) -> BadInput:
    return BadInput(f"`certificate` must hold {rule}, got {got}; {AGAIN}")
