"""The tables that the commands of `epsball explain` print: each at most 80 columns wide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from epsball.explain.dimension import Growth, Rung
    from epsball.explain.l1 import L1Equivalence
    from epsball.explain.taylor import TaylorGap

FITTED = ("measured", "boxed", "clean", "spread", "per_clean", "per_spread")


def models(found: L1Equivalence) -> Table:
    """The fitted models: their weights, accuracies and losses."""
    from epsball.explain.l1 import MODELS

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("model")
    for head in ("factor", "|w|_1", "zero", "< 1 %", "clean", "attacked", "loss", "worst"):
        table.add_column(head, justify="right")
    for fit in found.fits:
        shares = (fit.zeros / len(fit.weight), fit.near_zero)
        table.add_row(
            MODELS[fit.name],
            f"{fit.strength:.2g}",
            _short(fit.norm),
            *(f"{share:.0%}" for share in shares),
            *(f"{share:.1%}" for share in (fit.accuracy, fit.attacked)),
            *(f"{loss:.3g}" for loss in (fit.loss, fit.worst_loss)),
        )
    return table


def costs(found: L1Equivalence) -> Table:
    """What each model costs by each objective, the lowest in bold."""
    from epsball.explain.l1 import MODELS

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("objective on the fitted examples", min_width=18)
    heads = {"plain": "loss J", "exact": "worst loss", "gradient": "J + gradient", "l1": "J + L1"}
    for head in heads.values():
        table.add_column(head, justify="right")
    lowest = {cost: min(fit.costs[cost] for fit in found.fits) for cost in heads}
    for fit in found.fits:
        costs = [(f"{fit.costs[cost]:.4g}", fit.costs[cost] == lowest[cost]) for cost in heads]
        table.add_row(MODELS[fit.name], *(f"[bold]{cost}[/]" if least else cost for cost, least in costs))
    return table


def rungs(found: Growth, weights: str) -> Table:
    """The change and what it is compared with, by dimension, and how each column grows."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("n", "eps m n", "change", "in the box", "|w.x|", "std", "per |w.x|", "per std"):
        table.add_column(head, justify="right", min_width=7)
    for rung in found.of(weights):
        parts = (rung.predicted, *(getattr(rung, name) for name in FITTED))
        table.add_row(f"{rung.n:,}", *map(_short, parts))
    powers = [found.exponent(weights, name) for name in FITTED]
    said = ("-" if power is None else f"{round(power, 2) + 0.0:.2f}" for power in powers)
    table.add_row("n^p, p =", "", *said, style="bold")
    return table


def accuracies(rungs: tuple[Rung, ...]) -> Table:
    """What a step does to the trained classifiers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("trained, n", "m", "accuracy", "after FGSM", "in the box"):
        table.add_column(head, justify="right")
    for rung in rungs:
        shares = [getattr(rung, name) for name in ("accuracy", "fgsm_accuracy", "fgsm_boxed")]
        table.add_row(f"{rung.n:,}", _short(rung.m), *(f"{share:.1%}" for share in shares))
    return table


def radii(found: TaylorGap) -> Table:
    """The rise of the loss and its first order, by radius."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in ("eps", "first order", "true rise", "gap", "gap/true", "5 % to 95 % of examples"):
        table.add_column(head, justify="right")
    for radius in found.summary()["radii"]:
        low, middle, high = (_share(value) for value in radius["relative"])
        medians = (radius[name][1] for name in ("first_order", "change", "gap"))
        table.add_row(f"{radius['eps']:.4g}", *map(_short, medians), middle, f"{low} to {high}")
    return table


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
