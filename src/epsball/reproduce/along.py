"""Figure 4 of the paper: the logits of a maxout network along the fast gradient direction, on both sides of a digit.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 8: the logits are piecewise linear in eps, the wrong class is the
same over a wide range of it, and correct classifications are a thin region around eps = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from epsball.explain.analyses.linearity import Linearity, linearity
from epsball.explain.finding import nested
from epsball.explain.measure import median
from epsball.reproduce.nets import PAIR, PLAIN, Nets
from epsball.reproduce.notes import about_stand_in, about_training
from epsball.reproduce.outcome import percent
from epsball.reproduce.reproduction import Line, Reproduction

SPAN = 40.0
"""The paper's figure goes from eps = -10 to 10: 40 radii of .25."""
ROWS = 500


@dataclass(frozen=True, kw_only=True)
class Along(Reproduction):
    """What `along` found: the analysis of the plain network of the first seed."""

    found: Linearity

    def summary(self) -> dict[str, Any]:
        """The figures without the lines themselves, as JSON can hold them."""
        return super().summary() | {"sentence": self.found.sentence}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The record that `to_record` gave. Raises `ValueError` for what is none."""
        return super().from_record({**record, "found": nested(record["found"])})


def along(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Along:
    """Follow the logits of the plain network along the fast gradient direction. The paper has a picture of one image.

    A network of `nets` that is trained already is used again. `on_progress` is called with the steps done, the steps in
    total, and the name of the network in training. Raises `BadInput`.
    """
    (net,) = nets.trained({PLAIN: PAIR[PLAIN]}, on_progress, seeds=range(1))[0]
    loss = net.readout.loss
    found = linearity(net.module, nets.source.test, nets.ball, span=SPAN, points=161, rows=ROWS, loss=loss)
    config = nets.config() | {"seeds": [net.seed]}
    eps, reach = nets.eps, nets.eps * found.t[-1]
    straight, control = (
        tuple(percent(median(kind[part])) for part in ("ball", "whole"))
        for kind in (found.explained, found.explained_control)
    )
    return Along(
        title=f"Logits along the fast gradient direction, eps -{reach:g} to {reach:g}: shares in %",
        columns=(f"to {eps:g}", f"to {reach:g}"),
        lines=(
            Line("variance of logits that lines explain", straight),
            Line("the same along noise of equal size", control),
            Line("the same wrong class all the way", (None, percent(found.steady))),
        ),
        notes=(
            *about_stand_in(config),
            f"Medians over {found.config['rows']} test images; the paper shows one image and says of it that its "
            "logits are conspicuously piecewise linear, and the wrong classes steady over a wide range of eps.",
            f"Accuracy is {found.at(0):.1%} at eps 0, {found.at(1):.1%} at {eps:g} and {found.at(-1):.1%} at "
            f"-{eps:g}, where the loss is lowered.",
            about_training(config),
        ),
        config=config,
        found=found,
    )
