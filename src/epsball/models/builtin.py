"""Small networks for tests, examples and first runs, and the layer that normalises inside a model.

The convolutional network is that of Wong and Kolter (2018) for MNIST; the ResNet is the pre-activation ResNet-18 of
He et al. (2016, "Identity mappings in deep residual networks") with the 3x3 stem used on CIFAR; the maxout networks
are those of Goodfellow et al. (ICML 2013) for MNIST and CIFAR-10. All return logits and take inputs in [0, 1]; none
normalises by itself: put `Normalize` in front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.common.checks import check_between, check_whole
from epsball.common.errors import BadInput


class Normalize(nn.Module):
    """(x - mean) / std per channel, so that eps stays in the units of the data.

    `mean` and `std` are one number per channel, std > 0; x is (n, channels, ...), on whose dtype it acts.

    >>> Normalize([0.5], [0.25])(torch.tensor([[0.0, 1.0]]).reshape(2, 1)).squeeze()
    tensor([-2.,  2.])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise BadInput(
                f"`mean` and `std` must be one number per channel, std > 0, got {list(mean)}, {list(std)}; "
                "leave constant channels out of std by writing 1"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        mean, std = (part.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2)) for part in (self.mean, self.std))
        return (x - mean) / std


def small_mlp(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two hidden layers of 100 units with ReLU, for examples of any shape; (n, *shape) -> (n, classes)."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(math.prod(shape), 100), nn.ReLU()),
        *(nn.Linear(100, 100), nn.ReLU()),
        nn.Linear(100, classes),
    )


def small_cnn(shape: tuple[int, ...], classes: int, width: int = 16) -> nn.Module:
    """Two strided 4x4 convolutions (`width` and 2 `width` channels) and a hidden layer of 100; images with H, W >= 4.

    A width of 16 is that of Wong and Kolter (2018).
    """
    channels, rows, columns = _image_shape("small-cnn", shape, least=4)
    check_whole("width", width, 1, "the usual one is 16")
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * (rows // 4) * (columns // 4), 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def preact_resnet18(shape: tuple[int, ...], classes: int, width: int = 64) -> nn.Module:
    """Pre-activation ResNet-18: four stages of two blocks with `width` times 1, 2, 4, 8 channels; any H and W.

    Made for 32x32; the average over places before the last layer lets any size pass.
    """
    channels, _, _ = _image_shape("preact-resnet18", shape, least=1)
    check_whole("width", width, 1, "the paper's is 64")
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
    c_in = width
    for stage in range(4):
        c_out = width << stage
        layers += [PreActBlock(c_in, c_out, stride=2 if stage else 1), PreActBlock(c_out, c_out, stride=1)]
        c_in = c_out
    head = (nn.BatchNorm2d(c_in), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))
    return nn.Sequential(*layers, *head)


MAX_NORM = 1.9365
"""The length up to which the weights of a piece may grow: that of the authors' recipe for MNIST (pylearn2)."""


def maxout(shape: tuple[int, ...], classes: int, units: int = 240, pieces: int = 5, dropout: int = 50) -> nn.Module:
    """Two hidden layers of `units` maxout units of `pieces` pieces each, for examples of any shape.

    Goodfellow, Warde-Farley, Mirza, Courville and Bengio, "Maxout networks" (ICML 2013), section 5.1. `dropout` in
    percent, below 100, is that of the hidden units; of the inputs it is two fifths of that: 50 is the paper's .5 and
    .2, 0 is none. Weights start as torch's do and not as small as the paper's.
    """
    check_whole("units", units, 1, "the paper's are 240")
    check_whole("pieces", pieces, 1, "the paper's are 5")
    check_between("dropout", dropout, 0, 99, "a percentage: the paper's is 50, 0 is none")
    return nn.Sequential(
        *(nn.Flatten(), *_dropout(0.4 * dropout), Maxout(math.prod(shape), units, pieces)),
        *(*_dropout(dropout), Maxout(units, units, pieces)),
        *(*_dropout(dropout), nn.Linear(units, classes)),
    )


def conv_maxout(shape: tuple[int, ...], classes: int, channels: int = 96, dropout: int = 50) -> nn.Module:
    """Three convolutional maxout layers of `channels` times 1, 2, 2, and one of 5 `channels` maxout units; H, W >= 8.

    After the network of Goodfellow et al. (ICML 2013), section 5.2, for CIFAR-10, with smaller kernels: 5x5, 5x5, 3x3
    and 2x2 pools where it has 8x8, 8x8, 5x5 and up to 4x4 ones, 2 pieces a channel. `dropout` as for `maxout`, on the
    inputs and around the last hidden layer.
    """
    colours, height, width = _image_shape("conv-maxout", shape, least=8)
    check_whole("channels", channels, 1, "the paper's is 96")
    check_between("dropout", dropout, 0, 99, "a percentage: the paper's is 50, 0 is none")
    layers, c_in = _dropout(0.4 * dropout), colours
    for c_out, kernel in ((channels, 5), (2 * channels, 5), (2 * channels, 3)):
        layers += [MaxoutConv2d(c_in, c_out, kernel), nn.MaxPool2d(2)]
        c_in = c_out
    hidden = Maxout(c_in * (height // 8) * (width // 8), 5 * channels, 5)
    layers += [nn.Flatten(), *_dropout(dropout), hidden, *_dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(5 * channels, classes))


def _dropout(percent: float) -> list[nn.Module]:
    return [nn.Dropout(percent / 100)] if percent else []


class MaxoutConv2d(nn.Module):
    """Each channel is the maximum of two convolutions, which keep height and width; the kernel is odd."""

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, 2 * c_out, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        return torch.maximum(*self.conv(x).chunk(2, 1))


class Maxout(nn.Module):
    """Each unit is the maximum of `pieces` linear functions; (n, width) -> (n, units).

    A step of the optimiser may make the weights of a piece longer than `MAX_NORM`; the next forward in train mode first
    shortens them in place, unless they are frozen. Row p * units + u of the weight is piece p of unit u.
    """

    def __init__(self, width: int, units: int, pieces: int) -> None:
        super().__init__()
        self.units, self.pieces = units, pieces
        self.linear = nn.Linear(width, units * pieces)

    def forward(self, x: Float[Tensor, "n width"]) -> Float[Tensor, "n units"]:
        if self.training:
            self._limit_norms()
        return self.linear(x).reshape(-1, self.pieces, self.units).amax(1)  # pieces outermost: 3 times as fast

    @torch.no_grad()
    def _limit_norms(self) -> None:
        weight = self.linear.weight
        limit = MAX_NORM * (1 + 16 * torch.finfo(weight.dtype).eps)
        # Only what is too long is written: a graph whose backward is still to come may hold the weights.
        if weight.requires_grad and float(torch.linalg.vector_norm(weight, dim=1).max()) > limit:
            weight.renorm_(2, 0, MAX_NORM)


class PreActBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), with a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, c_in: int, c_out: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        reshaped = stride != 1 or c_in != c_out
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False) if reshaped else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        active = F.relu(self.norm1(x))
        identity = x if self.shortcut is None else self.shortcut(active)
        return identity + self.conv2(F.relu(self.norm2(self.conv1(active))))


def _image_shape(name: str, shape: tuple[int, ...], *, least: int) -> tuple[int, ...]:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise BadInput(
            f"`shape` must be (C, H, W) with H, W >= {least} for {name}, got {shape}; "
            "reshape the data, or take small-mlp"
        )
    return shape
