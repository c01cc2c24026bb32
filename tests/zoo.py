"""Small networks of many architectures, some with unusual forwards, to test rewriting.

Each is {name: (maker, shape, rewritings)}: the rewritings of `accelerate` that must reproduce it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from epsball.models.builtin import Normalize, preact_resnet18

IMAGE = (3, 8, 8)


def head(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def stem() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU())


def vgg() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout2d(0.2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        *(nn.Linear(32, 10), nn.BatchNorm1d(10), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(10, 5)),
    )


class PostActivation(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + x), all in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += x
        return self.relu(y)


class Through(nn.Module):
    """A stem, whatever `middle` makes of its features, and a head; `parts` are registered."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor], features: int = 6, **parts: nn.Module) -> None:
        super().__init__()
        self.stem, self.head, self.middle = stem(), head(features), middle
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, self.stem(x)))


class Viewed(nn.Module):
    """With `.view`, which needs the channels first in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 4, stride=2, padding=1), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x))
        return self.fc(y.view(y.shape[0], -1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(6, 7, batch_first=True, num_layers=2, dropout=0.3), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.lstm(x)
        return self.fc(out[:, -1])


class SmallViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        within = self.norm(tokens)
        tokens = self.block(tokens + self.attention(within, within, within, need_weights=False)[0])
        return self.fc(tokens[:, 0])


class Pair(nn.Module):
    """Returns logits and features."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = stem(), head(6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stem(x)
        return self.head(features), features


class First(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[0]


class Functional(nn.Module):
    """F.conv2d and F.batch_norm with parameters and buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 3, 3, 3) / 3), nn.Parameter(torch.randn(5))
        self.register_buffer("mean", torch.rand(5))
        self.register_buffer("var", torch.rand(5) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(F.conv2d(x, self.weight, self.bias, stride=2), self.mean, self.var)
        return F.relu(input=y).mean((2, 3)) + self.weight.mean()


class Listed(nn.Module):
    """Layers in a ModuleList, called in an order that is kept in a plain list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([head(6), nn.ReLU(), nn.BatchNorm2d(6), nn.Conv2d(3, 6, 3, stride=2)])
        self.order = [self.layers[place] for place in (3, 2, 1, 0)]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x)
        return x


class ListedUntraceable(Listed):
    """The same, in a forward that cannot be traced: the layers of a copy would be the model's own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.detach().sum()) < 1e9 else x


class Round(torch.autograd.Function):
    """A straight-through quantiser."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def softly_rounded(self: nn.Module, x: Tensor) -> Tensor:
    return x + (Round.apply(3 * x) / 3 - x).detach()


def by_sign(self: nn.Module, x: Tensor) -> Tensor:
    """Depends on the data of the batch as a whole."""
    return self.one(x) if float(x.detach().mean()) > 0.1 else self.two(x)


def without_gradient(self: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(self.one(x))
    return x * gate


def autocast(self: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = self.one(x)
    return y.float()


def two_readers(self: nn.Module, x: Tensor) -> Tensor:
    y = self.one(x)
    return F.relu(self.norm(y)) + 0.5 * y


def two_rectified(self: nn.Module, x: Tensor) -> Tensor:
    """A ReLU in place whose input is read again, and one whose output is read twice."""
    y = self.one(x)
    z = F.relu_(y)
    return torch.cat([z, y, self.two(F.relu(self.two(z)))], 1)


def two_added(self: nn.Module, x: Tensor) -> Tensor:
    """Two ReLUs receive the same gradient tensor."""
    return F.relu(self.one(x)) + F.relu(self.norm(self.two(F.silu(x))))


def by_rows(self: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n * c, 1, h, w).reshape(n, -1).reshape(n, c, h, w)


def centred(self: nn.Module, x: Tensor) -> Tensor:
    """Depends on the other rows of the batch and on their number."""
    return x - x.mean(0, keepdim=True) / x.shape[0]


def one_by_name(self: nn.Module, x: Tensor) -> Tensor:
    """A layer is called, and its weight read besides."""
    return self.one(x) * self.one.weight.square().mean()


def spectral() -> nn.Module:
    norm, weight = parametrizations.spectral_norm, parametrizations.weight_norm
    return nn.Sequential(
        *(weight(nn.Conv2d(3, 6, 4, stride=2, padding=1)), nn.ReLU(), norm(nn.Conv2d(6, 6, 3)), nn.ReLU(), head(6))
    )


def hooked() -> nn.Module:
    model = nn.Sequential(stem(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), head(6))
    model[0][0].register_forward_hook(lambda layer, inputs, output: output * 1.5)
    model[1].register_forward_pre_hook(lambda layer, inputs: (inputs[0] - 0.25,))
    model[3].register_full_backward_hook(lambda layer, of_input, of_output: (of_input[0] * 2,))
    return model


def patched() -> nn.Module:
    """The forward of a layer, and of a block, replaced on the instance."""
    model = nn.Sequential(stem(), nn.Conv2d(6, 6, 3, padding=1), nn.Sequential(nn.Dropout2d(0.5), nn.ReLU()), head(6))
    conv, block = model[1], model[2]
    conv.forward = MethodType(lambda self, x: F.conv2d(x, 2 * self.weight, self.bias, padding=1), conv)
    block.forward = MethodType(lambda self, x: F.dropout2d(self[0](x), 0.5, self.training) + 1, block)
    return model


class Shared(nn.Module):
    """One convolution used twice, once with a BatchNorm behind it, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm, self.other = stem(), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), None
        self.other = nn.Conv2d(6, 6, 3, padding=1)
        self.other.weight = self.conv.weight
        self.again, self.head = self.conv, head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(self.stem(x))))
        return self.head(self.other(F.relu(self.again(x))))


class Output(nn.Module):
    """A model whose output is changed by a function."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x))


def conv(*sizes: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(*sizes, **options)


BOTH, TREE, GRAPH, NONE = {"graph", "tree"}, {"tree"}, {"graph"}, set[str]()
CONV = {"padding": 1}

ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "vgg": (vgg, IMAGE, BOTH),
    "preact-resnet": (lambda: preact_resnet18(IMAGE, 5, width=2), IMAGE, BOTH),
    "post-activation-resnet": (lambda: nn.Sequential(stem(), PostActivation(), PostActivation(), head(6)), IMAGE, BOTH),
    "depthwise": (
        lambda: nn.Sequential(stem(), conv(6, 6, 3, groups=6), nn.ReLU6(), conv(6, 6, 1), head(6)),
        IMAGE,
        BOTH,
    ),
    "dilated": (
        lambda: nn.Sequential(stem(), conv(6, 6, 3, dilation=2, padding="same"), nn.ReLU(), head(6)),
        IMAGE,
        BOTH,
    ),
    "grouped": (lambda: nn.Sequential(stem(), conv(6, 4, 2, groups=2, stride=2), nn.GELU(), head(4)), IMAGE, BOTH),
    "circular": (
        lambda: nn.Sequential(conv(3, 6, 3, padding=1, padding_mode="circular"), nn.ReLU(), head(6)),
        IMAGE,
        BOTH,
    ),
    "transposed": (
        lambda: nn.Sequential(stem(), nn.ConvTranspose2d(6, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), head(4)),
        IMAGE,
        BOTH,
    ),
    "odd-sizes": (
        lambda: nn.Sequential(
            *(conv(2, 5, (3, 2), stride=(2, 3), padding=(2, 1)), nn.BatchNorm2d(5), nn.LeakyReLU()),
            *(conv(5, 4, 1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)),
        ),
        (2, 9, 7),
        BOTH,
    ),
    "lstm": (Recurrent, (4, 6), BOTH),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5)),
        (3, 6),
        BOTH,
    ),
    "mlp": (
        lambda: nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.BatchNorm1d(9), nn.Linear(9, 3)),
        (4,),
        BOTH,
    ),
    "norm-of-the-wrong-axis": (
        lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Flatten(), nn.Linear(25, 5)),
        (5, 5),
        TREE,
    ),
    "vit": (SmallViT, IMAGE, BOTH),
    "view": (Viewed, IMAGE, BOTH),
    "shared-weights": (Shared, IMAGE, BOTH),
    "two-readers": (lambda: Through(two_readers, one=conv(6, 6, 3, **CONV), norm=nn.BatchNorm2d(6)), IMAGE, BOTH),
    "two-rectified": (
        lambda: Through(two_rectified, 18, one=conv(6, 6, 3, **CONV), two=conv(6, 6, 3, **CONV)),
        IMAGE,
        BOTH,
    ),
    "two-added": (
        lambda: Through(two_added, one=conv(6, 6, 3, **CONV), two=conv(6, 6, 1), norm=nn.BatchNorm2d(6)),
        IMAGE,
        BOTH,
    ),
    "first-of-two": (lambda: First(Pair()), IMAGE, BOTH),
    "normalize": (lambda: nn.Sequential(Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), vgg()), IMAGE, BOTH),
    "parametrized": (spectral, IMAGE, BOTH),
    "hooks": (hooked, IMAGE, TREE),
    "patched-forwards": (patched, IMAGE, BOTH),
    "control-flow": (lambda: Through(by_sign, one=conv(6, 6, 3, **CONV), two=conv(6, 6, 1)), IMAGE, TREE),
    "control-flow-inside": (
        lambda: nn.Sequential(Through(by_sign, one=conv(6, 6, 3, **CONV), two=conv(6, 6, 1)), nn.ReLU(), nn.Identity()),
        IMAGE,
        BOTH,
    ),
    "no-grad": (lambda: Through(without_gradient, one=conv(6, 6, 3, **CONV)), IMAGE, TREE),
    "detach": (lambda: Through(softly_rounded), IMAGE, BOTH),
    "straight-through": (lambda: Through(lambda self, x: Round.apply(x)), IMAGE, TREE),
    "noise": (lambda: Through(lambda self, x: x + 0.1 * torch.randn_like(x)), IMAGE, NONE),
    "noise-of-one-shape": (lambda: Through(lambda self, x: x + 0.1 * torch.randn(6, 1, 1)), IMAGE, NONE),
    "autocast": (lambda: Through(autocast, one=conv(6, 6, 3, **CONV)), IMAGE, TREE),
    "one-logit": (lambda: Output(nn.Sequential(stem(), head(6, 1)), lambda out: out[:, 0]), IMAGE, BOTH),
    "labels-only": (lambda: Output(nn.Sequential(stem(), head(6)), lambda out: out.argmax(1)), IMAGE, NONE),
    "float64-logits": (lambda: Output(nn.Sequential(stem(), head(6)), lambda out: out.double()), IMAGE, BOTH),
    "functional": (Functional, IMAGE, BOTH),
    "layer-and-its-weight": (lambda: Through(one_by_name, one=conv(6, 6, 3, **CONV)), IMAGE, BOTH),
    "listed": (Listed, IMAGE, GRAPH),
    "listed-untraceable": (ListedUntraceable, IMAGE, NONE),
    "rows": (lambda: Through(by_rows), IMAGE, BOTH),
    "batch-dependent": (lambda: Through(centred), IMAGE, BOTH),
    "batch-statistics": (
        lambda: Through(lambda self, x: F.silu(self.norm(x)), norm=nn.BatchNorm2d(6, track_running_stats=False)),
        IMAGE,
        BOTH,
    ),
    "one-layer": (lambda: nn.Linear(4, 3), (4,), TREE),
    "scripted": (lambda: scripted(), IMAGE, NONE),
}


def scripted() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):  # it is deprecated
        return torch.jit.trace(nn.Sequential(stem(), head(6)).eval(), torch.rand(2, *IMAGE))


def make(name: str) -> nn.Module:
    """The model of this name, its weights those of seed 0, its statistics warmed up, in train mode."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = ZOO[name][0]()
        with torch.no_grad():
            for part in model.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.weight.uniform_(0.5, 1.5)
                    part.bias.uniform_(-0.5, 0.5)
        model.train()
        for _ in range(3):
            model(torch.rand(16, *ZOO[name][1]))
    return model
