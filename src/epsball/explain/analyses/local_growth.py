"""Does the gain of a small step grow with the dimension for a network too? Through its local linearisation.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 3: a step of eps along the sign of n weights changes a linear
activation by eps |w|_1, which grows with n, while random signs change it by about eps |w|_2, |w|_1 / |w|_2 being up to
sqrt(n). Here the weights are those of a network's linearisation: the input gradient of the margin at each example, of
networks that are trained on the same images at several sizes. Beside the linearised gain is the true one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.errors import BadInput
from epsball.common.record import Record
from epsball.common.shapes import flat
from epsball.data.examples import Examples
from epsball.explain.config import LocalGrowthConfig, Progress, configured, silent
from epsball.explain.finding import Finding, exponent, made_of, percent
from epsball.explain.inputs import check_images, evenly, halves, radius_of, task_for
from epsball.explain.measure import correct, input_gradients, logits_at, median, shuffled, without_box
from epsball.explain.networks import fitted
from epsball.explain.resize import at_side
from epsball.models.registry import build
from epsball.problem.losses import margin

DRAWS = 4
"""Shuffled steps per example."""
QUANTITIES = ("gain", "noise", "margin", "ratio", "per_margin")


@dataclass(frozen=True, kw_only=True)
class LocalGrowthAtSize(Record):
    """One size of image; medians over the examples, in logits, n = channels * side^2 coordinates.

    `margin` is the size of the margin at the examples, the label's logit less the greatest other. `gain` is what the
    ball's step along its gradient g takes from it to first order, without the box (the max norm: eps |g|_1), `boxed`
    the same within the box, `true_gain` what the step within the box takes in truth. `noise` is the root mean square of
    what the step takes, to first order, in a random order and with random signs; in the max norm about eps |g|_2.
    `ratio` is gain / noise of the same example, in the max norm at most about sqrt(n); `per_margin` gain / margin.
    `clean`, `attacked` and `noisy` are accuracies: at the examples, and after a step in the box and a shuffled one.
    """

    side: int
    n: int
    margin: float
    gain: float
    boxed: float
    true_gain: float
    noise: float
    ratio: float
    per_margin: float
    clean: float
    attacked: float
    noisy: float


@dataclass(frozen=True, kw_only=True)
class LocalGrowth(Finding):
    """What `local_growth` measured for each size of image, by dimension."""

    derived: ClassVar = ("exponents",)

    sizes: tuple[LocalGrowthAtSize, ...]

    def exponent(self, quantity: str) -> float | None:
        """The p for which a field of `LocalGrowthAtSize` grows like n^p; None where there is no fit."""
        return exponent([size.n for size in self.sizes], [getattr(size, quantity) for size in self.sizes])

    @property
    def exponents(self) -> dict[str, float | None]:
        """The exponents of n, None where they cannot be fitted."""
        return {name: self.exponent(name) for name in QUANTITIES}

    @property
    def sentence(self) -> str:
        """One sentence with a number."""
        first, last = self.sizes[0], self.sizes[-1]
        powers = [self.exponent(name) for name in ("gain", "noise")]
        gain, noise = ("" if power is None else f" (like n^{power:.2f})" for power in powers)
        return (
            f"From {first.n:,} to {last.n:,} coordinates the linearised gain of a step in {self.config['ball_name']} "
            f"goes from {first.gain:.3g} to {last.gain:.3g} logits{gain} and that of the same step shuffled from "
            f"{first.noise:.3g} to {last.noise:.3g}{noise}, so that it is {first.ratio:.3g} and {last.ratio:.3g} times "
            f"the noise's (square roots of n: {math.sqrt(first.n):.3g} and {math.sqrt(last.n):.3g}); accuracy after it "
            f"goes from {percent(first.attacked)} to {percent(last.attacked)}."
        )


@configured(LocalGrowthConfig)
def local_growth(
    network: str | Callable[[tuple[int, ...], int], nn.Module],
    data: Examples,
    ball: Ball,
    *,
    config: LocalGrowthConfig,
    train: Examples | None = None,
    on_progress: Progress = silent,
) -> LocalGrowth:
    """Train a network at each size of image, and measure what a step of the ball gains, to first order and in truth.

    `network` is a built-in one by name, or a function (shape, classes) -> module. `data` are images (c, h, w) or (h,
    w), resized to side x side for each of `sides` as `growth` does; `train` are those that are trained on (default:
    every second of each class of `data`, which are then not measured), for about `steps` steps of 128 rows. The ball
    has the same radius and box at every size. At most `rows` examples, spread over `data`. `seed` keys weights,
    training and control. `on_progress` is called with the count of finished sizes, that of all, and what is next.

    Raises `BadInput` where the examples are no images, for a ball without a single radius, and for one that counts.
    """
    sides = sorted(set(config.sides))
    radius_of(ball)
    if "count" in ball.traits:
        raise BadInput(
            f"`ball` must have a dual norm, got {ball.name}: without the box its step has no end; take linf:0.1"
        )
    if train is None:
        train, data = halves(data)
    check_images(data=data, train=train)
    make = partial(build, network, seed=config.seed) if isinstance(network, str) else network
    data, found = evenly(data, config.rows), []
    for done, side in enumerate(sides):
        on_progress(done, len(sides), f"{side} x {side}")
        measured, small = at_side(data, side), at_side(train, side)
        model = make(measured.shape, max(data.classes, train.classes)).to(small.x)
        fitted(model, small, steps=config.steps, seed=config.seed)
        found.append(local_growth_of(model, measured, ball, batch_size=config.batch_size, seed=config.seed))
    on_progress(len(sides), len(sides), "")
    name = network if isinstance(network, str) else fingerprint.described(network)
    made = made_of(None, data, ball, config, network=name, sides=sides, fit_rows=len(train))
    return LocalGrowth(sizes=tuple(found), config=made)


def local_growth_of(
    model: nn.Module, data: Examples, ball: Ball, *, batch_size: int = 128, seed: int = 0
) -> LocalGrowthAtSize:
    """The figures of one network at the size of its images; the module comes back as it was.

    >>> from epsball import Linf
    >>> from epsball.data.arrays import from_arrays
    >>> data = from_arrays(torch.full((1, 2, 2), 0.5), [1], lo=0, hi=1)
    >>> found = local_growth_of(lambda x: x.flatten(1) @ torch.tensor([3.0, 1.0, 0.0, -2.0]) + 1, data, Linf(eps=0.1))
    >>> round(found.margin, 6), round(found.gain, 6), round(found.true_gain, 6), round(found.noise, 6) <= 0.6
    (2.0, 0.6, 0.6, True)
    """
    task = task_for(data, ball, seed)
    logits, grad = input_gradients(model, task, loss=margin, batch_size=batch_size)
    free, wide = without_box(task.ball), grad.double()
    step = free.argmax(grad, torch.zeros_like(grad))
    gain, boxed = flat(wide * step).sum(1), task.ball.max_gain(grad, task.x).double()
    squares, noisy = torch.zeros_like(gain), torch.zeros_like(gain)
    for draw in range(DRAWS):
        noise = replace(task.noise, restart=torch.full_like(task.y, draw))
        moved = shuffled(step, noise, task.ball.mask)
        squares += flat(wide * moved).sum(1).square() / DRAWS
        z = task.ball.project(task.x + moved, task.x)
        noisy += correct(logits_at(model, z, batch_size=batch_size), task.y) / DRAWS
    attacked = logits_at(model, task.ball.argmax(grad, task.x), batch_size=batch_size)
    before = margin(logits, task).double()  # of the greatest other logit over the label's
    figures = {
        "margin": before.abs(),
        "gain": gain,
        "boxed": boxed,
        "true_gain": margin(attacked, task).double() - before,
        "noise": squares.sqrt(),
        "ratio": gain / squares.sqrt(),
        "per_margin": gain / before.abs(),
    }
    medians = {name: median(values.tolist()) for name, values in figures.items()}
    if None in medians.values():
        raise BadInput(
            f"`network` must have finite logits and gradients at some examples of side {data.shape[-1]}, got none; "
            "train it otherwise"
        )
    shares = {"clean": correct(logits, task.y), "attacked": correct(attacked, task.y), "noisy": noisy}
    return LocalGrowthAtSize(
        side=data.shape[-1],
        n=math.prod(data.shape),
        **medians,  # pyright: ignore[reportArgumentType] - none of them is None
        **{name: values.double().mean().item() for name, values in shares.items()},
    )
