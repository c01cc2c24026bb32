"""Adversarial training of maxout networks on MNIST: fewer errors on FGSM examples, and no more on clean ones.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 6: alpha J(x) + (1 - alpha) J(x + eps sign(grad_x J)) with alpha =
.5 and eps = .25. Clean error fell from .94 to .84 %, of wider networks from 1.14 to .782 %; error on a network's own
FGSM examples from 89.4 % (mean confidence 97.6 %) to 17.9 % (81.4 %). Figure 3: the weights become more localised.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from epsball.attacks.pgd import PGD
from epsball.models.builtin import Maxout
from epsball.reproduce.nets import (
    ADVERSARIAL,
    PAIR,
    PLAIN,
    Net,
    Nets,
    conventions,
    mean,
    outcome,
    percent,
    shares_of,
    spent,
    stand_in,
)
from epsball.reproduce.record import Line
from epsball.reproduce.threes_sevens import EPS, Outcome

PAPER: dict[str, tuple[float, float]] = {PLAIN: (89.4, 97.6), ADVERSARIAL: (17.9, 81.4)}
"""Error on the network's own FGSM examples at eps .25, mean confidence in those mistakes, in percent."""
WIDTHS = {240: {PLAIN: 0.94, ADVERSARIAL: 0.84}, 1600: {PLAIN: 1.14, ADVERSARIAL: 0.782}}
"""Clean error in percent, by the number of units."""
STEPS, ROWS = 20, 1000
"""Of the PGD attack beside FGSM, and how many test examples it is made on."""
FILTERS = 48
"""First-layer filters that are kept for the figure."""


@dataclass(frozen=True)
class Trained:
    """One network: clean, at its own FGSM examples, and at those of PGD in the same ball, on the first `ROWS`."""

    said: str
    seed: int
    seconds: float
    clean: Outcome
    fgsm: Outcome
    pgd: Outcome


@dataclass(frozen=True)
class Training:
    """What `training` found. `filters` are, for the plain and the trained network of the first seed, the first piece
    of the first units of the first layer, each flat and rounded to 4 digits after the point.
    """

    networks: tuple[Trained, ...]
    filters: dict[str, tuple[tuple[float, ...], ...]]
    config: dict[str, Any]

    def of(self, said: str) -> tuple[Trained, ...]:
        """The networks of that name, one per seed."""
        return tuple(net for net in self.networks if net.said == said)

    @property
    def title(self) -> str:
        """What was done."""
        return f"Maxout networks trained on clean and FGSM examples, eps {self.config['eps']:g}: error in %"

    @property
    def heads(self) -> tuple[str, ...]:
        """What the columns of `lines` are."""
        return ("clean", "FGSM", "confidence")

    @property
    def lines(self) -> tuple[Line, ...]:
        """Our figures and the paper's, in percent."""
        units, found = self.config["units"], []
        for said in PAIR:
            nets = self.of(said)
            clean, fgsm = mean([net.clean for net in nets]), mean([net.fgsm for net in nets])
            ours = tuple(map(percent, (clean.error, fgsm.error, fgsm.confidence)))
            width = units if units in WIDTHS else 240
            attacked = PAPER[said] if self.config["eps"] == EPS else (None, None)
            known = said == PLAIN or self.config["eps"] == EPS  # without an attacker there is no radius
            paper = (WIDTHS[width][said], *attacked) if known else None
            found.append(Line(f"{said}, {units} units", ours, paper, f"the paper, {width} units"))
            found += [
                Line(said, None, (errors[said], None, None), f"the paper, {other} units")
                for other, errors in WIDTHS.items()
                if known and other != width
            ]
        return tuple(found)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know to compare."""
        config, found = self.config, [*stand_in(self.config), conventions(self.config)]
        if config["eps"] == EPS:
            found.append("Of which width the paper's figures on FGSM examples are, it does not say.")
        found.append(spent(config))
        errors = ", ".join(f"{said} {100 * mean([net.pgd for net in self.of(said)]).error:.1f} %" for said in PAIR)
        found.append(
            f"FGSM is not the strongest attack: on PGD examples of the same ball ({config['pgd_steps']} steps, the "
            f"first {config['pgd_rows']:,} test images) the error is: {errors}."
        )
        if len(config["seeds"]) > 1:
            clean = (f"{said}: {', '.join(f'{100 * net.clean.error:.2f}' for net in self.of(said))}" for said in PAIR)
            found.append(f"Clean error in % by seed: {'; '.join(clean)}.")
        return tuple(found)

    def summary(self) -> dict[str, Any]:
        """All figures without the filters, as JSON can hold them."""
        paper = {said: dict(zip(self.heads[1:], values, strict=True)) for said, values in PAPER.items()}
        return {
            "paper": paper | {"clean": WIDTHS},
            "networks": [asdict(net) for net in self.networks],
            "config": self.config,
        }

    def to_json(self) -> str:
        """As JSON, with the filters; `from_json` gives an equal record."""
        return json.dumps(self.summary() | {"filters": self.filters}, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Training:
        """The record that `to_json` wrote."""
        record = json.loads(text)
        networks = tuple(
            Trained(**net | {name: Outcome(**net[name]) for name in ("clean", "fgsm", "pgd")})
            for net in record["networks"]
        )
        filters = {said: tuple(map(tuple, rows)) for said, rows in record["filters"].items()}
        return cls(networks=networks, filters=filters, config=record["config"])

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG: the first layer's filters of both networks, and the table."""
        from epsball.reproduce.net_pictures import draw_training

        draw_training(self, path)


def training(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Training:
    """Train a plain and an adversarially trained maxout network for each seed, and count their errors.

    The networks are those of `nets`, trained where they are not yet, with equal budgets. Each is attacked by FGSM on
    itself, without a box, on all test examples. `on_progress` is called with the steps made, those of all, and what
    is trained. Raises `BadInput`.
    """
    pairs = nets.trained(PAIR, on_progress)
    found = tuple(_trained(nets, net) for pair in pairs for net in pair)
    filters = {net.said: _filters(net) for net in pairs[0]}
    rows = min(ROWS, len(nets.source.test))
    return Training(found, filters, nets.config() | {"alpha": 0.5, "pgd_steps": STEPS, "pgd_rows": rows})


def _trained(nets: Nets, net: Net) -> Trained:
    test = nets.source.test
    part = test.rows(slice(0, ROWS))
    x_adv = PGD(steps=STEPS)(net.module, part.x, part.y, nets.ball, ids=part.ids, seed=net.seed)
    return Trained(
        said=net.said,
        seed=net.seed,
        seconds=net.seconds,
        clean=nets.outcome(net, test.x),
        fgsm=nets.outcome(net, nets.moved(net)),
        pgd=outcome(shares_of(net, x_adv), part.y),
    )


def _filters(net: Net) -> tuple[tuple[float, ...], ...]:
    first = next(part for part in net.module.modules() if isinstance(part, Maxout))
    rows = first.linear.weight[: min(FILTERS, first.units)].double()
    return tuple(tuple(round(value, 4) for value in row) for row in rows.tolist())
