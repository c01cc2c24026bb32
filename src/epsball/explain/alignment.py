"""Is it the direction that matters? Cosines of input gradients of other examples and of other networks, and transfer.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 8: adversarial examples lie in broad subspaces, "it is the direction
of perturbation that matters most", so that one perturbation does for other examples, and other networks, trained for
the same task, are fooled by the same points and often into the same wrong class. Measured between examples of one
class and of different classes, between networks, and held against steps of equal norm in no direction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import flat
from epsball.data.examples import Examples
from epsball.explain.passes import checked, cosines, kept, logits_at, median, read, right, shuffled, slopes
from epsball.explain.record import class_names, evenly, percent, said, versions
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import Model

FAST_GRADIENT = FGSM()
SPREAD = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles that are kept of the cosines of all pairs."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """The cosines of the pairs of different examples of one network: `SPREAD` quantiles, or None without a pair.

    Of input gradients and of perturbations, of two examples of the same class or of other classes. `classes` is the
    matrix of mean cosines of gradients, class against class. `accuracy` and `fooled` are the network's own: of all
    examples, and of those that it has right.
    """

    name: str
    gradient_same: tuple[float, ...] | None
    gradient_other: tuple[float, ...] | None
    step_same: tuple[float, ...] | None
    step_other: tuple[float, ...] | None
    classes: tuple[tuple[float | None, ...], ...]
    accuracy: float
    fooled: float | None


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What `direction` measured on k networks; matrices are (k, k), None where nothing is to be counted.

    `between` and `between_steps`: the mean cosine of two networks' gradients, and perturbations, at the same example.
    `transfer[i][j]`: the points made on network i fool network j, of the examples that j has right; `noise[i][j]` the
    same with i's steps shuffled. `agreement[i][j]`: of the examples that both have right and whose point, made on i,
    fools both, those that both call by the same wrong class; `by_chance` what is expected of that if each of the two
    drew its wrong class independently, with the frequencies that it has for the example's class. `chance` is the size
    of the cosine of two random directions, 1 / sqrt(d).
    """

    names: tuple[str, ...]
    pairs: tuple[Pairs, ...]
    between: tuple[tuple[float | None, ...], ...]
    between_steps: tuple[tuple[float | None, ...], ...]
    transfer: tuple[tuple[float | None, ...], ...]
    noise: tuple[tuple[float | None, ...], ...]
    agreement: tuple[tuple[float | None, ...], ...]
    by_chance: tuple[tuple[float | None, ...], ...]
    chance: float
    config: dict[str, Any]

    def elsewhere(self, name: str) -> float | None:
        """The median of a matrix off its diagonal: between two different networks."""
        matrix = getattr(self, name)
        return median(matrix[i][j] for i in range(len(matrix)) for j in range(len(matrix)) if i != j)

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        first = self.pairs[0]
        same, other = (
            _said(quantiles[2] if quantiles else None) for quantiles in (first.gradient_same, first.gradient_other)
        )
        found = (
            f"Input gradients of two examples of one class have a median cosine of {same}, of two classes {other} "
            f"(random directions: ±{self.chance:.2f})"
        )
        if len(self.names) == 1:
            return found + "."
        shares = [self.elsewhere(name) for name in ("transfer", "noise", "agreement", "by_chance")]
        moved, noise, agreed, chance = (percent(math.nan if share is None else share) for share in shares)
        return (
            f"{found}, those of two networks at one example {_said(self.elsewhere('between'))}; what is made on one "
            f"network fools another on {moved} of the examples (the same steps shuffled: {noise}), and where both err "
            f"they agree on the wrong class in {agreed} (by chance: {chance})."
        )

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them."""
        return asdict(self) | {"sentence": self.sentence}

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Direction:
        """The record that `to_json` wrote."""
        record = read(text)
        record["pairs"] = tuple(Pairs(**pairs) for pairs in record["pairs"])
        return cls(**record)

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: cosines between examples, between networks, transfer and agreement."""
        from epsball.explain.pictures_directions import draw_direction

        draw_direction(self, path)


def direction(
    models: Model | Mapping[str, Model],
    data: Examples,
    ball: Ball,
    *,
    attack: Attack = FAST_GRADIENT,
    loss: Loss = cross_entropy,
    rows: int = 500,
    batch_size: int = 128,
    seed: int = 0,
) -> Direction:
    """Measure how much the gradients of different examples and of different networks point the same way.

    `models` is one network, or several by name, with the same classes; `epsball.explain.networks` trains some. The
    cosines are those of the gradients of `loss` at the examples, and of the perturbations of `attack` in `ball`; those
    without a gradient (or a step) form no pair. At most `rows` examples, spread over `data`; all pairs of them are
    looked at. `seed` keys the attack and the control. The networks come back as they were.

    Raises `BadInput` where there is no network, or they differ in their number of classes.

    >>> from epsball import Linf
    >>> from epsball.data.load import load_data
    >>> def linear(x):
    ...     return x.flatten(1)[:, 27:29]
    >>> digits = load_data("digits", limit=40)
    >>> two = digits.rows((digits.y < 2).nonzero().squeeze(1))
    >>> found = direction({"one": linear, "other": linear}, two, Linf(eps=0.5))
    >>> [round(cosines[2], 9) for cosines in (found.pairs[0].gradient_same, found.pairs[0].gradient_other)]
    [1.0, -1.0]
    """
    for name, value, least in (("rows", rows, 1), ("batch_size", batch_size, 1)):
        check_whole(name, value, least)
    models = models if isinstance(models, Mapping) else {"model": models}
    if not models:
        raise BadInput("`models` must hold at least one network, got none; as in {'plain': model}")
    data = evenly(data, rows)
    task = checked(data, ball, seed)
    y = task.y
    clean, grads, steps, noises = [], [], [], []
    for name, model in models.items():
        logits, grad = slopes(model, task, loss=loss, batch_size=batch_size)
        if clean and logits.shape[1] != clean[0].shape[1]:
            raise BadInput(
                f"`models` must have the same classes, got {logits.shape[1]} of {name!r} and {clean[0].shape[1]}; "
                "leave one out"
            )
        z = attack(model, data.x, data.y, ball, ids=data.ids, seed=seed)
        clean.append(logits)
        grads.append(flat(grad).double())
        steps.append(z)
        noises.append(task.ball.project(task.x + shuffled(z - task.x, task.noise, task.ball.mask), task.x))
    seen = [[logits_at(model, z, batch_size=batch_size) for model in models.values()] for z in steps]
    noisy = [[logits_at(model, z, batch_size=batch_size) for model in models.values()] for z in noises]
    sure = [right(logits, y) for logits in clean]
    moves = [flat(z - task.x).double() for z in steps]
    several = range(len(models))
    both = [[_agreed(seen[i][i], seen[i][j], y, sure[i] & sure[j]) for j in several] for i in several]
    return Direction(
        names=tuple(models),
        pairs=tuple(
            _pairs(name, grads[i], moves[i], y, data.classes, sure[i], seen[i][i]) for i, name in enumerate(models)
        ),
        between=_matrix([[_alike(grads[i], grads[j]) for j in several] for i in several]),
        between_steps=_matrix([[_alike(moves[i], moves[j]) for j in several] for i in several]),
        transfer=_matrix([[_share(~right(seen[i][j], y), sure[j]) for j in several] for i in several]),
        noise=_matrix([[_share(~right(noisy[i][j], y), sure[j]) for j in several] for i in several]),
        agreement=_matrix([[both[i][j][0] for j in several] for i in several]),
        by_chance=_matrix([[both[i][j][1] for j in several] for i in several]),
        chance=1 / math.sqrt(math.prod(data.shape)),
        config=kept(
            {
                "models": {name: fingerprint.of_model(model) for name, model in models.items()},
                "data": data.name,
                "labels": class_names(data),
                "rows": len(data),
                "ball": fingerprint.described(ball),
                "said": said(ball),
                "attack": type(attack).__name__,
                "options": fingerprint.described(attack),
                "loss": fingerprint.described(loss),
                "seed": seed,
                "versions": versions(),
            }
        ),
    )


def _said(cosine: float | None) -> str:
    return "-" if cosine is None else f"{cosine:.2f}"


def _pairs(
    name: str,
    grad: Float[Tensor, "n d"],
    move: Float[Tensor, "n d"],
    y: Int64[Tensor, " n"],
    classes: int,
    sure: Bool[Tensor, " n"],
    attacked: Float[Tensor, "n classes"],
) -> Pairs:
    apart = torch.ones(len(y), len(y), dtype=torch.bool, device=y.device).triu(1)
    same = y[:, None] == y
    cosine, of_steps = cosines(grad, grad), cosines(move, move)
    twice = cosine.clone().fill_diagonal_(math.nan)  # an example is no pair with itself
    means = [
        [twice[y == a][:, y == b].nanmean().item() for b in range(classes)] for a in range(classes)
    ]  # of nothing, NaN
    return Pairs(
        name=name,
        gradient_same=_quantiles(cosine[apart & same]),
        gradient_other=_quantiles(cosine[apart & ~same]),
        step_same=_quantiles(of_steps[apart & same]),
        step_other=_quantiles(of_steps[apart & ~same]),
        classes=_matrix(means),
        accuracy=sure.double().mean().item(),
        fooled=kept(_share(~right(attacked, y), sure)),
    )


def _quantiles(values: Float[Tensor, " pairs"]) -> tuple[float, ...] | None:
    values = values[values.isfinite()].sort().values
    if not len(values):
        return None
    place = (torch.tensor(SPREAD, dtype=torch.float64) * (len(values) - 1)).round().long()
    return kept(values.clamp(-1, 1)[place])


def _alike(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> float:
    """The mean cosine of the same rows, without those that are zero."""
    product = (first * second).sum(1) / (first.square().sum(1) * second.square().sum(1)).sqrt()
    return product.nanmean().item()


def _share(what: Bool[Tensor, " n"], among: Bool[Tensor, " n"]) -> float:
    return what[among].double().mean().item() if bool(among.any()) else math.nan


def _agreed(
    first: Float[Tensor, "n classes"], second: Float[Tensor, "n classes"], y: Int64[Tensor, " n"], among: Tensor
) -> tuple[float, float]:
    """How often two networks give the same wrong class where both err, and how often they would by chance."""
    both = among & ~right(first, y) & ~right(second, y)
    if not bool(both.any()):
        return math.nan, math.nan
    labels, one, other = y[both], first[both].argmax(1), second[both].argmax(1)
    agreed = (one == other).double().mean().item()
    classes, chance = first.shape[1], 0.0
    for label in labels.unique():
        here = labels == label
        shares = [part[here].bincount(minlength=classes).double() / here.sum() for part in (one, other)]
        chance += (shares[0] @ shares[1]).item() * here.double().mean().item()
    return agreed, chance


def _matrix(rows: list[list[float]]) -> tuple[tuple[float | None, ...], ...]:
    return kept([[float(value) for value in row] for row in rows])
