"""The rows an attack works on: examples, the class each climbs towards, its ball and its random numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.data.labels import labels, row_ids

AWAY = -1  # no target, no aim


@dataclass(frozen=True, eq=False)
class Task:
    """Rows to attack; the first dimension of every part is the row.

    `x` (n, *shape) the examples, `y` (n,) their labels, `target` (n,) the class the user wants, -1 for none,
    `aim` (n,) the class that this job climbs towards, -1 where it climbs away from `y`. `clean` (n, classes) are the
    logits at `x`, None where they were not computed. `ball` is bound to `x`. `warm_start` (n, *shape) are the best
    points that earlier attacks found, None where there were none. `rivals` (n, classes) are the classes that an
    example may still be driven to, None for all: the others are proved to be out of reach in the ball.
    """

    x: Float[Tensor, "n *shape"]
    y: Int64[Tensor, " n"]
    target: Int64[Tensor, " n"]
    aim: Int64[Tensor, " n"]
    clean: Float[Tensor, "n classes"] | None
    ball: Ball
    noise: Noise
    warm_start: Float[Tensor, "n *shape"] | None = None
    rivals: Bool[Tensor, "n classes"] | None = None

    @cached_property
    def aimed(self) -> Bool[Tensor, " n"]:
        """Where the row climbs towards a class."""
        return self.aim != AWAY

    @cached_property
    def some_targeted(self) -> bool:
        """Whether any row has a target."""
        return bool((self.target != AWAY).any())

    @cached_property
    def some_aimed(self) -> bool:
        """Whether any row climbs towards a class: where none does, no sign need be applied in every step."""
        return bool(self.aimed.any())

    @cached_property
    def goal(self) -> Int64[Tensor, " n"]:
        """The class that a loss is computed for: the aim where there is one, else the label."""
        return torch.where(self.aimed, self.aim, self.y) if self.some_aimed else self.y

    def signed(self, loss: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """A loss of the goal class, negated where the row climbs towards that class."""
        return torch.where(self.aimed, -loss, loss) if self.some_aimed else loss

    def rows(self, index: Tensor) -> Task:
        """The task of some of the rows."""
        return Task(
            x=self.x[index],
            y=self.y[index],
            target=self.target[index],
            aim=self.aim[index],
            clean=None if self.clean is None else self.clean[index],
            ball=self.ball.rows(index),
            noise=self.noise.rows(index),
            warm_start=None if self.warm_start is None else self.warm_start[index],
            rivals=None if self.rivals is None else self.rivals[index],
        )

    def with_jobs(self, restart: Int64[Tensor, " n"], aim: Int64[Tensor, " n"]) -> Task:
        """The same rows at another restart (which keys their noise) and aim."""
        return replace(self, aim=aim, noise=replace(self.noise, restart=restart))


def check_batch(x: Tensor, y: object) -> None:
    """Raise `BadInput` where x (features,) or (channels, height, width) comes with one label: it is one example."""
    count = y.numel() if isinstance(y, Tensor) else np.asarray(y, dtype=object).size
    if x.ndim in (1, 3) and len(x) != 1 and count == 1:
        raise BadInput(
            f"`x` must have a first dimension of examples, got {tuple(x.shape)} with one label; one example is "
            f"x[None], and {len(x)} examples of one class have y=torch.full(({len(x)},), y)"
        )


def check_target(target: Int64[Tensor, " n"], y: Int64[Tensor, " n"]) -> None:
    """Raise `BadInput` where a row's target is its label: an attack towards it would make the model look better."""
    same = (target == y).nonzero().squeeze(1)
    if len(same):
        raise BadInput(
            f"`target` must differ from the label in every row, got the label itself in {len(same)} of {len(y)}, first "
            f"class {int(y[same[0]])} in row {int(same[0])}; leave those rows out: with keep = target != y take "
            "x[keep] and y[keep], and target[keep] where it is one per row"
        )


def task_of(
    x: Tensor, y: object, ball: Ball, *, target: object = None, ids: Tensor | None = None, seed: int = 0
) -> Task:
    """The checked task of a whole batch: restart 0, every row away from its label or towards its target."""
    ball, x = ball.bind(x), x.detach()
    check_batch(x, y)
    y = labels("y", y, x)
    aim = torch.full_like(y, AWAY) if target is None else labels("target", target, x)
    rows = torch.arange(len(x), device=x.device) if ids is None else row_ids(ids, x)
    return Task(x, y, target=aim, aim=aim, clean=None, ball=ball, noise=Noise(seed, rows, torch.zeros_like(rows)))
