"""Rows of small pictures for the figures of the experiments."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.data.examples import Examples
from epsball.reproduce.nets import Net, probabilities_of
from epsball.reproduce.reproduction import Tile


def first_of_each(data: Examples) -> Int64[Tensor, " k"]:
    """The row of the first example of each class."""
    return torch.tensor([int((data.y == label).nonzero()[0]) for label in data.y.unique().tolist()])


def tiles(
    images: Float[Tensor, "n *shape"], captions: Iterable[str], wrong: Iterable[bool] | None = None
) -> tuple[Tile, ...]:
    """Small pictures, each with its caption."""
    flat = images.detach().flatten(1).double().cpu().tolist()
    mistakes = [False] * len(flat) if wrong is None else wrong
    return tuple(
        Tile(tuple(round(value, 4) for value in row), caption, mistake)
        for row, caption, mistake in zip(flat, captions, mistakes, strict=True)
    )


def predicted(
    net: Net,
    x: Float[Tensor, "n *shape"],
    y: Int64[Tensor, " n"] | None = None,
    *,
    names: tuple[str, ...] | None = None,
) -> tuple[Tile, ...]:
    """Small pictures with the prediction of a network, a mistake where that is not the label `y`."""
    confidence, label = probabilities_of(net, x).max(1)
    captions = [
        f"{at if names is None else names[at]}: {share:.0%}"
        for at, share in zip(label.tolist(), confidence.tolist(), strict=True)
    ]
    return tiles(x, captions, None if y is None else (label != y).tolist())
