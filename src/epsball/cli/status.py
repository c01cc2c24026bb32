"""`epsball status`: how far a run is."""

from __future__ import annotations

import json as encoder
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epsball.cli.common import Json, finite, percent
from epsball.common.printable import printable
from epsball.data.bad_row import counted_bad_rows

if TYPE_CHECKING:
    from epsball.evaluation.status import RunStatus, ShardInWork

SHOWN = 5
"""Shards in work, and rows that cannot be used, that are shown."""


def status(run: Path, /, *, json: Json = False) -> int:
    """Say what of a run is done, what is missing, the result so far and the time left, at any moment.

    It reads the run's directory only, also while `epsball evaluate` writes there, on this machine or another.

    Exits with 0 where the run is finished, with 1 where it is not, with 2 where there is no run.

    Parameters
    ----------
    run
        The directory of a run, the --out of `epsball evaluate`.
    json
        Print everything as JSON on stdout.
    """
    from epsball.evaluation.status import run_status

    found = run_status(run)
    if json:
        print(encoder.dumps(finite(found.summary()), indent=2, allow_nan=False))
    else:
        _report(found)
    return int(found.state != "finished")


def _report(found: RunStatus) -> None:
    console = Console(highlight=False, emoji=False)
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(overflow="fold")
    share = f" ({found.done / found.n:.1%})" if found.n else ""
    rows = [
        ("run", found.path),
        ("data", f"{found.name}: {found.n:,} examples"),
        ("state", _state(found)),
        ("done", f"{found.done:,} of {found.n:,} examples{share}, {found.shards_done:,} of {found.shards:,} shards"),
        ("speed", _speed(found)),
        *(("in work", _shard(shard)) for shard in found.in_work[:SHOWN]),
    ]
    if len(found.in_work) > SHOWN:
        rows.append(("", f"and {len(found.in_work) - SHOWN:,} more shards: --json lists all"))
    if found.bad:
        rows.append(("bad", counted_bad_rows(found.bad)))
        rows += [("", f"{row.name}: {row.reason}") for row in found.bad[:SHOWN]]
    if len(found.bad) > SHOWN:
        rows.append(("", f"and {len(found.bad) - SHOWN:,} more: --json lists all"))
    for name, text in rows:
        lines.add_row(name, escape(printable(text)))
    console.print(lines, "", _result(found), sep="\n")


def _state(found: RunStatus) -> str:
    if found.holder is not None:
        checks = ": the checks after the attacks" if found.shards_done == found.shards else ""
        return f"running{checks}, by {found.holder.sentence}"
    if found.state == "finished":
        return "finished"
    return "not finished, and no process that is seen here works on it; the command that began it resumes it"


def _speed(found: RunStatus) -> str:
    if found.rate is None:
        return f"unknown: {_nothing(found)}"
    how = "since that process began" if found.rate_from == "files" else "of one worker, by the last stages' seconds"
    rate = f"{found.rate:,.0f}" if found.rate >= 100 else f"{found.rate:.3g}"
    speed = f"{rate} examples/s ({how})"
    if found.state == "finished" or not found.seconds_left:
        return speed
    left = "time left" if found.rate_from == "files" else "time left for one worker"
    return f"{speed}; {left} {duration(found.seconds_left)}"


def duration(seconds: float) -> str:
    """A time for people, rounded up: seconds up to two minutes, minutes up to two hours, hours and minutes.

    >>> duration(7.2), duration(600), duration(10_000)
    ('8 s', '10 min', '2 h 47 min')
    """
    if seconds <= 120:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes <= 120 else f"{minutes // 60:,} h {minutes % 60:02d} min"


def _shard(shard: ShardInWork) -> str:
    done = f"{', '.join(shard.done)} done" if shard.done else "nothing done"
    return f"shard {shard.shard}: {done}" + (f"; {', '.join(shard.to_come)} to come" if shard.to_come else "")


def _nothing(found: RunStatus) -> str:
    """Why no figure is known."""
    return "no row of the finished shards could be used" if found.shards_done else "no shard is finished"


def _result(found: RunStatus) -> str:
    if found.so_far is None:
        return f"[dim]No result yet: {_nothing(found)}.[/]"
    so_far, far = found.so_far, "" if found.finished else " so far"
    if so_far.median_distance is None:
        result = f"robust accuracy{far} {so_far.robust_accuracy:.2%}[/] (95% interval {percent(so_far.interval)})"
    else:
        result = f"median distance{far} {so_far.median_distance:.4g}[/]"
    if so_far.certified_accuracy is not None:
        result = f"robust accuracy{far} {so_far.certified_accuracy:.2%} to {so_far.robust_accuracy:.2%}[/]"
        result += f" ({so_far.undecided:,} undecided)"
    text = f"[bold]{result}, clean accuracy {so_far.clean_accuracy:.2%}, on {so_far.n:,} examples"
    order = "The finished shards are no random sample where the data are in an order, as by class."
    return text if found.finished else f"{text}\n[dim]{order}[/]"
