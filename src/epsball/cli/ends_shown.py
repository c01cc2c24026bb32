"""What `epsball evaluate --certify` prints of its result: the stages, and both ends of the robust accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epsball.cli.common import percent
from epsball.common.printable import printable

if TYPE_CHECKING:
    from epsball.evaluation.result import Evaluation
    from epsball.evaluation.run_tables import Status
    from epsball.evaluation.stage_record import Stage

BAR = 40
"""Characters of a bar at 100 %."""
SHOWN = 5
"""Reasons why examples are undecided that are shown."""
APART: dict[Status, str] = {
    "invalid": "with logits that are not finite",
    "at-target": "at the target already",
    "exhausted": "whose query budget ran out",
}


def stage_table(*heads: str) -> Table:
    """An empty table of stages; its first column is the attack."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("attack", overflow="fold", min_width=12)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def stage_cost(stage: Stage) -> tuple[str, str]:
    """Model calls (a forward, with its backward where there is one) per attacked example, and seconds."""
    return f"{(stage.backwards or stage.forwards) / max(stage.attacked, 1):.1f}", f"{stage.seconds:.2f}"


def show_both_ends(found: Evaluation, console: Console) -> None:
    """Print the stages, the curve where there is one, and the robust accuracy from end to end."""
    table = stage_table("eps", "examples", "broken", "proved", "open", "calls/example", "seconds")
    clean, *stages = found.stages
    correct = round(found.clean_accuracy * len(found))
    table.add_row("none", "", f"{len(found):,}", "", "", f"{correct:,}", "1.0", f"{clean.seconds:.2f}")
    for stage in stages:
        left = stage.attacked - stage.fooled - stage.certified
        eps = "" if stage.eps is None else f"{stage.eps:.4g}"
        counts = (stage.attacked, stage.fooled, stage.certified, left)
        calls, seconds = stage_cost(stage)
        proves = stage.attack.startswith("certify-")
        table.add_row(stage.attack, eps, *(f"{count:,}" for count in counts), "" if proves else calls, seconds)
    console.print(table, "")
    ends = list(zip(found.certified_curve, found.curve, strict=True))
    if len(ends) > 1:
        for (eps, low), (_, high) in ends:
            proved, between = "▇" * round(BAR * low), "░" * (round(BAR * high) - round(BAR * low))
            console.print(f"eps {eps:<8.4g} {low:7.2%} to {high:7.2%}  [dim]{proved}{between}[/]")
        console.print()
    apart = [f"{found.count(status):,} {text}" for status, text in APART.items() if found.count(status)]
    stored = ", stored in 8 bits" if found.config["storage"]["x_adv"] == "8bit" else ""
    console.print(
        f"[bold]robust accuracy {found.certified_accuracy:.2%} to {found.robust_accuracy:.2%}[/], clean accuracy "
        f"{found.clean_accuracy:.2%}{stored}" + (f" ({', '.join(apart)})" if apart else "")
    )
    proved = round(found.certified_accuracy * len(found))
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim")
    rows.add_column(justify="right", no_wrap=True)
    rows.add_column(overflow="fold")
    rows.add_row(
        "proved",
        f"{proved:,}",
        f"at least {found.certified_accuracy:.2%} (95% interval {percent(found.certified_interval)})",
    )
    most = f"at most {found.robust_accuracy:.2%} are robust (95% interval {percent(found.interval)})"
    rows.add_row("broken", f"{found.count('fooled'):,}", most)
    rows.add_row("undecided", f"{found.undecided:,}", escape(printable(undecided(found))))
    console.print(rows)
    if only := found.certified_in_real_arithmetic:
        console.print(f"[dim]{only:,} of the proofs are of real arithmetic only: rounding may yet undo them.[/]")


def undecided(found: Evaluation) -> str:
    """Why examples are undecided, the most frequent reason first."""
    reasons = found.undecided_reasons
    if not reasons:
        return "both ends meet: no attack can find more"
    if len(reasons) == 1:
        return reasons[0][0]
    few = "; ".join(f"{count:,}: {reason}" for reason, count in reasons[:SHOWN])
    return few + (f"; and {len(reasons) - SHOWN:,} more reasons" if len(reasons) > SHOWN else "")
