"""What the commands of `epsball explain` print that have tables of their own: at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from epsball.explain.analyses.growth import Growth, GrowthAtSize
    from epsball.explain.analyses.l1 import L1Equivalence
    from epsball.explain.analyses.taylor import TaylorGap

FITTED = ("measured", "boxed", "clean", "spread", "per_clean", "per_spread")


def print_growth(found: Growth, console: Console) -> None:
    """The change by dimension and kind of weights, and the accuracies of the trained classifiers."""
    from epsball.explain.analyses.growth import KINDS

    first, second = found.config["pair"]
    console.print(
        f"[dim]eps[/]    {found.config['eps']:g}; classes {first} and {second}, {found.config['rows']} images\n"
    )
    for weights, description in KINDS.items():
        console.print(f"weights [bold]{description}[/]")
        console.print(sizes(found, weights), "")
    console.print(accuracies(found.of("trained")), "")
    console.print("[dim]change: w.(x_adv - x), x_adv = x + eps sign(w); like |w.x|, a mean[/]")
    console.print("[dim]std: that of w.x over images; p: fitted, how the column grows with n[/]")


def print_l1(found: L1Equivalence, console: Console) -> None:
    """The fitted models, what each costs, and which examples carry each penalty."""
    config, fading = found.config, found.fading
    first, second = config["classes"]
    console.print(
        f"[dim]eps[/]    {config['eps']:g}; classes {first} and {second}; fitted to {config['rows']:,}, measured on "
        f"{config['test_rows']:,}\n"
    )
    console.print(models(found), "")
    console.print(costs(found), "")
    exact, gradient, l1 = (f"{fading.carried[form]:.0%}" for form in ("exact", "gradient", "l1"))
    console.print(
        f"{fading.beyond:.0%} of the examples are beyond the adversarial model's attacker. They carry {exact}\n"
        f"of the exact penalty, {gradient} of the gradient penalty, {l1} of L1."
    )
    if found.of("gradient").endless:
        console.print("The classes can be separated: the gradient penalty has no minimum.")


def print_taylor(found: TaylorGap, console: Console) -> None:
    """The rise of the loss by radius."""
    console.print(f"[dim]loss[/]   {found.config['loss']}\n")
    console.print(radii(found), "")
    console.print("[dim]medians over the examples; gap: what the first order leaves out of the rise[/]")


TABLES: dict[str, Callable[[Any, Console], None]] = {"growth": print_growth, "l1": print_l1, "taylor": print_taylor}


def table(*heads: str, left: bool = False) -> Table:
    """An empty table; its columns end at the right, but the first where it is `left`."""
    found = Table(box=None, pad_edge=False, header_style="dim")
    for place, head in enumerate(heads):
        found.add_column(head, justify="left" if left and place == 0 else "right")
    return found


def models(found: L1Equivalence) -> Table:
    """The fitted models: their weights, accuracies and losses."""
    from epsball.explain.analyses.l1 import MODELS

    rows = table("model", "factor", "|w|_1", "zero", "< 1 %", "clean", "attacked", "loss", "worst", left=True)
    for fit in found.fits:
        weights = (f"{share:.0%}" for share in (fit.zeros / len(fit.weight), fit.near_zero))
        accuracies = (f"{share:.1%}" for share in (fit.accuracy, fit.attacked))
        losses = (f"{loss:.3g}" for loss in (fit.loss, fit.worst_loss))
        rows.add_row(MODELS[fit.name], f"{fit.strength:.2g}", _short(fit.norm), *weights, *accuracies, *losses)
    return rows


def costs(found: L1Equivalence) -> Table:
    """What each model costs by each objective, the lowest in bold."""
    from epsball.explain.analyses.l1 import MODELS

    heads = {"plain": "loss J", "exact": "worst loss", "gradient": "J + gradient", "l1": "J + L1"}
    rows = table("objective on the fitted examples", *heads.values(), left=True)
    rows.columns[0].min_width = 18
    lowest = {name: min(fit.costs[name] for fit in found.fits) for name in heads}
    for fit in found.fits:
        texts = (f"[bold]{cost:.4g}[/]" if cost == lowest[name] else f"{cost:.4g}" for name, cost in fit.costs.items())
        rows.add_row(MODELS[fit.name], *texts)
    return rows


def sizes(found: Growth, weights: str) -> Table:
    """The change and what it is compared with, by dimension, and how each column grows."""
    rows = table("n", "eps m n", "change", "in the box", "|w.x|", "std", "per |w.x|", "per std")
    for column in rows.columns:
        column.min_width = 7
    for size in found.of(weights):
        parts = (size.predicted, *(getattr(size, name) for name in FITTED))
        rows.add_row(f"{size.n:,}", *map(_short, parts))
    powers = [found.exponent(weights, name) for name in FITTED]
    texts = ("-" if power is None else f"{round(power, 2) + 0.0:.2f}" for power in powers)
    rows.add_row("n^p, p =", "", *texts, style="bold")
    return rows


def accuracies(trained: tuple[GrowthAtSize, ...]) -> Table:
    """What a step does to the trained classifiers."""
    rows = table("trained, n", "m", "accuracy", "after FGSM", "in the box")
    for size in trained:
        shares = [getattr(size, name) for name in ("accuracy", "fgsm_accuracy", "fgsm_boxed")]
        rows.add_row(f"{size.n:,}", _short(size.m), *(f"{share:.1%}" for share in shares))
    return rows


def radii(found: TaylorGap) -> Table:
    """The rise of the loss and its first order, by radius."""
    rows = table("eps", "first order", "true rise", "gap", "gap/true", "5 % to 95 % of examples")
    for radius in found.summary()["radii"]:
        low, middle, high = (_share(value) for value in radius["relative"])
        medians = (radius[name][1] for name in ("first_order", "change", "gap"))
        rows.add_row(f"{radius['eps']:.4g}", *map(_short, medians), middle, f"{low} to {high}")
    return rows


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
