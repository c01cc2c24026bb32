"""What did adversarial training change? Weights and input gradients of two networks, side by side.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 6 and figure 3: the weights of the adversarially trained network are
"significantly changed", "more localized and interpretable"; drawn as images, most of them turn grey, which is zero. And
by section 5 what is trained against is a penalty on the size of the input gradient in the dual norm. So both are
counted: the share of weights near zero, and the gradient's dual norm beside the margin that it would have to close.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.attacks.fgsm import FGSM
from epsball.attacks.pgd import PGD
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.record import Record
from epsball.common.shapes import flat
from epsball.data.examples import Examples
from epsball.explain.config import TrainingConfig, configured
from epsball.explain.finding import Finding, made_of, nested, percent
from epsball.explain.inputs import evenly, radius_of, task_for
from epsball.explain.measure import band, correct, input_gradients, logits_at
from epsball.problem.losses import margin

NEAR = 0.01
"""A weight is near zero below this share of the greatest of its layer, as in the analysis `l1`."""
FILTERS = 24
SHOWN = 6
"""Filters, and gradients of examples, that the figure shows."""

Image = tuple[float | None, ...]
"""A flat image."""


@dataclass(frozen=True, kw_only=True)
class Weights(Record):
    """The weights of one layer: how many, the share `near_zero`, their mean size, and the `evenness` of their sizes.

    `evenness` = (mean |w|)^2 / mean w^2: 1 where all have one size, 2/pi = .64 for normal ones, 1/size where one is
    left.
    """

    name: str
    size: int
    near_zero: float
    mean: float
    evenness: float


@dataclass(frozen=True, kw_only=True)
class NetworkFigures(Record):
    """One of the two networks. `clean`, `fgsm` and `pgd` are accuracies, the last one under PGD and FGSM both.

    `dual_norm` (3,) is that of the margin's input gradient, in logits per unit of radius (the max norm: |grad|_1);
    `margin` (3,) is z_y - max z_j; `radius` (3,) margin / dual_norm, the radius within which a linear network of that
    gradient is robust; each at the 5 %, 50 % and 95 % quantile. `gradient_near_zero` is the share of the coordinates of
    the gradients that are near zero (below `NEAR` of the example's greatest), `evenness` as that of `Weights`, the
    examples' mean.
    """

    derived: ClassVar = ("near_zero",)

    name: str
    clean: float
    fgsm: float
    pgd: float
    dual_norm: tuple[float | None, ...]
    margin: tuple[float | None, ...]
    radius: tuple[float | None, ...]
    gradient_near_zero: float
    evenness: float
    layers: tuple[Weights, ...]

    @property
    def near_zero(self) -> float:
        """The share of all weights that are near zero."""
        return sum(layer.near_zero * layer.size for layer in self.layers) / sum(layer.size for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class TrainingChanged(Finding):
    """What `training_changed` found: the plain network, the trained one, and pictures.

    `filters` are by name the first layer's, (FILTERS, height * width) of the same units in both, `gradients` those of
    `SHOWN` examples, whose pixels are `examples`; each image is flat and rounded to 4 digits after the point, and
    `shapes` says its height and width.
    """

    details: ClassVar = ("filters", "gradients", "examples", "shapes")

    plain: NetworkFigures
    trained: NetworkFigures
    filters: dict[str, tuple[Image, ...]]
    gradients: dict[str, tuple[Image, ...]]
    examples: tuple[Image, ...]
    shapes: dict[str, tuple[int, int]]

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        networks = (self.plain, self.trained)

        def change(name: str) -> str:
            return " to ".join(percent(getattr(network, name)) for network in networks)

        def middle(name: str) -> str:
            medians = (getattr(network, name)[1] for network in networks)
            return " to ".join("-" if value is None else f"{value:.3g}" for value in medians)

        return (
            f"From {self.plain.name} to {self.trained.name}, clean accuracy goes from {change('clean')}, that under "
            f"PGD within {self.config['ball_name']} from {change('pgd')}, the share of weights near zero from "
            f"{change('near_zero')}, that of the gradients' coordinates from {change('gradient_near_zero')}, the "
            f"median dual norm of the margin's input gradient from {middle('dual_norm')} logits per unit, and the "
            f"median radius within which a linear network of that gradient is robust from {middle('radius')}."
        )


@configured(TrainingConfig)
def training_changed(
    models: Mapping[str, nn.Module], data: Examples, ball: Ball, *, config: TrainingConfig
) -> TrainingChanged:
    """Compare two networks: the first of `models` was trained plainly, the second adversarially.

    `models` are torch modules by name, best of one shape and one start (`epsball.explain.networks` trains them).
    Accuracies are those under FGSM and PGD of `steps` steps in `ball`, on at most `rows` examples spread over `data`.
    Weights are all parameters of two or more dimensions. `seed` keys PGD's start. The networks come back as they were.

    Raises `BadInput` unless there are two modules with weights.
    """
    if not isinstance(models, Mapping) or len(models) != 2:
        raise BadInput("`models` must be two networks by name; write {'plain': plain, 'trained': trained}")
    for name, model in models.items():
        if not isinstance(model, nn.Module) or not _weights(model):
            raise BadInput(f"`models` must be torch modules with weights, but {name!r} is none; hand over the module")
    radius_of(ball)
    data = evenly(data, config.rows)
    shown = _first_of_each(data.y)
    found = {name: _network_figures(name, model, data, ball, config) for name, model in models.items()}
    (plain, _), (trained, _) = found.values()
    firsts = {name: next(iter(_weights(model).values())) for name, model in models.items()}
    units = flat(next(iter(firsts.values()))).norm(dim=1).argsort(descending=True, stable=True)[:FILTERS]
    filters, shapes = {}, {}
    for name, first in firsts.items():
        filters[name], shapes[f"filters of {name}"] = _images(first[units[units < len(first)]], data.shape)
    examples, shapes["examples"] = _images(data.x[shown], data.shape)
    return TrainingChanged(
        plain=plain,
        trained=trained,
        filters=filters,
        gradients={name: _images(grad[shown], data.shape)[0] for name, (_, grad) in found.items()},
        examples=examples,
        shapes=shapes,
        config=made_of(models, data, ball, config, ids=data.ids[shown], near=NEAR),
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


def _network_figures(
    name: str, model: nn.Module, data: Examples, ball: Ball, config: TrainingConfig
) -> tuple[NetworkFigures, Float[Tensor, "n *shape"]]:
    """The figures, and the input gradients of the margin."""
    task = task_for(data, ball, config.seed)
    logits, grad = input_gradients(model, task, loss=margin, batch_size=config.batch_size)
    attacked = (
        attack(model, data.x, data.y, ball, ids=data.ids, seed=config.seed)
        for attack in (FGSM(), PGD(steps=config.steps))
    )
    fgsm, pgd = (correct(logits_at(model, z, batch_size=config.batch_size), task.y) for z in attacked)
    margins, dual_norm = -margin(logits, task).double(), task.ball.dual(grad.double())
    quantiles = band(torch.stack([dual_norm, margins, margins / dual_norm], 1))
    layers = tuple(
        Weights(
            name=layer,
            size=weight.numel(),
            near_zero=near_zero(weight.reshape(1, -1)).item(),
            mean=weight.abs().mean().item(),
            evenness=evenness(weight.reshape(1, -1)).nan_to_num(0.0).item(),
        )
        for layer, weight in _weights(model).items()
    )
    figures = NetworkFigures(
        name=name,
        clean=correct(logits, task.y).double().mean().item(),
        fgsm=fgsm.double().mean().item(),
        pgd=(fgsm & pgd).double().mean().item(),
        dual_norm=tuple(row[0] for row in quantiles),
        margin=tuple(row[1] for row in quantiles),
        radius=tuple(row[2] for row in quantiles),
        gradient_near_zero=near_zero(flat(grad)).mean().item(),
        evenness=evenness(flat(grad)).nanmean().nan_to_num(0.0).item(),
        layers=layers,
    )
    return figures, grad


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights by name, in the order of the layers."""
    return {name: part.detach() for name, part in model.named_parameters() if part.ndim >= 2}


def _first_of_each(y: Tensor) -> list[int]:
    """The first rows of the first classes."""
    return [int((y == label).nonzero()[0]) for label in y.unique().tolist()[:SHOWN]]


def _images(values: Float[Tensor, "n ..."], shape: tuple[int, ...]) -> tuple[tuple[Image, ...], tuple[int, int]]:
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
    return nested([[round(value, 4) for value in row] for row in parts.flatten(1).tolist()]), (height, width)
