"""The test-bed of set-ups: what people do wrong with an evaluation, and what is unusual but sound.

Each set-up is a function that returns the arguments of `evaluate`; a wrong one stands under the name of the warning
that has to come first. Networks are small and trained for a second, once per session.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from shared_data import shared_data
from torch import Tensor, nn
from torch.nn import functional as F

import epsball as eb
from epsball.data.examples import Examples
from epsball.models.builtin import Normalize

MNIST = ([0.1307], [0.3081])
CIFAR = ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616])
N = 200


@dataclass(frozen=True, eq=False)
class World:
    """A trained network, and examples that it was not trained on."""

    model: nn.Module
    x: Tensor
    y: Tensor

    def data(self, n: int = N) -> tuple[Tensor, Tensor]:
        return self.x[:n], self.y[:n]


def trained(net: Callable[[], nn.Module], x: Tensor, y: Tensor, *, epochs: int = 6, lr: float = 3e-3) -> nn.Module:
    """What `net` makes, trained on x and y by Adam; one logit by the binary cross-entropy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = net()
    optimiser, generator = torch.optim.Adam(model.parameters(), lr), torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            out = model(x[rows])
            single = out.ndim == 1 or out.shape[1] == 1
            loss = (
                F.binary_cross_entropy_with_logits(out.flatten(), y[rows].to(out))
                if single
                else F.cross_entropy(out, y[rows])
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def mlp(d: int, classes: int, *front: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*front, nn.Flatten(), nn.Linear(d, 32), nn.ReLU(), nn.Linear(32, classes))


@cache
def arrays(name: str, split: str, n: int) -> Examples:
    """The first n examples of a split, decoded here: `load_data` would decode all."""
    if name == "digits":
        return eb.data.load_data("digits", split=split).rows(slice(n))
    rows = pq.read_table(next(shared_data(name).glob(f"{split}-*.parquet"))).slice(0, n)
    image, label = rows.column_names if "im" in rows.column_names[0] else rows.column_names[::-1]
    pixels = np.stack([np.asarray(Image.open(BytesIO(one["bytes"]))) for one in rows[image].to_pylist()])
    x = torch.from_numpy(pixels).float().div(255)
    x = x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x[:, None]
    return eb.data.from_arrays(x, torch.from_numpy(rows[label].to_numpy().copy()), lo=0, hi=1)


@cache
def digits() -> World:
    """8x8 digits in [0, 1], on 17 levels."""
    train, test = arrays("digits", "train", 1500), arrays("digits", "test", 400)
    return World(trained(mlp(64, 10), train.x, train.y, epochs=20), test.x, test.y)


@cache
def mnist() -> World:
    train, test = arrays("mnist", "train", 2000), arrays("mnist", "test", 400)
    return World(trained(mlp(784, 10), train.x, train.y), test.x, test.y)


@cache
def mnist_normalised() -> World:
    """Normalised outside the model."""
    train, test = arrays("mnist", "train", 2000), arrays("mnist", "test", 400)
    normalise = Normalize(*MNIST)
    return World(trained(mlp(784, 10), normalise(train.x), train.y), normalise(test.x), test.y)


@cache
def cifar() -> World:
    """A weak network of CIFAR-10: some 35 % of the examples are classified correctly."""
    train, test = arrays("cifar10", "train", 2000), arrays("cifar10", "test", 400)
    return World(trained(mlp(3072, 10, Normalize(*CIFAR)), train.x, train.y), test.x, test.y)


@cache
def colours(classes: int = 10) -> World:
    """Images (3, 12, 12) of 8 bits in [0, 1]: a pattern of each class's own, with noise."""
    generator = torch.Generator().manual_seed(3)
    patterns = torch.rand(classes, 3, 12, 12, generator=generator)
    patterns[:, 1] = patterns[0, 1]
    y = torch.randint(classes, (1200,), generator=generator)
    x = patterns[y] * 0.6 + 0.4 * torch.rand(1200, 3, 12, 12, generator=generator)
    x = ((x - x.min()) / (x.max() - x.min()) * 255).round() / 255
    return World(trained(mlp(432, classes), x[:800], y[:800]), x[800:], y[800:])


@cache
def table(name: str = "breast_cancer", scaled: str = "standard") -> World:
    """A table of scikit-learn's, standardised, scaled to [0, 1], or as it is."""
    from sklearn import datasets

    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    mean, std = x.mean(0), x.std(0)
    if scaled == "standard":
        x = (x - mean) / std
    if scaled == "unit":
        x = (x - x.min(0)) / (x.max(0) - x.min(0))
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    classes = int(y.max()) + 1
    half = len(x) // 2
    front = [Standardise(torch.from_numpy(mean).float(), torch.from_numpy(std).float())] if scaled == "raw" else []
    net = mlp(x.shape[1], 1 if classes == 2 else classes, *front)
    return World(trained(net, x[:half], y[:half], epochs=40), x[half:], y[half:])


class Standardise(nn.Module):
    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


@cache
def embeddings() -> World:
    """Vectors of 96 numbers, as of a text encoder: a mean of each class's own, of length about one."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(4, 96, generator=generator)
    y = torch.randint(4, (600,), generator=generator)
    x = F.normalize(means[y] + 2 * torch.randn(600, 96, generator=generator), dim=1)
    return World(trained(mlp(96, 4), x[:400], y[:400], epochs=20), x[400:], y[400:])


class Front(nn.Module):
    """A model on a function of its input."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.function(x))


class Back(nn.Module):
    """A function of a model's output."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.model(x))


Case = tuple[Any, ...]
UNIT = {"lo": 0, "hi": 1}


def sorted_by_class(world: World) -> World:
    order = world.y.argsort(stable=True)
    return World(world.model, world.x[order], world.y[order])


def named(world: World, names: int, n: int = N, **changes: Any) -> Examples:
    x, y = world.data(n)
    made = eb.data.from_arrays(x, y, lo=0, hi=1)
    return replace(made, label_names=tuple(f"class {i}" for i in range(names)), **changes)


def two_logits(world: World) -> nn.Module:
    return Back(world.model, lambda z: torch.cat([torch.zeros_like(z), z], 1))


def without(world: World, gone: int) -> tuple[Tensor, Tensor]:
    """The examples without a class, and the later labels one lower, as from folders of which one is missing."""
    keep = world.y != gone
    y = world.y[keep]
    return world.x[keep], y - (y > gone).long()


def binary(world: World, a: int = 3, b: int = 8) -> tuple[Tensor, Tensor]:
    keep = (world.y == a) | (world.y == b)
    return world.x[keep], (world.y[keep] == b).long()


@cache
def threes_eights() -> World:
    """One logit for 8 against 3."""
    train = arrays("digits", "train", 1500)
    all_rows = arrays("digits", "test", 400)
    x, y = binary(World(nn.Identity(), train.x, train.y))
    z, t = binary(World(nn.Identity(), all_rows.x, all_rows.y))
    return World(trained(mlp(64, 1), x, y, epochs=30), z, t)


def untrained(d: int = 64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return mlp(d, 10)()


def shuffled(y: Tensor) -> Tensor:
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]


def noisy(model: nn.Module, size: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    return Back(model, lambda z: z + size * z.std() * torch.randn(z.shape, generator=generator))


def poisoned(model: nn.Module, value: float, rows: bool) -> nn.Module:
    """Logits that are not finite: of rows with a bright pixel, or of a class."""

    def change(x: Tensor) -> Tensor:
        z = model(x)
        bad = (x.flatten(1)[:, 20:21] > 0.5) if rows else torch.zeros(len(x), 1, dtype=torch.bool)
        column = torch.arange(z.shape[1])[None] == (0 if rows else z.shape[1] - 1)
        return torch.where(bad & column if rows else column, value, z)

    return Front(nn.Identity(), change)


def repeated(x: Tensor, times: int) -> Tensor:
    return x[torch.arange(len(x)) // times * times]


TEXT_ORDER = torch.tensor(sorted(range(12), key=str)).argsort()
PERMUTED = torch.tensor([4, 7, 1, 9, 0, 2, 8, 3, 6, 5])

WRONG: dict[str, tuple[str, Callable[[], Case]]] = {
    # units of data, box and radius
    "pixels as floats, eps for [0, 1]": (
        "eps-of-unit-range",
        lambda: (Front(mnist().model, lambda x: x / 255), (mnist().x * 255, mnist().y), eb.Linf(eps=0.3)),
    ),
    "pixels as floats for a net of [0, 1]": (
        "eps-of-unit-range",
        lambda: (mnist().model, (mnist().x * 255, mnist().y), eb.Linf(eps=0.05)),
    ),
    "pixels as floats, 8/255 in their box": (
        "eps-of-unit-range",
        lambda: (
            Front(mnist().model, lambda x: x / 255),
            (mnist().x * 255, mnist().y),
            eb.Linf(eps=8 / 255, lo=0, hi=255),
        ),
    ),
    "pixels as floats, L2 of [0, 1]": (
        "eps-of-unit-range",
        lambda: (
            Front(colours().model, lambda x: x / 255),
            (colours().x * 255, colours().y),
            eb.L2(eps=0.5, lo=0, hi=255),
        ),
    ),
    "pixels as floats, L1 of [0, 1]": (
        "eps-of-unit-range",
        lambda: (
            Front(mnist().model, lambda x: x / 255),
            (mnist().x * 255, mnist().y),
            eb.L1(eps=5, lo=0, hi=255),
        ),
    ),
    "images of [0, 1] in the box of pixels": (
        "box-of-pixels",
        lambda: (mnist().model, mnist().data(), eb.Linf(eps=12, lo=0, hi=255)),
    ),
    "colour images of [0, 1] in the box of pixels, L2": (
        "box-of-pixels",
        lambda: (colours().model, colours().data(), eb.L2(eps=128, lo=0, hi=255)),
    ),
    "divided by 255 twice": (
        "scaled-twice",
        lambda: (Front(mnist().model, lambda x: 255 * x), (mnist().x / 255, mnist().y), eb.Linf(eps=8 / 255, **UNIT)),
    ),
    "normalised outside, 8/255, no box": (
        "normalised-data",
        lambda: (mnist_normalised().model, mnist_normalised().data(), eb.Linf(eps=8 / 255)),
    ),
    "normalised outside, 8/255, the data's box": (
        "normalised-data",
        lambda: (
            mnist_normalised().model,
            mnist_normalised().data(),
            eb.Linf(eps=8 / 255, lo=-0.5, hi=2.9),
        ),
    ),
    "normalised outside, 0.1, no box": (
        "normalised-data",
        lambda: (mnist_normalised().model, mnist_normalised().data(), eb.Linf(eps=0.1)),
    ),
    "normalised outside, curve of k/255": (
        "normalised-data",
        lambda: (
            mnist_normalised().model,
            mnist_normalised().data(),
            eb.Linf(eps=0.1, lo=-0.5, hi=2.9),
            {"eps": [2 / 255, 4 / 255, 8 / 255]},
        ),
    ),
    "colours normalised by channel, 8/255": (
        "normalised-data",
        lambda: (
            cifar().model[1:],
            (Normalize(*CIFAR)(cifar().x[:N]), cifar().y[:N]),
            eb.Linf(eps=8 / 255),
        ),
    ),
    "normalised outside, flattened, 4/255": (
        "normalised-data",
        lambda: (
            mnist_normalised().model,
            (mnist_normalised().x.flatten(1), mnist_normalised().y),
            eb.Linf(eps=4 / 255),
        ),
    ),
    "8 for 8/255": ("eps-covers-box", lambda: (digits().model, digits().data(), eb.Linf(eps=8, **UNIT))),
    "16 for 16/255, colours, no box": (
        "eps-covers-box",
        lambda: (colours().model, colours().data(), eb.Linf(eps=16)),
    ),
    "128 for 128/255 in L2": (
        "eps-covers-box",
        lambda: (colours().model, colours().data(), eb.L2(eps=128, **UNIT)),
    ),
    "more pixels than there are": (
        "eps-covers-box",
        lambda: (digits().model, digits().data(), eb.L0(eps=100, **UNIT)),
    ),
    "a radius of a quarter of a level": (
        "eps-below-level",
        lambda: (mnist().model, mnist().data(), eb.Linf(eps=0.001, **UNIT)),
    ),
    "8/255 squared": (
        "eps-below-level",
        lambda: (colours().model, colours().data(), eb.Linf(eps=8 / 255 / 255, **UNIT)),
    ),
    "a radius of 0": ("eps-zero", lambda: (digits().model, digits().data(), eb.Linf(eps=0.0, **UNIT))),
    "large numbers in single precision": (
        "eps-below-precision",
        lambda: (
            Front(table().model, lambda x: (x - 1.7e9) / 1e4),
            (table().x * 1e4 + 1.7e9, table().y),
            eb.Linf(eps=0.1),
        ),
    ),
    "half precision, a tiny radius": (
        "eps-below-precision",
        lambda: (
            Front(table("wine").model, lambda x: x.float()),
            (table("wine").x.half(), table("wine").y),
            eb.Linf(eps=0.002),
        ),
    ),
    "images of [0, 1] without a box": ("no-box", lambda: (mnist().model, mnist().data(), eb.Linf(eps=0.1))),
    "flattened images without a box": (
        "no-box",
        lambda: (mnist().model, (mnist().x.flatten(1), mnist().y), eb.L2(eps=1)),
    ),
    "half a box": ("no-box", lambda: (digits().model, digits().data(), eb.Linf(eps=0.1, lo=0))),
    "images of [-1, 1] without a box": (
        "no-box",
        lambda: (Front(mnist().model, lambda x: (x + 1) / 2), (mnist().x * 2 - 1, mnist().y), eb.Linf(eps=0.1)),
    ),
    "pixels as floats without a box": (
        "no-box",
        lambda: (Front(mnist().model, lambda x: x / 255), (mnist().x * 255, mnist().y), eb.Linf(eps=8)),
    ),
    # labels
    "labels from 1": ("labels-shifted", lambda: (digits().model, (digits().x, (digits().y + 1) % 10), DIGITS_BALL)),
    "labels one too low": (
        "labels-shifted",
        lambda: (digits().model, (digits().x, (digits().y - 1) % 10), DIGITS_BALL),
    ),
    "labels from 1, a model with a background class": (
        "labels-shifted",
        lambda: (Back(mnist().model, lambda z: F.pad(z, (1, 0), value=-9.0)), mnist().data(), MNIST_BALL),
    ),
    "labels of a weak net from 1": (
        "labels-shifted",
        lambda: (cifar().model, (cifar().x, (cifar().y + 1) % 10), eb.Linf(eps=2 / 255, **UNIT)),
    ),
    "two classes swapped": (
        "labels-swapped",
        lambda: (threes_eights().model, (threes_eights().x, 1 - threes_eights().y), DIGITS_BALL),
    ),
    "two classes of a table swapped": (
        "labels-swapped",
        lambda: (two_logits(table()), (table().x, 1 - table().y), eb.Linf(eps=0.1)),
    ),
    "labels permuted": ("labels-permuted", lambda: (digits().model, (digits().x, PERMUTED[digits().y]), DIGITS_BALL)),
    "labels of a weak net permuted": (
        "labels-permuted",
        lambda: (cifar().model, (cifar().x, PERMUTED[cifar().y]), eb.Linf(eps=2 / 255, **UNIT)),
    ),
    "two of ten classes exchanged": (
        "labels-permuted",
        lambda: (
            digits().model,
            (digits().x, torch.tensor([0, 4, 2, 7, 1, 5, 6, 3, 8, 9])[digits().y]),
            DIGITS_BALL,
        ),
    ),
    "classes in the order of their names as text": (
        "labels-permuted",
        lambda: (colours(12).model, (colours(12).x, TEXT_ORDER[colours(12).y]), eb.Linf(eps=8 / 255, **UNIT)),
    ),
    "class folder 8 is missing": ("class-missing", lambda: (mnist().model, without(mnist(), 8), MNIST_BALL)),
    "class folder 3 is missing": ("class-missing", lambda: (digits().model, without(digits(), 3), DIGITS_BALL)),
    "class folder 0 is missing": ("labels-shifted", lambda: (digits().model, without(digits(), 0), DIGITS_BALL)),
    "fewer names than outputs, few examples": (
        "class-count",
        lambda: (digits().model, named(digits(), 9, 8, y=digits().y[:8].clamp_max(8)), DIGITS_BALL),
    ),
    "labels not in the order of x": (
        "chance-accuracy",
        lambda: (digits().model, (digits().x, shuffled(digits().y)), DIGITS_BALL),
    ),
    "labels of two classes not in the order of x": (
        "chance-accuracy",
        lambda: (table().model, (table().x, shuffled(table().y)), eb.Linf(eps=0.1)),
    ),
    "the first rows of sorted data": (
        "one-class",
        lambda: (digits().model, sorted_by_class(digits()).data(30), DIGITS_BALL),
    ),
    "the labels were lost": ("one-class", lambda: (digits().model, (digits().x, digits().y * 0), DIGITS_BALL)),
    "three classes of sorted data": (
        "classes-missing",
        lambda: (digits().model, sorted_by_class(digits()).data(100), DIGITS_BALL),
    ),
    "no example of a class, all others full": (
        "classes-missing",
        lambda: (mnist().model, (mnist().x[mnist().y != 4], mnist().y[mnist().y != 4]), MNIST_BALL),
    ),
    "most targets are the labels": (
        "targets-are-labels",
        lambda: (
            digits().model,
            digits().data(),
            DIGITS_BALL,
            {"target": torch.where(torch.arange(N) % 4 > 0, digits().y[:N], (digits().y[:N] + 1) % 10)},
        ),
    ),
    # the model and its inputs
    "the weights were not loaded": ("chance-accuracy", lambda: (untrained(), digits().data(360), DIGITS_BALL)),
    "a dead network": (
        "constant-predictions",
        lambda: (Back(digits().model, lambda z: 0 * z + torch.eye(10)[3]), digits().data(), DIGITS_BALL),
    ),
    "channels in another order": (
        "input-form",
        lambda: (Front(colours().model, lambda x: x.flip(1)), colours().data(), eb.Linf(eps=8 / 255, **UNIT)),
    ),
    "a net for pixels of 0 to 255": (
        "input-form",
        lambda: (
            Front(colours().model, lambda x: (x / 255).clamp(0, 1)),
            colours().data(),
            eb.Linf(eps=8 / 255, **UNIT),
        ),
    ),
    "normalisation left out": (
        "input-form",
        lambda: (sharp(), mnist().data(), MNIST_BALL),
    ),
    "images transposed": (
        "input-form",
        lambda: (mnist().model, (mnist().x.transpose(2, 3), mnist().y), MNIST_BALL),
    ),
    "images inverted": ("input-form", lambda: (mnist().model, (1 - mnist().x, mnist().y), MNIST_BALL)),
    "probabilities": (
        "probabilities",
        lambda: (Back(digits().model, lambda z: z.softmax(1)), digits().data(), DIGITS_BALL),
    ),
    "noise in eval mode": ("stochastic", lambda: (noisy(digits().model), digits().data(), DIGITS_BALL)),
    "batch statistics": (
        "rows-dependent",
        lambda: (
            Front(nn.Identity(), lambda x: digits().model((x - x.mean(0)) / (x.std(0) + 0.1) * 0.3 + x)),
            digits().data(),
            DIGITS_BALL,
        ),
    ),
    "batch statistics, twenty examples": (
        "rows-dependent",
        lambda: (Front(nn.Identity(), lambda x: digits().model(x + x[:1] / 2)), digits().data(20), DIGITS_BALL),
    ),
    "side inputs that belong to rows": (
        "rows-dependent",
        lambda: (
            Front(
                nn.Identity(), lambda x: digits().model(x) + torch.linspace(0, 3, len(x))[:, None] * torch.eye(10)[1]
            ),
            digits().data(60),
            DIGITS_BALL,
        ),
    ),
    "NaN in some rows": (
        "nonfinite-logits",
        lambda: (poisoned(digits().model, math.nan, rows=True), digits().data(), DIGITS_BALL),
    ),
    "logits times 10,000": (
        "saturated-logits",
        lambda: (Back(digits().model, lambda z: 1e4 * z), digits().data(), DIGITS_BALL),
    ),
    # rows
    "a buffer that is used again": (
        "duplicated-rows",
        lambda: (digits().model, (repeated(digits().x, 4), repeated(digits().y, 4)), DIGITS_BALL),
    ),
    "all values equal": (
        "constant-data",
        lambda: (digits().model, (torch.zeros_like(digits().x), digits().y), DIGITS_BALL),
    ),
}

DIGITS_BALL = eb.Linf(eps=0.1, **UNIT)
MNIST_BALL = eb.Linf(eps=0.1, **UNIT)


def sharp() -> nn.Module:
    """A net whose inputs have to be normalised: its first layer thresholds the normalised pixels."""
    mean, std = MNIST[0][0], MNIST[1][0]
    return Front(mnist().model, lambda x: (40 * (x * std + mean - 0.7)).sigmoid())


def _eps_per_feature(world: World) -> Tensor:
    return 0.1 * world.x.std(0, keepdim=True)


def targeted(world: World, target: Any) -> Case:
    return world.model, world.data(), DIGITS_BALL, {"target": target}


STD = torch.tensor(CIFAR[1]).reshape(1, 3, 1, 1)
MEAN = torch.tensor(CIFAR[0]).reshape(1, 3, 1, 1)

SOUND: dict[str, Callable[[], Case]] = {
    "examples know their box, the ball does not": lambda: (
        digits().model,
        arrays("digits", "test", 400),
        eb.Linf(eps=0.1),
    ),
    "uint8 images without a box": lambda: (
        mnist().model,
        ((mnist().x[:N] * 255).to(torch.uint8), mnist().y[:N]),
        eb.Linf(eps=8 / 255),
    ),
    "digits": lambda: (digits().model, arrays("digits", "test", 400), DIGITS_BALL),
    "MNIST at .3": lambda: (mnist().model, mnist().data(), eb.Linf(eps=0.3, **UNIT)),
    "one example": lambda: (mnist().model, mnist().data(1), MNIST_BALL),
    "two examples": lambda: (mnist().model, mnist().data(2), MNIST_BALL),
    "five examples": lambda: (mnist().model, mnist().data(5), MNIST_BALL),
    "ten examples": lambda: (digits().model, digits().data(10), DIGITS_BALL),
    "twenty examples of a weak net": lambda: (cifar().model, cifar().data(20), eb.Linf(eps=8 / 255, **UNIT)),
    "a weak net": lambda: (cifar().model, cifar().data(400), eb.Linf(eps=8 / 255, **UNIT)),
    "a weak net on 60 examples": lambda: (cifar().model, cifar().data(60), eb.Linf(eps=8 / 255, **UNIT)),
    "a very weak net": lambda: (noised(cifar().model, 1.0), cifar().data(400), eb.Linf(eps=2 / 255, **UNIT)),
    "a weak net of digits": lambda: (noised(digits().model, 0.8), digits().data(360), DIGITS_BALL),
    "two classes, one logit": lambda: (threes_eights().model, (threes_eights().x, threes_eights().y), DIGITS_BALL),
    "two classes, one logit (n,)": lambda: (
        Back(threes_eights().model, lambda z: z.squeeze(1)),
        (threes_eights().x, threes_eights().y),
        DIGITS_BALL,
    ),
    "imbalanced, 1 in 20": lambda: (table().model, imbalanced(table(), 20), eb.Linf(eps=0.1)),
    "imbalanced, ten classes": lambda: (digits().model, imbalanced(digits(), 12), DIGITS_BALL),
    "twelve of two classes, all of one": lambda: (
        table().model,
        (table().x[table().y == 1][:12], table().y[table().y == 1][:12]),
        eb.Linf(eps=0.1),
    ),
    "a table, standardised, no box": lambda: (table().model, table().data(), eb.Linf(eps=0.1)),
    "a table, standardised, L2": lambda: (table().model, table().data(), eb.L2(eps=0.5)),
    "a table, standardised, 8/255": lambda: (table().model, table().data(), eb.Linf(eps=8 / 255)),
    "a table, standardised, a wide box": lambda: (table().model, table().data(), eb.Linf(eps=0.1, lo=-100, hi=100)),
    "a table, standardised, the data's box": lambda: (
        table().model,
        table().data(),
        eb.Linf(eps=0.1, lo=table().x.amin(0, keepdim=True), hi=table().x.amax(0, keepdim=True)),
    ),
    "a table in its own units, eps per feature": lambda: (
        table("breast_cancer", "raw").model,
        table("breast_cancer", "raw").data(),
        eb.Linf(eps=_eps_per_feature(table("breast_cancer", "raw"))),
    ),
    "a table in [0, 1], no box": lambda: (table("wine", "unit").model, table("wine", "unit").data(), eb.Linf(eps=0.05)),
    "a table in [0, 1] with its box": lambda: (
        table("wine", "unit").model,
        table("wine", "unit").data(),
        eb.Linf(eps=0.05, **UNIT),
    ),
    "iris, sorted no more, small steps": lambda: (
        table("iris", "raw").model,
        table("iris", "raw").data(),
        eb.Linf(eps=0.02),
    ),
    "features that cannot change": lambda: (
        table().model,
        table().data(),
        eb.Linf(eps=0.1, mask=(torch.arange(30) > 4)[None]),
    ),
    "embeddings": lambda: (embeddings().model, embeddings().data(), eb.L2(eps=0.1)),
    "embeddings in [-1, 1] with a box": lambda: (
        embeddings().model,
        embeddings().data(),
        eb.Linf(eps=0.02, lo=-1, hi=1),
    ),
    "sequences of embeddings": lambda: (
        Front(embeddings().model, lambda x: x.flatten(1)),
        (embeddings().x.reshape(-1, 12, 8), embeddings().y),
        eb.L2(eps=0.1),
    ),
    "a spectrogram in decibels": lambda: (
        Front(mnist().model, lambda x: torch.exp(x)),
        (
            torch.log(
                mnist().x[:N] + 0.01 + 0.001 * torch.rand(N, 1, 28, 28, generator=torch.Generator().manual_seed(0))
            ),
            mnist().y[:N],
        ),
        eb.Linf(eps=0.1),
    ),
    "L2": lambda: (mnist().model, mnist().data(), eb.L2(eps=1.5, **UNIT)),
    "a small L2": lambda: (colours().model, colours().data(), eb.L2(eps=0.1, **UNIT)),
    "L1": lambda: (mnist().model, mnist().data(), eb.L1(eps=10, **UNIT)),
    "L0": lambda: (mnist().model, mnist().data(), eb.L0(eps=10, **UNIT)),
    "1/255": lambda: (colours().model, colours().data(), eb.Linf(eps=1 / 255, **UNIT)),
    "the whole box, to see whether attacks work": lambda: (digits().model, digits().data(), eb.Linf(eps=1.0, **UNIT)),
    "a curve from 0 to 1": lambda: (digits().model, digits().data(), DIGITS_BALL, {"eps": [0, 0.1, 0.5, 1.5]}),
    "one radius per example": lambda: (
        digits().model,
        digits().data(),
        eb.Linf(eps=torch.linspace(0.05, 0.2, N), **UNIT),
    ),
    "minimum norm": lambda: (
        digits().model,
        digits().data(40),
        eb.L2(eps=1, **UNIT),
        {"min_norm": True, "attacks": "ddn:steps=5"},
    ),
    "minimum norm of a table": lambda: (
        table().model,
        table().data(20),
        eb.L2(eps=1),
        {"min_norm": True, "attacks": "ddn:steps=5"},
    ),
    "images in [-1, 1], 16/255": lambda: (
        Front(mnist().model, lambda x: (x + 1) / 2),
        (mnist().x * 2 - 1, mnist().y),
        eb.Linf(eps=16 / 255, lo=-1, hi=1),
    ),
    "images in [-.5, .5]": lambda: (
        Front(mnist().model, lambda x: x + 0.5),
        (mnist().x - 0.5, mnist().y),
        eb.Linf(eps=8 / 255, lo=-0.5, hi=0.5),
    ),
    "pixels in 0 to 255": lambda: (
        Front(mnist().model, lambda x: x / 255),
        (mnist().x * 255, mnist().y),
        eb.Linf(eps=8, lo=0, hi=255),
    ),
    "pixels in 0 to 255, L2": lambda: (
        Front(colours().model, lambda x: x / 255),
        (colours().x * 255, colours().y),
        eb.L2(eps=64, lo=0, hi=255),
    ),
    "normalised outside, radius and box divided by std": lambda: (
        cifar().model[1:],
        (Normalize(*CIFAR)(cifar().x[:N]), cifar().y[:N]),
        eb.Linf(eps=8 / 255 / STD, lo=-MEAN / STD, hi=(1 - MEAN) / STD),
    ),
    "one channel normalised outside, radius and box divided by std": lambda: (
        mnist_normalised().model,
        mnist_normalised().data(),
        eb.Linf(eps=0.05 / 0.3081, lo=-0.42422, hi=2.8215),
    ),
    "normalised inside": lambda: (
        nn.Sequential(Normalize(*MNIST), mnist_normalised().model),
        mnist().data(),
        MNIST_BALL,
    ),
    "uint8 images": lambda: (
        mnist().model,
        ((mnist().x[:N] * 255).to(torch.uint8), mnist().y[:N]),
        eb.Linf(eps=8 / 255, **UNIT),
    ),
    "dark images": lambda: (
        Front(mnist().model, lambda x: 4 * x),
        (mnist().x / 4, mnist().y),
        eb.Linf(eps=8 / 255, **UNIT),
    ),
    "images between .1 and .9": lambda: (
        mnist().model,
        (mnist().x.clamp(0.1, 0.9), mnist().y),
        eb.Linf(eps=0.1, lo=0.1, hi=0.9),
    ),
    "8 bits": lambda: (mnist().model, mnist().data(), eb.Linf(eps=8 / 255, **UNIT), {"storage": "8bit"}),
    "double precision": lambda: (
        Front(mnist().model, lambda x: x.float()),
        (mnist().x.double(), mnist().y),
        MNIST_BALL,
    ),
    "half precision": lambda: (Front(mnist().model, lambda x: x.float()), (mnist().x.half(), mnist().y), MNIST_BALL),
    "bfloat16": lambda: (Front(mnist().model, lambda x: x.float()), (mnist().x.bfloat16(), mnist().y), MNIST_BALL),
    "one target class": lambda: targeted(digits(), 3),
    "the next class as target": lambda: targeted(digits(), (digits().y[:N] + 1) % 10),
    "random targets": lambda: targeted(digits(), shuffled(digits().y[:N])),
    "in train mode": lambda: (
        nn.Sequential(mnist().model, nn.Dropout(0.5)).train(),
        mnist().data(),
        MNIST_BALL,
    ),
    "a function": lambda: (lambda x: mnist().model(x), mnist().data(), MNIST_BALL),
    "a model of labels": lambda: (
        Back(digits().model, lambda z: z.argmax(1)),
        digits().data(20),
        DIGITS_BALL,
        {"attacks": lambda model, x, y, ball: x},
    ),
    "a black box": lambda: (
        eb.BlackBox(lambda x: digits().model(torch.from_numpy(x)).detach().numpy()),
        digits().data(20),
        DIGITS_BALL,
        {"attacks": "square:steps=5"},
    ),
    "noise, averaged": lambda: (noisy(digits().model, 0.1), digits().data(60), DIGITS_BALL, {"eot": 8}),
    "large logits": lambda: (Back(mnist().model, lambda z: 5 * z), mnist().data(), MNIST_BALL),
    "tiny logits": lambda: (Back(mnist().model, lambda z: 1e-3 * z), mnist().data(), MNIST_BALL),
    "more outputs than classes": lambda: (
        Back(mnist().model, lambda z: F.pad(z, (0, 1), value=-20.0)),
        named(mnist(), 10),
        MNIST_BALL,
    ),
    "sorted by class, all classes": lambda: (
        digits().model,
        (sorted_by_class(digits()).x, sorted_by_class(digits()).y),
        DIGITS_BALL,
    ),
    "a transfer": lambda: (mnist().model, mnist().data(), MNIST_BALL, {"source": mnist_of_other_seed()}),
    "sorted by class, several shards": lambda: (
        digits().model,
        (sorted_by_class(digits()).x, sorted_by_class(digits()).y),
        DIGITS_BALL,
        {"shard_size": 64},
    ),
    "some copies": lambda: (
        digits().model,
        (torch.cat([digits().x, digits().x[:30]]), torch.cat([digits().y, digits().y[:30]])),
        DIGITS_BALL,
    ),
    "twelve classes": lambda: (colours(12).model, colours(12).data(), eb.Linf(eps=8 / 255, **UNIT)),
    "a hundred classes, sixty examples": lambda: (
        Back(digits().model, lambda z: F.pad(z, (0, 90), value=-20.0)),
        digits().data(60),
        DIGITS_BALL,
    ),
}


def noised(model: nn.Module, size: float) -> nn.Module:
    """A weaker net: fixed noise on its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        noise = [size * part.std() * torch.randn_like(part) for part in model.parameters()]
    names = [name for name, _ in model.named_parameters()]
    weights = {name: part + more for name, part, more in zip(names, model.parameters(), noise, strict=True)}
    buffers = dict(model.named_buffers())
    return Front(nn.Identity(), lambda x: torch.func.functional_call(model, weights | buffers, (x,)))


def imbalanced(world: World, ratio: int) -> tuple[Tensor, Tensor]:
    """Of the last class only every `ratio`-th example."""
    last = world.y == world.y.max()
    rare = last & (last.cumsum(0) % ratio == 1)
    keep = rare | ~last
    return world.x[keep], world.y[keep]


@cache
def mnist_of_other_seed() -> nn.Module:
    train = arrays("mnist", "train", 2000)
    return trained(mlp(784, 10), train.x.flip(0), train.y.flip(0))
