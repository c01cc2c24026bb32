"""The backward-data of a convolution, expressed as forward operations that CPU libraries compute fast.

The gradient of a strided convolution with respect to its input is a transposed convolution, whose oneDNN kernels are
slow for few channels. Only the taps k = s t + r reach the input pixel i = s q + r - p: so for each of the s x s phases
r the gradient is a plain convolution (stride 1) of the output's gradient with a part of the kernel, mirrored; all
phases together are one convolution to s s C channels, which are then interleaved. Or the gradient at the output is
multiplied by the kernel, a matrix, and folded (`col2im`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]
Weight = Float[Tensor, "out c kh kw"]


def phases(weight: Weight, stride: Size) -> Float[Tensor, "ssc out th tw"]:
    """The kernels of all phases, mirrored: (s_h s_w c, out, ceil(kh / s_h), ceil(kw / s_w)), phase by phase.

    >>> phases(torch.arange(1.0, 4.0).reshape(1, 1, 1, 3), (1, 2)).flatten().tolist()
    [3.0, 1.0, 0.0, 2.0]
    """
    out, c, kh, kw = weight.shape
    sh, sw = stride
    th, tw = -(-kh // sh), -(-kw // sw)
    whole = F.pad(weight, (0, sw * tw - kw, 0, sh * th - kh)).reshape(out, c, th, sh, tw, sw)
    return whole.flip(2, 4).permute(3, 5, 1, 0, 2, 4).reshape(sh * sw * c, out, th, tw)


def by_phases(
    grad: Float[Tensor, "n out oh ow"], kernels: Float[Tensor, "ssc out th tw"], stride: Size, padding: Size, size: Size
) -> Float[Tensor, "n c h w"]:
    """The gradient at the input, (n, c, *size), from that at the output, by one convolution of stride 1.

    `kernels` are those of `phases`; `padding` is that of the forward, `size` the input's height and width.
    """
    (sh, sw), (ph, pw), (h, w) = stride, padding, size
    th, tw = kernels.shape[2:]
    spared_h, spared_w = _spared(grad.shape[2], th, sh, ph, h), _spared(grad.shape[3], tw, sw, pw, w)
    found = F.conv2d(grad, kernels, padding=(th - 1 - spared_h, tw - 1 - spared_w))
    rows, columns = found.shape[2:]
    if (sh, sw) == (1, 1) and rows - ph + spared_h >= h and columns - pw + spared_w >= w:
        top, left = ph - spared_h, pw - spared_w
        return found[:, :, top : top + h, left : left + w]
    last = found.is_contiguous(memory_format=torch.channels_last) and not found.is_contiguous()
    whole = torch.empty(
        (len(found), len(kernels) // (sh * sw), h, w),
        dtype=found.dtype,
        device=found.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )
    if _short(rows, spared_h, sh, ph, h) or _short(columns, spared_w, sw, pw, w):
        whole = whole.zero_()
    for phase, part in enumerate(found.chunk(sh * sw, 1)):
        # The pixels i = a, a + s, ... have the phase (a + p) % s, and begin at q = (a + p) // s.
        a, b = (phase // sw - ph) % sh, (phase % sw - pw) % sw
        top, left = (a + ph) // sh - spared_h, (b + pw) // sw - spared_w
        into = whole[:, :, a::sh, b::sw]
        part = part[:, :, top : top + into.shape[2], left : left + into.shape[3]]
        into[:, :, : part.shape[2], : part.shape[3]] = part
    return whole


def _spared(places: int, taps: int, stride: int, padding: int, size: int) -> int:
    """How many rows the convolution may spare at each end, since they would only be cut off."""
    spared = min(padding // stride, taps - 1)
    return spared if (places + taps - 1 - spared) * stride - padding >= size else 0


def _short(rows: int, spared: int, stride: int, padding: int, size: int) -> bool:
    """Whether the last pixels are touched by no window."""
    return (size - 1 + padding) // stride - spared >= rows


def by_folding(
    grad: Float[Tensor, "n out oh ow"], weight: Weight, stride: Size, padding: Size, dilation: Size, size: Size
) -> Float[Tensor, "n c h w"]:
    """The gradient at the input, (n, c, *size): a matrix product for each place, and the sum of what overlaps."""
    columns = torch.matmul(weight.flatten(1).T, grad.flatten(2))
    return F.fold(columns, size, tuple(weight.shape[2:]), dilation, padding, stride)
