"""Is it the direction that matters? Cosines of input gradients of other examples and of other networks, and transfer.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 8: adversarial examples lie in broad subspaces, "it is the direction
of perturbation that matters most", so that one perturbation does for other examples, and other networks, trained for
the same task, are fooled by the same points and often into the same wrong class. Measured between examples of one
class and of different classes and between networks, beside steps of equal norm in random directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.fgsm import FGSM
from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.errors import BadInput
from epsball.common.record import Record
from epsball.common.shapes import flat
from epsball.data.examples import Examples
from epsball.explain.config import Sampled, configured
from epsball.explain.finding import Finding, made_of, nested, percent
from epsball.explain.inputs import class_names, evenly, task_for
from epsball.explain.measure import correct, cosines, input_gradients, logits_at, median, shuffled
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import Model

FAST_GRADIENT = FGSM()
SPREAD = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of the cosines of all pairs that are in the record."""

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Pairs(Record):
    """The cosines of the pairs of different examples of one network: `SPREAD` quantiles, or None without a pair.

    Of input gradients and of perturbations, of two examples of the same class or of other classes. `classes` is the
    matrix of mean cosines of gradients, class against class. `accuracy` and `fooled` are the network's own: of all
    examples, and of those that it classifies correctly.
    """

    name: str
    gradient_same: tuple[float, ...] | None
    gradient_other: tuple[float, ...] | None
    step_same: tuple[float, ...] | None
    step_other: tuple[float, ...] | None
    classes: Matrix
    accuracy: float
    fooled: float | None


@dataclass(frozen=True, kw_only=True)
class Direction(Finding):
    """What `direction` measured on k networks; matrices are (k, k), None where nothing is to be counted.

    `between` and `between_steps`: the mean cosine of two networks' gradients, and perturbations, at the same example.
    `transfer[i][j]`: of the examples that network j classifies correctly, the share that the points made on network i
    fool it on; `noise[i][j]` the same with i's steps shuffled. `agreement[i][j]`: of the examples that both classify
    correctly and whose point, made on i, fools both, those that both predict as the same wrong class; `by_chance` what
    is expected of that if each of the two drew its wrong class independently, with the frequencies that it has for the
    example's class. `chance` is the size of the cosine of two random directions, 1 / sqrt(d).
    """

    names: tuple[str, ...]
    pairs: tuple[Pairs, ...]
    between: Matrix
    between_steps: Matrix
    transfer: Matrix
    noise: Matrix
    agreement: Matrix
    by_chance: Matrix
    chance: float

    def elsewhere(self, name: str) -> float | None:
        """The median of a matrix off its diagonal: between two different networks."""
        matrix = getattr(self, name)
        return median(matrix[i][j] for i in range(len(matrix)) for j in range(len(matrix)) if i != j)

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        first = self.pairs[0]
        same, other = (
            _text(quantiles[2] if quantiles else None) for quantiles in (first.gradient_same, first.gradient_other)
        )
        text = (
            f"Input gradients of two examples of one class have a median cosine of {same}, of two classes {other} "
            f"(random directions: ±{self.chance:.2f})"
        )
        if len(self.names) == 1:
            return text + "."
        names = ("transfer", "noise", "agreement", "by_chance")
        moved, noise, agreed, chance = (percent(self.elsewhere(name)) for name in names)
        return (
            f"{text}, those of two networks at one example {_text(self.elsewhere('between'))}; what is made on one "
            f"network fools another on {moved} of the examples (the same steps shuffled: {noise}), and where both err "
            f"they agree on the wrong class in {agreed} (by chance: {chance})."
        )


@configured(Sampled)
def direction(
    models: Model | Mapping[str, Model],
    data: Examples,
    ball: Ball,
    *,
    config: Sampled,
    attack: Attack = FAST_GRADIENT,
    loss: Loss = cross_entropy,
) -> Direction:
    """Measure how much the gradients of different examples and of different networks point the same way.

    `models` is one network, or several by name, with the same classes; `epsball.explain.networks` trains some. The
    cosines are those of the gradients of `loss` at the examples, and of the perturbations of `attack` in `ball`; those
    without a gradient (or a step) form no pair. At most `rows` examples, spread over `data`; all pairs of them are
    compared. `seed` keys the attack and the control. The networks come back as they were.

    Raises `BadInput` where there is no network, or they differ in their number of classes.

    >>> from epsball import Linf
    >>> from epsball.data.load import load_data
    >>> def linear(x):
    ...     return x.flatten(1)[:, 27:29]
    >>> digits = load_data("digits", first=40)
    >>> two = digits.rows((digits.y < 2).nonzero().squeeze(1))
    >>> found = direction({"one": linear, "other": linear}, two, Linf(eps=0.5))
    >>> [round(cosines[2], 9) for cosines in (found.pairs[0].gradient_same, found.pairs[0].gradient_other)]
    [1.0, -1.0]
    """
    models = models if isinstance(models, Mapping) else {"model": models}
    if not models:
        raise BadInput("`models` must hold at least one network, got none; as in {'plain': model}")
    data = evenly(data, config.rows)
    task = task_for(data, ball, config.seed)
    y = task.y
    clean, grads, points, controls = [], [], [], []
    for name, model in models.items():
        logits, grad = input_gradients(model, task, loss=loss, batch_size=config.batch_size)
        if clean and logits.shape[1] != clean[0].shape[1]:
            raise BadInput(
                f"`models` must have the same classes, got {logits.shape[1]} of {name!r} and {clean[0].shape[1]}; "
                "leave one out"
            )
        z = attack(model, data.x, data.y, ball, ids=data.ids, seed=config.seed)
        clean.append(logits)
        grads.append(flat(grad).double())
        points.append(z)
        controls.append(task.ball.project(task.x + shuffled(z - task.x, task.noise, task.ball.mask), task.x))
    attacked, noisy = (
        [[logits_at(model, z, batch_size=config.batch_size) for model in models.values()] for z in made]
        for made in (points, controls)
    )
    right = [correct(logits, y) for logits in clean]
    steps = [flat(z - task.x).double() for z in points]
    k = len(models)
    both = [[_agreement(attacked[i][i], attacked[i][j], y, right[i] & right[j]) for j in range(k)] for i in range(k)]
    return Direction(
        names=tuple(models),
        pairs=tuple(
            _pairs(
                name,
                (cosines(grads[i], grads[i]), cosines(steps[i], steps[i])),
                y,
                data.classes,
                accuracy=right[i].double().mean().item(),
                fooled=nested(_share(~correct(attacked[i][i], y), right[i])),
            )
            for i, name in enumerate(models)
        ),
        between=_matrix(k, lambda i, j: _mean_cosine(grads[i], grads[j])),
        between_steps=_matrix(k, lambda i, j: _mean_cosine(steps[i], steps[j])),
        transfer=_matrix(k, lambda i, j: _share(~correct(attacked[i][j], y), right[j])),
        noise=_matrix(k, lambda i, j: _share(~correct(noisy[i][j], y), right[j])),
        agreement=_matrix(k, lambda i, j: both[i][j][0]),
        by_chance=_matrix(k, lambda i, j: both[i][j][1]),
        chance=1 / math.sqrt(math.prod(data.shape)),
        config=made_of(
            models,
            data,
            ball,
            config,
            labels=class_names(data),
            attack=type(attack).__name__,
            options=fingerprint.described(attack),
            loss=fingerprint.described(loss),
        ),
    )


def _text(cosine: float | None) -> str:
    return "-" if cosine is None else f"{cosine:.2f}"


def _matrix(k: int, entry: Callable[[int, int], float]) -> Matrix:
    return nested([[entry(i, j) for j in range(k)] for i in range(k)])


def _pairs(
    name: str,
    cosine: tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]],
    y: Int64[Tensor, " n"],
    classes: int,
    *,
    accuracy: float,
    fooled: float | None,
) -> Pairs:
    """The figures of one network from the cosines of all its gradients and of all its perturbations."""
    gradients, steps = cosine
    apart = torch.ones(len(y), len(y), dtype=torch.bool, device=y.device).triu(1)
    same = y[:, None] == y
    others = gradients.clone().fill_diagonal_(math.nan)  # an example is no pair with itself
    means = [[others[y == a][:, y == b].nanmean().item() for b in range(classes)] for a in range(classes)]
    return Pairs(
        name=name,
        gradient_same=_quantiles(gradients[apart & same]),
        gradient_other=_quantiles(gradients[apart & ~same]),
        step_same=_quantiles(steps[apart & same]),
        step_other=_quantiles(steps[apart & ~same]),
        classes=nested(means),
        accuracy=accuracy,
        fooled=fooled,
    )


def _quantiles(values: Float[Tensor, " pairs"]) -> tuple[float, ...] | None:
    values = values[values.isfinite()].sort().values
    if not len(values):
        return None
    place = (torch.tensor(SPREAD, dtype=torch.float64) * (len(values) - 1)).round().long()
    return nested(values.clamp(-1, 1)[place])


def _mean_cosine(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> float:
    """The mean cosine of the same rows, without those that are zero."""
    product = (first * second).sum(1) / (first.square().sum(1) * second.square().sum(1)).sqrt()
    return product.nanmean().item()


def _share(what: Bool[Tensor, " n"], among: Bool[Tensor, " n"]) -> float:
    return what[among].double().mean().item() if bool(among.any()) else math.nan


def _agreement(
    first: Float[Tensor, "n classes"], second: Float[Tensor, "n classes"], y: Int64[Tensor, " n"], among: Tensor
) -> tuple[float, float]:
    """How often two networks give the same wrong class where both err, and how often they would by chance."""
    both = among & ~correct(first, y) & ~correct(second, y)
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
