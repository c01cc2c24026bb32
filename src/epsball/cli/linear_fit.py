"""`epsball linear fit`: a robust linear model of a table, with the proof of how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from epsball.cli.common import Json
from epsball.cli.tabular import Rows, grid, print_json, print_lines
from epsball.linear.table_config import FitConfig

if TYPE_CHECKING:
    from epsball.linear.table_fit import TableFit

SHOWN = 10

DEFAULT = FitConfig()


def fit(
    *,
    rows: Rows,
    options: Annotated[FitConfig, Parameter(name="*")] = DEFAULT,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Fit a linear model that minimises the mean loss under the worst perturbation of each row, exactly.

    Accuracies are measured on rows held out, without attack and under the worst perturbation of each row.

    Parameters
    ----------
    out
        The .skops file to write the model to.
    json
        Print everything as JSON on stdout.
    """
    if out is not None:
        from epsball.linear.storage import check_ending

        check_ending("out", out)
    from epsball.linear.table_fit import fit_table

    table = rows.read()
    found = fit_table(table, options)
    if out is not None:
        from epsball.linear.storage import save

        save(found.model, out, features=found.features)
    if json:
        asked = {"data": table.name, "target": table.target, "penalty": options.penalty, "C": options.C}
        print_json(asked | {"seed": options.seed} | found.summary() | {"out": None if out is None else str(out)})
        return
    console = Console(highlight=False, emoji=False)
    print_lines(console, rows.described(table), ("model", _model(found)), *_chosen(found), ("fit", _optimality(found)))
    console.print("", _performance(found), "", sep="\n")
    console.print(_weights_line(found), soft_wrap=True)
    if found.nonzero:
        console.print("", _weights(found), sep="\n")
    if out is not None:
        console.print(f"\n[dim]written: {escape(str(out))}[/]", soft_wrap=True)


def _model(found: TableFit) -> str:
    model = f"{type(found.model).__name__}, {found.model.norm} eps {found.radius}"
    return model + (" of each feature" if found.radius.per_std else "")


def _chosen(found: TableFit) -> list[tuple[str, str]]:
    criterion = f"the greatest accuracy under an attack of {found.attack}, of {len(found.scores)} radii"
    return [("chosen", criterion)] if found.scores else []


def _optimality(found: TableFit) -> str:
    model = found.model
    return f"objective {model.objective_:.6g}, duality gap {max(model.dual_gap_, 0):.1g}; {model.n_iter_} iterations"


def _performance(found: TableFit) -> Grid:
    rmse = found.model.loss == "squared"
    table = grid("error (rmse)" if rmse else "accuracy")
    for head in ("rows", "clean", f"worst, eps {found.attack}"):
        table.add_column(head, justify="right", min_width=7)
    for name, part in (("rows fitted", found.fitted), ("held out", found.held_out)):
        if part is not None:
            cells = (f"{value:.4g}" if rmse else f"{value:.2%}" for value in (part.clean, part.worst))
            table.add_row(name, f"{part.rows:,}", *cells, style="bold" if name == "held out" else "")
    return table


def _weights_line(found: TableFit) -> str:
    line = f"weights on {found.nonzero:,} of {len(found.features):,} features"
    if found.eps_max is not None:
        line += f"; all are zero from eps {found.eps_max:.4g}{' std' if found.radius.per_std else ''} on"
    if found.constant:
        few = ", ".join(found.constant[:3]) + (", ..." if len(found.constant) > 3 else "")
        line += f" [dim](constant: {escape(few)})[/]"
    return line


def _weights(found: TableFit) -> Grid:
    largest = found.largest_weights(SHOWN)
    labelled = any(label for _, label, _, _ in largest)
    table = Grid(box=None, pad_edge=False, header_style="dim")
    table.add_column("feature", overflow="ellipsis", no_wrap=True, max_width=36)
    if labelled:
        table.add_column("score of", overflow="ellipsis", no_wrap=True, max_width=16)
    for head in ("weight", "per std"):
        table.add_column(head, justify="right", min_width=9)
    for name, label, weight, scaled in largest:
        table.add_row(escape(name), *([escape(label)] if labelled else []), f"{weight:.4g}", f"{scaled:.4g}")
    if found.nonzero > len(largest):
        table.add_row(f"[dim]and {found.nonzero - len(largest):,} more[/]")
    return table
