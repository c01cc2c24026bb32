"""What `epsball evaluate --min-norm` prints: how far the boundary is, and whether other attacks find it nearer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from epsball.evaluation.result import Evaluation

WIDTH = 40


def show_distances(found: Evaluation, console: Console) -> None:
    """The stages, the quantiles of the distances, and what the attacks of one radius had to add."""
    planned = {stage["name"]: stage for stage in found.config["stages"]}
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage", overflow="fold", min_width=12)
    for head in ("within", "examples", "nearer", "passes/example", "seconds"):
        table.add_column(head, justify="right", no_wrap=True)
    wrong = f"{len(found) - round(found.clean_accuracy * len(found)):,}"
    table.add_row("clean", "", f"{len(found):,}", wrong, "", f"{found.stages[0].seconds:.2f}")
    checked, improved = 0, 0
    for stage in found.stages[1:]:
        asked = planned[stage.name]
        within = "" if asked["minimises"] else f"{asked['within']:.0%}" if asked["within"] else f"{stage.eps:.4g}"
        if not asked["minimises"]:
            checked, improved = checked + stage.attacked, improved + stage.fooled
        passes = (stage.backwards or stage.forwards) / max(stage.attacked, 1)
        counts = (f"{stage.attacked:,}", f"{stage.fooled:,}", f"{passes:.1f}", f"{stage.seconds:.2f}")
        table.add_row(stage.attack, within, *counts)
    console.print(table, "")
    driven = "are wrong" if found.config["target"] is None else "reach the target"
    for share, distance in found.quantiles():
        left = "" if math.isinf(distance) else "▇" * round(WIDTH * (1 - share))
        console.print(f"{share:4.0%} {driven} within {distance:<9.4g} [dim]{left}[/]")
    console.print()
    (_, median), *_ = found.quantiles((0.5,))
    norm = found.config["norms"][found.config["ball"]["norm"]]
    kept = ", stored in 8 bits" if found.config["storage"]["x_adv"] == "8bit" else ""
    console.print(f"[bold]median distance {median:.4g}[/] ({norm}), clean accuracy {found.clean_accuracy:.2%}{kept}")
    if len(found.curve) > 1 or math.isfinite(found.curve[0][0] or math.inf):
        for eps, accuracy in found.curve:
            console.print(f"robust accuracy at {eps:<8.4g} {accuracy:7.2%}")
    if left := found.count("robust"):
        kept = found.config["storage"]["x_adv"] == "8bit" or found.config["source"] is not None
        why = "" if kept else ": is the model masking gradients?"
        console.print(f"[yellow]no adversarial point at any distance for {left:,}{why}[/]")
    if checked and improved:
        said = f"attacks of one radius found nearer points {improved:,} times in {checked:,} looks; they stand"
        console.print(f"[yellow]{said}[/]")
    elif checked:
        console.print(f"[dim]attacks of one radius found nothing nearer in {checked:,} looks[/]")
