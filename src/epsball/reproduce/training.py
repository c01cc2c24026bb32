"""Adversarial training of maxout networks on MNIST: fewer errors on FGSM examples, and no more on clean ones.

Goodfellow, Shlens and Szegedy (ICLR 2015), section 6: alpha J(x) + (1 - alpha) J(x + eps sign(grad_x J)) with alpha =
.5 and eps = .25. Clean error fell from .94 to .84 %, of wider networks from 1.14 to .782 %; error on a network's own
FGSM examples from 89.4 % (mean confidence 97.6 %) to 17.9 % (81.4 %). Figure 3: the weights become more localised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from epsball.attacks.pgd import PGD
from epsball.common.record import Record
from epsball.models.builtin import Maxout
from epsball.reproduce.nets import ADVERSARIAL, PAIR, PLAIN, Net, Nets, probabilities_of
from epsball.reproduce.notes import about_conventions, about_stand_in, about_training
from epsball.reproduce.outcome import EPS, Outcome, mean_outcome, outcome_of, percent
from epsball.reproduce.reproduction import Line, Reproduction

PAPER: dict[str, tuple[float, float]] = {PLAIN: (89.4, 97.6), ADVERSARIAL: (17.9, 81.4)}
"""Error on the network's own FGSM examples at eps .25, mean confidence in those mistakes, in percent."""
CLEAN_BY_WIDTH = {240: {PLAIN: 0.94, ADVERSARIAL: 0.84}, 1600: {PLAIN: 1.14, ADVERSARIAL: 0.782}}
"""The paper's clean error in percent, by the number of units."""
PGD_STEPS, PGD_ROWS = 20, 1000
"""The PGD attack beside FGSM, and the number of test examples that it attacks."""
FILTERS = 48
"""First-layer filters that are kept for the figure."""


@dataclass(frozen=True)
class TrainedNetwork(Record):
    """One network: clean, on its own FGSM examples, and on those of PGD in the same ball (the first `PGD_ROWS`)."""

    name: str
    seed: int
    seconds: float
    clean: Outcome
    fgsm: Outcome
    pgd: Outcome


@dataclass(frozen=True, kw_only=True)
class Training(Reproduction):
    """What `training` found. `filters` are, for both networks of the first seed, the first piece of the first units of
    the first layer, each flat and rounded to 4 digits.
    """

    networks: tuple[TrainedNetwork, ...]
    filters: dict[str, tuple[tuple[float, ...], ...]]

    def of(self, name: str) -> tuple[TrainedNetwork, ...]:
        """The networks of that name, one per seed."""
        return tuple(net for net in self.networks if net.name == name)

    def summary(self) -> dict[str, Any]:
        """All figures without the filters, as JSON can hold them."""
        paper = {name: dict(zip(self.columns[1:], values, strict=True)) for name, values in PAPER.items()}
        networks = [net.to_record() for net in self.networks]
        return {"paper": paper | {"clean": CLEAN_BY_WIDTH}, "networks": networks, "config": self.config}


def training(nets: Nets, *, on_progress: Callable[[int, int, str], None] | None = None) -> Training:
    """Train a plain and an adversarially trained maxout network for each seed, and count their errors.

    Networks of `nets` that are trained already are used again; all have equal budgets. Each is attacked by FGSM on
    itself, without a box, on all test examples. `on_progress` is called with the steps done, the steps in total, and
    the name of the network in training. Raises `BadInput`.
    """
    pairs = nets.trained(PAIR, on_progress)
    networks = tuple(_evaluated(nets, net) for pair in pairs for net in pair)
    rows = min(PGD_ROWS, len(nets.source.test))
    config = nets.config() | {"alpha": 0.5, "pgd_steps": PGD_STEPS, "pgd_rows": rows}
    by_name = {name: [net for net in networks if net.name == name] for name in PAIR}
    return Training(
        title=f"Maxout networks trained on clean and FGSM examples, eps {config['eps']:g}: error in %",
        columns=("clean", "FGSM", "confidence"),
        lines=papers_and_ours(by_name, config),
        notes=_notes(by_name, config),
        config=config,
        networks=networks,
        filters={net.name: _filters(net) for net in pairs[0]},
    )


def _evaluated(nets: Nets, net: Net) -> TrainedNetwork:
    test = nets.source.test
    part = test.rows(slice(0, PGD_ROWS))
    x_adv = PGD(steps=PGD_STEPS)(net.module, part.x, part.y, nets.ball, ids=part.ids, seed=net.seed)
    return TrainedNetwork(
        name=net.name,
        seed=net.seed,
        seconds=net.seconds,
        clean=nets.outcome(net, test.x),
        fgsm=nets.outcome(net, nets.fgsm(net)),
        pgd=outcome_of(probabilities_of(net, x_adv), part.y),
    )


def papers_and_ours(networks: dict[str, list[TrainedNetwork]], config: dict[str, Any]) -> tuple[Line, ...]:
    """Our figures and the paper's, in percent. The plain network's clean error does not depend on the radius."""
    units, lines, papers_radius = config["units"], [], config["eps"] == EPS
    width = units if units in CLEAN_BY_WIDTH else 240
    for name, nets in networks.items():
        clean, fgsm = mean_outcome([net.clean for net in nets]), mean_outcome([net.fgsm for net in nets])
        ours = tuple(map(percent, (clean.error, fgsm.error, fgsm.confidence)))
        attacked = PAPER[name] if papers_radius else (None, None)
        comparable = name == PLAIN or papers_radius
        paper = (CLEAN_BY_WIDTH[width][name], *attacked) if comparable else None
        lines.append(Line(f"{name}, {units} units", ours, paper, f"the paper, {width} units"))
        lines += [
            Line(name, None, (errors[name], None, None), f"the paper, {other} units")
            for other, errors in CLEAN_BY_WIDTH.items()
            if comparable and other != width
        ]
    return tuple(lines)


def _notes(networks: dict[str, list[TrainedNetwork]], config: dict[str, Any]) -> tuple[str, ...]:
    notes = [*about_stand_in(config), about_conventions(config)]
    if config["eps"] == EPS:
        notes.append("The paper does not say of which width its figures on FGSM examples are.")
    notes.append(about_training(config))
    pgd = ", ".join(
        f"{name} {100 * mean_outcome([net.pgd for net in nets]).error:.1f} %" for name, nets in networks.items()
    )
    notes.append(
        f"FGSM is not the strongest attack: on PGD examples of the same ball ({config['pgd_steps']} steps, the first "
        f"{config['pgd_rows']:,} test images) the error is: {pgd}."
    )
    if len(config["seeds"]) > 1:
        clean = (
            f"{name}: {', '.join(f'{100 * net.clean.error:.2f}' for net in nets)}" for name, nets in networks.items()
        )
        notes.append(f"Clean error in % by seed: {'; '.join(clean)}.")
    return tuple(notes)


def _filters(net: Net) -> tuple[tuple[float, ...], ...]:
    first = next(part for part in net.module.modules() if isinstance(part, Maxout))
    rows = first.linear.weight[: min(FILTERS, first.units)].double()
    return tuple(tuple(round(value, 4) for value in row) for row in rows.tolist())
