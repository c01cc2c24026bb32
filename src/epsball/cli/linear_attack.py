"""`epsball linear attack`: the exact worst input for every row of a table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from epsball.cli.common import Json
from epsball.cli.tabular import Rows, grid, print_json, print_lines
from epsball.linear.table_config import AttackConfig

if TYPE_CHECKING:
    from epsball.linear.table_attack import TableAttack

SHOWN = 5

DEFAULT = AttackConfig()


def attack(
    *,
    model: Path,
    rows: Rows,
    options: Annotated[AttackConfig, Parameter(name="*")] = DEFAULT,
    out: Path = Path("adversarial.parquet"),
    json: Json = False,
) -> None:
    """Find the worst input within a radius of each row, exactly, and the least radius that changes its prediction.

    Columns of table and model are matched by name. OUT has a row per example: id (row number), label, fooled,
    prediction, adversarial_prediction, margin, adversarial_margin, minimal_eps, then the perturbed columns.

    Parameters
    ----------
    model
        A .skops file of `epsball linear fit`, or of a linear scikit-learn classifier or pipeline.
    out
        The .parquet or .csv file to write.
    json
        Print the figures as JSON on stdout.
    """
    from epsball.data.tables import output_kind
    from epsball.linear.storage import load
    from epsball.linear.table_attack import attack_table, features_of

    output_kind(out, (".parquet", ".csv"))
    fitted = load(model)
    table = rows.read(features_of(fitted))
    found = attack_table(fitted, table, options)
    found.save(out)
    figures = found.summary()
    if json:
        print_json(figures | {"model": str(model), "data": table.name, "out": str(out)})
        return
    console = Console(highlight=False, emoji=False)
    model_line = f"{escape(str(model))}: {type(fitted).__name__}"
    print_lines(console, ("model", model_line), rows.described(table), ("ball", _ball(found, options)))
    console.print()
    console.print(f"accuracy {figures['clean_accuracy']:.2%} before, [bold]{figures['accuracy']:.2%} after[/]")
    toward, whose = options.toward, "correctly classified rows"
    if toward is not None:
        before, after, whose = figures["at_target"], figures["at_target_after"], "all rows"
        console.print(f"predicted as {escape(toward)}: {before:.2%} before, [bold]{after:.2%} after[/]")
    median = figures["median_minimal_eps"]
    console.print(f"median minimal eps {'none' if median is None else _radius(median, found)} [dim]({whose})[/]\n")
    console.print(_first_rows(found), "", sep="\n")
    for line in _largest_changes(found):
        console.print(line, no_wrap=True, overflow="ellipsis")
    console.print(f"\n[dim]written: {escape(str(out))}[/]", soft_wrap=True)


def _ball(found: TableAttack, options: AttackConfig) -> str:
    ball = "the radii trained for" if found.unit == "trained" else f"eps {_radius(found.eps, found)}"
    ball = f"{found.norm}, {ball}{' of each feature' if found.unit == 'std' else ''}"
    if math.isfinite(options.lo) or math.isfinite(options.hi):
        ball += f", in [{options.lo:g}, {options.hi:g}]"
    return ball + (f", fixed: {escape(', '.join(options.fixed))}" if options.fixed else "")


def _radius(value: float, found: TableAttack) -> str:
    return f"{value:.4g}" + {"std": " std", "trained": " x the radii trained for"}.get(found.unit, "")


def _first_rows(found: TableAttack) -> Grid:
    table = grid("row", justify="right")
    for head in ("label", "before", "after"):
        table.add_column(head, overflow="ellipsis", no_wrap=True, max_width=14)
    for head in ("margin", "worst", "min. eps"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in range(min(SHOWN, len(found.table))):
        labels = (found.classes[part[row]] for part in (found.y, found.prediction, found.adversarial_prediction))
        figures = (part[row] for part in (found.margin, found.adversarial_margin, found.minimal_eps))
        table.add_row(str(row), *map(escape, labels), *(f"{figure:.3g}" for figure in figures))
    return table


def _largest_changes(found: TableAttack) -> list[str]:
    """The features that change the margin most in the rows shown, one line where it is the same for all."""
    lines = [
        ", ".join(f"{escape(name)} {change:+.3g}" for name, change in found.largest_changes(row)) or "nothing"
        for row in range(min(SHOWN, len(found.table)))
    ]
    if len(set(lines)) == 1:
        return [f"[dim]what moves the margin most:[/] {lines[0]}"]
    return ["[dim]what moves the margin most:[/]", *(f"[dim]{row:>3}[/]  {line}" for row, line in enumerate(lines))]
