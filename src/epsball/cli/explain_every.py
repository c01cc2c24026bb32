"""`epsball explain` without a command: every hypothesis measured on one model; and the commands that measure one."""

from __future__ import annotations

import json as encoder
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from epsball.cli.common import Json, Subject, built_in, described, finite, progress
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.explain.hypotheses import HYPOTHESES, chosen

if TYPE_CHECKING:
    from epsball.data.examples import Examples
    from epsball.explain.every import Answer

GENERIC = tuple(name for name in HYPOTHESES if name not in ("growth", "l1", "taylor"))
"""The analyses whose command has no options of its own."""


def everything(
    model_: Annotated[str | None, Parameter(name="MODEL", show=False)] = None,
    data_: Annotated[str | None, Parameter(name="DATA", show=False)] = None,
    /,
    *,
    subject: Subject = Subject(),  # noqa: B008 - it is frozen
    only: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    out: Path = Path("explain"),
    json: Json = False,
) -> None:
    """Measure why adversarial examples exist, and draw it: every hypothesis, or the one that a command names.

    Writes OUT/index.html, one page with a sentence and a figure for each; OUT/NAME.png and OUT/NAME.json; and
    OUT/index.md. An analysis that the model or the data do not allow is named with its reason. MODEL and DATA may be
    given without --model and --data.

    Parameters
    ----------
    only
        The analyses to make, by the names of their commands. Default: all.
    out
        The directory to write to.
    json
        Print the figures as JSON on stdout.
    """
    if model_ is not None:
        if get_close_matches(model_, HYPOTHESES, n=1, cutoff=0.5) and built_in(model_) and not known(model_):
            check_one_of("command", model_, HYPOTHESES)
        subject = replace(subject, model=model_)
    if data_ is not None:
        subject = replace(subject, data=data_)
    run(subject, only or (), out, json, overview=True)


def known(spec: str) -> bool:
    """Whether `spec` is the name of a built-in network."""
    from epsball.models.registry import MODELS, canonical

    return canonical(spec.partition(":")[0]) in MODELS


def add_to(app: App) -> None:
    """The default of `epsball explain`, and a command for each analysis that has no file of its own."""
    app.default(everything)
    for name in GENERIC:
        app.command(_command(name), name=name)


def _command(name: str):
    def command(
        *,
        subject: Subject = Subject(),  # noqa: B008 - it is frozen
        out: Path = Path("explain"),
        json: Json = False,
    ) -> None:
        run(subject, (name,), out, json, overview=False)

    hypothesis = HYPOTHESES[name]
    command.__doc__ = (
        f"{hypothesis.claim}\n\n{hypothesis.shows} Writes OUT/{name}.png and OUT/{name}.json.\n\n"
        "Parameters\n----------\nout\n    The directory to write to.\njson\n    Print the figures as JSON on stdout.\n"
    )
    return command


def run(subject: Subject, names: Sequence[str], out: Path, json: bool, *, overview: bool) -> None:
    """Make the analyses of those names, write what they found, and print each sentence under its hypothesis."""
    wanted = chosen(names)  # before anything is loaded
    from epsball.cli.allocator import keep_memory
    from epsball.explain.every import Case, answers
    from epsball.explain.record import radius_of

    errors, console = Console(stderr=True, highlight=False), Console(highlight=False)
    keep_memory()
    examples = subject.examples(limit=subject.limit)
    ball = subject.ball_for(examples)
    radius_of(ball)
    measured, train = _parts(subject, examples)
    model, origin = subject.network(examples, None, errors)
    fresh = built_in(subject.spec) and subject.weights is None
    case = Case(
        model=model,
        data=measured,
        train=train,
        ball=ball,
        network=subject.spec if fresh else "small-mlp",
        fresh=fresh,
        seed=subject.seed,
        batch_size=subject.batch_size,
    )
    about = [("model", origin), ("data", described(measured)), ("ball", subject.ball)]
    if not json:
        for what, said in about:
            console.print(f"[dim]{what:<6}[/] {escape(said)}", soft_wrap=True)
    found: list[Answer] = []
    with progress(errors) as bar:
        task = bar.add_task("explain", total=len(wanted), note="")

        def tell(done: int, name: str) -> None:
            bar.update(task, completed=done, note=name)

        for answer in answers(case, wanted, out=out, on_start=tell):
            found.append(answer)
            if not json:
                _show(answer, console)
    if not overview and found[0].found is None:
        raise BadInput(found[0].reason)
    if overview:
        write_overview(found, about, out)
    if json:
        figures = {answer.name: finite(answer.summary()) for answer in found}
        print(encoder.dumps(figures | {"out": str(out)}, indent=2, allow_nan=False))
        return
    files = f"{out / 'index.html'}" if overview else f"{out / wanted[0]}.png, {out / wanted[0]}.json"
    console.print(f"\n[dim]written: {escape(files)}[/]", soft_wrap=True)


def _parts(subject: Subject, examples: Examples) -> tuple[Examples, Examples]:
    """The examples that are measured, and others: the split "train", or where there is none half of each class."""
    from epsball.explain.record import halves

    if subject.data.endswith(".npz") or subject.split == "train":
        train, measured = halves(examples)
        return measured, train
    return examples, subject.examples(split="train")


def _show(answer: Answer, console: Console) -> None:
    hypothesis = HYPOTHESES[answer.name]
    console.print(f"\n[bold]{hypothesis.title}[/] [dim]({answer.name}, {answer.seconds:.1f} s)[/]")
    console.print(Padding(f"[dim]{escape(hypothesis.claim)}[/]", (0, 0, 0, 2)))
    if answer.found is None:
        console.print(Padding(f"[yellow]not measured:[/] {escape(answer.reason)}", (0, 0, 0, 2)))
    else:
        console.print(Padding(escape(answer.found.sentence), (0, 0, 0, 2)))


def write_overview(found: Sequence[Answer], about: list[tuple[str, str]], out: Path) -> None:
    """Write OUT/index.html and OUT/index.md; the figures of what was found must be in OUT already."""
    from epsball.report.findings import Entry, write_findings

    entries = [
        Entry(
            name=answer.name,
            title=HYPOTHESES[answer.name].title,
            claim=HYPOTHESES[answer.name].claim,
            sentence="" if answer.found is None else answer.found.sentence,
            reason=answer.reason,
        )
        for answer in found
    ]
    write_findings(entries, about, out)
