"""Operators of ONNX that move, select, count and reduce. Arguments are named as in the standard."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""The numbers that ONNX gives to data types."""
MOST_PLACES = 1 << 18
"""Of an axis that is listed place by place, as of a resize."""


def dtype_of(number: int) -> torch.dtype:
    """The torch dtype of a data type of ONNX."""
    if number not in DTYPES:
        raise NotImplementedError(f"has the data type {number}, which torch has not")
    return DTYPES[number]


def check_places(count: float) -> int:
    """A number of places that are listed one by one. Raises `ValueError` for more than `MOST_PLACES`."""
    if not count <= MOST_PLACES:
        raise ValueError(f"makes {count:,} places")
    return int(count)


def cast(input: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return input.to(dtype_of(to))


def cast_like(input: Tensor, target_type: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return input.to(target_type.dtype)


# Shapes


def shape(data: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(data.shape[start:end], dtype=torch.int64)


def size(data: Tensor) -> Tensor:
    return torch.tensor(data.numel())


def reshape(data: Tensor, shape: list[int], *, allowzero: int = 0) -> Tensor:
    sides = [data.shape[place] if side == 0 and not allowzero else side for place, side in enumerate(shape)]
    return data.reshape(sides)


def flatten(input: Tensor, *, axis: int = 1) -> Tensor:
    first = axis if axis >= 0 else axis + input.ndim
    return input.reshape(math.prod(input.shape[:first]), math.prod(input.shape[first:]))


def transpose(data: Tensor, *, perm: list[int] | None = None) -> Tensor:
    return data.permute(perm if perm is not None else list(reversed(range(data.ndim))))


def squeeze(data: Tensor, axes: list[int] | None = None) -> Tensor:
    if axes is None:
        return data.squeeze()
    if any(data.shape[axis] != 1 for axis in axes):
        raise ValueError(f"squeezes the axes {axes} of {tuple(data.shape)}, which are not all 1")
    return data.squeeze(tuple(axes))


def unsqueeze(data: Tensor, axes: list[int]) -> Tensor:
    rank = data.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def expand(input: Tensor, shape: list[int]) -> Tensor:
    return input.expand(torch.broadcast_shapes(input.shape, shape))


def tile(input: Tensor, repeats: list[int]) -> Tensor:
    return input.repeat(repeats)


def concat(*inputs: Tensor, axis: int, batch_axis: int | None = None) -> Tensor:
    """With `batch_axis`, parts of one row there become as many rows as the others have."""
    if batch_axis is not None:
        rows = max(part.shape[batch_axis] for part in inputs)
        sizes = [-1] * inputs[0].ndim
        sizes[batch_axis] = rows
        inputs = tuple(part.expand(sizes) if part.shape[batch_axis] == 1 else part for part in inputs)
    return torch.cat(inputs, axis)


def split(
    input: Tensor, split: list[int] | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int
) -> tuple[Tensor, ...]:
    """`outputs` is the number of names for them in the file."""
    if split is None:
        each = math.ceil(input.shape[axis] / (num_outputs or outputs))
        return input.split(each, axis)
    return input.split(split, axis)


def slice_(
    data: Tensor,
    starts: list[int],
    ends: list[int],
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Tensor:
    over = range(len(starts)) if axes is None else axes
    for axis, start, end, step in zip(over, starts, ends, steps or [1] * len(starts), strict=True):
        places = range(*slice(start, end, step).indices(data.shape[axis]))
        if step == 1:
            data = data.narrow(axis, places.start if places else 0, len(places))
        else:
            chosen = torch.arange(len(places), device=data.device) * step + places.start
            data = data.index_select(axis, chosen)
    return data


def constant_of_shape(input: list[int], *, value: Tensor | None = None) -> Tensor:
    filler = torch.zeros(1) if value is None else value
    return filler.reshape(()).expand(input)


def arange(start: list[float], limit: list[float], delta: list[float]) -> Tensor:
    length = check_places(max(math.ceil((limit[0] - start[0]) / delta[0]), 0))
    whole = isinstance(start[0], int)
    place = torch.arange(length, dtype=torch.int64 if whole else torch.float32)
    return start[0] + place * delta[0]


def eye_like(input: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    rows, columns = input.shape
    down, across = torch.arange(rows, device=input.device)[:, None], torch.arange(columns, device=input.device)
    return (across - down == k).to(input.dtype if dtype is None else dtype_of(dtype))


def trilu(input: Tensor, k: list[int] | None = None, *, upper: int = 1) -> Tensor:
    return (torch.triu if upper else torch.tril)(input, k[0] if k else 0)


def one_hot(indices: Tensor, depth: list[int], values: Tensor, *, axis: int = -1) -> Tensor:
    places = torch.arange(check_places(depth[0]), device=indices.device)
    found = torch.where(indices < 0, indices + int(depth[0]), indices)
    where = found.unsqueeze(axis) == places.reshape(-1, *[1] * ((indices.ndim - axis) if axis >= 0 else (-1 - axis)))
    return torch.where(where, values[1], values[0])


# Selections


def gather(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis %= data.ndim
    taken = data.index_select(axis, _from_start(indices.reshape(-1), data.shape[axis]))
    return taken.reshape([*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]])


def gather_elements(data: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return data.gather(axis, _from_start(indices, data.shape[axis]))


def gather_nd(data: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    if batch_dims:
        raise NotImplementedError("has batch dimensions")
    return data[tuple(indices.long().unbind(-1))]


def scatter_elements(
    data: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none"
) -> Tensor:
    where = _from_start(indices, data.shape[axis])
    if reduction == "none":
        return data.scatter(axis, where, updates)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return data.scatter_reduce(axis, where, updates, names[reduction])


def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    if reduction not in ("none", "add"):
        raise NotImplementedError(f"has reduction={reduction}")
    return data.index_put(tuple(indices.long().unbind(-1)), updates, accumulate=reduction == "add")


def _from_start(indices: Tensor, size: int) -> Tensor:
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


# Reductions


def arg_max(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return data.shape[axis] - 1 - data.flip(axis).argmax(axis, keepdim=bool(keepdims))
    return data.argmax(axis, keepdim=bool(keepdims))


def arg_min(data: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    if select_last_index:
        return data.shape[axis] - 1 - data.flip(axis).argmin(axis, keepdim=bool(keepdims))
    return data.argmin(axis, keepdim=bool(keepdims))


def cumulative_sum(x: Tensor, axis: list[int], *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    over = axis[0]
    x = x.flip(over) if reverse else x
    total = x.cumsum(over) - (x if exclusive else 0)
    return total.flip(over) if reverse else total


def top_k(
    X: Tensor, K: list[int] | None = None, *, axis: int = -1, largest: int = 1, sorted: int = 1, k: int | None = None
) -> tuple[Tensor, Tensor]:
    found = X.topk(K[0] if K else int(k or 0), axis, bool(largest), True)
    return found.values, found.indices


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[..., Tensor]:
    """An operator that reduces over `axes`, all of them where none are named."""

    def reduce(
        data: Tensor, axes: list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        if not axes and noop_with_empty_axes:
            return function(data.unsqueeze(0), (0,), False)
        over = tuple(axis % data.ndim for axis in axes) if axes else tuple(range(data.ndim))
        return function(data, over, bool(keepdims)) if data.ndim else data

    return reduce


def _product(x: Tensor, over: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(over, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


reduce_l1 = _reduction(lambda x, over, keep: x.abs().sum(over, keepdim=keep))
reduce_l2 = _reduction(lambda x, over, keep: torch.linalg.vector_norm(x, dim=over, keepdim=keep))
reduce_log_sum = _reduction(lambda x, over, keep: x.sum(over, keepdim=keep).log())
reduce_log_sum_exp = _reduction(lambda x, over, keep: x.logsumexp(over, keepdim=keep))
reduce_max = _reduction(lambda x, over, keep: x.amax(over, keepdim=keep))
reduce_mean = _reduction(lambda x, over, keep: x.mean(over, keepdim=keep))
reduce_min = _reduction(lambda x, over, keep: x.amin(over, keepdim=keep))
reduce_prod = _reduction(_product)
reduce_sum = _reduction(lambda x, over, keep: x.sum(over, keepdim=keep, dtype=x.dtype))
reduce_sum_square = _reduction(lambda x, over, keep: x.square().sum(over, keepdim=keep))
