"""What `epsball evaluate` prints: the set-up before the attacks, and after them stages, curve or distances, the result,
and whether it is reliable."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from epsball.cli.common import percent
from epsball.cli.ends_shown import APART, BAR, show_both_ends, stage_cost, stage_table
from epsball.common.printable import printable
from epsball.data.bad_row import counted_bad_rows

if TYPE_CHECKING:
    from epsball.diagnosis.setup_record import Setup
    from epsball.evaluation.result import Evaluation

SHOWN = 5
"""Rows that could not be used whose names are shown."""


def show_setup(setup: Setup, subject: dict[str, str]) -> None:
    """Print what a run is about to do: what model, source, data and ball are, and what was understood of them."""
    console = Console(highlight=False, emoji=False)
    for name in ("model", "source", "data", "ball"):
        if name in subject:
            first, *more = subject[name].splitlines()
            console.print(f"[dim]{name:<6}[/] {escape(first)}", soft_wrap=True)
            for line in more:
                console.print(Padding(escape(line), (0, 0, 0, 7)), style="dim")
    stated = Table.grid(padding=(0, 1))
    for number, line in enumerate(setup.lines):
        stated.add_row("" if number else "[dim]set-up[/]", escape(line))
    console.print(stated, "")


def show_result(found: Evaluation, out: Path | None) -> None:
    """Print an evaluation."""
    console = Console(highlight=False, emoji=False)
    config = found.config
    if config["min_norm"]:
        _show_distances(found, console)
    elif found.certifies:
        show_both_ends(found, console)
    else:
        _show_accuracy(found, console)
    unconfirmed = sum(stage.unconfirmed for stage in found.stages)
    if unconfirmed and config["storage"]["x_adv"] == "8bit":
        console.print(f"[dim]{unconfirmed:,} successes were undone by the rounding, and do not count.[/]")
    if found.bad:
        names = ", ".join(printable(row.name) for row in found.bad[:SHOWN]) + (
            ", ..." if len(found.bad) > SHOWN else ""
        )
        console.print(f"[yellow]{counted_bad_rows(found.bad)} and are not counted: {escape(names)}[/]")
    if config.get("black_box") is not None:
        budget = config["black_box"]["budget"]
        limit = "without a budget" if budget is None else f"of a budget of {budget:,} per example and radius"
        console.print(f"[dim]{found.queries:,} queries, {limit}.[/]")
    if config["eot"] > 1:
        console.print(f"[dim]Predictions are the mean of {config['eot']} model calls.[/]")
    more = "nearer adversarial examples" if config["min_norm"] else "more"
    bound = "A transfer: attacks that see the model itself" if config["source"] else "An upper bound: a stronger attack"
    if not found.certifies:
        console.print(f"[dim]{bound} may find {more}.[/]")
    if found.budget_sentence is not None:
        console.print(f"[yellow]{found.budget_sentence}.[/]")
    if found.convergence is not None:
        console.print(f"[{'dim' if found.convergence.converged else 'yellow'}]{found.convergence.sentence}[/]")
    _show_reliability(found, console)
    if out is not None:
        from epsball.report.html import REPORT

        console.print(f"[dim]report: {escape(str(out / REPORT))}[/]", soft_wrap=True)


def _show_reliability(found: Evaluation, console: Console) -> None:
    """How gradients were computed, what the protocol reacted to, the binarization test and the reliability checks."""
    from epsball.acceleration.plan import AccelerationPlan

    if (record := found.config.get("acceleration")) is not None:
        console.print(f"[dim]gradients: {AccelerationPlan.from_record(record)}[/]", soft_wrap=True)
    if (test := found.binarization_test) is not None:
        console.print(f"[{'green' if test.passed else 'yellow'}]{test.sentence}[/]")
    if (reaction := found.config["reaction"]) is not None:
        for because in reaction["because"]:
            console.print(f"[yellow]{because}[/]")
    if found.setup is not None and not found.setup.sound:
        console.print(f"[yellow]Set-up doubtful, see the warnings above: {', '.join(found.setup.names)}.[/]")
    if (diagnosis := found.diagnosis) is not None:
        console.print(f"[{'yellow' if diagnosis.unreliable else 'dim'}]{diagnosis.sentence}[/]")
        for one in diagnosis.failed:
            if one.name not in diagnosis.mitigated:
                console.print(Padding(escape(one.text), (0, 0, 0, 2)))
    else:
        console.print(f"[yellow]{escape(found.reliability)}[/]")


def _show_accuracy(found: Evaluation, console: Console) -> None:
    """The stages, the curve where there is one, and the robust accuracy."""
    table = stage_table("eps", "attacked", "broken", "robust", "model calls/example", "seconds")
    clean, *attacks = found.stages
    attacked = robust = found.count("robust") + found.count("fooled") + found.count("exhausted")
    correct = round(found.clean_accuracy * len(found))
    table.add_row("none", "", "", "", f"{correct:,}", "1.0", f"{clean.seconds:.2f}")
    for stage in attacks:
        robust -= stage.fooled
        eps = "" if stage.eps is None else f"{stage.eps:.4g}"
        table.add_row(stage.attack, eps, f"{stage.attacked:,}", f"{stage.fooled:,}", f"{robust:,}", *stage_cost(stage))
    console.print(table, "")
    if len(found.curve) > 1:
        for eps, accuracy in found.curve:
            console.print(f"eps {eps:<8.4g} {accuracy:7.2%}  [dim]{'▇' * round(BAR * accuracy)}[/]")
        console.print()
    result = f"robust accuracy {found.robust_accuracy:.2%}"
    if found.robust_accuracy_at_most > found.robust_accuracy:
        result = f"robust accuracy from {found.robust_accuracy:.2%} to {found.robust_accuracy_at_most:.2%}"
    if found.config["target"]:
        result = f"robust to the target: {found.robust_accuracy:.2%} of {attacked:,}"
    stored = ", stored in 8 bits" if found.config["storage"]["x_adv"] == "8bit" else ""
    apart = [f"{found.count(status):,} {text}" for status, text in APART.items() if found.count(status)]
    console.print(
        f"[bold]{result}[/] (95% interval {percent(found.interval)}), clean accuracy {found.clean_accuracy:.2%}{stored}"
        + (f" ({', '.join(apart)})" if apart else "")
    )


def _show_distances(found: Evaluation, console: Console) -> None:
    """The stages of a run with --min-norm, the quantiles of its distances, and what attacks of one radius added."""
    planned = {stage["name"]: stage for stage in found.config["stages"]}
    table = stage_table("within", "attacked", "nearer", "model calls/example", "seconds")
    clean, *attacks = found.stages
    table.add_row("none", "", "", "", "1.0", f"{clean.seconds:.2f}")
    attacked, improved = 0, 0
    for stage in attacks:
        plan = planned[stage.name]
        within = "" if plan["minimises"] else f"{plan['within']:.0%}" if plan["within"] else f"{stage.eps:.4g}"
        if not plan["minimises"]:
            attacked, improved = attacked + stage.attacked, improved + stage.fooled
        table.add_row(stage.attack, within, f"{stage.attacked:,}", f"{stage.fooled:,}", *stage_cost(stage))
    console.print(table, "")
    what = "misclassified" if found.config["target"] is None else "at the target"
    for share, distance in found.quantiles():
        left = "" if math.isinf(distance) else "▇" * round(BAR * (1 - share))
        console.print(f"{share:4.0%} {what} within {distance:<9.4g} [dim]{left}[/]")
    console.print()
    (_, median), *_ = found.quantiles((0.5,))
    norm, rounded = found.config["ball"]["class"], found.config["storage"]["x_adv"] == "8bit"
    stored = ", stored in 8 bits" if rounded else ""
    console.print(f"[bold]median distance {median:.4g}[/] ({norm}), clean accuracy {found.clean_accuracy:.2%}{stored}")
    if len(found.curve) > 1 or math.isfinite(found.curve[0][0] or math.inf):
        for eps, accuracy in found.curve:
            console.print(f"robust accuracy at {eps:<8.4g} {accuracy:7.2%}")
    if left := found.count("robust"):
        why = "" if rounded or found.config["source"] is not None else ": is the model masking gradients?"
        console.print(f"[yellow]no adversarial example at any distance for {left:,}{why}[/]")
    if improved:
        console.print(
            f"[yellow]attacks of one radius found nearer adversarial examples in {improved:,} of {attacked:,} "
            "attempts; the distances include them[/]"
        )
    elif attacked:
        console.print(f"[dim]attacks of one radius found nothing nearer in {attacked:,} attempts[/]")
