"""`epsball report`: what a run found, as a page."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from epsball.common.errors import BadInput


def report(run: Path, /, *others: Path, out: Path | None = None, examples: int = 60) -> None:
    """Write the report of a finished run as one HTML file, or put several runs side by side in one.

    The file asks no one for anything: it can be sent, kept, and opened anywhere. With one run it goes into the run's
    directory, with a section for a model card (card.md) and the fields of a RobustBench entry (robustbench.json).

    Parameters
    ----------
    run
        The directory of a finished run, the --out of `epsball evaluate`.
    others
        Directories of other runs, to be compared with the first.
    out
        The file to write. Default: report.html in the run's directory; with several runs comparison.html here.
    examples
        The most examples that the gallery of one run shows.
    """
    from epsball.report.html import COMPARISON, write_comparison, write_report

    if out is not None and out.is_dir():
        raise BadInput(f"`--out` must be a file, got the directory {out}; as in {out / 'report.html'}")
    if others:
        made = write_comparison([run, *others], out or Path(COMPARISON))
    else:
        made = write_report(run, out, examples=examples)
    size = made.stat().st_size / 1e6
    Console(highlight=False, emoji=False).print(f"report: {escape(str(made))} [dim]({size:.1f} MB)[/]", soft_wrap=True)
