"""What did adversarial training change? Weights and input gradients of two networks, side by side.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 6 and figure 3: the weights of the adversarially trained network are
"significantly changed", "more localized and interpretable"; drawn as images, most of them turn grey, which is zero. And
by section 5 what is trained against is a penalty on the size of the input gradient in the dual norm. So both are
counted: the share of weights near zero, and the gradient's dual norm beside the gap that it would have to close.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.attacks.fgsm import FGSM
from epsball.attacks.pgd import PGD
from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import flat
from epsball.data.examples import Examples
from epsball.explain.passes import band, checked, kept, logits_at, read, right, slopes
from epsball.explain.record import evenly, percent, radius_of, said, versions
from epsball.problem.losses import margin

NEAR = 0.01
"""A weight is near zero below this share of the greatest of its layer, as in the analysis `l1`."""
FILTERS = 24
SHOWN = 6
"""Filters, and gradients of examples, that are kept for the figure."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of one layer: how many, the share `near_zero`, their mean size, and how `even` their sizes are.

    `even` = (mean |w|)^2 / mean w^2: 1 where all have one size, 2/pi = .64 for normal ones, 1/size where one is left.
    """

    name: str
    size: int
    near_zero: float
    mean: float
    even: float


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two networks. `clean`, `fgsm` and `pgd` are accuracies, the last one under PGD and FGSM both.

    `slope` (3,) is the gradient's dual norm, in logits per unit of radius (the max norm: |grad|_1); `gap` (3,) the
    margin z_y - max z_j; `radius` (3,) gap / slope, the radius to which a linear network of that slope would hold; each
    at the 5 %, 50 % and 95 % quantile, gradients being those of the margin. `grey` is the share of the coordinates of
    the gradients that are near zero (below `NEAR` of the example's greatest), `even` as that of `Weights`, the
    examples' mean.
    """

    name: str
    clean: float
    fgsm: float
    pgd: float
    slope: tuple[float | None, ...]
    gap: tuple[float | None, ...]
    radius: tuple[float | None, ...]
    grey: float
    even: float
    layers: tuple[Weights, ...]

    @property
    def near_zero(self) -> float:
        """The share of all weights that are near zero."""
        return sum(layer.near_zero * layer.size for layer in self.layers) / sum(layer.size for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class TrainingChanged:
    """What `training_changed` found: the plain network, the trained one, and pictures.

    `filters` are by name the first layer's, (FILTERS, height * width) of the same units in both, `gradients` those of
    `SHOWN` examples, whose pixels are `examples`; each image is flat and rounded to 4 digits after the point, and
    `shapes` says its height and width.
    """

    plain: Side
    trained: Side
    filters: dict[str, tuple[tuple[float | None, ...], ...]]
    gradients: dict[str, tuple[tuple[float | None, ...], ...]]
    examples: tuple[tuple[float | None, ...], ...]
    shapes: dict[str, tuple[int, int]]
    config: dict[str, Any]

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        sides = (self.plain, self.trained)
        near, grey, pgd, clean = (
            [percent(share) for share in shares]
            for shares in zip(*((side.near_zero, side.grey, side.pgd, side.clean) for side in sides), strict=True)
        )
        slope, radius = (
            ["-" if value is None else f"{value:.3g}" for value in values]
            for values in ([side.slope[1] for side in sides], [side.radius[1] for side in sides])
        )
        return (
            f"From {self.plain.name} to {self.trained.name}, clean accuracy goes from {clean[0]} to {clean[1]}, that "
            f"under PGD within {self.config['said']} from {pgd[0]} to {pgd[1]}, the share of weights near zero from "
            f"{near[0]} to {near[1]}, that of the gradients' coordinates from {grey[0]} to {grey[1]}, the median dual "
            "norm of the margin's input gradient from "
            f"{slope[0]} to {slope[1]} logits per unit, and the median radius to which a linear network of that slope "
            f"would hold from {radius[0]} to {radius[1]}."
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the pictures, as JSON can hold them."""
        sides = {
            name: asdict(side) | {"near_zero": side.near_zero}
            for name, side in (("plain", self.plain), ("trained", self.trained))
        }
        return sides | {"sentence": self.sentence, "config": self.config}

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> TrainingChanged:
        """The record that `to_json` wrote."""
        record = read(text)
        for name in ("plain", "trained"):
            side = record[name]
            side["layers"] = tuple(Weights(**layer) for layer in side["layers"])
            record[name] = Side(**side)
        return cls(**record)

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: filters and gradients of both networks, sizes of the weights, and a table."""
        from epsball.explain.pictures_layers import draw_training_changed

        draw_training_changed(self, path)


def training_changed(
    models: Mapping[str, nn.Module],
    data: Examples,
    ball: Ball,
    *,
    rows: int = 500,
    steps: int = 20,
    batch_size: int = 128,
    seed: int = 0,
) -> TrainingChanged:
    """Compare two networks: the first of `models` was trained plainly, the second adversarially.

    `models` are torch modules by name, best of one shape and one start (`epsball.explain.networks` trains them).
    Accuracies are those under FGSM and PGD of `steps` steps in `ball`, on at most `rows` examples spread over `data`.
    Weights are all parameters of two or more dimensions. `seed` keys PGD's start. The networks come back as they were.

    Raises `BadInput` unless there are two modules with weights.
    """
    for name, value, least in (("rows", rows, 1), ("steps", steps, 1), ("batch_size", batch_size, 1)):
        check_whole(name, value, least)
    if not isinstance(models, Mapping) or len(models) != 2:
        raise BadInput("`models` must be two networks by name; write {'plain': plain, 'trained': trained}")
    for name, model in models.items():
        if not isinstance(model, nn.Module) or not _weights(model):
            raise BadInput(f"`models` must be torch modules with weights, but {name!r} is none; hand over the module")
    radius_of(ball)
    data = evenly(data, rows)
    shown = _first_of_each(data.y)
    found = {name: _side(name, model, data, ball, steps, batch_size, seed) for name, model in models.items()}
    (plain, _), (trained, _) = found.values()
    firsts = {name: next(iter(_weights(model).values())) for name, model in models.items()}
    units = flat(next(iter(firsts.values()))).norm(dim=1).argsort(descending=True, stable=True)[:FILTERS]
    filters, shapes = {}, {}
    for name, first in firsts.items():
        images, size = _images(first[units[units < len(first)]], data.shape)
        filters[name], shapes[f"filters of {name}"] = images, size
    gradients = {name: _images(grad[shown], data.shape)[0] for name, (_, grad) in found.items()}
    examples, shapes["examples"] = _images(data.x[shown], data.shape)
    return TrainingChanged(
        plain=plain,
        trained=trained,
        filters=filters,
        gradients=gradients,
        examples=examples,
        shapes=shapes,
        config=kept(
            {
                "models": {name: fingerprint.of_model(model) for name, model in models.items()},
                "data": data.name,
                "rows": len(data),
                "ids": data.ids[shown],
                "near": NEAR,
                "ball": fingerprint.described(ball),
                "said": said(ball),
                "steps": steps,
                "seed": seed,
                "versions": versions(),
            }
        ),
    )


def near_zero(values: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """The share of each row that is below `NEAR` times the greatest size in it.

    >>> near_zero(torch.tensor([[1.0, -0.009, 0.0, 0.5]]))
    tensor([0.5000], dtype=torch.float64)
    """
    sizes = values.abs()
    return (sizes < NEAR * sizes.amax(1, keepdim=True)).double().mean(1)


def evenness(values: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """(mean |v|)^2 / mean v^2 of each row, from 1/d to 1; NaN for a row of zeros.

    >>> evenness(torch.tensor([[1.0, -1.0], [1.0, 0.0]]))
    tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    sizes = values.double().abs()
    return sizes.mean(1).square() / sizes.square().mean(1)


def _side(
    name: str, model: nn.Module, data: Examples, ball: Ball, steps: int, batch_size: int, seed: int
) -> tuple[Side, Float[Tensor, "n *shape"]]:
    task = checked(data, ball, seed)
    logits, grad = slopes(model, task, loss=margin, batch_size=batch_size)
    reached = [
        right(
            logits_at(model, attack(model, data.x, data.y, ball, ids=data.ids, seed=seed), batch_size=batch_size),
            task.y,
        )
        for attack in (FGSM(), PGD(steps=steps))
    ]
    gap, slope = -margin(logits, task).double(), task.ball.dual(grad.double())
    size = flat(grad)
    figures = band(torch.stack([slope, gap, gap / slope], 1))
    layers = tuple(
        Weights(
            name=layer,
            size=weight.numel(),
            near_zero=near_zero(weight.reshape(1, -1)).item(),
            mean=weight.abs().mean().item(),
            even=evenness(weight.reshape(1, -1)).nan_to_num(0.0).item(),
        )
        for layer, weight in _weights(model).items()
    )
    side = Side(
        name=name,
        clean=right(logits, task.y).double().mean().item(),
        fgsm=reached[0].double().mean().item(),
        pgd=(reached[0] & reached[1]).double().mean().item(),
        slope=tuple(row[0] for row in figures),
        gap=tuple(row[1] for row in figures),
        radius=tuple(row[2] for row in figures),
        grey=near_zero(size).mean().item(),
        even=evenness(size).nanmean().nan_to_num(0.0).item(),
        layers=layers,
    )
    return side, grad


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights by name, in the order of the layers."""
    return {name: part.detach() for name, part in model.named_parameters() if part.ndim >= 2}


def _first_of_each(y: Tensor) -> list[int]:
    """The first rows of the first classes."""
    return [int((y == label).nonzero()[0]) for label in y.unique().tolist()[:SHOWN]]


def _images(
    values: Float[Tensor, "n ..."], shape: tuple[int, ...]
) -> tuple[tuple[tuple[float | None, ...], ...], tuple[int, int]]:
    """Rows as flat images, a colour image as the mean of its channels, and their height and width.

    What has as many numbers as an example has its shape; a kernel has its own; all else is one line.
    """
    parts = values.detach().double()
    if parts[0].numel() == math.prod(shape):
        parts = parts.reshape(len(parts), *shape)
    if parts.ndim == 4:
        parts = parts.mean(1)
    parts = parts if parts.ndim == 3 else parts.reshape(len(parts), 1, -1)
    height, width = parts.shape[1:]
    return kept([[round(value, 4) for value in row] for row in parts.flatten(1).tolist()]), (height, width)
