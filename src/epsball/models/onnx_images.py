"""Operators of ONNX on grids: pools, pads, resizes. Arguments are named as in the standard."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from epsball.models.onnx_layers import for_torch, pads_of
from epsball.models.onnx_shapes import check_places

MAX_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def max_pool(
    X: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
) -> Tensor:
    rank = len(kernel_shape)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    pads = pads_of(X, kernel_shape, strides, dilations, pads, auto_pad)
    uneven = pads[:rank] != pads[rank:] or any(2 * pad > side for pad, side in zip(pads, kernel_shape, strict=False))
    if uneven:
        X, pads = F.pad(X, for_torch(pads), value=-math.inf), [0] * rank
    return MAX_POOLS[rank](X, kernel_shape, strides, pads[:rank], dilations, bool(ceil_mode))


def average_pool(
    X: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    rank = len(kernel_shape)
    strides, ones = strides or [1] * rank, [1] * rank
    if dilations and dilations != ones:
        raise NotImplementedError("has dilations")
    pool = AVERAGE_POOLS[rank]
    pads = pads_of(X, kernel_shape, strides, ones, pads, auto_pad)
    even = pads[:rank] == pads[rank:] and all(2 * pad <= side for pad, side in zip(pads, kernel_shape, strict=False))
    if even:
        return pool(X, kernel_shape, strides, pads[:rank], bool(ceil_mode), bool(count_include_pad))
    padded = F.pad(X, for_torch(pads))
    out = pool(padded, kernel_shape, strides, 0, bool(ceil_mode))
    if count_include_pad:
        return out
    inside = F.pad(torch.ones_like(X[:1, :1]), for_torch(pads))
    return out / pool(inside, kernel_shape, strides, 0, bool(ceil_mode))


def global_average_pool(X: Tensor) -> Tensor:
    return X.mean(tuple(range(2, X.ndim)), keepdim=True)


def global_max_pool(X: Tensor) -> Tensor:
    return X.amax(tuple(range(2, X.ndim)), keepdim=True)


def pad(
    data: Tensor,
    pads: list[int],
    constant_value: list[float] | None = None,
    axes: list[int] | None = None,
    *,
    mode: str = "constant",
    value: float = 0.0,
) -> Tensor:
    rank = data.ndim
    if axes is not None:
        half, spread = len(axes), [0] * (2 * rank)
        for place, axis in enumerate(axes):
            spread[axis % rank], spread[rank + axis % rank] = pads[place], pads[half + place]
        pads = spread
    if mode == "constant":
        return F.pad(data, for_torch(pads), value=constant_value[0] if constant_value else value)
    for axis in range(rank):
        before, after, size = pads[axis], pads[rank + axis], data.shape[axis]
        if before or after:
            check_places(size + before + after)
            places = [_mirrored(place, size, mode) for place in range(-before, size + after)]
            data = data.index_select(axis, torch.tensor(places, device=data.device))
    return data


def _mirrored(place: int, size: int, mode: str) -> int:
    """The place of an axis that a pad copies."""
    if mode == "edge":
        return min(max(place, 0), size - 1)
    if mode == "wrap":
        return place % size
    around = max(2 * (size - 1), 1)
    place %= around
    return min(place, around - place)


def depth_to_space(input: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    if mode == "CRD":
        return F.pixel_shuffle(input, blocksize)
    n, channels, height, width = input.shape
    parts = input.reshape(n, blocksize, blocksize, channels // blocksize**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, height * blocksize, width * blocksize)


def space_to_depth(input: Tensor, *, blocksize: int) -> Tensor:
    n, channels, height, width = input.shape
    parts = input.reshape(n, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, height // blocksize, width // blocksize)


def upsample(X: Tensor, scales: list[float], *, mode: str = "nearest") -> Tensor:
    return resize(X, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")


def resize(
    X: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    if antialias or exclude_outside or keep_aspect_ratio_policy != "stretch":
        raise NotImplementedError("has antialias, exclude_outside or keeps the aspect ratio")
    over = [axis % X.ndim for axis in (axes or range(X.ndim))]
    for place, axis in enumerate(over):
        size = X.shape[axis]
        if scales:
            scale, length = scales[place], math.floor(size * scales[place])
        else:
            length = (sizes or [])[place]
            scale = length / size
        if length == size or scale == 1:
            continue
        check_places(length)
        where = _sources(coordinate_transformation_mode, size, length, scale)
        if mode == "nearest":
            X = X.index_select(axis, _clamped([ROUNDINGS[nearest_mode](one) for one in where], size, X))
        else:
            X = _interpolated(X, axis, where, _cubic(cubic_coeff_a) if mode == "cubic" else _linear)
    return X


ROUNDINGS: dict[str, Callable[[float], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round_prefer_floor": lambda one: math.ceil(one - 0.5),
    "round_prefer_ceil": lambda one: math.floor(one + 0.5),
}


def _sources(mode: str, size: int, length: int, scale: float) -> list[float]:
    """Where in an axis of `size` places each of the `length` new ones lies."""
    if mode == "half_pixel":
        return [(place + 0.5) / scale - 0.5 for place in range(length)]
    if mode == "pytorch_half_pixel":
        return [(place + 0.5) / scale - 0.5 if length > 1 else 0.0 for place in range(length)]
    if mode == "align_corners":
        return [place * (size - 1) / (length - 1) if length > 1 else 0.0 for place in range(length)]
    if mode == "asymmetric":
        return [place / scale for place in range(length)]
    raise NotImplementedError(f"has the coordinates {mode}")


def _clamped(places: list[int], size: int, x: Tensor) -> Tensor:
    return torch.tensor([min(max(place, 0), size - 1) for place in places], device=x.device)


def _linear(part: float) -> list[float]:
    """The weights of the places -1, 0, 1, 2 for a point at `part` of the way from 0 to 1."""
    return [0.0, 1 - part, part, 0.0]


def _cubic(a: float) -> Callable[[float], list[float]]:
    def weights(part: float) -> list[float]:
        far, near = part + 1, part
        inner = [(a + 2) * d**3 - (a + 3) * d**2 + 1 for d in (near, 1 - near)]
        outer = [a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a for d in (far, 3 - far)]
        return [outer[0], inner[0], inner[1], outer[1]]

    return weights


def _interpolated(x: Tensor, axis: int, where: list[float], weights: Callable[[float], list[float]]) -> Tensor:
    """Each new place is a sum of the four around it, those beyond the edges being the edge."""
    first = [math.floor(one) for one in where]
    table = torch.tensor([weights(one - low) for one, low in zip(where, first, strict=True)], dtype=torch.float64)
    total: Tensor | None = None
    for column, shift in enumerate((-1, 0, 1, 2)):
        if bool(table[:, column].any()):
            part = x.index_select(axis, _clamped([low + shift for low in first], x.shape[axis], x))
            share = table[:, column].to(x).reshape(-1, *[1] * (x.ndim - 1 - axis))
            total = part * share if total is None else total + part * share
    assert total is not None
    return total
