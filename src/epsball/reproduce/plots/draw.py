"""`draw` writes the figure of any experiment's record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from epsball.explain.plots.registry import draw as draw_finding
from epsball.reproduce.along import Along
from epsball.reproduce.plots.bars import draw_bars
from epsball.reproduce.plots.threes_sevens import draw_threes_sevens
from epsball.reproduce.plots.training import draw_training
from epsball.reproduce.plots.transfer import draw_transfer
from epsball.reproduce.reproduction import Reproduction
from epsball.reproduce.threes_sevens import ThreesSevens
from epsball.reproduce.training import Training
from epsball.reproduce.transfer import Transfer


def _along(found: Along, path: str | Path) -> None:
    draw_finding(found.found, path)


PLOTS: dict[type[Reproduction], Callable[[Any, str | Path], None]] = {
    Along: _along,
    ThreesSevens: draw_threes_sevens,
    Training: draw_training,
    Transfer: draw_transfer,
}
"""The records with a figure of their own; the others are drawn as bars."""


def draw(found: Reproduction, path: str | Path) -> None:
    """Write the figure as a PNG, whole or not at all."""
    PLOTS.get(type(found), draw_bars)(found, path)
