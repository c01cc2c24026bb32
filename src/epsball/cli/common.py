"""What `evaluate` and `attack` share: which model, which data, which ball, and how it is reported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from epsball.common.errors import BadInput
from epsball.common.json_files import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from epsball.balls.ball import Ball
    from epsball.data.examples import Examples
    from epsball.data.lazy_examples import LazyExamples
    from epsball.models.door import Loaded
    from epsball.training.fit_result import FitResult

TRUST = "trust"
"""The option that no file can set."""
BATCH = 128
"""Rows of a training step."""
ROWS = 32
"""Rows of lazy data that are read to show the model one of them."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Material:
    """The model, the data and the ball: what all commands on networks share.

    Parameters
    ----------
    weights
        A file for the model: .safetensors, .pt, .pth, .pth.tar or Lightning's .ckpt. What would run code is refused.
    trust
        Run the code that files hold or name: a pickle, TorchScript, the module:factory of a model's folder.
    black_box
        Use the outputs of the model alone: attacks without gradients.
    data
        digits, a folder of images or parquet files, an .npz file with x and y, a table (.csv, .tsv, .parquet, .arrow),
        tars of WebDataset (shards-{000..009}.tar), or a Hugging Face datasets name.
    data_config
        The configuration of a data set that has several.
    limit
        Take a random sample of so many examples, with each class's share; --sample says the same.
    sample_seed
        Which sample: the same one for the same number, and a part of it for a smaller limit.
    first
        Take the first examples instead, in the order of the data.
    image_column
        The column with the images, where it cannot be told from its type.
    label_column
        The column with the labels, where it cannot be told from its type or name.
    ball
        NORM:RADIUS with norm linf, l2, l1 or l0, and the radius in the units of the data, a number or a fraction:
        linf:8/255.
    lo
        The box's lower end. Default: the data's (0 for images).
    hi
        The box's upper end. Default: the data's (1 for images).
    """

    model: str | None = None
    weights: Path | None = None
    black_box: Annotated[bool, Parameter(negative="")] = False
    data: str = "digits"
    data_config: str | None = None
    split: str = "test"
    limit: Annotated[int | None, Parameter(name=("--limit", "--sample"))] = None
    sample_seed: int = 0
    first: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    ball: str = "linf:0.1"
    lo: float | None = None
    hi: float | None = None
    trust: Annotated[bool, Parameter(negative="")] = False

    def examples(self) -> Examples:
        """The data, as many as `limit` or `first` takes, in memory."""
        return self.lazy_examples().whole()

    def lazy_examples(self) -> Examples | LazyExamples:
        """The same, read when they are asked for, where they can be."""
        return self._opened_split(self.split, limit=self.limit, first=self.first)

    def of_split(self, split: str, *, limit: int | None = None, first: int | None = None) -> Examples:
        """The data of any split, in memory."""
        return self._opened_split(split, limit=limit, first=first).whole()

    def _opened_split(self, split: str, *, limit: int | None, first: int | None) -> Examples | LazyExamples:
        """The data of a split, prepared as the model wants images, with labels numbered like its classes, by name."""
        from epsball.data.class_names import numbered_like
        from epsball.data.feature_names import ordered_like
        from epsball.data.load import open_data
        from epsball.models.model_record import FEATURE_NAMES

        opened = self.opened
        found = open_data(
            self.data,
            split=split,
            limit=limit,
            first=first,
            seed=self.sample_seed,
            image_column=self.image_column,
            label_column=self.label_column,
            config=self.data_config,
            preparation=None if opened is None else opened.preparation,
        )
        if opened is None:
            return found
        found = ordered_like(found, getattr(opened.model, FEATURE_NAMES, None))
        return numbered_like(found, opened.label_names)

    def ball_for(self, examples: Examples | LazyExamples) -> Ball:
        """The ball, in the data's box unless another is given."""
        lo = examples.lo if self.lo is None else self.lo
        hi = examples.hi if self.hi is None else self.hi
        return ball_of(self.ball, lo, hi)

    @property
    def spec(self) -> str:
        """What names the model."""
        return self.model or ("small-mlp" if self.data == "digits" else "small-cnn")

    @cached_property
    def opened(self) -> Loaded | None:
        """What the door of the model answers with; None for a built-in network, which is built for the data."""
        return None if built_in(self.spec) else self._open(self.spec, self.weights)

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """The names of the model's classes, where it has some."""
        return None if self.opened is None else self.opened.label_names

    def _open(self, spec: str, weights: Path | None) -> Loaded:
        from epsball.models.door import Asked
        from epsball.models.opening import open_model

        return open_model(Asked(spec=spec, weights=weights, trust=self.trust, black_box=self.black_box))


@dataclass(frozen=True, kw_only=True)
class Subject(Material):
    """The model, the data and the ball of an attack.

    Parameters
    ----------
    model
        What `epsball models` lists: a built-in network (small-mlp, small-cnn, maxout, preact-resnet18:width=16),
        trained on the spot unless --weights is given; package.module:factory or file.py:factory; a folder that
        `epsball train` wrote; hf:org/name, timm:name, net.onnx, model.skops, a URL. Default: small-mlp for digits, else
        small-cnn.
    split
        The split to attack; a built-in network without weights is trained on "train".
    seed
        Keys all randomness: training on the spot, random starts, noise.
    epochs
        Epochs of training on the spot. Default: as many as make about 1,500 steps.
    batch_size
        Examples of one model call. Sizes of 32 or more give the same result to the last bit, on CPU.
    """

    seed: int = 0
    epochs: int | None = None
    batch_size: int = 128

    def network(self, examples: Examples | LazyExamples, out: Path | None, console: Console) -> tuple[Any, str]:
        """The model and a line about its origin; trained, and saved in `out`, where it has no weights yet."""
        return self._network("model", self.spec, self.weights, self.seed, examples, out, console)

    def source(
        self, spec: str, weights: Path | None, examples: Examples | LazyExamples, out: Path | None, console: Console
    ) -> tuple[Any, str]:
        """A surrogate, made as `network` makes the model; trained on the spot with the next seed, to be another one."""
        try:
            return self._network("source", spec, weights, self.seed + 1, examples, out, console)
        except BadInput as error:
            raise within("source", spec, error) from error

    def _network(
        self,
        role: str,
        spec: str,
        weights: Path | None,
        seed: int,
        examples: Examples | LazyExamples,
        out: Path | None,
        console: Console,
    ) -> tuple[Any, str]:
        from epsball.models.door import Asked
        from epsball.models.opening import open_model
        from epsball.models.weights import save_weights

        classes = examples.classes

        def load(classes: int, weights: Path | None = None) -> Any:
            asked = Asked(spec=spec, shape=examples.shape, classes=classes, seed=seed, weights=weights)
            return open_model(replace(asked, black_box=self.black_box)).model

        if not built_in(spec):
            loaded = self.opened if role == "model" else self._open(spec, weights)
            assert loaded is not None
            check_shape(loaded, examples, spec)
            _try(loaded.model, examples, spec)
            return loaded.model, origin_of(spec, weights, loaded)
        if weights is not None:
            model = load(classes, weights)
            _try(model, examples, spec)
            return model, f"{spec} with {weights}"
        recipe = {"model": spec, "data": self.data, "epochs": self.epochs, "seed": seed}
        file, card = (out / f"{role}.safetensors", out / f"{role}.json") if out is not None else (None, None)
        if file is not None and card is not None and (file.exists() or card.exists()):
            known = read_json(card, "choose a new directory") if card.exists() else {}
            if {name: known.get(name) for name in recipe} != recipe:
                raise BadInput(
                    f"`--out` {out} holds a {role} that was not made by this command; choose a new directory"
                )
            if file.exists():  # else it was stopped between the two
                model = load(known["classes"], file)
                return model, f"{spec}, trained earlier, from {file}"
        train = self._train_split("weights" if role == "model" else "source-weights")
        classes = max(classes, train.classes)
        model = load(classes)
        result = self._trained(model, train, seed, console)
        if file is not None and card is not None:
            made = recipe | {"classes": classes, "training": result.to_record()}
            write_json(card, made)
            save_weights(model, file)
        epochs = result.config["epochs"]
        return model, f"{spec}, trained here: {epochs} epoch{'s' if epochs > 1 else ''}, seed {seed}"

    def _train_split(self, missing: str) -> Examples:
        if Path(self.data).expanduser().is_file():  # it has no splits
            raise BadInput(
                f"`{missing}` must be given with {self.data}: it has no other rows to train a built-in model on"
            )
        try:
            return self.of_split("train")
        except BadInput as error:
            raise BadInput(
                f"`{missing}` must be given: a built-in model needs a split to be trained on ({error})"
            ) from error

    def _trained(self, model: nn.Module, train: Examples, seed: int, console: Console) -> FitResult:
        from epsball.training.broken_defences import recipe
        from epsball.training.fit import fit

        how = recipe(model, train)
        steps = ceil(len(train) / BATCH)
        epochs = self.epochs or min(60, max(3, ceil(1500 / steps)))
        with progress(console) as bar:
            task = bar.add_task("training", total=epochs * steps, note="")
            return fit(
                model,
                train,
                how.ball,
                objective=how.objective,
                epochs=epochs,
                batch_size=BATCH,
                lr=3e-3,
                seed=seed,
                progress=lambda at: bar.update(task, completed=at.step, note=f"loss {at.loss:.3f}"),
            )


def check_shape(loaded: Loaded, examples: Examples | LazyExamples, spec: str) -> None:
    """Raise `BadInput` where the model takes examples of one shape, and that is not theirs."""
    if loaded.shape is not None and loaded.shape != examples.shape:
        raise BadInput(
            f"`data` must have examples of shape {loaded.shape} for the model {spec}, got {examples.shape}; take the "
            "data that it was made for"
        )


def origin_of(spec: str, weights: Path | None, loaded: Loaded) -> str:
    """Where a model comes from, and in further lines what was done to it."""
    from epsball.models.doors import door_of

    named = f"{spec}{f' with {weights}' if weights else ''}"
    return "\n".join([f"{named} ({door_of(spec).name})", *loaded.notes])


def with_gradients(model: Any, command: str) -> nn.Module:
    """The model, for a command that asks for gradients. Raises `BadInput` for a black box."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise BadInput(
            f"`model` must have gradients for epsball {command}, got a black box; `epsball evaluate` takes it"
        )
    return model


def _try(model: Any, examples: Examples | LazyExamples, spec: str) -> None:
    """Show the model one example: nothing can go on where that fails."""
    from epsball.data.examples import Examples
    from epsball.problem.inputs import examples_for
    from epsball.problem.losses import cross_entropy
    from epsball.problem.objective import Objective

    one = examples.rows(slice(1)) if isinstance(examples, Examples) else examples.read(slice(ROWS))[0]
    if not len(one):
        return
    one = one.rows(slice(1))
    one = replace(one, x=examples_for(model, one, None).x)  # in the model's dtype
    try:
        with Objective(model, cross_entropy, needs="label") as objective:
            objective.forward(one.x)
    except BadInput:
        raise  # it says what to do
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shape = "x".join(map(str, examples.shape))
        raise BadInput(f"`model` {spec} must take examples of shape {shape}: {error}; take its own data") from error


def within(flag: str, value: str, error: BadInput) -> BadInput:
    """An error about a part of the value of a flag: the names in it are not flags."""
    return BadInput(f"`{flag}` {value}: {str(error).replace('`', '')}")


def ball_of(spec: str, lo: float, hi: float) -> Ball:
    """The ball that --ball, --lo and --hi describe."""
    from epsball.balls.registry import parse

    try:
        return parse(spec, lo=lo, hi=hi)
    except BadInput as error:
        if str(error).startswith("`eps`"):
            raise within("ball", spec, error) from error
        raise


def limited_as_before(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a recorded run as they are meant today: before there was `first`, `limit` took the first rows."""
    if options.get("limit") is None or "first" in options:
        return options
    return options | {"limit": None, "first": options["limit"]}


def built_in(spec: str) -> bool:
    """Whether `spec` names a network of epsball's, and not a factory module:function or a folder with weights."""
    from epsball.models.doors import door_of

    return door_of(spec).name == "built-in"


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def percent(interval: tuple[float, float]) -> str:
    """An interval of shares, as in 30.8-40.6%."""
    return f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}%"


def progress(console: Console) -> Progress:
    """A progress bar on stderr that leaves nothing behind."""
    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def described(examples: Examples | LazyExamples, label_names: Sequence[str] | None = None) -> str:
    """The data in a line: their units, and, beside the names of the model's classes, what the labels mean."""
    shape = "x".join(map(str, examples.shape))
    box = f", in [{examples.lo:g}, {examples.hi:g}]" if isfinite(examples.lo) and isfinite(examples.hi) else ""
    units = "" if examples.scale == 1 else f" (values / {examples.scale:g})"
    labels = ""
    if label_names is not None and examples.label_names not in (None, tuple(label_names)):
        labels = "; labels by number: the model has other names of classes"
    return f"{examples.name}: {len(examples):,} examples, {shape}{box}{units}{labels}"


Json = Annotated[bool, Parameter(negative="")]
