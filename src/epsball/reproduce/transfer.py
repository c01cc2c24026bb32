"""Transfer between a plain and an adversarially trained maxout network: examples made on one, shown to the other.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 6: FGSM examples made on the original network give the trained one
an error of 19.6 %, those made on the trained one give the original 40.9 %.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from epsball.reproduce.nets import (
    ADVERSARIAL,
    PAIR,
    PLAIN,
    Net,
    Nets,
    conventions,
    logits_of,
    mean,
    percent,
    spent,
    stand_in,
)
from epsball.reproduce.record import Line
from epsball.reproduce.threes_sevens import EPS, Outcome

CLEAN = "clean"
PAPER: dict[str, tuple[float | None, float | None]] = {
    CLEAN: (None, None),
    PLAIN: (89.4, 19.6),
    ADVERSARIAL: (40.9, 17.9),
}
"""Error of the plain and of the trained network on examples made on each at eps .25, in percent."""
SAID = {CLEAN: CLEAN, PLAIN: "made on the plain one", ADVERSARIAL: "made on the trained one"}
SHOWN = 6


@dataclass(frozen=True)
class Cell:
    """How the network `evaluator` does on the FGSM examples that were made on the network `maker`, or on clean ones."""

    maker: str
    evaluator: str
    seed: int
    outcome: Outcome


@dataclass(frozen=True)
class Picture:
    """A point of the figure, pixels rounded to 4 digits; for each network, what it predicts and how sure it is."""

    maker: str
    x: tuple[float, ...]
    predicted: dict[str, int]
    sure: dict[str, float]


@dataclass(frozen=True)
class Shown:
    """A test example in the figure: its id (row of the test split), its label, the points made of it."""

    id: int
    label: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Transfer:
    """What `transfer` found; the examples shown are those of the first seed."""

    cells: tuple[Cell, ...]
    seconds: tuple[float, ...]
    shown: tuple[Shown, ...]
    config: dict[str, Any]

    def mean(self, maker: str, evaluator: str) -> Outcome:
        """The mean over the seeds."""
        return mean([cell.outcome for cell in self.cells if (cell.maker, cell.evaluator) == (maker, evaluator)])

    @property
    def title(self) -> str:
        """What was done."""
        return f"Transfer of FGSM examples between two maxout networks, eps {self.config['eps']:g}: error in %"

    @property
    def heads(self) -> tuple[str, ...]:
        """What the columns of `lines` are: whose error it is."""
        return ("of plain", "of trained")

    @property
    def lines(self) -> tuple[Line, ...]:
        """Our figures and the paper's, in percent."""
        found = []
        for maker, said in SAID.items():
            ours = tuple(percent(self.mean(maker, evaluator).error) for evaluator in PAIR)
            known = self.config["eps"] == EPS and maker != CLEAN
            found.append(Line(said, ours, PAPER[maker] if known else None))
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know to compare."""
        return (
            *stand_in(self.config),
            conventions(self.config),
            spent(self.config),
            "Both networks start from the same weights and see the same batches.",
        )

    def summary(self) -> dict[str, Any]:
        """All figures without the pixels, as JSON can hold them."""
        paper = {said: dict(zip(PAIR, values, strict=True)) for said, values in PAPER.items() if said != CLEAN}
        shown = [{"id": example.id, "label": example.label} for example in self.shown]
        cells = [asdict(cell) for cell in self.cells]
        return {"paper": paper, "cells": cells, "seconds": self.seconds, "shown": shown, "config": self.config}

    def to_json(self) -> str:
        """As JSON, with the pixels; `from_json` gives an equal record."""
        return json.dumps(self.summary() | {"shown": [asdict(one) for one in self.shown]}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Transfer:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        cells = tuple(Cell(**cell | {"outcome": Outcome(**cell["outcome"])}) for cell in record["cells"])
        shown = tuple(
            Shown(
                id=one["id"],
                label=one["label"],
                pictures=tuple(Picture(**picture | {"x": tuple(picture["x"])}) for picture in one["pictures"]),
            )
            for one in record["shown"]
        )
        return cls(cells=cells, seconds=tuple(record["seconds"]), shown=shown, config=record["config"])

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: the matrix of errors, and examples with what both networks say of them."""
        from epsball.reproduce.net_pictures import draw_transfer

        draw_transfer(self, path)


def transfer(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Transfer:
    """Make FGSM examples on the plain and on the trained network of each seed, and show them to both.

    The networks are those of `nets`, trained where they are not yet, with equal budgets. For the figure the first test
    example of each of the first `SHOWN` classes is kept. `on_progress` is called with the steps made, those of all, and
    what is trained. Raises `BadInput`.
    """
    cells, seconds, shown = [], [], ()
    for pair in nets.trained(PAIR, on_progress):
        points = {CLEAN: nets.source.test.x} | {net.said: nets.moved(net) for net in pair}
        for maker, x in points.items():
            cells += [Cell(maker, net.said, net.seed, nets.outcome(net, x)) for net in pair]
        seconds += [net.seconds for net in pair]
        shown = shown or _shown(nets, pair, points)
    return Transfer(tuple(cells), tuple(seconds), shown, nets.config())


def _shown(nets: Nets, pair: tuple[Net, ...], points: dict[str, Tensor]) -> tuple[Shown, ...]:
    test = nets.source.test
    labels = test.y.unique().tolist()[:SHOWN]
    rows = torch.tensor([int((test.y == label).nonzero()[0]) for label in labels])
    said = {}
    for maker, x in points.items():
        for net in pair:
            sure, predicted = logits_of(net.module, x[rows]).double().softmax(1).max(1)
            said[maker, net.said] = (predicted.tolist(), [round(value, 4) for value in sure.tolist()])
    return tuple(
        Shown(
            id=int(test.ids[row]),
            label=int(test.y[row]),
            pictures=tuple(
                Picture(
                    maker=maker,
                    x=tuple(round(value, 4) for value in x[row].flatten().tolist()),
                    predicted={net.said: said[maker, net.said][0][place] for net in pair},
                    sure={net.said: said[maker, net.said][1][place] for net in pair},
                )
                for maker, x in points.items()
            ),
        )
        for place, row in enumerate(rows.tolist())
    )
