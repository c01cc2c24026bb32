"""`epsball linear path`: robust linear models of a table over a range of radii."""

from __future__ import annotations

import json as encoder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from epsball.cli.common import Json
from epsball.cli.tabular import Names, Rows, described
from epsball.common.atomic_files import write_whole
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput

if TYPE_CHECKING:
    import numpy as np

KINDS = (".csv", ".parquet", ".json", ".png")
UNITS = ("std", "raw")


def path(
    *,
    rows: Rows,
    radii: int = 20,
    ratio: float = 0.01,
    unit: str = "std",
    norm: str = "linf",
    loss: str | None = None,
    penalty: str | None = None,
    C: float = 1.0,
    out: Names = (),
    json: Json = False,
) -> None:
    """Fit a model at each of several radii: which weights survive, and what robustness costs.

    The radii fall from the least at which all weights are zero. Losses and accuracies are those on the rows fitted,
    which are all rows of the table.

    Parameters
    ----------
    radii
        How many.
    ratio
        The least radius as a share of the greatest.
    unit
        What radii are measured in: std (standard deviations of each column) or raw (units of the columns).
    norm
        The attacker's norm: linf, l2 or l1.
    loss
        logistic, hinge or squared. Default: squared where the target has fractions, else logistic.
    penalty
        l1 or l2, on top of what the attacker costs.
    C
        Inverse strength of the penalty.
    out
        Files to write: .csv or .parquet (with all weights), .json, .png (a figure); several are possible.
    json
        Print everything as JSON on stdout.
    """
    files = [Path(name) for name in out]
    for file in files:
        check_one_of("out", file.suffix, KINDS)
    check_one_of("unit", unit, UNITS)
    if radii < 1:
        raise BadInput(f"`radii` must be >= 1, got {radii}; 20 make a smooth figure")
    from epsball.data.tables import write_table
    from epsball.linear.paths import eps_path
    from epsball.linear.tabular import ESTIMATORS, Radius, loss_for, path_columns

    loss, table = loss_for(rows.read(), loss)
    scale = Radius(1.0, unit == "std").unit(table.x)
    template = ESTIMATORS[loss](eps=scale, norm=norm, penalty=penalty, C=C)
    found = eps_path(table.x, table.y, eps=radii, ratio=ratio, estimator=template)
    columns = path_columns(found, table.features, scale, unit == "std")
    summary = {
        "data": table.name,
        "target": table.target,
        "rows": len(table),
        "loss": loss,
        "norm": norm,
        "eps_unit": unit,
        "penalty": penalty,
        "C": C,
        "path": [
            dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)
        ],
    }
    for file in files:
        if file.suffix == ".json":
            write_whole(file, lambda draft: draft.write_text(encoder.dumps(summary, indent=2)))
        elif file.suffix == ".png":
            _draw(file, columns, scale, summary)
        else:
            write_table(file, columns)
    if json:
        print(encoder.dumps(summary, indent=2))
        return
    console = Console(highlight=False)
    console.print(f"[dim]data[/]   {described(table)}", soft_wrap=True)
    console.print(f"[dim]model[/]  {type(template).__name__}, {norm}, eps in {UNIT_NAMES[unit]}\n", soft_wrap=True)
    console.print(_grid(columns, len(table.features)))
    if files:
        console.print(f"\n[dim]written: {escape(', '.join(map(str, files)))}[/]", soft_wrap=True)


UNIT_NAMES = {"std": "std of each feature", "raw": "units of the columns"}


def _grid(columns: dict[str, np.ndarray], d: int) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    rmse = "clean_accuracy" not in columns
    heads = ["eps", f"weights of {d:,}", "clean loss", "worst loss"] + ([] if rmse else ["clean acc.", "worst acc."])
    for head in heads:
        grid.add_column(head, justify="right", min_width=8)
    for row in range(len(columns["eps"])):
        cells = [f"{columns[name][row]:.4g}" for name in ("clean_loss", "worst_loss")]
        if not rmse:
            cells += [f"{columns[name][row]:.2%}" for name in ("clean_accuracy", "worst_accuracy")]
        grid.add_row(f"{columns['eps'][row]:.4g}", f"{columns['nonzero'][row]:,}", *cells)
    return grid


def _draw(file: Path, columns: dict[str, np.ndarray], scale: np.ndarray, summary: dict[str, Any]) -> None:
    import numpy as np

    from epsball.common.version import __version__
    from epsball.report.radii import draw_path

    named = [name for name in columns if name.startswith("weight:")]
    # In units of the radius: a weight times what eps = 1 is in its column, so that columns can be compared.
    weights = np.stack([columns[name] for name in named], 1) * np.tile(scale, len(named) // len(scale))
    note = (
        f"{Path(summary['data']).name}: {summary['rows']} rows, target {summary['target']}; {summary['loss']} loss, "
        f"{summary['norm']}; weights per {UNIT_SAID[summary['eps_unit']]}; epsball {__version__}"
    )
    accuracies = None
    if "clean_accuracy" in columns:
        accuracies = np.stack([columns["clean_accuracy"], columns["worst_accuracy"]])
    draw_path(
        file,
        columns["eps"],
        weights,
        [name.removeprefix("weight:") for name in named],
        losses=np.stack([columns["clean_loss"], columns["worst_loss"]]),
        accuracies=accuracies,
        unit=f"eps, in {UNIT_NAMES[summary['eps_unit']]}",
        note=note,
    )


UNIT_SAID = {"std": "standard deviation", "raw": "unit of the column"}
