"""How much is spent on the networks of the paper's experiments; read by the command line without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from epsball.common.errors import BadInput

BATCH, RATE, EPOCHS, STEPS = 128, 2e-3, 7, 1200
"""Rows of a step, the largest learning rate of Adam, and the least epochs and steps by default."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is spent on the networks.

    Parameters
    ----------
    full
        As much as the paper spent, wherever nothing else is given: for a machine with much time.
    units
        Maxout units of each of the two hidden layers, with 5 pieces each. Default: 240; full: 1600.
    dropout
        Percent of the hidden units that are left out in training; of the pixels two fifths of that. Default: 20;
        full: 50.
    epochs
        Passes through the training data. Default: 7, and at least as many as make 1,200 steps; full: 100.
    seeds
        Networks of each kind; figures are means over them. Default: 1; full: 5.
    members
        Networks of the ensemble. Default: 3; full: 12.
    channels
        Channels of the first layer of the convolutional network. Default: 16; full: 96.
    cifar_epochs
        Its passes through the training data. Default: 4; full: 100.
    cifar_dropout
        As `dropout`, for the convolutional network. Default: 0, as it sees so few epochs; full: 50.
    """

    full: bool = False
    units: int | None = None
    dropout: float | None = None
    epochs: int | None = None
    seeds: int | None = None
    members: int | None = None
    channels: int | None = None
    cifar_epochs: int | None = None
    cifar_dropout: float | None = None

    def __post_init__(self) -> None:
        for name in ("units", "epochs", "seeds", "members", "channels", "cifar_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput(f"`{name}` must be >= 1, got {value}; the paper's is {FULL[name]}")
        for name in ("dropout", "cifar_dropout"):
            value = getattr(self, name)
            if value is not None and (not 0 <= value < 100 or value != int(value)):
                raise BadInput(f"`{name}` must be a percentage, whole and from 0 to 99, got {value}; the paper's is 50")

    def of(self, name: str) -> int:
        """What is spent of that: what was given, or the full or the small budget's.

        >>> Budget().of("units"), Budget(full=True).of("units"), Budget(full=True, units=240).of("units")
        (240, 1600, 240)
        """
        given = getattr(self, name)
        return (FULL if self.full else SMALL)[name] if given is None else int(given)

    def epochs_for(self, rows: int) -> int:
        """Epochs over so many examples.

        >>> Budget().epochs_for(60_000), Budget().epochs_for(1_437), Budget(epochs=2).epochs_for(1_437)
        (7, 100, 2)
        """
        if self.full or self.epochs is not None:
            return self.of("epochs")
        return max(EPOCHS, math.ceil(STEPS / math.ceil(rows / BATCH)))


SMALL = {"units": 240, "dropout": 20, "epochs": EPOCHS, "seeds": 1, "members": 3}
SMALL |= {"channels": 16, "cifar_epochs": 4, "cifar_dropout": 0}
FULL = {"units": 1600, "dropout": 50, "epochs": 100, "seeds": 5, "members": 12}
FULL |= {"channels": 96, "cifar_epochs": 100, "cifar_dropout": 50}
