"""`epsball reproduce`: published experiments, reproduced, the paper's figures beside ours."""

from __future__ import annotations

import json as encoder
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epsball.cli.common import Json, described, progress
from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.reproduce.budget import Budget

if TYPE_CHECKING:
    from epsball.reproduce.reproduction import Figures, Reproduction

reproduce = App(name="reproduce", help="Reproduce published experiments, the paper's figures beside ours.")


@reproduce.command
def goodfellow2015(
    *,
    only: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    data: str | None = None,
    cifar: str | None = None,
    out: Path = Path("goodfellow2015"),
    json: Json = False,
    budget: Annotated[Budget, Parameter(name="*")] = Budget(),  # noqa: B008 - it is frozen
) -> None:
    """Goodfellow, Shlens and Szegedy, "Explaining and Harnessing Adversarial Examples" (ICLR 2015).

    Writes OUT/index.html, one page with every published figure beside ours, and OUT/EXPERIMENT.png and .json for each
    experiment: threes-sevens (logistic regression), shallow (softmax regression, RBF network), cifar (colour images),
    and with maxout networks, trained once for all: training (clean and adversarial), controls (noise instead),
    transfer, along (figure 4), agreement (on the wrong class), ensemble, rubbish (noise that is called a class).

    Parameters
    ----------
    only
        The experiments to run. Default: all.
    data
        MNIST: a folder of parquet files with the splits train and test, or a Hugging Face datasets name. Default:
        $EPSBALL_DATA/mnist where it is there, else scikit-learn's digits in its place.
    cifar
        CIFAR-10, likewise. Default: $EPSBALL_DATA/cifar10; without it the experiment cifar is left out.
    out
        The directory to write to.
    json
        Print the figures as JSON on stdout.
    budget
        How much is spent on the networks.
    """
    from epsball.reproduce.goodfellow2015 import EXPERIMENTS, PAPER, chosen, cifar10, mnist, networks
    from epsball.reproduce.page import PAGE, write_page
    from epsball.reproduce.plots.draw import draw
    from epsball.reproduce.reproduction import Missing, shared_notes

    names, errors, began = chosen(only or ()), Console(stderr=True, highlight=False, emoji=False), time.perf_counter()
    if out.exists() and not out.is_dir():
        raise BadInput(f"`--out` must be a directory, got the file {out}; name another")
    found: dict[str, Reproduction] = {}
    left_out: dict[str, str] = {}
    with progress(errors) as bar:
        task = bar.add_task("reading the data", total=None, note="")
        nets = networks(mnist(data), cifar10(cifar) if "cifar" in names else None, budget)
        for name in names:
            bar.update(task, description=name)
            try:
                record = EXPERIMENTS[name](
                    nets, on_progress=lambda done, total, now: bar.update(task, completed=done, total=total, note=now)
                )
            except Missing as reason:
                if only:
                    raise
                left_out[name] = str(reason)
                continue
            found[name] = record
            write_whole(out / f"{name}.json", partial(Path.write_text, data=record.to_json()))
            draw(record, out / f"{name}.png")
            command = shlex.join(["epsball", *sys.argv[1:]])  # the page is whole after each, as the rest may take days
            write_page(found, out, paper=PAPER, command=command, seconds=time.perf_counter() - began, left_out=left_out)
    if json:
        figures = {name: record.summary() for name, record in found.items()}
        result = {"paper": PAPER, "experiments": figures, "left_out": left_out, "out": str(out)}
        print(encoder.dumps(result, indent=2, allow_nan=False))
        return
    console, shared = Console(highlight=False, emoji=False), shared_notes(found.values())
    console.print(f"[dim]paper[/]  {PAPER}")
    console.print(f"[dim]data[/]   {described(nets.source.test)}", soft_wrap=True)
    for name, record in found.items():
        console.print(f"\n[bold]{escape(record.title)}[/] [dim]({name})[/]")
        console.print(_table(record))
        for note in record.notes:
            if note not in shared:
                console.print(f"[dim]{escape(note)}[/]")
    console.print()
    for note in shared:
        console.print(f"[dim]{escape(note)}[/]")
    for name, reason in left_out.items():
        console.print(f"\n[yellow]left out: {name}.[/] {escape(reason)}")
    console.print(f"\n[dim]written: {escape(str(out / PAGE))}[/]", soft_wrap=True)


def _table(record: Reproduction) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for column in record.columns:
        table.add_column(escape(column), justify="right", min_width=9)
    for line in record.lines:
        if line.ours is not None:
            table.add_row(escape(line.label), *_figures(line.ours, ".2f"))
        if line.paper is not None:
            label = f"  {line.source}" if line.ours is not None else f"{line.label} ({line.source})"
            table.add_row(escape(label), *_figures(line.paper, ".4g"), style="bold")
    return table


def _figures(values: Figures, form: str) -> list[str]:
    return ["-" if value is None else format(value, form) for value in values]
