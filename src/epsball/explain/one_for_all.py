"""Universal: one perturbation for all images, made on some of them and shown to others.

Moosavi-Dezfooli et al., "Universal adversarial perturbations" (CVPR 2017); Goodfellow, Shlens and Szegedy (ICLR 2015),
section 8, give the cause: models are near to linear, so that examples share the directions that fool them. The
perturbation v climbs a sum over examples at clip(x + v) by projected steps, as in Shafahi et al., "Universal
adversarial training" (AAAI 2020), algorithm 1. What is summed is a smooth count of the fooled, sigmoid(margin / T) with
T a tenth of the median margin, or a fifth, whichever fools more: on the digits, within .1, it fools 1.6 times as many
held-out images as the margin itself does. There may be better ones: every share is a lower bound.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball import fingerprint
from epsball.attacks.attack import whole
from epsball.attacks.fgsm import FGSM
from epsball.ball import Ball
from epsball.balls import Linf
from epsball.data import Examples
from epsball.errors import BadInput
from epsball.explain.dimension import resized
from epsball.explain.networks import trained
from epsball.explain.record import box_of, class_names, evenly, halves, name_of, percent, radius_of, said, versions
from epsball.losses import margin
from epsball.noise import Noise
from epsball.objective import Model, Objective, check_labels, prediction
from epsball.task import Task, task_of

SIDES = (7, 14, 28, 56)
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""The radii, in units of the ball's."""
TEMPERATURES = (0.1, 0.2)
"""T, in units of the median margin of the examples that the perturbation is made on. What is climbed has many tops."""
LEAK = 1e-3
"""The share of margin / T that is added, so that no example is without a gradient."""
FIRST = 0.25
"""The first step, in units of eps; it falls to a tenth of that on half a cosine."""
SHUFFLE_DRAW = 7


@dataclass(frozen=True)
class Shared:
    """One perturbation and what it does to images that it was not made on; shares of those predicted rightly before.

    `model` is "yours" or the network that was trained at this size, `n` the number of coordinates; `fitted` is the
    share that it fools of the images that it was made on, `held` of others, `noise` the mean share that its own values
    fool in random places (equal in every norm), `each` the share that FGSM on the margin fools, a step for each image.
    `dominant` is the class that the fooled are mostly taken for and `dominant_share` its share of them. `accuracy` is
    that of the model on the others.
    """

    model: str
    eps: float
    n: int
    accuracy: float
    fitted: float
    held: float
    noise: float
    each: float
    dominant: int
    dominant_share: float


@dataclass(frozen=True)
class Universal:
    """What `universal` found: by radius on the model, and by size of the image on networks trained at each.

    `perturbation` and `example` are flat images of `config["shape"]`: the one made at the ball's radius, and the first
    of the images that it fools (else the first).
    """

    radii: tuple[Shared, ...]
    sizes: tuple[Shared, ...]
    perturbation: tuple[float, ...]
    example: tuple[float, ...]
    config: dict[str, Any]

    @property
    def at_ball(self) -> Shared:
        """The perturbation at the ball's own radius."""
        return next(one for one in self.radii if one.eps == self.config["eps"])

    @property
    def sentence(self) -> str:
        """The answer, in one sentence."""
        one = self.at_ball
        name = name_of(self.config["names"], one.dominant)
        said = (
            f"One perturbation within {self.config['said']} fools {percent(one.held)} of {self.config['held_rows']:,} "
            f"images that it was not made on, its own values in random places {percent(one.noise)} and a step of FGSM "
            f"for each image {percent(one.each)}; {percent(one.dominant_share)} of the fooled become {name!r}"
        )
        if len(self.sizes) < 2:
            return said + "."
        first, last = self.sizes[0], self.sizes[-1]
        return (
            f"{said}. From {first.n:,} to {last.n:,} dimensions the share goes from {percent(first.held)} to "
            f"{percent(last.held)} on networks trained at each size (noise: {percent(first.noise)} to "
            f"{percent(last.noise)})."
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the images, as JSON can hold them."""
        tables = {name: [asdict(one) for one in getattr(self, name)] for name in ("radii", "sizes")}
        return {"sentence": self.sentence} | tables | {"config": self.config}

    def to_json(self) -> str:
        """As JSON, with the images; `from_json` gives an equal record."""
        images = {"perturbation": self.perturbation, "example": self.example}
        return json.dumps(self.summary() | images, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Universal:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        return cls(
            radii=tuple(Shared(**one) for one in record["radii"]),
            sizes=tuple(Shared(**one) for one in record["sizes"]),
            perturbation=tuple(record["perturbation"]),
            example=tuple(record["example"]),
            config=record["config"],
        )

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: shares against eps and against dimension, and the perturbation itself."""
        from epsball.explain.pictures_attacks import draw_universal

        draw_universal(self, path)


def universal(
    model: Model,
    data: Examples,
    ball: Ball,
    *,
    train: Examples | None = None,
    eps: Sequence[float] | None = None,
    sides: Sequence[int] | None = None,
    steps: int = 20,
    training_steps: int = 400,
    rows: int = 1000,
    draws: int = 8,
    seed: int = 0,
    width: int = 512,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Universal:
    """Make one perturbation for many images, and count how many others it fools.

    `model` is a torch module or a callable x -> logits; `ball` has one radius, and a box and a mask that are the same
    for all examples. The perturbation is made in two climbs of `steps` passes over at most `rows` examples of `train`
    (default: every second of each class of `data`, which are then not counted), and shown to at most `rows` of `data`,
    clipped to the box. `eps` are the radii (default: the ball's times `FACTORS`), to which the ball's is added. For
    `sides` (default: `SIDES` for images, none for anything else) the images are resized as in `growth`, and at each
    size a small-mlp is trained with `seed` for `training_steps` steps, on those that the perturbation is made on. The
    control are `draws` random orders of the values of the perturbation. `on_progress` is called with the count of
    finished perturbations, that of all, and what is next. The model comes back as it was.

    Raises `BadInput` for a ball that differs between examples, `sides` where there are no images, fewer than two
    examples, and images of which the model is right about none.

    A linear model falls to one step for all, which its own values in random places are not:

    >>> from epsball.balls import Linf
    >>> from epsball.data import from_arrays
    >>> x = torch.rand(40, 100, generator=torch.Generator().manual_seed(0))
    >>> sides = torch.ones(100).index_fill(0, torch.arange(50), -1.0)
    >>> found = universal(lambda x: 20 + x @ sides, from_arrays(x, torch.ones(40).long()), Linf(eps=0.4))
    >>> found.at_ball.held, found.at_ball.noise
    (1.0, 0.0)
    """
    for name, value, least in (
        ("steps", steps, 1),
        ("training_steps", training_steps, 1),
        ("rows", rows, 1),
        ("draws", draws, 1),
        ("width", width, 1),
    ):
        whole(name, value, least)
    shared = _around_zero(ball)
    radius, phrase = radius_of(ball), said(ball)
    radii = sorted({radius, *(float(part) for part in eps)}) if eps is not None else [f * radius for f in FACTORS]
    if not all(0 < part < math.inf for part in radii):
        raise BadInput(f"`eps` must be radii > 0 and finite, got {radii}; write for example (0.05, 0.1)")
    images = data.x.ndim in (3, 4)
    sides = (SIDES if images else ()) if sides is None else tuple(sides)
    if sides and not images:
        raise BadInput(f"`sides` must be left out for examples of shape {data.shape}, which are no images, got {sides}")
    for side in sides:
        whole("sides", side, 1)
    if train is None:
        if len(data) < 2:
            raise BadInput(f"`data` must hold at least two examples, got {len(data)}; or give `train`")
        train, data = halves(data)
    fitted, held = evenly(train, rows), evenly(data, rows)
    make = _Maker(steps, draws, seed, width)
    total, found, at_ball = len(radii) + len(sides), [], None

    def tell(note: str) -> None:
        if on_progress is not None:
            on_progress(len(found), total, note)

    for each in radii:
        tell(f"eps {each:.3g}")
        one, delta, example = make(model, "yours", fitted, held, shared.with_eps(each), ball.with_eps(each))
        found.append(one)
        if each == radius:
            at_ball = (delta, example)
    for side in sides:
        tell(f"{side} x {side}")
        found.append(_at_size(make, fitted, held, ball, side, training_steps, seed))
    tell("")
    assert at_ball is not None  # the ball's radius is among them
    box = box_of(ball)
    config = {
        "model": fingerprint.of_model(model),
        "data": data.name,
        "shape": list(data.shape),
        "fitted_rows": len(fitted),
        "held_rows": len(held),
        "names": list(class_names(data)),
        "ball": fingerprint.described(ball),
        "said": phrase,
        "eps": radius,
        "box": None if box is None else list(box),
        "steps": steps,
        "draws": draws,
        "sides": list(sides),
        "training_steps": training_steps,
        "seed": seed,
        "versions": versions(),
    }
    delta, example = (tuple(part.double().flatten().tolist()) for part in at_ball)
    return Universal(tuple(found[: len(radii)]), tuple(found[len(radii) :]), delta, example, config)


def _around_zero(ball: Ball) -> Ball:
    """The ball that the perturbation is in: its box is what can move any example from one end to the other."""
    for name in ("lo", "hi", "mask"):
        part = getattr(ball, name)
        if isinstance(part, Tensor) and part.ndim and len(part) != 1:
            raise BadInput(f"`{name}` of the ball must be the same for all examples, got {tuple(part.shape)}; share it")
    return replace(ball, lo=ball.lo - ball.hi, hi=ball.hi - ball.lo)


@dataclass(frozen=True)
class SmoothCount:
    """Nearly 1 where the model is wrong and 0 where it is right: sigmoid(margin / T), and a little of margin / T."""

    temperature: float

    def __call__(self, logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
        far = margin(logits, task) / self.temperature
        return far.sigmoid() + LEAK * far


@dataclass(frozen=True)
class _Maker:
    """Makes one perturbation, and counts."""

    steps: int
    draws: int
    seed: int
    width: int

    def __call__(
        self, model: Model, name: str, fitted: Examples, held: Examples, shared: Ball, ball: Ball
    ) -> tuple[Shared, Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """The counts, the perturbation, and a held example that it fools."""
        ball = ball.bind(fitted.x)
        with Objective(model, margin, needs="logits") as looked:
            kept, away = self._right(looked, fitted, ball)
            other, _ = self._right(looked, held, ball)
        stepped = torch.cat(
            [
                FGSM(loss=margin)(model, x, y, ball)
                for x, y in zip(other.x.split(self.width), other.y.split(self.width), strict=True)
            ]
        )
        climbs = []
        for temperature in TEMPERATURES:
            with Objective(model, SmoothCount(max(temperature * away, 1e-6)), careful=True) as objective:
                climbs.append(self._climbed(objective, kept, shared, ball))
        delta, _ = max(climbs, key=lambda climb: climb[1])
        with Objective(model, margin, needs="logits") as objective:
            fell = self._fooled(objective, kept, delta, ball)
            after = self._called(objective, other, delta, ball)
            noise = [
                self._fooled(objective, other, mixed, ball).double().mean().item()
                for mixed in self._shuffled(delta, ball.mask)
            ]
            each = self._called(objective, replace(other, x=stepped), torch.zeros_like(delta), ball) != other.y
        fooled = after != other.y
        counts = torch.bincount(after[fooled]) if fooled.any() else torch.zeros(1, dtype=torch.long)
        record = Shared(
            model=name,
            eps=radius_of(ball),
            n=delta.numel(),
            accuracy=len(other) / len(held),
            fitted=fell.double().mean().item(),
            held=fooled.double().mean().item(),
            noise=sum(noise) / len(noise),
            each=each.double().mean().item(),
            dominant=int(counts.argmax()),
            dominant_share=float(counts.max() / counts.sum().clamp_min(1)),
        )
        return record, delta[0], other.x[int(fooled.nonzero()[0]) if fooled.any() else 0]

    def _right(self, objective: Objective, data: Examples, ball: Ball) -> tuple[Examples, float]:
        """Those of the examples that are predicted rightly, and the median of their margins."""
        task = task_of(data.x, data.y, ball)
        logits = torch.cat([objective.forward(x) for x in task.x.split(self.width)])
        if not logits.is_floating_point():
            raise BadInput("`model` must return logits, got labels; a universal perturbation is made from gradients")
        check_labels(logits, task)
        rows = (prediction(logits) == data.y).nonzero().squeeze(1)
        if not len(rows):
            raise BadInput(f"`model` must be right about some of the {len(data)} examples, got none; look at its data")
        return data.rows(rows), -margin(logits, task)[rows].double().median().item()

    def _climbed(
        self, objective: Objective, data: Examples, shared: Ball, ball: Ball
    ) -> tuple[Float[Tensor, "1 *shape"], int]:
        """The perturbation that fooled most of `data` on the way, and how many.

        The first to be tried is the maximiser of the gradient at zero, the optimum of a linear model.
        """
        zero = torch.zeros_like(data.x[:1])
        grad, _ = self._summed(objective, data, zero, ball)
        best = shared.argmax(grad, zero)
        _, most = self._summed(objective, data, best, ball)
        delta = zero
        for turn in range(self.steps):
            size = FIRST * (0.1 + 0.9 * (1 + math.cos(math.pi * turn / self.steps)) / 2)
            delta = shared.step(grad, delta, zero, size)
            grad, fooled = self._summed(objective, data, delta, ball)
            if fooled > most:
                best, most = delta, fooled
        return best, most

    def _summed(
        self, objective: Objective, data: Examples, delta: Float[Tensor, "1 *shape"], ball: Ball
    ) -> tuple[Float[Tensor, "1 *shape"], int]:
        """The gradient of the summed loss with respect to the perturbation, and how many it fools."""
        task = task_of(data.x, data.y, Linf(eps=math.inf))  # says whose labels they are; no ball is asked of it
        grad, fooled = torch.zeros_like(delta), 0
        for rows in torch.arange(len(data), device=data.x.device).split(self.width):
            moved = data.x[rows] + delta
            z = ball.clip(moved)
            point = objective(z, task.rows(rows))
            grad += torch.where(moved == z, point.grad, 0).sum(0, keepdim=True)  # where it is clipped, no slope
            fooled += int(point.fooled.sum())
        return grad, fooled

    def _called(self, objective: Objective, data: Examples, delta: Tensor, ball: Ball) -> Int64[Tensor, " n"]:
        """What the model calls each example with `delta` on it."""
        parts = [objective.forward(ball.clip(x + delta)) for x in data.x.split(self.width)]
        return prediction(torch.cat(parts))

    def _fooled(self, objective: Objective, data: Examples, delta: Tensor, ball: Ball) -> Tensor:
        return self._called(objective, data, delta, ball) != data.y

    def _shuffled(self, delta: Float[Tensor, "1 *shape"], mask: Tensor | None) -> list[Float[Tensor, "1 *shape"]]:
        """The perturbation with its values in other places, among those that may change: equal in every norm."""
        index = torch.arange(self.draws)
        keys = Noise(self.seed, index, torch.zeros_like(index)).uniform((delta.numel(),), draw=SHUFFLE_DRAW)
        free = torch.ones(delta.numel(), dtype=torch.bool) if mask is None else mask.expand(delta.shape).flatten().cpu()
        places, values, found = free.nonzero().squeeze(1), delta.flatten(), []
        for key in keys:
            mixed = values.clone()
            mixed[places] = values[places[key[places].argsort()]]
            found.append(mixed.reshape(delta.shape))
        return found


def _at_size(make: _Maker, fitted: Examples, held: Examples, ball: Ball, side: int, steps: int, seed: int) -> Shared:
    """The same with the images side x side, and a network that is trained on them."""
    first, second = (replace(part, x=_sized(part.x, side)) for part in (fitted, held))
    for name in ("lo", "hi", "mask"):
        if isinstance(getattr(ball, name), Tensor):
            raise BadInput(f"`{name}` of the ball must be a number where images are resized; leave `sides` empty")
    network = trained("small-mlp", first, steps=steps, seed=seed)
    return make(network, "small-mlp", first, second, _around_zero(ball), ball)[0]


def _sized(x: Float[Tensor, "n *shape"], side: int) -> Float[Tensor, "n c side side"]:
    channels = x.shape[1] if x.ndim == 4 else 1
    return resized(x, side).reshape(len(x), channels, side, side).to(x)
