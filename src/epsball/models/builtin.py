"""Small networks for tests, examples and first runs, and the layer that normalises inside a model.

The convolutional network is that of Wong and Kolter (2018) for MNIST; the ResNet is the pre-activation ResNet-18 of
He et al. (2016, "Identity mappings in deep residual networks") with the 3x3 stem used on CIFAR. All return logits and
take inputs in [0, 1]; none normalises by itself: put `Normalize` in front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from epsball.errors import BadInput


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
