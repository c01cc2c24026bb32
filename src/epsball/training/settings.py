"""How a training is run: one record that is the keywords of `fit`, the flags of `epsball train`, and its TOML file."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput

Optimizer = Literal["adam", "sgd"]
Schedule = Literal["one-cycle", "cosine", "constant"]
Precision = Literal["float32", "bf16"]
Average = Literal["none", "ema", "swa"]
OnOverfit = Literal["rollback", "switch", "stop", "ignore"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a training is run; every value is checked.

    Parameters
    ----------
    epochs
        Passes through the data.
    batch_size
        Examples of one step of the optimiser, over all processes; the batches of an epoch differ by at most one.
    accumulate
        Parts that a batch is computed in, one after the other, where it does not fit into memory.
    lr
        The largest learning rate; usual is 1e-3 for adam, 0.1 for sgd.
    weight_decay
        The optimiser's.
    optimizer
        adam, or sgd with a Nesterov momentum of 0.9.
    schedule
        How the learning rate goes: one-cycle (up for 30 %, down for 70 %, linear), cosine (down), constant.
    ramp
        The share of the training over which the radius grows from 0 to the ball's, linearly.
    precision
        float32, or bf16 for autocast.
    channels_last
        Images and convolutions with the channels last in memory.
    accelerate
        Cheaper input gradients, by `accelerate(trainable=True)`. Default: where a short trial says that it pays.
    average
        Weights that are averaged over the steps and returned at the end: ema or swa (the last quarter).
    decay
        What an ema keeps at each step.
    hold_out
        So many examples are not trained on: robust accuracy is measured on them, and the best weights are kept.
    checks
        How often an epoch the accuracies of the held-out examples are looked at.
    patience
        Stop after so many epochs without a better robust accuracy. Default: never.
    on_overfit
        What to do when single-step training overfits catastrophically (PGD's accuracy collapses, FGSM's does not):
        rollback to the last good weights and go on at half the learning rate, switch to PGD training there, stop
        there, or ignore it.
    seed
        Keys all randomness.
    """

    epochs: int = 5
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: Optimizer = "adam"
    schedule: Schedule = "one-cycle"
    ramp: float = 0.0
    precision: Precision = "float32"
    channels_last: bool = False
    accelerate: bool | None = None
    average: Average = "none"
    decay: float = 0.999
    hold_out: int = 0
    checks: int = 4
    patience: int | None = None
    on_overfit: OnOverfit = "rollback"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("hold_out", 0), ("checks", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise BadInput(
                    f"`{name}` must be a whole number >= {least}, got {value!r}; as in {name}={least or 500}"
                )
        if self.patience is not None and (not isinstance(self.patience, int) or self.patience < 1):
            raise BadInput(f"`patience` must be a whole number >= 1, got {self.patience!r}; leave it out for never")
        if not 0 < self.lr < math.inf:
            raise BadInput(f"`lr` must be > 0 and finite, got {self.lr}; usual is 1e-3 for adam, 0.1 for sgd")
        if not 0 <= self.weight_decay < math.inf:
            raise BadInput(f"`weight_decay` must be >= 0 and finite, got {self.weight_decay}; usual is 5e-4")
        if not 0 <= self.ramp < 1:
            raise BadInput(f"`ramp` must be a share in [0, 1), got {self.ramp}; 0.3 for the first 30 %")
        if not 0 <= self.decay < 1:
            raise BadInput(f"`decay` must be in [0, 1), got {self.decay}; usual is 0.999")
        for name, known in (
            ("optimizer", Optimizer),
            ("schedule", Schedule),
            ("precision", Precision),
            ("average", Average),
            ("on_overfit", OnOverfit),
        ):
            check_one_of(name, getattr(self, name), get_args(known))

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """The settings of those names. Raises `BadInput` for an unknown one, with the nearest name."""
        names = [field.name for field in fields(cls)]
        return cls(**{check_one_of("fit's option", name, names): value for name, value in options.items()})
