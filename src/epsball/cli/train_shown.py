"""What `epsball train` shows: its progress on stderr, the result, and the objectives there are."""

from __future__ import annotations

import json as encoder
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.table import Table

from epsball.cli.common import described
from epsball.models.card import ATTACKS

if TYPE_CHECKING:
    from epsball.data.examples import Examples
    from epsball.models.model_record import Accuracies
    from epsball.training.record import FitResult, Progress


class Shown:
    """The progress of a training: a bar, a line for each epoch, and what happened to it."""

    def __init__(self, bar: Bar, epochs: int) -> None:
        self.bar, self.epochs = bar, epochs
        self.task = bar.add_task("training", total=None, note="")
        self.losses: list[float] = []
        self.last: Progress | None = None
        self.told = 0

    def __call__(self, at: Progress) -> None:
        if self.last is not None and at.epoch != self.last.epoch:
            self.epoch_ends()
        self.last = at
        self.losses.append(at.loss)
        note = f"lr {at.rate:.1e}"
        if (check := at.check) is not None:
            note += f" clean {check.clean:.0%}" + ("" if check.pgd is None else f" PGD {check.pgd:.0%}")
            if check.event and check.step > self.told:
                self.told = check.step
                self.bar.console.print(f"[yellow]epoch {check.epoch}:[/] {escape(check.event)}", soft_wrap=True)
        said = f"epoch {at.epoch}/{at.epochs} loss {at.loss:.3f}"
        self.bar.update(self.task, completed=at.step, total=at.steps, description=said, note=note)

    def epoch_ends(self) -> None:
        """A line that stays."""
        if self.last is None:
            return
        said = f"epoch {self.last.epoch} of {self.epochs}: loss {sum(self.losses) / len(self.losses):.4f}"
        check = self.last.check
        if check is not None and check.epoch == self.last.epoch:
            shares = {said: getattr(check, name) for name, said in ATTACKS.items()}
            said += "".join(f", {name} {share:.1%}" for name, share in shares.items() if share is not None)
        self.bar.console.print(said, style="dim", soft_wrap=True)
        self.losses.clear()


def report(
    asked: dict[str, Any],
    spec: str,
    examples: Examples,
    result: FitResult,
    found: list[Accuracies],
    out: Path,
    following: list[str],
) -> None:
    """The result of a training: what was trained on what, the accuracies, where it is, and what to type next."""
    console, config = Console(highlight=False), result.config
    began = f", begun with {asked['weights'] or asked['model']}" if asked["weights"] or asked["model"] != spec else ""
    told = {
        "model": f"{spec}, {config['parameters']:,} parameters{began}",
        "data": described(examples),
        "ball": asked["ball"],
        "objective": asked["objective"],
    }
    for name, said in told.items():
        console.print(f"[dim]{name:<9}[/] {escape(said)}", soft_wrap=True)
    if found:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("accuracy")
        table.add_column("examples", justify="right")
        for said in ATTACKS.values():
            table.add_column(said, justify="right", min_width=7)
        for part in found:
            shares = (getattr(part, name) for name in ATTACKS)
            cells = ("" if share is None else f"{share:.2%}" for share in shares)
            table.add_row(part.on, f"{part.examples:,}", *cells)
        console.print("", table)
    ended = len(result.epochs)
    best = "" if result.best is None else f"; the weights are those of epoch {result.best.epoch}, the best held out"
    console.print(f"\n{ended} {'epoch' if ended == 1 else 'epochs'} in {_time(result.seconds)}{best}")
    events = [check for check in result.checks if check.event]
    for check in events:
        console.print(f"[yellow]epoch {check.epoch}:[/] {escape(check.event)}", soft_wrap=True)
    console.print(f"[dim]the model, and its card:[/] {escape(str(out))}", soft_wrap=True)
    console.print(f"[dim]next:[/] {escape(shlex.join(following))}", soft_wrap=True)


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def list_objectives(json: bool) -> None:
    """The objectives, a line each."""
    from epsball.training.registry import OBJECTIVES, objective_class, options_of

    listed = {}
    for name in OBJECTIVES:
        cls = objective_class(name)
        listed[name] = {"summary": (cls.__doc__ or "").partition("\n")[0], "options": options_of(cls)}
    if json:
        print(encoder.dumps({"objectives": listed}, indent=2))
        return
    table: Any = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("objective", no_wrap=True)
    table.add_column("what it minimises", overflow="fold")
    table.add_column("options", no_wrap=True)
    for name, entry in listed.items():
        options = "\n".join(f"{key}={value}" for key, value in entry["options"].items())
        table.add_row(name, escape(entry["summary"]), escape(options))
    console = Console(highlight=False)
    console.print(table)
    console.print("\n[dim]Options are written as in --objective fgsm-mix:alpha=0.7,batch_norm=clean[/]")
