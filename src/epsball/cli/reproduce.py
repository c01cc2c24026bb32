"""`epsball reproduce`: published experiments made again, the paper's figures beside ours."""

from __future__ import annotations

import json as encoder
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epsball.cli.common import Json, described, progress
from epsball.files import write_whole
from epsball.reproduce.budget import Budget

if TYPE_CHECKING:
    from epsball.reproduce.record import Reproduction

reproduce = App(name="reproduce", help="Make published experiments again, the paper's figures beside ours.")


@reproduce.command
def goodfellow2015(
    *,
    only: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    data: str | None = None,
    out: Path = Path("goodfellow2015"),
    json: Json = False,
    budget: Annotated[Budget, Parameter(name="*")] = Budget(),  # noqa: B008 - it is frozen
) -> None:
    """Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples" (ICLR 2015).

    Writes OUT/EXPERIMENT.png and OUT/EXPERIMENT.json for each experiment: threes-sevens (logistic regression), and with
    maxout networks, trained once for all three: training (clean and adversarial), controls (noise instead), transfer.

    Parameters
    ----------
    only
        The experiments to run. Default: all.
    data
        MNIST: a folder of parquet files with the splits train and test, or a Hugging Face datasets name. Default:
        $EPSBALL_DATA/mnist where it is there, else scikit-learn's digits in its place.
    out
        The directory to write to.
    json
        Print the figures as JSON on stdout.
    budget
        How much is spent on the maxout networks.
    """
    from epsball.reproduce.goodfellow2015 import EXPERIMENTS, PAPER, Nets, chosen, mnist

    names, errors, found = chosen(only or ()), Console(stderr=True, highlight=False), {}
    with progress(errors) as bar:
        task = bar.add_task("reading the data", total=None, note="")
        nets = Nets(mnist(data), budget)
        for name in names:
            bar.update(task, description=name)
            found[name] = EXPERIMENTS[name](
                nets, on_progress=lambda done, total, now: bar.update(task, completed=done, total=total, note=now)
            )
            text = found[name].to_json()
            write_whole(out / f"{name}.json", partial(Path.write_text, data=text))
            found[name].draw(out / f"{name}.png")
    if json:
        figures = {name: record.summary() for name, record in found.items()}
        print(encoder.dumps({"paper": PAPER, "experiments": figures, "out": str(out)}, indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(f"[dim]paper[/]  {PAPER}")
    console.print(f"[dim]data[/]   {described(nets.source.test)}", soft_wrap=True)
    for name, record in found.items():
        console.print(f"\n[bold]{escape(record.title)}[/]")
        console.print(_table(record))
        for note in record.notes:
            console.print(f"[dim]{escape(note)}[/]")
        console.print(f"[dim]written: {out / name}.png, {out / name}.json[/]", soft_wrap=True)


def _table(record: Reproduction) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for head in record.heads:
        table.add_column(escape(head), justify="right", min_width=9)
    for line in record.lines:
        said = ("-" if value is None else f"{value:.3g}" if line.published else f"{value:.2f}" for value in line.values)
        table.add_row(escape(line.said), *said, style="bold" if line.published else "")
    return table
