"""What is trained on and what is held out, each with its ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.examples import Examples
from epsball.training.config import TrainingConfig

ORDER_DRAW, HOLD_OUT_DRAW, TORCH_DRAW = 255, 254, 253
"""Draws of the noise: the order of an epoch, the held-out examples, torch's seed. Objectives count theirs from 0."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """The examples to train on and the held-out ones, which have a ball of their own: it may be per example."""

    train: Examples
    ball: Ball | None
    held_out: Examples | None
    held_out_ball: Ball | None

    @property
    def parts(self) -> list[Examples]:
        """The examples to train on, and the held-out ones if there are any."""
        return [self.train] if self.held_out is None else [self.train, self.held_out]


def split(data: Examples, ball: Ball | None, validation: Examples | None, config: TrainingConfig) -> TrainingData:
    """Hold out the examples with the smallest random numbers, or take `validation`.

    Raises `BadInput` where that is impossible, or a ball does not fit the examples.
    """
    if len(data) == 0:
        raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
    if config.hold_out >= len(data) or (config.hold_out and validation is not None):
        raise BadInput(
            f"`hold_out` must be below the {len(data)} examples, and 0 with `validation`, got {config.hold_out}"
        )
    if config.patience is not None and not config.hold_out and validation is None:
        raise BadInput(f"`patience` must be left out without held-out examples, got {config.patience}; add hold_out")
    found = TrainingData(data, ball, validation, ball)
    if config.hold_out:
        if ball is not None:
            ball.bind(data.x)  # what a radius is one of is checked before rows are taken
        noise = Noise(config.seed, data.ids, torch.zeros_like(data.ids))
        order = noise.bits((), draw=HOLD_OUT_DRAW).argsort(stable=True)
        held_out, train = order[: config.hold_out], order[config.hold_out :].sort().values
        found = TrainingData(
            data.rows(train), ball and ball.rows(train), data.rows(held_out), ball and ball.rows(held_out)
        )
    for part, within in zip(found.parts, (found.ball, found.held_out_ball), strict=False):
        if within is not None:
            within.bind(part.x)
    return found
