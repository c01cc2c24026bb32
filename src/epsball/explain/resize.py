"""Images at other sizes, by the mean over areas where no side grows, else bilinearly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from epsball.data.examples import Examples

BLOCK = 1 << 22
"""Numbers of resized images that are in memory at a time."""


def resized(x: Float[Tensor, "n *shape"], side: int) -> Float[Tensor, "n d"]:
    """Images (n, c, h, w) or (n, h, w) as side x side, flat, in float64; no value leaves the range of its image.

    >>> import torch
    >>> resized(torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]), 1)
    tensor([[0.7500]], dtype=torch.float64)
    """
    images = (x if x.ndim == 4 else x[:, None]).double()
    if side <= min(images.shape[-2:]):
        small = F.interpolate(images, size=(side, side), mode="area")
    else:
        small = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
    low, high = images.flatten(1).aminmax(dim=1, keepdim=True)
    return small.flatten(1).clamp(low, high)


def at_side(data: Examples, side: int) -> Examples:
    """The images at another size, (c, side, side), in their own precision and in the data's box."""
    return replace(data, x=resized(data.x, side).reshape(len(data), channels(data), side, side).to(data.x))


def blocks(data: Examples, side: int) -> Iterator[tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]]:
    """The resized images and their labels, a block at a time."""
    size = max(1, BLOCK // (channels(data) * side * side))
    for x, y in zip(data.x.split(size), data.y.split(size), strict=True):
        yield resized(x.cpu(), side), y.cpu()


def channels(data: Examples) -> int:
    """The channels of an image."""
    return data.x.shape[1] if data.x.ndim == 4 else 1
