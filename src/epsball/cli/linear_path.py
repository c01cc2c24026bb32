"""`epsball linear path`: robust linear models of a table over a range of radii."""

from __future__ import annotations

import json as encoder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from epsball.cli.common import Json
from epsball.cli.tabular import Rows, grid, print_json, print_lines
from epsball.common.atomic_files import write_whole
from epsball.common.checks import check_one_of
from epsball.linear.table_config import Names, PathConfig

if TYPE_CHECKING:
    from epsball.linear.table_fit import TablePath

UNITS = {"std": "std of each feature", "raw": "units of the columns"}
WEIGHT_UNITS = {"std": "standard deviation", "raw": "unit of the column"}

DEFAULT = PathConfig()


def path(
    *,
    rows: Rows,
    options: Annotated[PathConfig, Parameter(name="*")] = DEFAULT,
    out: Names = (),
    json: Json = False,
) -> None:
    """Fit a model at each of several radii: which weights survive, and what robustness costs.

    The radii fall from the least at which all weights are zero. All rows of the table are fitted, and losses and
    accuracies are measured on them.

    Parameters
    ----------
    out
        Files to write: .csv or .parquet (with all weights), .json, .png (a figure); several are possible.
    json
        Print everything as JSON on stdout.
    """
    files = [Path(name) for name in out]
    for file in files:
        check_one_of("out", file.suffix, (".csv", ".parquet", ".json", ".png"))
    from epsball.data.tables import write_table
    from epsball.linear.table_fit import fit_path

    found = fit_path(rows.read(), options)
    for file in files:
        if file.suffix == ".json":
            write_whole(file, lambda draft: draft.write_text(encoder.dumps(found.summary(), indent=2)))
        elif file.suffix == ".png":
            _draw(file, found)
        else:
            write_table(file, found.columns())
    if json:
        print_json(found.summary())
        return
    console = Console(highlight=False, emoji=False)
    model = f"{type(found.path.models[0]).__name__}, {options.norm}, eps in {UNITS[options.unit]}"
    print_lines(console, rows.described(found.table), ("model", model))
    console.print("", _radii(found), sep="\n")
    if files:
        console.print(f"\n[dim]written: {escape(', '.join(map(str, files)))}[/]", soft_wrap=True)


def _radii(found: TablePath) -> Grid:
    path, classifier = found.path, found.loss != "squared"
    heads = ["eps", f"weights of {len(found.table.features):,}", "clean loss", "worst loss"]
    table = grid(*heads, *(["clean acc.", "worst acc."] if classifier else []), justify="right", min_width=8)
    for row in range(len(path.eps)):
        cells = [f"{path.eps[row]:.4g}", f"{path.nonzero[row]:,}"]
        cells += [f"{column[row]:.4g}" for column in (path.clean_loss, path.worst_loss)]
        cells += [f"{column[row]:.2%}" for column in (path.clean_accuracy, path.worst_accuracy) if classifier]
        table.add_row(*cells)
    return table


def _draw(file: Path, found: TablePath) -> None:
    import numpy as np

    from epsball.common.version import __version__
    from epsball.report.radii import RadiusPath, draw_path

    path, table, options = found.path, found.table, found.config
    note = (
        f"{Path(table.name).name}: {len(table)} rows, target {table.target}; {found.loss} loss, {options.norm}; "
        f"weights per {WEIGHT_UNITS[options.unit]}; epsball {__version__}"
    )
    shown = RadiusPath(
        eps=path.eps,
        # In units of the radius, so that columns can be compared.
        weights=(path.coef * found.scale).reshape(len(path.eps), -1),
        names=[f"{label}{name}" for label in found.classes for name in table.features],
        losses=np.stack([path.clean_loss, path.worst_loss]),
        accuracies=None if found.loss == "squared" else np.stack([path.clean_accuracy, path.worst_accuracy]),
        unit=f"eps, in {UNITS[options.unit]}",
        note=note,
    )
    draw_path(shown, file)
