"""The options of the analyses: one configuration each, whose fields are the keywords of the analysis's function.

The functions say what each option means.
"""

# No `from __future__ import annotations`: see `common.config`.

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeVar, get_type_hints

from epsball.common.checks import check_positive, check_whole
from epsball.common.config import Config, Rule
from epsball.common.errors import BadInput

Progress = Callable[[int, int, str], None]
"""Is called with the count of finished parts, the count of all, and what comes next."""
Count = Annotated[int, Rule(check_whole, 1)]
Radius = Annotated[float, Rule(check_positive, "write for example 0.1")]
Penalty = Annotated[float, Rule(check_positive, "1 is scikit-learn's default")]
Result = TypeVar("Result")


def silent(done: int, total: int, note: str) -> None:
    """No progress is shown."""


class Batched(Config):
    """What the analyses of a network share: examples in one forward pass, and what keys all random numbers."""

    batch_size: Count = 128
    seed: int = 0


class Sampled(Batched):
    """An analysis of at most `rows` examples, spread evenly over the data; the options of `direction`."""

    rows: Count = 500


class TargetsConfig(Sampled):
    """The options of `targets`."""

    eps: tuple[float, ...] | None = None
    attack: str = "pgd"


class UniversalConfig(Sampled):
    """The options of `universal`."""

    rows: Count = 1000
    batch_size: Count = 512
    eps: tuple[float, ...] | None = None
    sides: tuple[int, ...] | None = None
    steps: Count = 20
    networks: Count = 3
    training_steps: Count = 400
    draws: Count = 8

    def check(self) -> None:
        if self.sides:
            check_sides(self.sides)


class BoundaryConfig(Sampled):
    """The options of `boundary`."""

    rows: Count = 300
    norms: tuple[str, ...] | None = None
    train_rows: Count = 10_000


class GrowthConfig(Config):
    """The options of `growth`."""

    eps: Radius = 0.1
    sides: tuple[int, ...] = (7, 14, 28, 56, 112)
    pair: tuple[int, int] | None = None
    draws: Count = 32
    seed: int = 0
    rows: Annotated[int, Rule(check_whole, 2)] = 500
    fit_rows: Annotated[int, Rule(check_whole, 2)] = 1000
    C: Penalty = 1.0

    def check(self) -> None:
        check_sides(self.sides)


class LocalGrowthConfig(Sampled):
    """The options of `local_growth`."""

    rows: Count = 200
    sides: tuple[int, ...] = (7, 14, 28, 56)
    steps: Count = 400

    def check(self) -> None:
        check_sides(self.sides)


class LinearityConfig(Sampled):
    """The options of `linearity`."""

    span: float = 10.0
    points: Annotated[int, Rule(check_whole, 5)] = 81
    boxed: bool = False

    def check(self) -> None:
        if not 1 < self.span < float("inf"):
            raise BadInput(f"`span` must be > 1, in radii of the ball, got {self.span}; the ball itself is 1")
        if self.points % 2 == 0:
            raise BadInput(
                f"`points` must be odd, so that t = 0 is one of them, got {self.points}; write {self.points + 1}"
            )


class TaylorConfig(Config):
    """The options of `taylor_gap`."""

    eps: tuple[float, ...] | None = None
    batch_size: Count = 128


class ConditioningConfig(Sampled):
    """The options of `conditioning`."""

    samples: Annotated[int, Rule(check_whole, 0)] = 4
    rivals: Count = 9


class ManifoldConfig(Sampled):
    """The options of `manifold`."""

    components: tuple[int, ...] | None = None
    fit_rows: Annotated[int, Rule(check_whole, 2)] = 2000

    def check(self) -> None:
        for k in self.components or ():
            check_whole("components", k, 0)


class RubbishConfig(Batched):
    """The options of `rubbish`."""

    draws: Count = 1000


class TrainingConfig(Sampled):
    """The options of `training_changed`."""

    steps: Count = 20


class L1Config(Config):
    """The options of `l1_equivalence`."""

    eps: Radius
    C: Penalty = 1.0


def check_sides(sides: tuple[int, ...]) -> None:
    """Raise `BadInput` unless there are side lengths, whole numbers >= 1."""
    if not sides:
        raise BadInput("`sides` must name at least one side length, got none; write for example (7, 14, 28)")
    for side in sides:
        check_whole("sides", side, 1)


def configured(config: type[Config]) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A function with a parameter `config` takes the configuration's fields as keywords instead.

    >>> @configured(RubbishConfig)
    ... def double(x: int, config: RubbishConfig) -> int:
    ...     return x * config.draws
    >>> double(2, draws=3)
    6
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @wraps(function)
        def with_keywords(*args: Any, **keywords: Any) -> Result:
            options = {name: keywords.pop(name) for name in config.names() if name in keywords}
            return function(*args, config=config(**options), **keywords)

        own = inspect.signature(function)
        types = get_type_hints(config)  # without the rules
        fields = (part.replace(annotation=types[name]) for name, part in inspect.signature(config).parameters.items())
        parameters = [part for name, part in own.parameters.items() if name != "config"]
        with_keywords.__signature__ = own.replace(parameters=[*parameters, *fields])  # pyright: ignore
        return with_keywords

    return decorate
