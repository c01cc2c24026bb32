"""`epsball train`: a robust model, in a folder that the other commands take as it is."""

from __future__ import annotations

import json as encoder
import logging
import os
import sys
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from epsball.cli.common import Json, Material, finite, progress
from epsball.cli.filling import COMMAND, OUT, asked_before
from epsball.cli.train_shown import Shown, list_objectives, report
from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.models.card import evaluate_command
from epsball.models.model_record import CHECKPOINTS
from epsball.training.settings import (  # cyclopts looks the types of an inherited field up where the class is
    Average,  # noqa: F401
    OnOverfit,  # noqa: F401
    Optimizer,  # noqa: F401
    Precision,  # noqa: F401
    Schedule,  # noqa: F401
    Settings,
)

if TYPE_CHECKING:
    from torch import nn

    from epsball.data.examples import Examples
    from epsball.models.model_record import Accuracies
    from epsball.training.record import FitResult

HELD_OUT, TESTED = 1000, 1000
"""Examples that are held out, at most, where nothing is said; and of the test split, that are looked at in the end."""


@dataclass(frozen=True, kw_only=True)
class Lesson(Material):
    """What is trained on what, and against which ball.

    Parameters
    ----------
    model
        A built-in network (small-mlp, small-cnn, maxout, preact-resnet18:width=16), package.module:factory, or the
        folder of an earlier training, to begin with its weights. Default: small-mlp for digits, else small-cnn.
    weights
        A .safetensors or .pt file with the weights to begin with.
    split
        The split to train on.
    ball
        What the model is to withstand: NORM:RADIUS with norm linf, l2, l1 or l0, and the radius in the units of the
        data, a number or a fraction: linf:8/255.
    """

    split: str = "train"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Flags(Settings):
    """How a training is run, on the command line.

    Parameters
    ----------
    hold_out
        So many examples are not trained on: robust accuracy is measured on them, and the best weights are kept.
        Default: a tenth of the examples, at most 1,000.
    """

    hold_out: int | None = None  # pyright: ignore[reportIncompatibleVariableOverride] - it depends on the data

    def __post_init__(self) -> None:
        self.settings(examples=0)

    def settings(self, examples: int) -> Settings:
        """The settings of a training on so many examples."""
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(Settings)}
        if self.hold_out is None:
            values["hold_out"] = min(HELD_OUT, examples // 10)
        return Settings(**values)


def train(
    *,
    lesson: Lesson = Lesson(),
    objective: str = "fgsm-mix",
    flags: Flags = Flags(),
    out: Path = OUT,
    resume: Annotated[bool, Parameter(negative="")] = False,
    config: Path | None = None,
    tensorboard: Path | None = None,
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
    json: Json = False,
) -> int:
    """Train a classifier that withstands its ball, and keep it in a folder for `epsball evaluate --model OUT`.

    With no argument it trains a small network on scikit-learn's digits. Several processes: torchrun -m epsball train.

    Parameters
    ----------
    objective
        What is minimised, as in fgsm-mix:alpha=0.7; --list says which there are.
    out
        The folder for model.safetensors, model.json, README.md (a model card), and the checkpoints.
    resume
        Go on with the training in OUT, to the same bits. What is not said again is as it was.
    config
        A TOML file with the names of these options, as in epochs = 5; what the command line says comes first.
    tensorboard
        A directory for TensorBoard's logs.
    list_
        List the objectives.
    json
        Print the result (or the list) as JSON on stdout.
    """
    if list_:
        list_objectives(json)
        return 0
    from epsball.training import ranks

    out, speaks = out.expanduser(), ranks.launched()
    try:
        _train(lesson, objective, flags, out, resume, tensorboard, json, speaks)
    except BadInput:  # of several processes one says it
        if speaks:
            raise
        return 2
    except KeyboardInterrupt:
        kept = (out, "the same command with --resume") if any((out / CHECKPOINTS).glob("checkpoint-*")) else ()
        raise KeyboardInterrupt(*kept) from None
    return 0


def _train(
    lesson: Lesson,
    objective: str,
    flags: Flags,
    out: Path,
    resume: bool,
    tensorboard: Path | None,
    json: bool,
    speaks: bool,
) -> None:
    import torch

    from epsball.balls.registry import parse as parse_ball
    from epsball.cli.allocator import keep_memory
    from epsball.models.folder import write_model_folder
    from epsball.models.load import load_model
    from epsball.models.model_record import is_folder, read_record
    from epsball.training.fit import fit, need_tensorboard
    from epsball.training.registry import parse

    # All that can be refused is refused before anything is written.
    chosen = parse(objective)
    parse_ball(lesson.ball, lo=0, hi=1)  # any box will do
    if tensorboard is not None:
        need_tensorboard()
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    asked = _asked(lesson, objective)
    if speaks:
        _refuse(out, asked | _asked_settings(flags), resume)
    errors = Console(stderr=True, highlight=False, quiet=not speaks)
    examples = lesson.examples(limit=lesson.limit)
    test = _test(lesson)
    settings, ball = flags.settings(len(examples)), lesson.ball_for(examples)
    before = read_record(lesson.spec) if is_folder(lesson.spec) else None
    spec, classes = lesson.spec, max(examples.classes, 0 if test is None else test.classes)
    model = load_model(spec, shape=examples.shape, classes=classes, weights=lesson.weights, seed=settings.seed)
    if before is not None:
        spec, classes = before.spec, before.classes
    if torch.cuda.is_available():
        model.to("cuda")
    if speaks:
        _keep_command(out, asked | _asked_settings(flags))
    else:
        warnings.simplefilter("ignore")
    keep_memory()
    if not (log := logging.getLogger("epsball")).handlers:
        log.addHandler(logging.NullHandler())  # what is logged is shown here anyway
    with progress(errors) as bar:
        shown = Shown(bar, settings.epochs)
        result = fit(
            model,
            examples,
            ball,
            objective=chosen,
            settings=settings,
            out=out / CHECKPOINTS,
            tensorboard=tensorboard,
            progress=shown,
        )
        shown.epoch_ends()
        bar.update(shown.task, description="the test split", note="")
        found = _accuracies(model, result, test, lesson, settings.seed)
    if not speaks:
        return
    write_model_folder(
        out,
        model,
        spec=spec,
        shape=examples.shape,
        classes=classes,
        training=result.to_record(),
        label_names=examples.label_names,
        options=asked,
        accuracies=found,
    )
    following = evaluate_command(out, asked)
    if json:
        summary = {"accuracies": [asdict(part) for part in found], "training": encoder.loads(result.to_json())}
        summary = asked | summary | {"out": str(out), "next": following}
        print(encoder.dumps(finite(summary), indent=2, allow_nan=False))
    else:
        report(asked, spec, examples, result, found, out, following)


def _asked(lesson: Lesson, objective: str) -> dict[str, Any]:
    """What was asked for, as it is typed; for the record."""
    told = asdict(lesson) | {"model": lesson.spec, "objective": objective}
    return {name: str(value) if isinstance(value, Path) else value for name, value in told.items()}


def _asked_settings(flags: Flags) -> dict[str, Any]:
    return {field.name: getattr(flags, field.name) for field in fields(flags)}


def _refuse(out: Path, asked: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that is somebody else's, and a resume that would be another training."""
    if out.exists() and not out.is_dir():
        raise BadInput(f"`--out` must be a folder, got the file {out}; choose another name")
    holds = sorted(entry.name for entry in out.glob("*") if entry.name != COMMAND)
    if not holds:
        return
    if not resume:
        raise BadInput(
            f"`--out` must be a new or an empty folder, but {out} holds {holds[0]}; add --resume to go on with a "
            "training there, or choose another"
        )
    if not (out / CHECKPOINTS).is_dir():
        raise BadInput(f"`--out` {out} must hold a training for --resume, but it holds {holds[0]}; choose another")
    before = asked_before(out)
    for name in asked:
        if before.get(name) != asked[name]:
            flag = f"--{name.replace('_', '-')}"
            raise BadInput(
                f"`{flag}` must be what it was for --resume, {before.get(name)!r} in {out}, got {asked[name]!r}; "
                f"leave it out, or choose another --out"
            )


def _keep_command(out: Path, asked: dict[str, Any]) -> None:
    """What the training was started with, for --resume."""
    from epsball.common.json_files import read_json

    path = out / COMMAND
    known = read_json(path, "choose another --out") if path.exists() else {}
    kept = {"command": ["epsball", *sys.argv[1:]], "directory": os.getcwd(), "asked": asked} | known
    write_whole(out / COMMAND, lambda draft: draft.write_text(encoder.dumps(kept, indent=2)))


def _test(lesson: Lesson) -> Examples | None:
    """The first examples of the test split, where there is one that is not trained on."""
    if lesson.data.endswith(".npz") or lesson.split == "test":
        return None
    try:
        return lesson.examples("test", limit=TESTED)
    except BadInput as error:
        if str(error).startswith("`split`"):
            return None
        raise


def _accuracies(
    model: nn.Module, result: FitResult, test: Examples | None, lesson: Lesson, seed: int
) -> list[Accuracies]:
    """On the held-out examples, as the training measured them on the weights that it ended with, and on the test's."""
    from epsball.models.model_record import Accuracies
    from epsball.training.validation import check

    found = []
    if (best := result.best) is not None:
        found.append(Accuracies(on="held out", examples=best.examples, clean=best.clean, fgsm=best.fgsm, pgd=best.pgd))
    if test is not None:
        now = check(model, test, lesson.ball_for(test), step=0, epoch=0, seed=seed)
        found.append(Accuracies(on="test", examples=now.examples, clean=now.clean, fgsm=now.fgsm, pgd=now.pgd))
    return found
