"""How much is spent on the networks of the training experiments; read by the command line without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from epsball.errors import BadInput

BATCH, RATE, EPOCHS, STEPS = 128, 2e-3, 7, 1200
"""Rows of a step, the largest learning rate of Adam, and the least epochs and steps by default."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much is spent on the networks.

    Parameters
    ----------
    units
        Maxout units of each of the two hidden layers, with 5 pieces each. The paper's: 240, and 1600.
    dropout
        Percent of the hidden units that are left out in training; of the pixels two fifths of that. The paper's: 50.
    epochs
        Passes through the training data. Default: 7, and at least as many as make 1,200 steps.
    seeds
        Networks of each kind; error is the mean over them. The paper's: 5.
    """

    units: int = 240
    dropout: int = 20
    epochs: int | None = None
    seeds: int = 1

    def __post_init__(self) -> None:
        for name, value in (("units", self.units), ("epochs", self.epochs), ("seeds", self.seeds)):
            if value is not None and value < 1:
                raise BadInput(f"`{name}` must be >= 1, got {value}; the paper's width is 240, or 1600")
        if not 0 <= self.dropout < 100:
            raise BadInput(f"`dropout` must be a percentage from 0 to 99, got {self.dropout}; the paper's is 50")

    def epochs_for(self, rows: int) -> int:
        """Epochs over so many examples.

        >>> Budget().epochs_for(60_000), Budget().epochs_for(1_437), Budget(epochs=2).epochs_for(1_437)
        (7, 100, 2)
        """
        return max(EPOCHS, math.ceil(STEPS / math.ceil(rows / BATCH))) if self.epochs is None else self.epochs
