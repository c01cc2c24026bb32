"""`epsball compare`: two runs side by side, example by example."""

from __future__ import annotations

import json as encoder
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epsball.cli.common import Json, finite, percent

if TYPE_CHECKING:
    from epsball.evaluation.compare import Comparison

SHOWN = 8


def compare(a: Path, b: Path, /, *, json: Json = False) -> None:
    """Put two runs on the same examples side by side: two models under one test, or two tests of one model.

    Intervals are Wilson's; that of the difference is Newcombe's (1998, method 10); the test is McNemar's, exact.

    Parameters
    ----------
    a
        The directory of a run.
    b
        The directory of another.
    json
        Print the figures, with the ids that differ, as JSON on stdout.
    """
    from epsball.evaluation.compare import compare as library_compare

    found = library_compare(a, b)
    if json:
        print(encoder.dumps(finite(found.summary()), indent=2, allow_nan=False))
        return
    _report(found)


def _report(found: Comparison) -> None:
    console = Console(highlight=False, emoji=False)
    console.print(f"[dim]A[/] {escape(found.a)}", soft_wrap=True)
    console.print(f"[dim]B[/] {escape(found.b)}", soft_wrap=True)
    if found.differ:
        console.print(f"[yellow]they differ in[/] {', '.join(found.differ)}")
    if left := [f"{count:,} of {name}" for name, count in (("A", found.left_out_a), ("B", found.left_out_b)) if count]:
        console.print(f"[yellow]left out[/] {', '.join(left)}: examples that not both attack")
    console.print()
    low, high = found.difference_interval
    shares = Table(box=None, pad_edge=False, header_style="dim")
    shares.add_column(f"{found.n:,} examples")
    certified = [found.certified_a, found.certified_b]
    proved = ["" if share is None else f"{share:.2%}" for share in certified]
    for head in ("robust accuracy", "95% interval", *["proved"] * any(proved)):
        shares.add_column(head, justify="right")
    shares.add_row("A", f"{found.accuracy_a:.2%}", percent(found.interval_a), *proved[:1] * any(proved))
    shares.add_row("B", f"{found.accuracy_b:.2%}", percent(found.interval_b), *proved[1:] * any(proved))
    shares.add_row("B - A", f"{100 * found.difference:+.2f} points", f"{100 * low:+.1f} to {100 * high:+.1f}")
    console.print(shares, "")
    pairs = Table(box=None, pad_edge=False, header_style="dim")
    pairs.add_column("")
    for head in ("robust in B", "not in B"):
        pairs.add_column(head, justify="right")
    pairs.add_row("[dim]robust in A[/]", f"{found.both:,}", f"{found.only_a:,}")
    pairs.add_row("[dim]not in A[/]", f"{found.only_b:,}", f"{found.neither:,}")
    console.print(pairs, "")
    for name, ids in (("A", found.ids_only_a), ("B", found.ids_only_b)):
        if ids:
            few = ", ".join(map(str, ids[:SHOWN])) + (f" and {len(ids) - SHOWN:,} more" if len(ids) > SHOWN else "")
            console.print(f"[dim]robust in {name} only:[/] id {few}")
    console.print(f"[bold]{escape(found.sentence)}[/]")
    console.print(f"[dim]exact McNemar test: p = {found.p_value:.2g}[/]")
