"""What `epsball train` prints: its progress on stderr, the result, and the list of objectives."""

from __future__ import annotations

import json as encoder
import shlex
from collections.abc import Mapping, Sequence
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
    from epsball.training.fit_result import FitResult, Progress


class ProgressDisplay:
    """The progress of a training: a bar, a line for each epoch, and the events."""

    def __init__(self, bar: Bar, epochs: int) -> None:
        self.bar, self.epochs = bar, epochs
        self.task = bar.add_task("training", total=None, note="")
        self.losses: list[float] = []
        self.last: Progress | None = None
        self.last_event = 0

    def __call__(self, now: Progress) -> None:
        if self.last is not None and now.epoch != self.last.epoch:
            self.end_epoch()
        self.last = now
        self.losses.append(now.loss)
        note = f"lr {now.lr:.1e}"
        if (check := now.check) is not None:
            note += f" clean {check.clean:.0%}" + ("" if check.pgd is None else f" PGD {check.pgd:.0%}")
            if check.event and check.step > self.last_event:
                self.last_event = check.step
                self.bar.console.print(f"[yellow]epoch {check.epoch}:[/] {escape(check.event)}", soft_wrap=True)
        description = f"epoch {now.epoch}/{now.epochs} loss {now.loss:.3f}"
        self.bar.update(self.task, completed=now.step, total=now.steps, description=description, note=note)

    def end_epoch(self) -> None:
        """Print a line that stays."""
        if self.last is None:
            return
        line = f"epoch {self.last.epoch} of {self.epochs}: loss {sum(self.losses) / len(self.losses):.4f}"
        check = self.last.check
        if check is not None and check.epoch == self.last.epoch:
            shares = {label: getattr(check, name) for name, label in ATTACKS.items()}
            line += "".join(f", {label} {share:.1%}" for label, share in shares.items() if share is not None)
        self.bar.console.print(line, style="dim", soft_wrap=True)
        self.losses.clear()


def report(
    options: Mapping[str, Any],
    examples: Examples,
    result: FitResult,
    accuracies: Sequence[Accuracies],
    next_command: list[str],
) -> None:
    """Print what was trained on what, the accuracies, where the model is, and what to type next."""
    console, spec = Console(highlight=False, emoji=False), options["spec"]
    start = options["weights"] or (options["model"] if options["model"] != spec else "")
    lines = {
        "model": f"{spec}, {result.config['parameters']:,} parameters" + (f", begun with {start}" if start else ""),
        "data": described(examples),
        "ball": options["ball"],
        "objective": options["objective"],
    }
    for name, text in lines.items():
        console.print(f"[dim]{name:<9}[/] {escape(text)}", soft_wrap=True)
    if accuracies:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("accuracy")
        table.add_column("examples", justify="right")
        for label in ATTACKS.values():
            table.add_column(label, justify="right", min_width=7)
        for part in accuracies:
            shares = (getattr(part, name) for name in ATTACKS)
            cells = ("" if share is None else f"{share:.2%}" for share in shares)
            table.add_row(part.on, f"{part.examples:,}", *cells)
        console.print("", table)
    epochs = len(result.epochs)
    best = "" if result.best is None else f"; the weights are those of epoch {result.best.epoch}, the best held out"
    console.print(f"\n{epochs} {'epoch' if epochs == 1 else 'epochs'} in {_duration(result.seconds)}{best}")
    for check in result.checks:
        if check.event:
            console.print(f"[yellow]epoch {check.epoch}:[/] {escape(check.event)}", soft_wrap=True)
    console.print(f"[dim]the model, and its card:[/] {escape(str(options['out']))}", soft_wrap=True)
    console.print(f"[dim]next:[/] {escape(shlex.join(next_command))}", soft_wrap=True)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def list_objectives(json: bool) -> None:
    """Print the objectives, a line each."""
    from epsball.training.registry import OBJECTIVES, objective_class, options_of

    classes = {name: objective_class(name) for name in OBJECTIVES}
    objectives = {
        name: {"summary": (cls.__doc__ or "").partition("\n")[0], "options": options_of(cls)}
        for name, cls in classes.items()
    }
    if json:
        print(encoder.dumps({"objectives": objectives}, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("objective", no_wrap=True)
    table.add_column("what it minimises", overflow="fold")
    table.add_column("options", no_wrap=True)
    for name, entry in objectives.items():
        options = "\n".join(f"{key}={value}" for key, value in entry["options"].items())
        table.add_row(name, escape(entry["summary"]), escape(options))
    console = Console(highlight=False, emoji=False)
    console.print(table)
    console.print("\n[dim]Options are written as in --objective fgsm-mix:alpha=0.7,batch_norm=clean[/]")
