"""`epsball evaluate`: robust accuracy."""

from __future__ import annotations

import json as encoder
import os
import sys
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from epsball.cli.common import TRUST, Json, Subject, ball_of, described, finite, limited_as_before, progress
from epsball.cli.evaluate_shown import show_result, show_setup
from epsball.common.checks import check_between
from epsball.common.errors import BadInput
from epsball.common.json_files import write_json
from epsball.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from epsball.balls.ball import Ball
    from epsball.evaluation.evaluate import Progress
    from epsball.evaluation.result import Evaluation


@Parameter(name="*", consume_multiple=True, negative_iterable=())
class Flags(EvaluationConfig, Subject):  # type: ignore[reportIncompatibleVariableOverride] - auto is for evaluations
    """The settings of an evaluation, and what it is run on.

    Flags that are not here, such as --eps, are the fields of `EvaluationConfig`, whose `check` refuses bad ones; what
    needs the ball is refused in `_check_ball`.

    Parameters
    ----------
    seed
        Keys all randomness: training on the spot, random starts, noise.
    attacks
        Attacks in the order they are run, each on the examples that are robust so far: names of `epsball attacks`, with
        options as in pgd:steps=100,restarts=5; protocols such as standard; lists as in 'worst-of(fgsm, pgd)'. Default:
        fast; min-norm in L0 and with --min-norm; square or hopskipjump for a model without gradients.
    target
        Drive every example towards this class instead of away from its own.
    """

    attacks: tuple[str, ...] | None = None
    target: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The keywords of the library's `evaluate`; --compile alone means --accelerate --compile."""
        values = {name: getattr(self, name) for name in EvaluationConfig.names()}
        return values | {"accelerate": True if self.compile and self.accelerate is None else self.accelerate}


def evaluate(
    *,
    flags: Flags = Flags(),  # noqa: B008 - it is frozen
    source: str | None = None,
    source_weights: Path | None = None,
    out: Path | None = None,
    config: Path | None = None,
    json: Json = False,
    fail_under: float | None = None,
    allow_unreliable: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure the robust accuracy of a classifier: attack each example within its ball, and count what stays correct.

    With no argument it runs on scikit-learn's digits and a small network that is trained on the spot.

    Parameters
    ----------
    source
        Attack this model instead, and evaluate its adversarial examples on the model: a transfer. A built-in network
        without --source-weights is trained on the spot, with the next seed.
    source_weights
        A .safetensors or .pt file for the source.
    out
        A directory for records and adversarial examples; the same --out resumes an interrupted run.
    config
        A TOML file with the names of these options, as in batch_size = 64; the command line comes first.
    json
        Print the result as JSON on stdout.
    fail_under
        Exit with 1 when the robust accuracy is below this share (0 to 1), or is not to be relied on: a reliability
        check failed, or the set-up was warned about.
    allow_unreliable
        With --fail-under: exit with 0 for a result that is high enough, though it is not to be relied on.

    Exit codes: 0 done, 1 below --fail-under or not to be relied on, 2 bad usage, 70 a crash, 130 interrupted.
    """
    from epsball.cli.allocator import keep_memory
    from epsball.evaluation.evaluate import evaluate as library_evaluate
    from epsball.problem.objective import SearchWarning
    from epsball.report.html import write_report

    # All that can be refused is refused before a network is trained.
    _check(flags, source, source_weights, fail_under)
    _check_attacks(flags)
    keep_memory()
    errors = Console(stderr=True, highlight=False, emoji=False)
    flags = _limited_as_before(flags, out)
    with progress(errors) as bar:
        bar.add_task(f"reading {flags.data}"[:24], total=None, note="")
        examples = flags.lazy_examples()
    ball = flags.ball_for(examples)
    _check_ball(flags, ball)
    try:
        model, origin = flags.network(examples, out, errors)
        shown, surrogate = {"model": origin}, None
        if source is not None:
            surrogate, shown["source"] = flags.source(source, source_weights, examples, out, errors)
        command = _command(flags, source, source_weights, examples.classes) | {"origin": origin}
        if out is not None and not (out / "config.json").exists():  # a resumed run may yet be refused
            _write_command(out, command)
        one_radius = flags.eps is None and not flags.min_norm
        shown["data"] = described(examples, flags.label_names)
        shown["ball"] = flags.ball if one_radius else flags.ball.partition(":")[0]

        with progress(errors) as bar, warnings.catch_warnings():
            if not json:
                warnings.simplefilter("ignore", SearchWarning)  # it is shown with the result
            task = bar.add_task("", total=len(examples), note="")

            def report(at: Progress) -> None:
                if at.setup is not None and not json:
                    bar.stop()  # it is on the same screen
                    show_setup(at.setup, shown)
                    bar.start()
                note = f"{at.robust:,} robust"
                if flags.certifies:
                    note = f"{at.proved:,} proved, {at.broken:,} broken, {at.robust - at.proved:,} undecided"
                bar.update(task, description=at.stage, completed=at.done, note=note)

            found = library_evaluate(
                model,
                examples,
                ball,
                flags.attacks or None,
                target=flags.target,
                source=surrogate,
                run_dir=out,
                on_progress=report,
                **flags.settings,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*([out] if out else [])) from None
    if out is not None:
        _write_command(out, command)  # also of a run that was begun without a command
        write_report(out, found=found)
    if json:
        print(encoder.dumps(finite(found.summary()), indent=2, allow_nan=False))
    else:
        show_result(found, out)
    why = [] if fail_under is None else _why_failed(found, fail_under, allow_unreliable)
    for reason in why:
        errors.print(f"[red]exit code 1:[/] {escape(reason)}", soft_wrap=True)
    return int(bool(why))


def _why_failed(found: Evaluation, fail_under: float, allow_unreliable: bool) -> list[str]:
    """Why a run fails `fail_under`, a sentence each; empty where it passes."""
    why = []
    if not found.robust_accuracy >= fail_under:  # also not a number
        why.append(f"The robust accuracy, {found.robust_accuracy:.2%}, is below --fail-under {fail_under:g}.")
    if found.doubts and not allow_unreliable:
        why.append(f"{' '.join(found.doubts)} --allow-unreliable ignores it.")
    return why


def _check(flags: Flags, source: str | None, source_weights: Path | None, fail_under: float | None) -> None:
    """Raise `BadInput` for flags that do not go together."""
    if fail_under is not None:
        check_between("fail_under", fail_under, 0, 1, "write 0.5 for 50 %")
        if flags.min_norm and flags.eps is None:
            raise BadInput("`fail_under` needs a radius with `min_norm`: name it with `eps`, as in --eps 0.1")
    if source is None and source_weights is not None:
        raise BadInput(f"`source` must name the network that {source_weights} is for, got none; as in small-cnn")
    if source is not None and flags.binarization_test:
        raise BadInput(
            "`binarization_test` must be 0 with `source`: a transfer does not see the head that hides an adversarial "
            "example"
        )


def _check_attacks(flags: Flags) -> None:
    """Raise `BadInput` for attacks that are unknown or not defined in such balls, with their radii."""
    from epsball.diagnosis.reaction import Reaction
    from epsball.engine.default_attacks import default_attacks
    from epsball.evaluation.plan import attacks_and_stages

    ball = ball_of(flags.ball, 0, 1)  # any box will do
    attacks_and_stages(flags, flags.attacks or default_attacks(ball, min_norm=flags.min_norm), ball, Reaction())


def _check_ball(flags: Flags, ball: Ball) -> None:
    """Raise `BadInput` for radii that are none of the ball's, and a storage that its box does not allow."""
    from epsball.evaluation.point_storage import Storage

    for radius in flags.radii or ():
        ball.with_eps(radius)
    Storage.chosen(flags.storage, "float32", float(ball.lo), float(ball.hi), ())


def _limited_as_before(flags: Flags, out: Path | None) -> Flags:
    """The flags; those of a run that is resumed and took the first examples for its limit, with `first`."""
    from epsball.common.json_files import read_json

    file = None if out is None else out / "command.json"
    if file is None or not file.exists():
        return flags
    before = read_json(file, "delete it: it only says how the run was started").get("subject")
    first = limited_as_before(before).get("first") if isinstance(before, dict) else None
    if flags.first is None and flags.limit is not None and flags.limit == first:
        return replace(flags, limit=None, first=flags.limit)
    return flags


def _command(flags: Flags, source: str | None, source_weights: Path | None, classes: int) -> dict[str, Any]:
    """What the run is started with, for `epsball verify`: the command line, the subject, the other flags."""
    subject = {field.name for field in fields(Subject)}
    values = {field.name: getattr(flags, field.name) for field in fields(flags)}
    return {
        "command": ["epsball", *sys.argv[1:]],
        "directory": os.getcwd(),
        "subject": {name: value for name, value in values.items() if name in subject - {TRUST}},
        "flags": {name: value for name, value in values.items() if name not in subject}
        | {"source": source, "source_weights": source_weights},
        "classes": classes,
    }


def _write_command(out: Path, command: dict[str, Any]) -> None:
    write_json(out / "command.json", command, default=str)
