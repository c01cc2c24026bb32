"""`epsball report`: what a run found, as a page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from epsball.common.errors import BadInput


def report(run: Path, /, *others: Path, out: Path | None = None, examples: int = 60) -> None:
    """Write the report of a run as one HTML file, or put several finished runs side by side in one.

    The file asks no one for anything: it can be sent, kept, and opened anywhere. With one run it goes into the run's
    directory, with a section for a model card (card.md) and the fields of a RobustBench entry (robustbench.json).

    Of a run that is not finished, also while it goes on, the report rests on the finished shards and says so on top.

    Parameters
    ----------
    run
        The directory of a run, the --out of `epsball evaluate`.
    others
        Directories of other runs, to be compared with the first.
    out
        The file to write. Default: report.html in the run's directory; with several runs comparison.html here.
    examples
        The most examples that the gallery of one run shows.
    """
    from epsball.evaluation.result import Evaluation
    from epsball.report.html import COMPARISON, write_comparison, write_report

    if out is not None and out.is_dir():
        raise BadInput(f"`--out` must be a file, got the directory {out}; as in {out / 'report.html'}")
    console = Console(highlight=False, emoji=False)
    if others:
        made = write_comparison([run, *others], out or Path(COMPARISON))
    else:
        found = Evaluation.load(run, partial=True)
        if found.unfinished is not None:
            console.print(f"[yellow]not finished:[/] {found.unfinished}")
        made = write_report(run, out, found=found, examples=examples)
    size = made.stat().st_size / 1e6
    console.print(f"report: {escape(str(made))} [dim]({size:.1f} MB)[/]", soft_wrap=True)
