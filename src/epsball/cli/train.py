"""`epsball train`: a robust model, in a folder that the other commands take as it is."""

import json as encoder
import logging
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from epsball.cli.common import TRUST, Json, Material, check_shape, finite, progress, with_gradients
from epsball.cli.filling import COMMAND, OUT, asked_before
from epsball.cli.train_report import ProgressDisplay, list_objectives, report
from epsball.common.checks import check_whole
from epsball.common.config import Rule
from epsball.common.errors import BadInput
from epsball.common.json_files import read_json, write_json
from epsball.common.undo import without_warnings
from epsball.models.card import evaluate_command
from epsball.models.doors import door_of
from epsball.models.model_record import CHECKPOINTS
from epsball.training.config import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from epsball.data.examples import Examples
    from epsball.models.model_record import Accuracies
    from epsball.training.fit_result import FitResult

MAX_HOLD_OUT, MAX_TEST = 1000, 1000
"""Examples that are held out, at most, by default; and examples of the test split that the model is tested on."""
TRAINABLE = ("built-in", "trained folder", "factory")
"""The doors whose models a folder can build again."""


@dataclass(frozen=True, kw_only=True)
class TrainingMaterial(Material):
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
        The ball in which the model is to be robust: NORM:RADIUS with norm linf, l2, l1 or l0, and the radius in the
        units of the data, a number or a fraction: linf:8/255.
    objective
        What is minimised, as in fgsm-mix:alpha=0.7; --list shows the objectives.
    """

    split: str = "train"
    objective: str = "fgsm-mix"

    def options(self) -> dict[str, Any]:
        """The options by name, as JSON can hold them."""
        values = asdict(self) | {"model": self.spec}
        del values[TRUST]
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    def test_examples(self) -> "Examples | None":
        """A sample of the test split, where there is one that is not trained on."""
        if self.data.endswith(".npz") or self.split == "test":
            return None
        try:
            return self.of_split("test", limit=MAX_TEST)
        except BadInput as error:
            if str(error).startswith("`split`"):
                return None
            raise


@Parameter(name="*")
class TrainingFlags(TrainingConfig):
    """How a training is run, on the command line.

    Parameters
    ----------
    hold_out
        Number of examples that are not trained on: accuracies are measured on them, and the weights of the best robust
        accuracy are returned. Default: a tenth of the examples, at most 1,000.
    """

    hold_out: Annotated[int | None, Rule(check_whole, 0)] = None  # pyright: ignore[reportIncompatibleVariableOverride]

    def for_examples(self, n: int) -> TrainingConfig:
        """The configuration of a training on `n` examples."""
        options = self.to_record()
        if self.hold_out is None:
            options["hold_out"] = min(MAX_HOLD_OUT, n // 10)
        return TrainingConfig(**options)


DEFAULTS = TrainingFlags()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a training is written.

    Parameters
    ----------
    out
        The folder for model.safetensors, model.json, README.md (a model card), and the checkpoints.
    resume
        Continue the training in OUT, to the same bits. Options that are left out are as they were.
    tensorboard
        A directory for TensorBoard's logs.
    """

    out: Path = OUT
    resume: Annotated[bool, Parameter(negative="")] = False
    tensorboard: Path | None = None

    @property
    def folder(self) -> Path:
        """`out`, with the user's home directory spelled out."""
        return self.out.expanduser()

    def check(self, options: dict[str, Any]) -> None:
        """Raise `BadInput` for a folder with other contents, or a resume with other options."""
        out = self.folder
        if out.exists() and not out.is_dir():
            raise BadInput(f"`--out` must be a folder, got the file {out}; choose another name")
        contents = sorted(entry.name for entry in out.glob("*") if entry.name != COMMAND)
        if not contents:
            return
        if not self.resume and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0:
            raise BadInput(
                f"`--out` must be a new or an empty folder, but {out} holds {contents[0]}; add --resume to continue a "
                "training there, or choose another"
            )
        if not (out / CHECKPOINTS).is_dir():
            raise BadInput(f"`--out` {out} must hold a training for --resume, but holds {contents[0]}; choose another")
        before = asked_before(out)
        for name, value in options.items():
            if before.get(name) != value:
                raise BadInput(
                    f"`--{name.replace('_', '-')}` must be what it was for --resume, {before.get(name)!r} in {out}, "
                    f"got {value!r}; leave it out, or choose another --out"
                )

    def save_command(self, options: dict[str, Any]) -> None:
        """Write the command and its options, which --resume starts from."""
        path = self.folder / COMMAND
        before = read_json(path, "choose another --out") if path.exists() else {}
        record = {"command": ["epsball", *sys.argv[1:]], "directory": os.getcwd(), "asked": options} | before
        write_json(path, record)


def train(
    *,
    material: TrainingMaterial = TrainingMaterial(),
    flags: TrainingFlags = DEFAULTS,
    destination: Destination = Destination(),
    config: Path | None = None,
    list_: Annotated[bool, Parameter(name="--list", negative="")] = False,
    json: Json = False,
) -> int:
    """Train a classifier that is robust in its ball, and save it in a folder for `epsball evaluate --model OUT`.

    With no argument it trains a small network on scikit-learn's digits. Several processes: torchrun -m epsball train.

    Parameters
    ----------
    config
        A TOML file with the names of these options, as in epochs = 5; the command line overrides it.
    list_
        List the objectives.
    json
        Print the result (or the list) as JSON on stdout.
    """
    if list_:
        list_objectives(json)
        return 0
    from epsball.training import distributed

    first = distributed.join_torchrun()
    try:
        _train(material, flags, destination, json=json, first=first)
    except BadInput:  # only the first process prints the error
        if first:
            raise
        return 2
    except KeyboardInterrupt:
        saved = any((destination.folder / CHECKPOINTS).glob("checkpoint-*"))
        raise KeyboardInterrupt(*(destination.folder, "the same command with --resume") if saved else ()) from None
    return 0


def _train(
    material: TrainingMaterial, flags: TrainingFlags, destination: Destination, *, json: bool, first: bool
) -> None:
    """Train; the `first` process checks, writes and prints."""
    import torch

    from epsball.balls.registry import parse as parse_ball
    from epsball.cli.allocator import keep_memory
    from epsball.models.folder import write_model_folder
    from epsball.models.model_record import is_folder, read_record
    from epsball.models.opening import load
    from epsball.training.fit import fit, need_tensorboard
    from epsball.training.registry import parse

    # Whatever can be refused is refused before anything is written.
    objective = parse(material.objective)
    parse_ball(material.ball, lo=0, hi=1)  # any box will do
    if (door := door_of(spec := material.spec).name) not in TRAINABLE:
        raise BadInput(
            f"`model` must be built in, a trained folder or a factory for epsball train, whose folder has to build it "
            f"again, got {spec} ({door}); in Python, epsball.fit(epsball.load({spec!r}), ...) trains it"
        )
    if destination.tensorboard is not None:
        need_tensorboard()
    options = material.options()
    if first:
        destination.check(options | flags.to_record())
    examples, test = material.examples(), material.test_examples()
    config, ball = flags.for_examples(len(examples)), material.ball_for(examples)
    classes = max(examples.classes, 0 if test is None else test.classes)
    if (opened := material.opened) is not None:
        check_shape(opened, examples, spec)
        model = with_gradients(opened.model, "train")
    else:
        model = load(spec, shape=examples.shape, classes=classes, weights=material.weights, seed=config.seed)
    if is_folder(spec):
        before = read_record(spec)
        spec, classes = before.spec, before.classes
    if torch.cuda.is_available():
        model.to("cuda")
    if first:
        destination.save_command(options | flags.to_record())
    keep_memory()
    if not (log := logging.getLogger("epsball")).handlers:
        log.addHandler(logging.NullHandler())  # the progress display shows what is logged
    once = nullcontext() if first else without_warnings()  # the first process gives them
    with once, progress(Console(stderr=True, highlight=False, emoji=False, quiet=not first)) as bar:
        display = ProgressDisplay(bar, config.epochs)
        result = fit(
            model,
            examples,
            ball,
            objective=objective,
            config=config,
            out=destination.folder / CHECKPOINTS,
            tensorboard=destination.tensorboard,
            progress=display,
        )
        display.end_epoch()
        bar.update(display.task, description="the test split", note="")
        accuracies = _accuracies(model, result, test, None if test is None else material.ball_for(test))
    if not first:
        return
    write_model_folder(
        destination.folder,
        model,
        spec=spec,
        shape=examples.shape,
        classes=classes,
        training=result.to_record(),
        label_names=examples.label_names,
        options=options,
        accuracies=accuracies,
    )
    next_command = evaluate_command(destination.folder, options, spec=spec)
    if json:
        record = {"accuracies": [part.to_record() for part in accuracies], "training": result.to_record()}
        record = options | record | {"out": str(destination.folder), "next": next_command}
        print(encoder.dumps(finite(record), indent=2, allow_nan=False))
    else:
        report(options | {"spec": spec, "out": destination.folder}, examples, result, accuracies, next_command)


def _accuracies(model: "nn.Module", result: "FitResult", test: "Examples | None", ball: Any) -> "list[Accuracies]":
    """On the held-out examples, as the training measured them on its final weights, and on the test examples."""
    from epsball.models.model_record import Accuracies
    from epsball.training.validation import check

    checks = {} if result.best is None else {"held out": result.best}
    if test is not None:
        checks["test"] = check(model, test, ball, step=0, epoch=0, seed=result.config["seed"])
    return [
        Accuracies(on=name, examples=found.examples, clean=found.clean, fgsm=found.fgsm, pgd=found.pgd)
        for name, found in checks.items()
    ]
