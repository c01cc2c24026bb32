"""Figure 4 of the paper: the logits of a maxout network along the fast gradient direction, on both sides of a digit.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 8: the logits are piecewise linear in eps, the wrong class is the
same over a wide range of it, and correct classifications are a thin region around eps = 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epsball.explain.analyses.linearity import Linearity, linearity
from epsball.explain.measure import median
from epsball.explain.plots.registry import draw
from epsball.reproduce.nets import PAIR, PLAIN, Nets, percent, spent, stand_in
from epsball.reproduce.record import Line

SPAN = 40.0
"""The paper's figure goes from eps = -10 to 10: 40 radii of .25."""
ROWS = 500


@dataclass(frozen=True)
class Along:
    """What `along` found: the analysis of the plain network of the first seed."""

    found: Linearity
    config: dict[str, Any]

    @property
    def title(self) -> str:
        """What was done."""
        reach = self.config["eps"] * self.found.t[-1]
        return f"Logits along the fast gradient direction, eps -{reach:g} to {reach:g}: shares in %"

    @property
    def heads(self) -> tuple[str, ...]:
        """What the columns of `lines` are."""
        return (f"to {self.config['eps']:g}", f"to {self.config['eps'] * self.found.t[-1]:g}")

    @property
    def lines(self) -> tuple[Line, ...]:
        """Our figures; the paper has a picture."""
        found = self.found
        straight, control = (
            tuple(percent(median(kind[part])) for part in ("ball", "whole"))
            for kind in (found.explained, found.explained_control)
        )
        return (
            Line("variance of logits that lines explain", straight),
            Line("the same along noise of equal size", control),
            Line("the same wrong class all the way", (None, percent(found.steady))),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know to compare."""
        found = self.found
        return (
            *stand_in(self.config),
            f"Medians over {found.config['rows']} test images; the paper shows one image and says of it that its "
            "logits are conspicuously piecewise linear, and the wrong classes steady over a wide range of eps.",
            f"Accuracy is {found.at(0):.1%} at eps 0, {found.at(1):.1%} at {self.config['eps']:g} and "
            f"{found.at(-1):.1%} at -{self.config['eps']:g}, where the loss is lowered.",
            spent(self.config),
        )

    def summary(self) -> dict[str, Any]:
        """The figures without the lines themselves, as JSON can hold them."""
        lines = [asdict(line) for line in self.lines]
        return {"heads": self.heads, "lines": lines, "sentence": self.found.sentence, "config": self.config}

    def to_json(self) -> str:
        """As JSON, with the lines; `from_json` gives an equal record."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Along:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        return cls(Linearity.from_json(json.dumps(record["found"])), record["config"])

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: one image's logits, the band of all, the accuracy, and the share of lines."""
        draw(self.found, path)


def along(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Along:
    """Follow the logits of the plain network along the fast gradient direction.

    The network is that of `nets`, trained where it is not yet. `on_progress` is called with the steps made, those of
    all, and what is trained. Raises `BadInput`.
    """
    (net,) = nets.trained({PLAIN: PAIR[PLAIN]}, on_progress, seeds=range(1))[0]
    found = linearity(net.module, nets.source.test, nets.ball, span=SPAN, points=161, rows=ROWS, loss=net.reading.loss)
    return Along(found, nets.config() | {"seeds": [net.seed]})
