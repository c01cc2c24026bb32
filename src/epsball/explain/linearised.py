"""Does the gain of a small step grow with the dimension for a network too? Through its local linearisation.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 3: a step of eps along the sign of n weights changes a linear
activation by eps |w|_1, which grows with n, while random signs change it by about eps |w|_2, |w|_1 / |w|_2 being up to
sqrt(n). Here the weights are those of a network where it stands: the input gradient of the margin at each example, of
networks that are trained on the same images at several sizes. Beside the linearised gain stands the true one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.checks import check_whole
from epsball.common.errors import BadInput
from epsball.common.shapes import flat
from epsball.data.examples import Examples
from epsball.explain.dimension import at_side
from epsball.explain.networks import fitted
from epsball.explain.passes import checked, kept, logits_at, median, read, right, shuffled, slopes, without_box
from epsball.explain.record import evenly, exponent, halves, percent, radius_of, said, versions
from epsball.models.registry import build
from epsball.problem.losses import margin

SIDES = (7, 14, 28, 56)
DRAWS = 4
"""Shuffled steps per example."""
QUANTITIES = ("gain", "noise", "gap", "ratio", "reach")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One size of image; medians over the examples, in logits, n = channels * side^2 coordinates.

    The margin is that of the label over the greatest other logit: `gap` its size at the examples. `gain` is what the
    ball's step along its gradient g takes from it to first order, without the box (the max norm: eps |g|_1), `boxed`
    the same within the box, `rise` what the step within the box takes in truth. `noise` is the root mean square of what
    the step takes, to first order, in a random order and with random signs; in the max norm about eps |g|_2. `ratio` is
    gain / noise of the same example, in the max norm at most about sqrt(n); `reach` gain / gap. `clean`, `attacked` and
    `noisy` are accuracies: at the examples, and after a step in the box and a shuffled one.
    """

    side: int
    n: int
    gap: float
    gain: float
    boxed: float
    rise: float
    noise: float
    ratio: float
    reach: float
    clean: float
    attacked: float
    noisy: float


@dataclass(frozen=True, kw_only=True)
class LocalGrowth:
    """What `local_growth` measured: a `Step` for each size of image, by dimension."""

    steps: tuple[Step, ...]
    config: dict[str, Any]

    def exponent(self, quantity: str) -> float | None:
        """The p for which a field of `Step` grows like n^p; None where there is no fit."""
        return exponent([step.n for step in self.steps], [getattr(step, quantity) for step in self.steps])

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        first, last = self.steps[0], self.steps[-1]
        powers = [self.exponent(name) for name in ("gain", "noise")]
        grows, noise = ("" if power is None else f" (like n^{power:.2f})" for power in powers)
        return (
            f"From {first.n:,} to {last.n:,} coordinates the linearised gain of a step in {self.config['said']} goes "
            f"from {first.gain:.3g} to {last.gain:.3g} logits{grows} and that of the same step shuffled from "
            f"{first.noise:.3g} to {last.noise:.3g}{noise}, so that it is {first.ratio:.3g} and {last.ratio:.3g} times "
            f"the noise's (square roots of n: {math.sqrt(first.n):.3g} and {math.sqrt(last.n):.3g}); accuracy after it "
            f"goes from {percent(first.attacked)} to {percent(last.attacked)}."
        )

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them; `exponents` are those of n, None where they cannot be fitted."""
        exponents = {name: self.exponent(name) for name in QUANTITIES}
        return asdict(self) | {"exponents": exponents, "sentence": self.sentence}

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> LocalGrowth:
        """The record that `to_json` wrote."""
        record = read(text)
        record["steps"] = tuple(Step(**step) for step in record["steps"])
        return cls(**record)

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: gain, noise and gap against n, their ratios, and the accuracies."""
        from epsball.explain.pictures_growth import draw_local_growth

        draw_local_growth(self, path)


def local_growth(
    network: str | Callable[[tuple[int, ...], int], nn.Module],
    data: Examples,
    ball: Ball,
    *,
    train: Examples | None = None,
    sides: Sequence[int] = SIDES,
    steps: int = 400,
    rows: int = 200,
    batch_size: int = 128,
    seed: int = 0,
    on_progress: Callable[[int, str], None] | None = None,
) -> LocalGrowth:
    """Train a network at each size of image, and measure what a step of the ball gains, to first order and in truth.

    `network` is a built-in one by name, or a function (shape, classes) -> module. `data` are images (c, h, w) or (h,
    w), resized to side x side for each of `sides` as `growth` does; `train` are those that are trained on (default:
    every second of each class of `data`, which are then not measured), for about `steps` steps of 128 rows. The ball
    has the same radius and box at every size. At most `rows` examples, spread over `data`. `seed` keys weights,
    training and control. `on_progress` is called with the count of finished sizes and what is next.

    Raises `BadInput` where the examples are no images, for a ball without a single radius, and for one that counts.
    """
    for name, value, least in (("steps", steps, 1), ("rows", rows, 1), ("batch_size", batch_size, 1)):
        check_whole(name, value, least)
    sides = sorted(set(sides))
    if not sides:
        raise BadInput("`sides` must name at least one side length, got none; write for example (7, 14, 28)")
    for side in sides:
        check_whole("sides", side, 1)
    radius_of(ball)
    if "count" in ball.traits:
        raise BadInput(
            f"`ball` must have a dual norm, got {ball.name}: without the box its step has no end; take linf:0.1"
        )
    if train is None:
        train, data = halves(data)
    for name, part in (("data", data), ("train", train)):
        if part.x.ndim not in (3, 4) or len(part) == 0:
            raise BadInput(
                f"`{name}` must be images (c, h, w) or (h, w), got {len(part)} examples of shape {part.shape}; reshape "
                "x"
            )
    data, found = evenly(data, rows), []
    make = _maker(network, seed)
    for side in sides:
        if on_progress is not None:
            on_progress(len(found), f"{side} x {side}")
        seen, fit_to = at_side(data, side), at_side(train, side)
        model = make(seen.shape, max(data.classes, train.classes)).to(fit_to.x)
        fitted(model, fit_to, steps=steps, seed=seed)
        found.append(step_of(model, seen, ball, batch_size=batch_size, seed=seed))
    if on_progress is not None:
        on_progress(len(found), "")
    return LocalGrowth(
        steps=tuple(found),
        config=kept(
            {
                "network": network if isinstance(network, str) else fingerprint.described(network),
                "data": data.name,
                "rows": len(data),
                "fit_rows": len(train),
                "steps": steps,
                "sides": sides,
                "ball": fingerprint.described(ball),
                "said": said(ball),
                "seed": seed,
                "versions": versions(),
            }
        ),
    )


def step_of(model: nn.Module, data: Examples, ball: Ball, *, batch_size: int = 128, seed: int = 0) -> Step:
    """The figures of one network at the size of its images; the module comes back as it was.

    >>> from epsball import Linf
    >>> from epsball.data.arrays import from_arrays
    >>> data = from_arrays(torch.full((1, 2, 2), 0.5), [1], lo=0, hi=1)
    >>> found = step_of(lambda x: x.flatten(1) @ torch.tensor([3.0, 1.0, 0.0, -2.0]) + 1, data, Linf(eps=0.1))
    >>> round(found.gap, 6), round(found.gain, 6), round(found.rise, 6), round(found.noise, 6) <= 0.6
    (2.0, 0.6, 0.6, True)
    """
    task = checked(data, ball, seed)
    logits, grad = slopes(model, task, loss=margin, batch_size=batch_size)
    free, wide = without_box(task.ball), grad.double()
    step = free.argmax(grad, torch.zeros_like(grad))
    gain, boxed = flat(wide * step).sum(1), task.ball.max_gain(grad, task.x).double()
    squares, noisy = torch.zeros_like(gain), torch.zeros_like(gain)
    for draw in range(DRAWS):
        noise = replace(task.noise, restart=torch.full_like(task.y, draw))
        moved = shuffled(step, noise, task.ball.mask)
        squares += flat(wide * moved).sum(1).square() / DRAWS
        z = task.ball.project(task.x + moved, task.x)
        noisy += right(logits_at(model, z, batch_size=batch_size), task.y) / DRAWS
    at_z = logits_at(model, task.ball.argmax(grad, task.x), batch_size=batch_size)
    gap = margin(logits, task).double().neg()
    figures = {
        "gap": gap.abs(),
        "gain": gain,
        "boxed": boxed,
        "rise": margin(at_z, task).double() + gap,
        "noise": squares.sqrt(),
        "ratio": gain / squares.sqrt(),
        "reach": gain / gap.abs(),
    }
    middles = {name: median(kept(values)) for name, values in figures.items()}
    if None in middles.values():
        raise BadInput(
            f"`network` must have finite logits and gradients at some examples of side {data.shape[-1]}, got none; "
            "train it otherwise"
        )
    shares = {
        "clean": right(logits, task.y).double(),
        "attacked": right(at_z, task.y).double(),
        "noisy": noisy,
    }
    return Step(
        side=data.shape[-1],
        n=math.prod(data.shape),
        **middles,
        **{name: values.mean().item() for name, values in shares.items()},
    )


def _maker(
    network: str | Callable[[tuple[int, ...], int], nn.Module], seed: int
) -> Callable[[tuple[int, ...], int], nn.Module]:
    if isinstance(network, str):
        return lambda shape, classes: build(network, shape, classes, seed=seed)
    return network
