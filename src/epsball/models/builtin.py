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
        nn.Flatten(),
        nn.Linear(math.prod(shape), 100),
        nn.ReLU(),
        nn.Linear(100, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def small_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two strided 4x4 convolutions (16 and 32 channels) and a hidden layer of 100; images with H, W >= 4."""
    channels, height, width = _image("small-cnn", shape, least=4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def preact_resnet18(shape: tuple[int, ...], classes: int, width: int = 64) -> nn.Module:
    """Pre-activation ResNet-18: four stages of two blocks with `width` times 1, 2, 4, 8 channels; any H and W.

    Made for 32x32; the average over places before the last layer lets any size pass.
    """
    channels, _, _ = _image("preact-resnet18", shape, least=1)
    if width < 1:
        raise BadInput(f"`width` must be >= 1, got {width}; the paper's is 64")
    stages, before = [], width
    for stage in range(4):
        after = width << stage
        stages += [PreActBlock(before, after, stride=2 if stage else 1), PreActBlock(after, after, stride=1)]
        before = after
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        *stages,
        nn.BatchNorm2d(before),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(before, classes),
    )


MAX_NORM = 1.9365
"""The length up to which the weights of a piece may grow: that of the authors' recipe for MNIST (pylearn2)."""


def maxout(shape: tuple[int, ...], classes: int, units: int = 240, pieces: int = 5, dropout: int = 50) -> nn.Module:
    """Two hidden layers of `units` maxout units of `pieces` pieces each, for examples of any shape.

    Goodfellow, Warde-Farley, Mirza, Courville and Bengio, "Maxout networks" (ICML 2013), section 5.1. `dropout` in
    percent, below 100, is that of the hidden units; of the inputs it is two fifths of that: 50 is the paper's .5 and
    .2, 0 is none. Weights start as torch's do and not as small as the paper's.
    """
    if units < 1 or pieces < 1:
        raise BadInput(f"`units` and `pieces` must be >= 1, got {units} and {pieces}; the paper's are 240 and 5")
    if not 0 <= dropout < 100:
        raise BadInput(f"`dropout` must be a percentage from 0 to 99, got {dropout}; the paper's is 50, 0 is none")
    layers: list[nn.Module] = [nn.Flatten()]
    for width, share in ((math.prod(shape), 0.4 * dropout), (units, dropout)):
        layers += [nn.Dropout(share / 100)] if dropout else []
        layers.append(Maxout(width, units, pieces))
    layers += [nn.Dropout(dropout / 100)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(units, classes))


def conv_maxout(shape: tuple[int, ...], classes: int, channels: int = 96, dropout: int = 50) -> nn.Module:
    """Three convolutional maxout layers of `channels` times 1, 2, 2, and one of 5 `channels` maxout units; H, W >= 8.

    After the network of Goodfellow et al. (ICML 2013), section 5.2, for CIFAR-10, with smaller kernels: 5x5, 5x5, 3x3
    and 2x2 pools where it has 8x8, 8x8, 5x5 and up to 4x4 ones, 2 pieces a channel. `dropout` as for `maxout`, on the
    inputs and around the last hidden layer.
    """
    colours, height, width = _image("conv-maxout", shape, least=8)
    if channels < 1:
        raise BadInput(f"`channels` must be >= 1, got {channels}; the paper's is 96")
    if not 0 <= dropout < 100:
        raise BadInput(f"`dropout` must be a percentage from 0 to 99, got {dropout}; the paper's is 50, 0 is none")
    layers: list[nn.Module] = [nn.Dropout(0.4 * dropout / 100)] if dropout else []
    before = colours
    for after, kernel in ((channels, 5), (2 * channels, 5), (2 * channels, 3)):
        layers += [MaxoutConv2d(before, after, kernel), nn.MaxPool2d(2)]
        before = after
    hidden: list[nn.Module] = [Maxout(before * (height // 8) * (width // 8), 5 * channels, 5)]
    if dropout:
        hidden = [nn.Dropout(dropout / 100), *hidden, nn.Dropout(dropout / 100)]
    return nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(5 * channels, classes))


class MaxoutConv2d(nn.Module):
    """Each channel is the largest of two convolutions, which keep height and width; the kernel is odd."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, 2 * after, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h w"]:
        one, other = self.conv(x).chunk(2, 1)
        return torch.maximum(one, other)


class Maxout(nn.Module):
    """Each unit is the largest of `pieces` linear functions; (n, width) -> (n, units).

    After a step of the optimiser the weights of a piece may be longer than `MAX_NORM`; the next forward in train mode
    shortens them in place first, unless they are frozen. Row p * units + u of the weight is piece p of unit u.
    """

    def __init__(self, width: int, units: int, pieces: int) -> None:
        super().__init__()
        self.units, self.pieces = units, pieces
        self.linear = nn.Linear(width, units * pieces)

    def forward(self, x: Float[Tensor, "n width"]) -> Float[Tensor, "n units"]:
        if self.training:
            self._shorten()
        return self.linear(x).reshape(-1, self.pieces, self.units).amax(1)  # pieces outermost: 3 times as fast

    @torch.no_grad()
    def _shorten(self) -> None:
        weight = self.linear.weight
        most = MAX_NORM * (1 + 16 * torch.finfo(weight.dtype).eps)
        # Nothing is written where nothing is too long: a graph that is still to go backwards may hold the weights.
        if weight.requires_grad and float(torch.linalg.vector_norm(weight, dim=1).max()) > most:
            weight.renorm_(2, 0, MAX_NORM)


class PreActBlock(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), with a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        changes = stride != 1 or before != after
        self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False) if changes else None

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        active = F.relu(self.norm1(x))
        around = x if self.shortcut is None else self.shortcut(active)
        return around + self.conv2(F.relu(self.norm2(self.conv1(active))))


def _image(name: str, shape: tuple[int, ...], *, least: int) -> tuple[int, ...]:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise BadInput(
            f"`shape` must be (C, H, W) with H, W >= {least} for {name}, got {shape}; "
            "reshape the data, or take small-mlp"
        )
    return shape
