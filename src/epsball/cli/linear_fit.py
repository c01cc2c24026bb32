"""`epsball linear fit`: a robust linear model of a table, with the proof of how good it is."""

from __future__ import annotations

import json as encoder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from epsball.cli.common import Json
from epsball.cli.tabular import Rows, described

if TYPE_CHECKING:
    from epsball.linear.tabular import TableFit

SHOWN = 10


def fit(
    *,
    rows: Rows,
    eps: str = "0.1std",
    norm: str = "linf",
    loss: str | None = None,
    penalty: str | None = None,
    C: Annotated[float, Parameter(name="--C")] = 1.0,
    test_share: float = 0.2,
    seed: int = 0,
    cv: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Fit a linear model to the worst perturbation of each row, exactly, and say how well it does.

    Accuracies are measured on rows held out, as they are and at the worst point of the ball around each.

    Parameters
    ----------
    eps
        The attacker's radius: in units of the columns (0.1, 8/255), or in standard deviations of each (0.1std).
    norm
        The attacker's norm: linf, l2 or l1.
    loss
        logistic, hinge (a support vector machine), or squared (regression). Default: squared where the target has
        fractions, else logistic.
    penalty
        l1 or l2, on top of what the attacker costs.
    C
        Inverse strength of the penalty.
    test_share
        The share of rows held out, of each class; 0 fits all.
    seed
        Draws the rows held out.
    cv
        Choose the radius trained for by cross-validation: the one with the most rows right under an attack of --eps.
    out
        A .skops file to keep the model in.
    json
        Print everything as JSON on stdout.
    """
    from epsball.linear.tabular import Radius, fit_table

    radius = Radius.parse(eps)
    if out is not None:
        from epsball.linear.storage import check_ending

        check_ending("out", out)
    table = rows.read()
    found = fit_table(
        table,
        radius=radius,
        norm=norm,
        loss=loss,
        penalty=penalty,
        C=C,
        test_share=test_share,
        seed=seed,
        cv=cv,
    )
    if out is not None:
        from epsball.linear.storage import save

        save(found.model, out, features=found.features)
    if json:
        config = {"data": table.name, "target": table.target, "penalty": penalty, "C": C, "seed": seed}
        print(
            encoder.dumps(config | found.summary() | {"out": None if out is None else str(out)}, indent=2, default=str)
        )
        return
    console = Console(highlight=False)
    console.print(f"[dim]data[/]   {described(table)}", soft_wrap=True)
    console.print(f"[dim]model[/]  {_model(found)}", soft_wrap=True)
    if found.scores:
        tried = f"the most rows right under an attack of {found.attack}, of {len(found.scores)} radii"
        console.print(f"[dim]chosen[/] {tried}", soft_wrap=True)
    console.print(f"[dim]fit[/]    {_optimality(found)}\n", soft_wrap=True)
    console.print(_figures(found), "")
    console.print(_weights_line(found), soft_wrap=True)
    if found.nonzero:
        console.print("", _weights(found))
    if out is not None:
        console.print(f"\n[dim]written: {escape(str(out))}[/]", soft_wrap=True)


def _model(found: TableFit) -> str:
    said = f"{type(found.model).__name__}, {found.model.norm} eps {found.radius}"
    return said + (" of each feature" if found.radius.per_std else "")


def _optimality(found: TableFit) -> str:
    model = found.model
    gap = f"at most {max(model.dual_gap_, 0):.1g} above the least"
    return f"objective {model.objective_:.6g}, {gap}; {model.n_iter_} steps"


def _figures(found: TableFit) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    rmse = found.model.loss == "squared"
    grid.add_column("error (rmse)" if rmse else "accuracy")
    for head in ("rows", "clean", f"worst, eps {found.attack}"):
        grid.add_column(head, justify="right", min_width=7)
    for name, part in (("rows fitted", found.fitted), ("held out", found.held_out)):
        if part is None:
            continue
        cells = (f"{value:.4g}" if rmse else f"{value:.2%}" for value in (part.clean, part.worst))
        grid.add_row(name, f"{part.rows:,}", *cells, style="bold" if name == "held out" else "")
    return grid


def _weights_line(found: TableFit) -> str:
    most = "" if found.eps_max is None else f"; all are zero from eps {found.eps_max:.4g} on"
    if found.radius.per_std and most:
        most = most.replace(" on", " std on")
    said = f"weights on {found.nonzero:,} of {len(found.features):,} features{most}"
    if found.constant:
        few = ", ".join(found.constant[:3]) + (", ..." if len(found.constant) > 3 else "")
        said += f" [dim](constant: {escape(few)})[/]"
    return said


def _weights(found: TableFit) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    largest = found.largest(SHOWN)
    labelled = any(label for _, label, _, _ in largest)
    grid.add_column("feature", overflow="ellipsis", no_wrap=True, max_width=36)
    if labelled:
        grid.add_column("score of", overflow="ellipsis", no_wrap=True, max_width=16)
    grid.add_column("weight", justify="right", min_width=9)
    grid.add_column("per std", justify="right", min_width=9)
    for name, label, weight, scaled in largest:
        cells = [escape(name)] + ([escape(label)] if labelled else [])
        grid.add_row(*cells, f"{weight:.4g}", f"{scaled:.4g}")
    rest = found.nonzero - len(largest)
    if rest > 0:
        grid.add_row(f"[dim]and {rest:,} more[/]")
    return grid
