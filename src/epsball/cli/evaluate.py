"""`epsball evaluate`: the verdict."""

from __future__ import annotations

import json as encoder
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from epsball.cli.common import Json, Subject, described, progress
from epsball.errors import BadInput

if TYPE_CHECKING:
    from epsball.evaluation import Evaluation, Status


def evaluate(
    *,
    subject: Subject = Subject(),  # noqa: B008 - it is frozen
    attacks: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = ("fgsm", "pgd"),
    eps: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    target: int | None = None,
    out: Path | None = None,
    json: Json = False,
    fail_under: float | None = None,
) -> int:
    """Measure the robustness of a classifier: how much of its accuracy is left in the worst point of each ball?

    With no argument it runs on scikit-learn's digits and a small network that is trained on the spot.

    Parameters
    ----------
    attacks
        Attacks in the order they are run, each on the examples that still stand: names of `epsball attacks`, with
        options as in pgd:steps=100,starts=5.
    eps
        Several radii instead of the ball's one: the robustness curve.
    target
        Drive every example towards this class instead of away from its own.
    out
        A directory for records and adversarial examples; an interrupted run goes on from there.
    json
        Print the verdict as JSON on stdout.
    fail_under
        Exit with 1 when the robust accuracy is below this share (0 to 1).
    """
    import epsball
    from epsball.attacks import parse
    from epsball.balls import parse_radius
    from epsball.cli.allocator import keep_memory

    if fail_under is not None and not 0 <= fail_under <= 1:
        raise BadInput(f"`--fail-under` must be a share from 0 to 1, got {fail_under}; write 0.5 for 50 %")
    keep_memory()
    for attack in attacks:  # a typo is said before the network is trained
        parse(attack)
    radii = None if eps is None else [parse_radius(radius) for radius in eps]
    errors = Console(stderr=True, highlight=False)
    examples = subject.examples(limit=subject.limit)
    ball = subject.ball_for(examples)
    try:
        model, origin = subject.network(examples, out, errors)
        with progress(errors) as bar:
            task = bar.add_task("", total=len(examples), note="")
            found = epsball.evaluate(
                model,
                examples,
                ball,
                attacks,
                eps=radii,
                target=target,
                seed=subject.seed,
                width=subject.width,
                run_dir=out,
                on_progress=lambda at: bar.update(
                    task, description=at.stage, completed=at.done, note=f"{at.standing:,} standing"
                ),
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*([out] if out else [])) from None
    if json:
        print(encoder.dumps(_finite(found.summary()), indent=2, allow_nan=False))
    else:
        _report(
            found, origin, described(examples), subject.ball if eps is None else subject.ball.partition(":")[0], out
        )
    return int(fail_under is not None and not found.robust_accuracy >= fail_under)


def _report(found: Evaluation, origin: str, data: str, ball: str, out: Path | None) -> None:
    console = Console(highlight=False)
    console.print(f"[dim]model[/]  {origin}", soft_wrap=True)
    console.print(f"[dim]data[/]   {data}", soft_wrap=True)
    console.print(f"[dim]ball[/]   {ball}\n")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    for head in ("eps", "examples", "fell", "standing", "passes/example", "seconds"):
        table.add_column(head, justify="right")
    standing = found.count("robust") + found.count("fooled")
    correct = round(found.clean_accuracy * len(found))
    table.add_row("clean", "", f"{len(found):,}", f"{len(found) - correct:,}", f"{correct:,}", "", _seconds(found, 0))
    for number, stage in enumerate(found.stages[1:], start=1):
        standing -= stage.fooled
        passes = (stage.backwards or stage.forwards) / max(stage.attacked, 1)
        eps = "" if stage.eps is None else f"{stage.eps:.4g}"
        cells = (f"{stage.attacked:,}", f"{stage.fooled:,}", f"{standing:,}", f"{passes:.1f}")
        table.add_row(stage.attack, eps, *cells, _seconds(found, number))
    console.print(table)
    apart = [f"{found.count(status):,} {text}" for status, text in APART.items() if found.count(status)]
    console.print()
    if len(found.curve) > 1:
        for eps, accuracy in found.curve:
            console.print(f"eps {eps:<8.4g} {accuracy:7.2%}  [dim]{'▇' * round(40 * accuracy)}[/]")
        console.print()
    asked = found.count("robust") + found.count("fooled")
    verdict = f"robust accuracy {found.robust_accuracy:.2%}"
    if found.config["target"]:
        verdict = f"not driven to the target: {found.robust_accuracy:.2%} of {asked:,}"
    console.print(f"[bold]{verdict}[/], clean {found.clean_accuracy:.2%}" + (f" ({', '.join(apart)})" if apart else ""))
    console.print("[dim]An upper bound: a stronger attack may find more.[/]")
    if out is not None:
        console.print(f"[dim]records and adversarial examples: {out}[/]", soft_wrap=True)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


APART: dict[Status, str] = {"invalid": "with logits that are not finite", "at-target": "at the target already"}


def _seconds(found: Evaluation, number: int) -> str:
    return f"{found.stages[number].seconds:.2f}" if number < len(found.stages) else ""
