"""Operators of ONNX with weights: products, convolutions, normalisations. Arguments are named as in the standard."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def gemm(
    A: Tensor,
    B: Tensor,
    C: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    if alpha == beta == 1 and not transA and transB and C is not None and C.ndim == 1:
        return F.linear(A, B, C)
    out = (A.T if transA else A) @ (B.T if transB else B)
    out = out if alpha == 1 else alpha * out
    return out if C is None or beta == 0 else out + (C if beta == 1 else beta * C)


def einsum(*parts: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *parts)


def same_pads(kind: str, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """The pads, first those at the beginning, with which an output has ceil(size / stride) places."""
    first, last = [], []
    for size, side, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + dilation * (side - 1) + 1 - size, 0)
        first.append(total - total // 2 if kind == "SAME_LOWER" else total // 2)
        last.append(total - first[-1])
    return first + last


def pads_of(
    x: Tensor, kernel: list[int], strides: list[int], dilations: list[int], pads: list[int] | None, auto_pad: str
) -> list[int]:
    """The pads of a convolution or a pool, as the standard's attributes say them."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        return same_pads(auto_pad, list(x.shape[2:]), kernel, strides, dilations)
    return pads if pads and auto_pad != "VALID" else [0] * (2 * len(kernel))


def for_torch(pads: list[int]) -> list[int]:
    """(begins, ends) per dimension as torch's pad wants them: pairs, the last dimension first."""
    half = len(pads) // 2
    return [pad for place in reversed(range(half)) for pad in (pads[place], pads[half + place])]


def conv(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    rank = W.ndim - 2
    ones = [1] * rank
    strides, dilations = strides or ones, dilations or ones
    pads = pads_of(X, list(W.shape[2:]), strides, dilations, pads, auto_pad)
    if pads[:rank] != pads[rank:]:
        X, pads = F.pad(X, for_torch(pads)), [0] * rank
    return CONVOLUTIONS[rank](X, W, B, strides, pads[:rank], dilations, group)


def conv_transpose(
    X: Tensor,
    W: Tensor,
    B: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    rank = W.ndim - 2
    ones, none = [1] * rank, [0] * rank
    strides, dilations, added = strides or ones, dilations or ones, output_padding or none
    full = [
        stride * (size - 1) + extra + dilation * (side - 1) + 1
        for size, side, stride, dilation, extra in zip(X.shape[2:], W.shape[2:], strides, dilations, added, strict=True)
    ]
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    if output_shape is not None or same:
        wanted = (output_shape or [size * stride for size, stride in zip(X.shape[2:], strides, strict=True)])[-rank:]
        total = [max(size - want, 0) for size, want in zip(full, wanted, strict=True)]
        small = [pad // 2 for pad in total]
        large = [pad - part for pad, part in zip(total, small, strict=True)]
        pads = small + large if auto_pad == "SAME_UPPER" else large + small
    pads = none * 2 if pads is None or auto_pad == "VALID" else pads
    # Without any pad, and with room for the rest at the end, the places that pads leave out are cut off.
    out = TRANSPOSED[rank](X, W, B, strides, none, none, group, dilations)
    widen = [pad for place in reversed(range(rank)) for pad in (-pads[place], added[place] - pads[rank + place])]
    if not any(widen):
        return out
    if any(pad > 0 for pad in widen) and B is not None:
        flat = B.reshape(-1, *[1] * rank)
        return F.pad(out - flat, widen) + flat
    return F.pad(out, widen)


def batch_norm(
    X: Tensor,
    scale: Tensor,
    B: Tensor,
    input_mean: Tensor,
    input_var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
) -> Tensor:
    if training_mode or not spatial:
        raise NotImplementedError("normalises by the batch itself" if training_mode else "has spatial=0")
    return F.batch_norm(X, input_mean, input_var, scale, B, False, 0.0, epsilon)


def instance_norm(input: Tensor, scale: Tensor, B: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return _normalised(input, tuple(range(2, input.ndim)), epsilon) * _channels(scale, input) + _channels(B, input)


def group_norm(
    X: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    if scale.numel() == num_groups != X.shape[1]:  # before opset 21
        scale, bias = (part.repeat_interleave(X.shape[1] // num_groups) for part in (scale, bias))
    return F.group_norm(X, num_groups, scale, bias, epsilon)


def layer_norm(
    X: Tensor, Scale: Tensor, B: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    sides = X.shape[axis % X.ndim :]
    if Scale.shape == sides and (B is None or B.shape == sides):
        return F.layer_norm(X, sides, Scale, B, epsilon)
    out = _normalised(X, tuple(range(axis % X.ndim, X.ndim)), epsilon) * Scale
    return out if B is None else out + B


def rms_norm(X: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    over = tuple(range(axis % X.ndim, X.ndim))
    return X * torch.rsqrt(X.square().mean(over, keepdim=True) + epsilon) * scale


def mean_variance_norm(X: Tensor, *, axes: list[int] | None = None) -> Tensor:
    over = (0, 2, 3) if axes is None else tuple(axes)
    mean = X.mean(over, keepdim=True)
    spread = ((X * X).mean(over, keepdim=True) - mean * mean).sqrt()
    return (X - mean) / (spread + 1e-9)


def lp_norm(input: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    size = torch.linalg.vector_norm(input, p, axis, keepdim=True)
    return input / torch.where(size == 0, 1, size)


def local_response_norm(
    X: Tensor, *, size: int, alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    squares = X.square().flatten(2)[:, None]
    before = (size - 1) // 2
    squares = F.pad(squares, (0, 0, before, size - 1 - before))
    mean = F.avg_pool2d(squares, (size, 1), 1).reshape(X.shape)
    return X / (bias + alpha * mean).pow(beta)


def attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    scale: float | None = None,
    softcap: float = 0.0,
    qk_matmul_output_mode: int = 0,
    softmax_precision: int | None = None,
) -> Tensor:
    if softcap:
        raise NotImplementedError("has a soft cap")
    joined = Q.ndim == 3
    if joined:
        if not (q_num_heads and kv_num_heads):
            raise NotImplementedError("does not say its number of heads")
        Q, K, V = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part, heads in ((Q, q_num_heads), (K, kv_num_heads), (V, kv_num_heads))
        )
    shared = Q.shape[1] // K.shape[1]
    if shared > 1:
        K, V = K.repeat_interleave(shared, 1), V.repeat_interleave(shared, 1)
    scores = Q @ K.transpose(2, 3) * (Q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    if is_causal:
        rows, columns = scores.shape[-2:]
        later = torch.ones(rows, columns, dtype=torch.bool, device=Q.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    out = torch.softmax(scores, -1) @ V
    return out.transpose(1, 2).flatten(2) if joined else out


def _normalised(x: Tensor, over: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(over, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + epsilon)


def _channels(part: Tensor, x: Tensor) -> Tensor:
    return part.reshape(-1, *[1] * (x.ndim - 2))
