"""Which function draws which record: `plot` of a file draws the record that its argument is annotated with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

from matplotlib.figure import Figure

from epsball.explain.finding import Finding
from epsball.explain.plots import (
    boundary,
    conditioning,
    direction,
    growth,
    l1,
    linearity,
    local_growth,
    manifold,
    rubbish,
    targets,
    taylor,
    training,
    universal,
)
from epsball.report import plots

FILES = (
    targets, universal, boundary, growth, local_growth, linearity, taylor, conditioning, manifold, direction, rubbish,
    l1, training,
)  # fmt: skip
PLOTS: dict[type[Finding], Callable[[Any], Figure]] = {get_type_hints(file.plot)["found"]: file.plot for file in FILES}


def draw(found: Finding, path: str | Path) -> None:
    """Write the figure of a record of `epsball.explain` as a PNG, whole or not at all."""
    plots.save(PLOTS[type(found)](found), path)
