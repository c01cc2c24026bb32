"""Do adversarial examples leave the data's subspace? The perturbations' energy outside the leading components.

The data's manifold is taken for its leading principal components, the best subspace of each dimension. Outside of it
the share of a perturbation's squared Euclidean length is measured, beside that of noise of equal norm (the same steps
in a random order and with random signs: on average 1 - k/d outside k components) and of the difference of two images.
And since leaving it need not be what fools: the part within and the part outside are each tried alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import flat
from epsball.data.examples import Examples
from epsball.explain.passes import checked, kept, logits_at, read, right, shuffled
from epsball.explain.record import evenly, halves, percent, said, versions
from epsball.problem.objective import Model

FAST_GRADIENT = FGSM()
MOST = 64
"""Numbers of components that are looked at by default, where the data have more dimensions."""
VARIANCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """What `manifold` measured, for each number of leading principal components in `components` (m,).

    `outside` (m,) each: the mean share of squared length outside, of the "attack"'s perturbations, of "noise" of equal
    norm, of the "difference" of two images, and of "images" less the mean. `fooled_inside` and `fooled_outside` (m,):
    of the examples that are right and fooled by the whole perturbation, the share that its part within or outside the
    components fools alone, unclipped; `fooled_noise` the share that noise of equal norm fools. Those are None where no
    example is fooled. `leading` components hold 95 % of the variance.
    """

    components: tuple[int, ...]
    outside: dict[str, tuple[float | None, ...]]
    fooled_inside: tuple[float, ...] | None
    fooled_outside: tuple[float, ...] | None
    fooled_noise: float | None
    leading: int
    config: dict[str, Any]

    def at(self, name: str, components: int | None = None) -> float:
        """The share outside the leading components, by default those that hold 95 % of the variance; NaN if none."""
        share = self.outside[name][self.components.index(self.leading if components is None else components)]
        return math.nan if share is None else share

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        shares = {name: percent(self.at(name)) for name in self.outside}
        said = (
            f"Outside the {self.leading} of {self.config['dimensions']} principal components that hold 95 % of the "
            f"variance lie {shares['attack']} of the energy of the adversarial perturbations, {shares['noise']} of "
            f"that of noise of equal norm and {shares['difference']} of that of the difference of two images"
        )
        if self.fooled_inside is None or self.fooled_outside is None:
            return said + "."
        place = self.components.index(self.leading)
        inside, out = percent(self.fooled_inside[place]), percent(self.fooled_outside[place])
        return f"{said}; the part within them alone fools {inside} of what the whole fools, the part outside {out}."

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them."""
        return asdict(self) | {"sentence": self.sentence}

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Manifold:
        """The record that `to_json` wrote."""
        return cls(**read(text))

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: energy outside against the number of components, and what the parts do alone."""
        from epsball.explain.pictures_lines import draw_manifold

        draw_manifold(self, path)


def manifold(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    train: Examples | None = None,
    attack: Attack = FAST_GRADIENT,
    components: Sequence[int] | None = None,
    rows: int = 500,
    fit_rows: int = 2000,
    batch_size: int = 128,
    seed: int = 0,
) -> Manifold:
    """Measure how much of the perturbations lies outside the leading principal components of the data.

    The components are those of at most `fit_rows` examples of `train` (default: every second of each class of `data`,
    which are then not measured), without their mean. The `attack` is made in `ball` on at most `rows` examples.
    `components` are the numbers k of them that are looked at, default about 64 from 0 to all; 0, and those that hold
    95 % of the variance, are always among them. `seed` keys the attack, the noise and the pairs of images. The model
    comes back as it was.

    Raises `BadInput` where `train` has other shapes or fewer than two examples, and where the attack moves none.
    """
    for name, value, least in (("rows", rows, 1), ("fit_rows", fit_rows, 2), ("batch_size", batch_size, 1)):
        check_whole(name, value, least)
    if train is None:
        train, data = halves(data)
    if len(train) < 2 or train.shape != data.shape:
        raise BadInput(
            f"`train` must hold at least two examples of shape {data.shape}, got {len(train)} of shape {train.shape}; "
            "raise the limit"
        )
    train, data = evenly(train, fit_rows), evenly(data, rows)
    task = checked(data, ball, seed)
    mean, directions, variance = principal(train.x)
    upto, leading = len(directions), holding(variance)
    counts = _counts(components, upto, leading)
    z = attack(model, data.x, data.y, ball, ids=data.ids, seed=seed)
    step = flat(z - data.x)
    if not step.any():
        raise BadInput("`attack` must move at least one example, moved none: is there a gradient? Take another attack")
    noise = flat(shuffled(step.reshape(data.x.shape), task.noise, task.ball.mask))
    partner = _partners(task.noise.uniform((1,), draw=3, dtype=torch.float64).squeeze(1))
    images = flat(data.x).double()
    subjects = {"attack": step, "noise": noise, "difference": images[partner] - images}
    outside = {name: energy_outside(part.double(), directions).nanmean(0) for name, part in subjects.items()}
    off = images - mean
    total = off.square().sum()
    outside["images"] = 1 - torch.cat([total[None] * 0, (off @ directions.T).square().sum(0).cumsum(0)]) / total
    logits = [logits_at(model, at, batch_size=batch_size) for at in (data.x, z)]
    fooled = right(logits[0], data.y) & ~right(logits[1], data.y)
    alone: dict[str, list[float]] = {"inside": [], "outside": []}
    x, y, moved = data.x[fooled], data.y[fooled], step[fooled].double()
    for k in counts if bool(fooled.any()) else ():
        inside = moved @ directions[:k].T @ directions[:k]
        for name, part in (("inside", inside), ("outside", moved - inside)):
            at = x + part.reshape(x.shape).to(x)
            alone[name].append((~right(logits_at(model, at, batch_size=batch_size), y)).double().mean().item())
    noisy = None
    if bool(fooled.any()):
        at = x + noise[fooled].reshape(x.shape)
        noisy = (~right(logits_at(model, at, batch_size=batch_size), y)).double().mean().item()
    return Manifold(
        components=tuple(counts),
        outside={name: kept(curve[list(counts)]) for name, curve in outside.items()},
        fooled_inside=tuple(alone["inside"]) or None,
        fooled_outside=tuple(alone["outside"]) or None,
        fooled_noise=noisy,
        leading=leading,
        config=kept(
            {
                "model": fingerprint.of_model(model),
                "data": data.name,
                "rows": len(data),
                "fit_rows": len(train),
                "parts_rows": int(fooled.sum()),
                "dimensions": images.shape[1],
                "ball": fingerprint.described(ball),
                "said": said(ball),
                "attack": type(attack).__name__,
                "options": fingerprint.described(attack),
                "seed": seed,
                "versions": versions(),
            }
        ),
    )


def principal(
    x: Float[Tensor, "n *shape"],
) -> tuple[Float[Tensor, " d"], Float[Tensor, "r d"], Float[Tensor, " r"]]:
    """Mean, principal components (orthonormal rows, the greatest variance first) and their variances, in float64.

    There are r = min(n - 1, d) of them.
    """
    rows = flat(x).double()
    mean = rows.mean(0)
    _, sizes, directions = torch.linalg.svd(rows - mean, full_matrices=False)
    r = min(len(rows) - 1, rows.shape[1])
    return mean, directions[:r], sizes[:r].square() / (len(rows) - 1)


def holding(variance: Float[Tensor, " r"], share: float = VARIANCE) -> int:
    """The smallest number of components whose variances make up `share` of all.

    >>> holding(torch.tensor([6.0, 3.0, 0.9, 0.1])), holding(torch.tensor([1.0, 0.0]))
    (3, 1)
    """
    held = variance.cumsum(0)
    return int((held < share * held[-1] * (1 - 1e-12)).sum()) + 1


def energy_outside(delta: Float[Tensor, "n d"], directions: Float[Tensor, "r d"]) -> Float[Tensor, "n k"]:
    """The share of each row's squared length outside the first 0, 1, ..., r directions, (n, r + 1); NaN for a row of 0.

    >>> energy_outside(torch.tensor([[3.0, 4.0]]), torch.eye(2)).round(decimals=4)
    tensor([[1.0000, 0.6400, 0.0000]])
    """
    length = delta.square().sum(1, keepdim=True)
    inside = (delta @ directions.T).square().cumsum(1) / length
    return torch.cat([torch.where(length > 0, 1.0, math.nan), 1 - inside], 1).clamp_min(0)


def _counts(components: Sequence[int] | None, upto: int, leading: int) -> list[int]:
    if components is None:
        some = torch.linspace(0, upto, min(upto, MOST) + 1).round().long().tolist()
    else:
        some = list(components)
        for k in some:
            check_whole("components", k, 0)
            if k > upto:
                raise BadInput(f"`components` must be <= {upto}, the number there are, got {k}; raise `fit_rows`?")
    return sorted({0, leading, *some})


def _partners(key: Float[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Another row for each: the next one in a random order."""
    order = key.argsort(stable=True)
    partner = torch.empty_like(order)
    partner[order] = order.roll(-1)
    return partner
