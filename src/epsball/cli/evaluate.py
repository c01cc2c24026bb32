"""`epsball evaluate`: the verdict."""

from __future__ import annotations

import json as encoder
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from epsball.cli.common import Json, Subject, described, finite, parsed, percent, progress
from epsball.cli.min_norm import show_distances
from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput

if TYPE_CHECKING:
    from epsball.evaluation.result import Evaluation, Status


def evaluate(
    *,
    subject: Subject = Subject(),  # noqa: B008 - it is frozen
    attacks: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    eps: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    min_norm: Annotated[bool, Parameter(negative="")] = False,
    target: int | None = None,
    eot: int = 1,
    source: str | None = None,
    source_weights: Path | None = None,
    storage: Literal["float", "8bit"] = "float",
    out: Path | None = None,
    json: Json = False,
    fail_under: float | None = None,
    binarization_test: int = 0,
    diagnose: int = 32,
    accelerate: bool | None = None,
    compile: Annotated[bool, Parameter(negative="")] = False,
    draft: Literal["bf16"] | None = None,
) -> int:
    """Measure the robustness of a classifier: how much of its accuracy is left in the worst point of each ball?

    With no argument it runs on scikit-learn's digits and a small network that is trained on the spot.

    Parameters
    ----------
    attacks
        Attacks in the order they are run, each on the examples that still stand: names of `epsball attacks`, with
        options as in pgd:steps=100,restarts=5; protocols such as standard; lists as in 'worst-of(fgsm, pgd)'. Default:
        fgsm pgd, and min-norm with --min-norm.
    eps
        Several radii instead of the ball's one: the robustness curve.
    min_norm
        How far is the boundary? Seek the nearest fooling point of each example, whatever the ball's radius, then check
        the distances with attacks of fixed radius: at --eps, or just within each distance. Default attacks: min-norm.
    target
        Drive every example towards this class instead of away from its own.
    eot
        Passes that are averaged, for a model that draws random numbers: 20, say.
    source
        Attack this model instead, and evaluator by the model where the attacks end: a transfer. A built-in network
        without --source-weights is trained on the spot, with the next seed.
    source_weights
        A .safetensors or .pt file for the source.
    storage
        How adversarial examples are kept, and judged: float, or 8bit for the 256 levels of an image, rounded towards
        the example; a success that does not survive it does not count.
    out
        A directory for records and adversarial examples; an interrupted run goes on from there.
    json
        Print the verdict as JSON on stdout.
    fail_under
        Exit with 1 when the robust accuracy is below this share (0 to 1).
    binarization_test
        Hide adversarial examples in the balls of so many examples, and say whether the attacks find them: attacks that
        do not are too weak for this model.
    diagnose
        Examples to look at for signs that the evaluation failed; 0 for none.
    accelerate
        Let the attacks climb on a network of the same function with cheaper gradients. Default: where a short trial is
        likely to pay. What counts is what the model itself says.
    compile
        Have torch compile it, too: a minute or more once, for long runs.
    draft
        On a GPU: run each attack that takes gradients in bf16 first, and in full precision on what still stands.
    """
    from epsball.balls.registry import parse_radius
    from epsball.cli.allocator import keep_memory
    from epsball.evaluation.evaluate import evaluate as library_evaluate
    from epsball.evaluation.evaluate import radii_of
    from epsball.evaluation.point_storage import Storage
    from epsball.report.html import write_report

    if fail_under is not None and not 0 <= fail_under <= 1:
        raise BadInput(f"`--fail-under` must be a share from 0 to 1, got {fail_under}; write 0.5 for 50 %")
    if eot < 1:
        raise BadInput(f"`--eot` must be a whole number >= 1, got {eot}; 1 is right for all but stochastic models")
    if source is None and source_weights is not None:
        raise BadInput(f"`--source` must name the network that {source_weights} is for, got none; as in small-cnn")
    if diagnose < 0:
        raise BadInput(f"`--diagnose` must be >= 0, got {diagnose}; it is a number of examples, 0 for none")
    if binarization_test < 0:
        raise BadInput(
            f"`--binarization-test` must be >= 0, got {binarization_test}; it is a number of examples, 0 for none"
        )
    if binarization_test and source is not None:
        raise BadInput(
            "`--binarization-test` must be 0 with --source: a transfer does not see the head that hides a point"
        )
    if min_norm and fail_under is not None and eps is None:
        raise BadInput("`--fail-under` needs a radius with --min-norm: name it with --eps, as in --eps 0.1")
    if min_norm and eot > 1:
        raise BadInput(f"`--eot` must be 1 with --min-norm, got {eot}: a stochastic model has no border")
    if binarization_test and min_norm:
        raise BadInput("`--binarization-test` must be 0 with --min-norm: it hides points in balls of one radius")
    attacks = attacks or (("min-norm",) if min_norm else ("fgsm", "pgd"))
    keep_memory()
    # All that can be refused is refused before a network is trained.
    found_attacks = parsed(attacks, subject.ball)
    if min_norm and not any(attack.minimises for attack in found_attacks):
        raise BadInput(
            f"`--attacks` must have one that seeks the nearest point with --min-norm, got {' '.join(attacks)}; "
            "such as fmn"
        )
    radii = None if eps is None else [parse_radius(radius) for radius in eps]
    errors = Console(stderr=True, highlight=False)
    examples = subject.examples(limit=subject.limit)
    ball = subject.ball_for(examples)
    radii_of(radii, ball)
    Storage.chosen(storage, "float32", float(ball.lo), float(ball.hi), ())
    surrogate, told = None, {}
    flags = {"attacks": attacks, "eps": eps, "min_norm": min_norm, "target": target, "eot": eot, "storage": storage}
    flags |= {"source": source, "source_weights": source_weights, "binarization_test": binarization_test}
    flags |= {"diagnose": diagnose}
    flags |= {"accelerate": accelerate, "compile": compile, "draft": draft}
    try:
        model, told["model"] = subject.network(examples, out, errors)
        if source is not None:
            surrogate, told["source"] = subject.source(source, source_weights, examples, out, errors)
        if out is not None and not (out / "config.json").exists():  # a resume may yet be refused
            _keep_command(out, subject, flags, examples.classes)
        with progress(errors) as bar:
            task = bar.add_task("", total=len(examples), note="")
            found = library_evaluate(
                model,
                examples,
                ball,
                attacks,
                eps=radii,
                min_norm=min_norm,
                target=target,
                source=surrogate,
                eot=eot,
                storage=storage,
                seed=subject.seed,
                batch_size=subject.batch_size,
                run_dir=out,
                binarization_test=binarization_test,
                diagnose=diagnose,
                accelerate=True if compile and accelerate is None else accelerate,
                compile=compile,
                draft=draft,
                on_progress=lambda at: bar.update(
                    task, description=at.stage, completed=at.done, note=f"{at.standing:,} standing"
                ),
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*([out] if out else [])) from None
    if out is not None:  # also of a run that was begun without a command
        _keep_command(out, subject, flags, examples.classes)
        write_report(out, found=found)
    if json:
        print(encoder.dumps(finite(found.summary()), indent=2, allow_nan=False))
    else:
        told |= {
            "data": described(examples),
            "ball": subject.ball if eps is None and not min_norm else subject.ball.partition(":")[0],
        }
        _report(found, told, out)
    return int(fail_under is not None and not found.robust_accuracy >= fail_under)


def _keep_command(out: Path, subject: Subject, flags: dict[str, Any], classes: int) -> None:
    """What the run was started with, for `epsball verify`: the subject's fields, the other flags, the command line."""
    command = {
        "command": ["epsball", *sys.argv[1:]],
        "directory": os.getcwd(),
        "subject": asdict(subject),
        "flags": flags,
        "classes": classes,
    }
    text = encoder.dumps(command, indent=2, default=str)
    write_whole(out / "command.json", lambda draft: draft.write_text(text))


def _report(found: Evaluation, told: dict[str, str], out: Path | None) -> None:
    from epsball.acceleration.plan import Plan
    from epsball.report.html import REPORT

    console = Console(highlight=False)
    for name in ("model", "source", "data", "ball"):
        if name in told:
            console.print(f"[dim]{name:<6}[/] {escape(told[name])}", soft_wrap=True)
    console.print()
    said = "An upper bound: a stronger attack may find more."
    if found.config["source"] is not None:
        said = "A transfer: attacks that see the model itself find more."
    if found.config["min_norm"]:
        show_distances(found, console)
        said = said.replace("more", "nearer points")
    else:
        _show_accuracy(found, console)
    if (lost := sum(stage.unconfirmed for stage in found.stages)) and found.config["storage"]["x_adv"] == "8bit":
        console.print(f"[dim]{lost:,} successes did not survive the rounding, and do not count.[/]")
    if found.config["eot"] > 1:
        console.print(f"[dim]The model judged is the mean of {found.config['eot']} passes.[/]")
    console.print(f"[dim]{said}[/]")
    if (record := found.config.get("acceleration")) is not None:
        console.print(f"[dim]gradients: {Plan.from_dict(record)}[/]", soft_wrap=True)
    if (test := found.binarization_test) is not None:
        console.print(f"[{'green' if test.passed else 'yellow'}]{test.sentence}[/]")
    if (reaction := found.config["reaction"]) is not None:
        for because in reaction["because"]:
            console.print(f"[yellow]{because}[/]")
    if (diagnosis := found.diagnosis) is not None:
        console.print(f"[{'yellow' if diagnosis.speaks_against else 'dim'}]{diagnosis.sentence}[/]")
        for one in (one for one in diagnosis.raised if one.name not in diagnosis.answered):
            console.print(Padding(escape(one.text), (0, 0, 0, 2)))
    if out is not None:
        console.print(f"[dim]report: {escape(str(out / REPORT))}[/]", soft_wrap=True)


def _show_accuracy(found: Evaluation, console: Console) -> None:
    """The stages, the curve where there is one, and the verdict."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("stage", overflow="fold", min_width=12)
    for head in ("eps", "examples", "fell", "standing", "passes/example", "seconds"):
        table.add_column(head, justify="right", no_wrap=True)
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
    kept = ", stored in 8 bits" if found.config["storage"]["x_adv"] == "8bit" else ""
    console.print(
        f"[bold]{verdict}[/] (95% interval {percent(found.interval)}), clean {found.clean_accuracy:.2%}{kept}"
        + (f" ({', '.join(apart)})" if apart else "")
    )


APART: dict[Status, str] = {"invalid": "with logits that are not finite", "at-target": "at the target already"}


def _seconds(found: Evaluation, number: int) -> str:
    return f"{found.stages[number].seconds:.2f}" if number < len(found.stages) else ""
