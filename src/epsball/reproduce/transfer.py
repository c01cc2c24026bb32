"""Transfer between a plain and an adversarially trained maxout network: examples made on one, shown to the other.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 6: FGSM examples made on the original network give the trained one
an error of 19.6 %, those made on the trained one give the original 40.9 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from epsball.common.record import Record
from epsball.reproduce.nets import ADVERSARIAL, PAIR, PLAIN, Net, Nets, logits_of
from epsball.reproduce.notes import about_conventions, about_stand_in, about_training
from epsball.reproduce.outcome import EPS, Outcome, mean_outcome, percent
from epsball.reproduce.reproduction import Line, Reproduction

CLEAN = "clean"
PAPER: dict[str, tuple[float | None, float | None]] = {
    CLEAN: (None, None),
    PLAIN: (89.4, 19.6),
    ADVERSARIAL: (40.9, 17.9),
}
"""Error of the plain and of the trained network on examples made on each at eps .25, in percent."""
LABELS = {CLEAN: CLEAN, PLAIN: "made on the plain one", ADVERSARIAL: "made on the trained one"}
SHOWN = 6
"""Test examples in the figure."""


@dataclass(frozen=True)
class Cell(Record):
    """How the network `evaluator` does on the FGSM examples made on the network `maker`, or on clean examples."""

    maker: str
    evaluator: str
    seed: int
    outcome: Outcome


@dataclass(frozen=True)
class ShownPoint(Record):
    """A point in the figure, pixels rounded to 4 digits; each network's predicted class and its probability."""

    maker: str
    x: tuple[float, ...]
    predicted: dict[str, int]
    confidence: dict[str, float]


@dataclass(frozen=True)
class ShownExample(Record):
    """A test example in the figure: its id (row of the test split), its label, the points made of it."""

    id: int
    label: int
    points: tuple[ShownPoint, ...]


@dataclass(frozen=True, kw_only=True)
class Transfer(Reproduction):
    """What `transfer` found; the examples shown are those of the first seed."""

    cells: tuple[Cell, ...]
    seconds: tuple[float, ...]
    shown: tuple[ShownExample, ...]

    def mean(self, maker: str, evaluator: str) -> Outcome:
        """The mean over the seeds."""
        return _mean(self.cells, maker, evaluator)

    def summary(self) -> dict[str, Any]:
        """All figures without the pixels, as JSON can hold them."""
        paper = {name: dict(zip(PAIR, values, strict=True)) for name, values in PAPER.items() if name != CLEAN}
        shown = [{"id": example.id, "label": example.label} for example in self.shown]
        cells = [cell.to_record() for cell in self.cells]
        return {"paper": paper, "cells": cells, "seconds": self.seconds, "shown": shown, "config": self.config}


def transfer(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Transfer:
    """Make FGSM examples on the plain and on the trained network of each seed, and show them to both.

    Networks of `nets` that are trained already are used again; all have equal budgets. The figure keeps the first test
    example of each of the first `SHOWN` classes. `on_progress` is called with the steps done, the steps in total, and
    the name of the network in training. Raises `BadInput`.
    """
    cells, seconds, shown = [], [], ()
    for pair in nets.trained(PAIR, on_progress):
        points = {CLEAN: nets.source.test.x} | {net.name: nets.fgsm(net) for net in pair}
        for maker, x in points.items():
            cells += [Cell(maker, net.name, net.seed, nets.outcome(net, x)) for net in pair]
        seconds += [net.seconds for net in pair]
        shown = shown or _shown(nets, pair, points)
    config = nets.config()
    lines = []
    for maker, label in LABELS.items():
        ours = tuple(percent(_mean(cells, maker, evaluator).error) for evaluator in PAIR)
        lines.append(Line(label, ours, PAPER[maker] if config["eps"] == EPS and maker != CLEAN else None))
    return Transfer(
        title=f"Transfer of FGSM examples between two maxout networks, eps {config['eps']:g}: error in %",
        columns=("of plain", "of trained"),
        lines=tuple(lines),
        notes=(
            *about_stand_in(config),
            about_conventions(config),
            about_training(config),
            "Both networks start from the same weights and see the same batches.",
        ),
        config=config,
        cells=tuple(cells),
        seconds=tuple(seconds),
        shown=shown,
    )


def _mean(cells: tuple[Cell, ...] | list[Cell], maker: str, evaluator: str) -> Outcome:
    return mean_outcome([cell.outcome for cell in cells if (cell.maker, cell.evaluator) == (maker, evaluator)])


def _shown(nets: Nets, pair: tuple[Net, ...], points: dict[str, Tensor]) -> tuple[ShownExample, ...]:
    test = nets.source.test
    labels = test.y.unique().tolist()[:SHOWN]
    rows = torch.tensor([int((test.y == label).nonzero()[0]) for label in labels])
    predictions = {
        (maker, net.name): logits_of(net.module, x[rows]).double().softmax(1).max(1)
        for maker, x in points.items()
        for net in pair
    }

    def point(maker: str, x: Tensor, row: int, place: int) -> ShownPoint:
        confidence, predicted = (
            {net.name: predictions[maker, net.name][part][place].item() for net in pair} for part in (0, 1)
        )
        return ShownPoint(
            maker=maker,
            x=tuple(round(value, 4) for value in x[row].flatten().tolist()),
            predicted={name: int(label) for name, label in predicted.items()},
            confidence={name: round(value, 4) for name, value in confidence.items()},
        )

    return tuple(
        ShownExample(
            id=int(test.ids[row]),
            label=int(test.y[row]),
            points=tuple(point(maker, x, row, place) for maker, x in points.items()),
        )
        for place, row in enumerate(rows.tolist())
    )
