"""Do adversarial examples leave the data's subspace? The perturbations' energy outside the leading components.

The data's manifold is approximated by its leading principal components, the best subspace of each dimension. Measured
is the share of a perturbation's squared Euclidean length outside of it, beside that of noise of equal norm (the same
steps in a random order and with random signs: on average 1 - k/d outside k components) and of the difference of two
images. And since the part outside need not be what fools the model, the parts within and outside are each tried alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.errors import BadInput
from epsball.common.shapes import flat
from epsball.data.examples import Examples
from epsball.explain.config import ManifoldConfig, configured
from epsball.explain.finding import Finding, made_of, nested, percent
from epsball.explain.inputs import evenly, halves, task_for
from epsball.explain.measure import correct, logits_at, shuffled
from epsball.problem.objective import Model

FAST_GRADIENT = FGSM()
MOST = 64
"""Numbers of components that are measured by default, where the data have more dimensions."""
VARIANCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Manifold(Finding):
    """What `manifold` measured, for each number of leading principal components in `components` (m,).

    `outside` (m,) each: the mean share of squared length outside, of the "attack"'s perturbations, of "noise" of equal
    norm, of the "difference" of two images, and of "images" less the mean. `fooled_inside` and `fooled_outside` (m,):
    of the correctly classified examples that the whole perturbation fools, the share that its part within or outside
    the components fools alone, unclipped; `fooled_noise` the share that noise of equal norm fools. Those are None where
    no example is fooled. `leading` components hold 95 % of the variance.
    """

    components: tuple[int, ...]
    outside: dict[str, tuple[float | None, ...]]
    fooled_inside: tuple[float, ...] | None
    fooled_outside: tuple[float, ...] | None
    fooled_noise: float | None
    leading: int

    def at(self, name: str, components: int | None = None) -> float:
        """The share outside the leading components, by default those that hold 95 % of the variance; NaN if none."""
        share = self.outside[name][self.components.index(self.leading if components is None else components)]
        return math.nan if share is None else share

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        shares = {name: percent(self.at(name)) for name in self.outside}
        text = (
            f"Outside the {self.leading} of {self.config['dimensions']} principal components that hold 95 % of the "
            f"variance lie {shares['attack']} of the energy of the adversarial perturbations, {shares['noise']} of "
            f"that of noise of equal norm and {shares['difference']} of that of the difference of two images"
        )
        if self.fooled_inside is None or self.fooled_outside is None:
            return text + "."
        place = self.components.index(self.leading)
        inside, outside = percent(self.fooled_inside[place]), percent(self.fooled_outside[place])
        return f"{text}; the part within them alone fools {inside} of what the whole fools, the part outside {outside}."


@configured(ManifoldConfig)
def manifold(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    config: ManifoldConfig,
    train: Examples | None = None,
    attack: Attack = FAST_GRADIENT,
) -> Manifold:
    """Measure how much of the perturbations lies outside the leading principal components of the data.

    The components are those of at most `fit_rows` examples of `train` (default: every second of each class of `data`,
    which are then not measured), without their mean. The `attack` is made in `ball` on at most `rows` examples.
    `components` are the numbers k of them that are measured, default about 64 from 0 to all; 0, and those that hold
    95 % of the variance, are always among them. `seed` keys the attack, the noise and the pairs of images. The model
    comes back as it was.

    Raises `BadInput` where `train` has other shapes or fewer than two examples, and where the attack moves none.
    """
    if train is None:
        train, data = halves(data)
    if len(train) < 2 or train.shape != data.shape:
        raise BadInput(
            f"`train` must hold at least two examples of shape {data.shape}, got {len(train)} of shape {train.shape}; "
            "raise the limit"
        )
    train, data = evenly(train, config.fit_rows), evenly(data, config.rows)
    task = task_for(data, ball, config.seed)
    mean, directions, variance = principal(train.x)
    leading = holding(variance)
    counts = _counts(config.components, len(directions), leading)
    z = attack(model, data.x, data.y, ball, ids=data.ids, seed=config.seed)
    step = flat(z - data.x)
    if not step.any():
        raise BadInput("`attack` must move at least one example, moved none: is there a gradient? Take another attack")
    noise = flat(shuffled(step.reshape(data.x.shape), task.noise, task.ball.mask))
    partner = _partners(task.noise.uniform((1,), draw=3, dtype=torch.float64).squeeze(1))
    images = flat(data.x).double()
    subjects = {"attack": step, "noise": noise, "difference": images[partner] - images}
    outside = {name: energy_outside(part.double(), directions).nanmean(0) for name, part in subjects.items()}
    outside["images"] = _variance_outside(images - mean, directions)
    logits = partial(logits_at, model, batch_size=config.batch_size)
    fooled = correct(logits(data.x), data.y) & ~correct(logits(z), data.y)
    x, y, moved = data.x[fooled], data.y[fooled], step[fooled].double()
    inside_alone, outside_alone, noise_alone = [], [], None

    def share(part: Float[Tensor, "n d"]) -> float:
        """The share of the fooled examples that a part of the perturbation fools alone."""
        return (~correct(logits(x + part.reshape(x.shape).to(x)), y)).double().mean().item()

    if bool(fooled.any()):
        for k in counts:
            inside = moved @ directions[:k].T @ directions[:k]
            inside_alone.append(share(inside))
            outside_alone.append(share(moved - inside))
        noise_alone = share(noise[fooled])
    return Manifold(
        components=tuple(counts),
        outside={name: nested(curve[counts]) for name, curve in outside.items()},
        fooled_inside=tuple(inside_alone) or None,
        fooled_outside=tuple(outside_alone) or None,
        fooled_noise=noise_alone,
        leading=leading,
        config=made_of(
            model,
            data,
            ball,
            config,
            fit_rows=len(train),
            parts_rows=int(fooled.sum()),
            dimensions=images.shape[1],
            attack=type(attack).__name__,
            options=fingerprint.described(attack),
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
    total = variance.cumsum(0)
    return int((total < share * total[-1] * (1 - 1e-12)).sum()) + 1


def energy_outside(delta: Float[Tensor, "n d"], directions: Float[Tensor, "r d"]) -> Float[Tensor, "n k"]:
    """The share of each row's squared length outside the first 0, 1, ..., r directions, (n, r + 1); NaN for a row of 0.

    >>> energy_outside(torch.tensor([[3.0, 4.0]]), torch.eye(2)).round(decimals=4)
    tensor([[1.0000, 0.6400, 0.0000]])
    """
    length = delta.square().sum(1, keepdim=True)
    inside = (delta @ directions.T).square().cumsum(1) / length
    return torch.cat([torch.where(length > 0, 1.0, math.nan), 1 - inside], 1).clamp_min(0)


def _variance_outside(centred: Float[Tensor, "n d"], directions: Float[Tensor, "r d"]) -> Float[Tensor, " k"]:
    """The share of the total squared length outside the first 0, 1, ..., r directions."""
    total = centred.square().sum()
    return 1 - torch.cat([total[None] * 0, (centred @ directions.T).square().sum(0).cumsum(0)]) / total


def _counts(components: Sequence[int] | None, most: int, leading: int) -> list[int]:
    if components is None:
        components = torch.linspace(0, most, min(most, MOST) + 1).round().long().tolist()
    if max(components, default=0) > most:
        raise BadInput(
            f"`components` must be <= {most}, the number there are, got {max(components)}; raise `fit_rows`?"
        )
    return sorted({0, leading, *components})


def _partners(key: Float[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Another row for each: the next one in a random order."""
    order = key.argsort(stable=True)
    partner = torch.empty_like(order)
    partner[order] = order.roll(-1)
    return partner
