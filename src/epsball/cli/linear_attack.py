"""`epsball linear attack`: the exact worst point of every row of a table."""

from __future__ import annotations

import json as encoder
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from epsball.cli.common import Json
from epsball.cli.tabular import Names, Rows, described

if TYPE_CHECKING:
    from epsball.linear.table_attack import TableAttack

SHOWN = 5


def attack(
    *,
    model: Path,
    rows: Rows,
    eps: str | None = None,
    norm: str | None = None,
    lo: float = -math.inf,
    hi: float = math.inf,
    fixed: Names = (),
    toward: str | None = None,
    out: Path = Path("adversarial.parquet"),
    json: Json = False,
) -> None:
    """Find the worst point of each row within a radius, exactly, and the least radius at which its prediction flips.

    Columns of table and model are matched by name. OUT has a row per example: id (row number), label, fooled,
    prediction, adversarial_prediction, margin, adversarial_margin, minimal_eps, then the moved columns.

    Parameters
    ----------
    model
        A .skops file of `epsball linear fit`, or of a linear scikit-learn classifier or pipeline.
    eps
        The attacker's radius: in units of the columns (0.1, 8/255), or in standard deviations of each in this table
        (0.1std). Default: the radius that the model was trained for.
    norm
        The attacker's norm: linf, l2, l1, or l0 (so many columns change; needs --lo and --hi). Default: the model's.
    lo
        No value is moved below; all must be above already.
    hi
        No value is moved above.
    fixed
        Columns that the attacker cannot change.
    toward
        The label to drive every row towards, instead of away from its own.
    out
        The .parquet or .csv file to write.
    json
        Print the figures as JSON on stdout.
    """
    from epsball.data.tables import output_kind
    from epsball.linear.storage import load
    from epsball.linear.table_attack import attack_table, features_of
    from epsball.linear.tabular import Radius

    output_kind(out, (".parquet", ".csv"))
    radius = None if eps is None else Radius.parse(eps)
    fitted = load(model)
    table = rows.read(features_of(fitted))
    found = attack_table(fitted, table, radius=radius, norm=norm, lo=lo, hi=hi, fixed=fixed, toward=toward)
    found.save(out)
    figures = found.summary()
    if json:
        print(encoder.dumps(figures | {"model": str(model), "data": table.name, "out": str(out)}, indent=2))
        return
    console = Console(highlight=False)
    console.print(f"[dim]model[/]  {escape(str(model))}: {type(fitted).__name__}", soft_wrap=True)
    console.print(f"[dim]data[/]   {described(table)}", soft_wrap=True)
    console.print(f"[dim]ball[/]   {found.norm}, {_ball(found, lo, hi, fixed)}\n", soft_wrap=True)
    console.print(f"accuracy {figures['clean_accuracy']:.2%} before, [bold]{figures['accuracy']:.2%} after[/]")
    if toward is not None:
        before, after = figures["at_target"], figures["at_target_after"]
        console.print(f"predicted as {escape(toward)}: {before:.2%} before, [bold]{after:.2%} after[/]")
    median = figures["median_minimal_eps"]
    whose = "rows predicted right" if toward is None else "all rows"
    console.print(f"median minimal eps {'none' if median is None else _radius(median, found)} [dim]({whose})[/]\n")
    console.print(_first(found))
    console.print()
    for line in _moves(found):
        console.print(line, no_wrap=True, overflow="ellipsis")
    console.print(f"\n[dim]written: {escape(str(out))}[/]", soft_wrap=True)


def _ball(found: TableAttack, lo: float, hi: float, fixed: tuple[str, ...]) -> str:
    said = "the radii trained for" if found.unit == "trained" else f"eps {_radius(found.eps, found)}"
    said += " of each feature" if found.unit == "std" else ""
    if math.isfinite(lo) or math.isfinite(hi):
        said += f", in [{lo:g}, {hi:g}]"
    return said + (f", fixed: {escape(', '.join(fixed))}" if fixed else "")


def _radius(value: float, found: TableAttack) -> str:
    return f"{value:.4g}" + {"std": " std", "trained": " x the radii trained for"}.get(found.unit, "")


def _first(found: TableAttack) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    grid.add_column("row", justify="right")
    for head in ("label", "before", "after"):
        grid.add_column(head, overflow="ellipsis", no_wrap=True, max_width=14)
    for head in ("margin", "worst", "min. eps"):
        grid.add_column(head, justify="right", no_wrap=True)
    for row in range(min(SHOWN, len(found.table))):
        labels = (escape(found.classes[part[row]]) for part in (found.y, found.before, found.after))
        figures = (part[row] for part in (found.margin, found.adversarial_margin, found.minimal_eps))
        grid.add_row(str(row), *labels, *(f"{figure:.3g}" for figure in figures))
    return grid


def _moves(found: TableAttack) -> list[str]:
    """What moves most in the rows shown, one line where it is the same for all."""
    lines = [
        ", ".join(f"{escape(name)} {step:+.3g}" for name, step in found.moves(row)) or "nothing"
        for row in range(min(SHOWN, len(found.table)))
    ]
    if len(set(lines)) == 1:
        return [f"[dim]what moves the margin most:[/] {lines[0]}"]
    return ["[dim]what moves the margin most:[/]", *(f"[dim]{row:>3}[/]  {line}" for row, line in enumerate(lines))]
