"""Random small networks of every kind of layer that certificates cover, and random balls around random inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from exact_search import Clamp
from nets import rng
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.balls.l1 import L1
from epsball.balls.l2 import L2
from epsball.balls.linf import Linf

SMOOTH: list[Callable[[], nn.Module]] = [nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU]


class Residual(nn.Module):
    """branch(z) + z."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, z: Tensor) -> Tensor:
        return z + self.branch(z)


class Concat(nn.Module):
    """The outputs of both branches, one after the other."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([self.left(z), self.right(z)], 1)


class Squeeze(nn.Module):
    """One logit (n, 1) as (n,)."""

    def forward(self, z: Tensor) -> Tensor:
        return z.squeeze(1)


@dataclass
class Case:
    """A float64 network, examples, their labels, a ball, and the features that it lets change."""

    model: nn.Module
    x: Tensor  # (n, *shape)
    y: Tensor  # (n,)
    ball: Ball
    free: Tensor  # (n, d)
    smooth: bool

    def margins(self, z: Tensor) -> Tensor:
        """Logits of the label less those of each other class, (n, classes); for one logit, its sign's, (n, 1)."""
        return margins(self.model(z), self.y)


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - z_j for each class j, inf where j is y; one logit is the margin of class 1 over class 0."""
    logits = logits.reshape(len(y), -1)
    if logits.shape[1] == 1:
        return torch.where(y[:, None] == 1, logits, -logits)
    gaps = logits.gather(1, y[:, None]) - logits
    return gaps.scatter(1, y[:, None], math.inf)


def rounded(value):
    """The nearest float32 number, as float64: both precisions speak of the same network and the same ball."""
    if isinstance(value, Tensor):
        return value.float().double()
    return torch.tensor(value, dtype=torch.float32).item()


class _Draw:
    def __init__(self, seed: int) -> None:
        self.generator = rng(seed)

    def whole(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def number(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def one(self, *options):
        return options[self.whole(0, len(options) - 1)]

    def chance(self, p: float) -> bool:
        return self.number(0, 1) < p


def _activation(draw: _Draw, smooth: bool) -> nn.Module:
    if smooth:
        return draw.one(*SMOOTH)()
    low = draw.number(-0.7, 0.2)
    kinds = [nn.ReLU(), nn.ReLU(), nn.LeakyReLU(draw.number(0.01, 0.5)), Clamp(low, low + draw.number(0.1, 1.0))]
    return draw.one(*kinds)


def _dense(draw: _Draw, d: int, smooth: bool) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    for _ in range(draw.whole(1, 3)):
        width = draw.whole(2, 6)
        layers.append(nn.Linear(d, width, bias=draw.chance(0.8)))
        if draw.chance(0.3):
            layers.append(nn.BatchNorm1d(width))
        layers.append(_activation(draw, smooth))
        if draw.chance(0.3):
            layers.append(Residual(nn.Sequential(nn.Linear(width, width), _activation(draw, smooth))))
        if draw.chance(0.2):
            layers.append(Concat(nn.Linear(width, 2), nn.Sequential(nn.Linear(width, 2), _activation(draw, smooth))))
            width = 4
        d = width
    return layers, d


def _conv(draw: _Draw, channels: int, size: tuple[int, int]) -> tuple[nn.Conv2d, int, tuple[int, int]]:
    groups = draw.one(1, 1, channels)
    out = groups * draw.whole(1, 2)
    kernel = (draw.whole(1, 3), draw.whole(1, 3))
    stride, dilation = (draw.whole(1, 2), draw.whole(1, 2)), (draw.one(1, 1, 2), draw.one(1, 1, 2))
    padding = (draw.whole(0, 2), draw.whole(0, 2))
    after = [(s + 2 * p - e * (k - 1) - 1) // t + 1
             for s, p, e, k, t in zip(size, padding, dilation, kernel, stride, strict=True)]  # fmt: skip
    if min(after) < 1 or max(after) > 7:
        return _conv(draw, channels, size)
    layer = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=draw.chance(0.8))
    return layer, out, (after[0], after[1])


def _pool(draw: _Draw, size: tuple[int, int], average: bool, pads: bool) -> tuple[nn.Module, tuple[int, int]]:
    kernel, stride, padding = draw.one(2, 2, 3), draw.whole(1, 2), draw.whole(0, 1) if pads else 0
    after = [(s + 2 * padding - kernel) // stride + 1 for s in size]
    if min(after) < 1:
        return nn.Identity(), size
    kind = nn.AvgPool2d(kernel, stride, padding) if average else nn.MaxPool2d(kernel, stride, padding)
    return kind, (after[0], after[1])


def _convolutional(draw: _Draw, shape: tuple[int, ...], smooth: bool) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    channels, size = shape[0], (shape[1], shape[2])
    for _ in range(draw.whole(1, 2)):
        layer, channels, size = _conv(draw, channels, size)
        layers.append(layer)
        if draw.chance(0.3):
            layers.append(nn.BatchNorm2d(channels))
        if draw.chance(0.25) and max(size) > 1:  # no activation between: a bias that its padding does not have
            layer, channels, size = _conv(draw, channels, size)
            layers.append(layer)
        layers.append(_activation(draw, smooth))
        if draw.chance(0.25):
            branch = nn.Conv2d(channels, channels, 3, padding=1, groups=draw.one(1, channels))
            layers.append(Residual(nn.Sequential(branch, _activation(draw, smooth))))
        if draw.chance(0.2):
            layers.append(Concat(nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, (3, 1), padding=(1, 0))))
            channels = 2
        if draw.chance(0.4):
            average = smooth or draw.chance(0.5)  # a maximum is covered with padding if nothing is negative
            layer, size = _pool(draw, size, average, average or isinstance(layers[-1], nn.ReLU))
            layers.append(layer)
    layers.append(nn.Flatten())
    return layers, channels * size[0] * size[1]


def _model(draw: _Draw, layers: list[nn.Module], features: int, classes: int) -> nn.Module:
    model = nn.Sequential(
        *layers, nn.Linear(features, classes), *([Squeeze()] if classes == 1 and draw.chance(0.5) else [])
    )
    with torch.no_grad():
        for name, part in [*model.named_parameters(), *model.named_buffers()]:
            if part.is_floating_point():
                spread = draw.number(0.7, 2.0) / math.sqrt(math.prod(part.shape[1:]) or 1)
                part.copy_(spread * torch.randn(part.shape, generator=draw.generator, dtype=torch.float64))
                if "var" in name:
                    part.abs_().add_(0.3)
    return model.double().eval()


def _ball(draw: _Draw, x: Tensor, kind: type[Ball], free: Tensor, eps: float) -> Ball:
    n, shape = len(x), tuple(x.shape[1:])
    only = torch.zeros(n, x[0].numel(), dtype=torch.bool).scatter_(1, free, True).reshape(x.shape)
    shared = bool((free == free[0]).all())
    box = {}
    if draw.chance(0.6):
        box = {"lo": rounded(draw.number(-2.3, -1.0)), "hi": rounded(draw.number(0.3, 1.7))}
        x.clamp_(box["lo"], box["hi"])
    elif draw.chance(0.3):
        box = {"lo": rounded(x - draw.number(0, 0.3)), "hi": rounded(x + draw.number(0, 0.3))}
    if kind is Linf and shared and draw.chance(0.4):  # one radius per feature, 0 off the free ones
        radii = eps * (0.3 + torch.rand(1, *shape, generator=draw.generator, dtype=torch.float64))
        return Linf(eps=rounded(torch.where(only[:1], radii, 0)), **box)
    mask = None if free.shape[1] == x[0].numel() else only[:1] if shared else only
    radius: float | Tensor = rounded(eps)
    if draw.chance(0.4):
        radii = eps * (0.3 + torch.rand(n, generator=draw.generator, dtype=torch.float64))
        radius = rounded(radii).reshape(n, *[1] * len(shape))
    return kind(eps=radius, mask=mask, **box)


def drawn(seed: int, n: int = 8, *, smooth: bool = False) -> Case:
    """The network and the ball of a seed, around n inputs; all of it in float64.

    Weights, inputs and radii are float32 numbers, so that a certificate of the float32 network speaks of the same one.
    """
    draw = _Draw(seed)
    convolutional = draw.chance(0.5)
    d = draw.one(1, 2, 2)
    if convolutional:
        shape = (draw.whole(1, 2), draw.whole(3, 7), draw.whole(3, 7))
        lifted = draw.chance(0.4)  # a linear layer in front: every pixel of the image moves
        layers, features = _convolutional(draw, shape, smooth)
        if lifted:
            layers = [nn.Linear(d, math.prod(shape)), nn.Unflatten(1, shape), *layers]
            shape = (d,)
    else:
        shape = (d + draw.whole(0, 2),)
        layers, features = _dense(draw, shape[0], smooth)
    classes = draw.one(1, 2, 3, 4)
    model = _model(draw, layers, features, classes)
    for part in [*model.parameters(), *model.buffers()]:
        if part.is_floating_point():
            part.data = rounded(part.data)
    noise = torch.randn(n, *shape, generator=draw.generator, dtype=torch.float64)
    x = rounded(draw.number(-1, 1) + draw.number(0.1, 1.5) * noise)
    total, count = math.prod(shape), n if draw.chance(0.3) else 1
    free = torch.stack([torch.randperm(total, generator=draw.generator)[:d].sort().values for _ in range(count)])
    ball = _ball(draw, x, draw.one(Linf, Linf, L2, L1), free.expand(n, -1), 10 ** draw.number(-2, 0))
    with torch.no_grad():
        logits = model(x).reshape(n, -1)
    y = (logits[:, 0] > 0).long() if classes == 1 else logits.argmax(1)
    if draw.chance(0.2):
        y = torch.randint(max(classes, 2), (n,), generator=draw.generator)
    return Case(model, x, y, ball, free.expand(n, -1).contiguous(), smooth)
