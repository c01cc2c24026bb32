"""What the page shows: models side by side, the images that they classify, and the initial ball."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from epsball.balls.ball import Ball
from epsball.balls.registry import BALLS
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.evaluation.point_storage import levels
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Objective


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """A model with the name that heads its column, and where it comes from, in words."""

    name: str
    origin: str
    model: nn.Module


@dataclass(frozen=True, kw_only=True, eq=False)
class Exhibit:
    """Models of one number of classes, images in a finite box, and a ball in that box.

    Raises `BadInput` for examples that are no grey or RGB images, a box without ends, models that return labels or do
    not agree about the number of classes.
    """

    models: tuple[Shown, ...]
    examples: Examples
    ball: Ball

    def __post_init__(self) -> None:
        shape = self.examples.shape
        if not (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))):
            raise BadInput(
                f"`data` must be images (H, W) or (C, H, W) with C 1 or 3 for the page, got examples of shape {shape}; "
                "`epsball evaluate` takes any"
            )
        if not len(self.examples):
            raise BadInput("`data` must hold at least one example, got none; look at its split and limit")
        if isinstance(self.ball.lo, Tensor) or isinstance(self.ball.hi, Tensor) or not self.hi > self.lo:
            raise BadInput("`lo` and `hi` must be two numbers, lo < hi, for the page; give one box for all pixels")
        if not math.isfinite(self.hi - self.lo):
            raise BadInput(
                f"`lo` and `hi` must be finite for the page, got {self.lo:g} and {self.hi:g}: black and white are "
                "there; give --lo and --hi"
            )
        if not self.models:
            raise BadInput("`models` must hold at least one, got none")
        counts = {shown.name: self._count(shown) for shown in self.models}
        if len(set(counts.values())) > 1:
            counts_by_name = ", ".join(f"{name} has {count}" for name, count in counts.items())
            raise BadInput(f"`models` must have the same classes to be shown side by side, but {counts_by_name}")

    @property
    def lo(self) -> float:
        """Black."""
        return float(self.ball.lo)

    @property
    def hi(self) -> float:
        """White."""
        return float(self.ball.hi)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image."""
        return self.examples.shape

    @cached_property
    def classes(self) -> int:
        """The classes that the models tell apart; 2 for one logit."""
        return self._count(self.models[0])

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """A name for each class, its number where the data have none."""
        known = self.examples.label_names or ()
        return tuple(known[label] if label < len(known) else str(label) for label in range(self.classes))

    @cached_property
    def table(self) -> np.ndarray:
        """What the bytes 0 to 255 of a PNG stand for, (256,)."""
        return levels(self.lo, self.hi, str(self.examples.x.dtype).removeprefix("torch."))

    def around(self, norm: str, eps: float) -> Ball:
        """A ball in the same box."""
        return BALLS[norm](eps=eps, lo=self.lo, hi=self.hi)

    def _count(self, shown: Shown) -> int:
        with Objective(shown.model, cross_entropy) as objective:
            output = objective.forward(self.examples.x[:1])
        if not output.is_floating_point():
            raise BadInput(f"`model` {shown.name} must return logits for the page, got labels; return the scores")
        if int(self.examples.y.max()) >= output.shape[1]:
            raise BadInput(
                f"`data` must have labels below the {output.shape[1]} classes of {shown.name}, got "
                f"{int(self.examples.y.max())}; is it the model of these data?"
            )
        return output.shape[1]
