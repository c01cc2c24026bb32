"""`epsball attack`: the adversarial set, and a sheet to look at."""

from __future__ import annotations

import json as encoder
from pathlib import Path

from rich.console import Console

from epsball.cli.common import Json, Subject, described, progress


def attack(
    *,
    subject: Subject = Subject(),  # noqa: B008 - it is frozen
    attack: str = "pgd",
    target: int | None = None,
    out: Path = Path("adversarial"),
    rows: int = 5,
    json: Json = False,
) -> None:
    """Write adversarial examples and a PNG sheet: image, sign of the gradient, adversarial image.

    OUT/adversarial.parquet has a row per example (id, label, predictions, confidences, x_adv) and loads with
    `datasets`; OUT/sheet.png shows the first that fool.

    Parameters
    ----------
    attack
        A name of `epsball attacks`, with options as in pgd:steps=100,restarts=5.
    target
        Drive every example towards this class instead of away from its own. Examples of this class are left out.
    out
        The directory to write to.
    rows
        Examples on the sheet; 0 for none.
    json
        Print the figures as JSON on stdout.
    """
    from epsball.attacks.registry import parse
    from epsball.cli.allocator import keep_memory
    from epsball.evaluation.adversarial_set import make
    from epsball.report.adversarial_sheet import draw_adversarial_set

    keep_memory()
    chosen = parse(attack)
    errors = Console(stderr=True, highlight=False, emoji=False)
    examples = subject.examples()
    ball = subject.ball_for(examples)
    model, origin = subject.network(examples, None, errors)
    with progress(errors) as bar:
        task = bar.add_task(attack, total=len(examples), note="")
        made = make(
            model,
            examples,
            ball,
            chosen,
            target=target,
            seed=subject.seed,
            batch_size=subject.batch_size,
            on_progress=lambda done: bar.update(task, completed=done),
        )
    made.save(out / "adversarial.parquet")
    pictured = rows > 0 and len(examples.shape) in (2, 3) and made.direction is not None
    if pictured:
        draw_adversarial_set(made, out / "sheet.png", rows=rows, ball=subject.ball)
    if json:
        print(encoder.dumps(made.summary() | {"out": str(out)}, indent=2))
        return
    console = Console(highlight=False, emoji=False)
    console.print(f"[dim]model[/]  {origin}", soft_wrap=True)
    console.print(f"[dim]data[/]   {described(examples)}", soft_wrap=True)
    console.print(f"[dim]ball[/]   {subject.ball}\n")
    console.print(f"accuracy {made.clean_accuracy:.2%} before, [bold]{made.accuracy:.2%} after[/] {attack}")
    console.print(
        f"[dim]written: {out / 'adversarial.parquet'}{f', {out}/sheet.png' if pictured else ''}[/]", soft_wrap=True
    )
