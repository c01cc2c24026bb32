"""Small networks of the usual kinds, and their files as torch's exporters write them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = (3, 16, 16)
CLASSES = 5


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network in eval mode whose batch normalisations have seen data."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make().train()
        for _ in range(3):
            net(torch.rand(4, *SHAPE))
        return net.eval()


def conv_norm(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out))


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.first, self.second = conv_norm(c_in, c_out, 3, 2), conv_norm(c_out, c_out, 3)
        self.shortcut = conv_norm(c_in, c_out, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def resnet() -> nn.Module:
    stem = [*conv_norm(3, 6, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, Block(6, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)),
        *(nn.Flatten(), nn.Linear(128, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES)),
    )


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


def mobilenet() -> nn.Module:
    return nn.Sequential(
        *(*conv_norm(3, 8, 3, 2), nn.Hardswish(), *conv_norm(8, 8, 3, groups=8), nn.ReLU6(), SqueezeExcite(8)),
        *(*conv_norm(8, 12, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES)),
    )


class ViT(nn.Module):
    """Patches of 8x8, a class token, two layers of torch's own attention."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        layer = nn.TransformerEncoderLayer(width, 3, 24, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.ModuleList([layer])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        z = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.place
        for layer in self.layers:
            z = layer(z)
        return self.head(self.norm(z)[:, 0])


class Attention(nn.Module):
    """Attention as in the models of transformers: views into heads, scaled dot products, back."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.into = heads, nn.Linear(48, width)
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def split(self, z: Tensor) -> Tensor:
        return z.view(z.shape[0], -1, self.heads, z.shape[-1] // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.into(x.reshape(x.shape[0], -1, 48))
        q, k, v = (self.split(part(z)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        mixed = mixed.view(*mixed.shape[:2], -1)
        return self.head(F.gelu(self.norm(z + mixed), approximate="tanh").mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 16), nn.Tanh(), nn.Linear(16, CLASSES))


NETS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "resnet": resnet,
    "vgg": vgg,
    "vit": ViT,
    "mobilenet": mobilenet,
    "attention": Attention,
}


def export(
    net: nn.Module,
    path: Path,
    *,
    opset: int | None = None,
    dynamo: bool = False,
    rows: int | None = None,
    shape: tuple[int, ...] = SHAPE,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """The file of a network for any number of rows, or for `rows`."""
    x = torch.rand(rows or 2, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    free = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamo else {"dynamic_axes": {"x": {0: "n"}}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            *(net, (x,), str(path)),
            input_names=["x"],
            opset_version=opset,
            dynamo=dynamo,
            verbose=False,
            **({} if rows else free),
        )
    return path
