"""`epsball explain`: every hypothesis measured on one model, and a command for each that measures it alone."""

# No `from __future__ import annotations`: the commands are made in a loop, and cyclopts reads their types as objects.

import json as encoder
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from epsball.cli import explain_tables as tables
from epsball.cli.common import Json, Subject, built_in, described, progress, with_gradients
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.explain.hypotheses import HYPOTHESES, chosen
from epsball.models.doors import DOORS

if TYPE_CHECKING:
    from epsball.balls.ball import Ball
    from epsball.data.examples import Examples
    from epsball.data.lazy_examples import LazyExamples
    from epsball.explain.runner import Answer, Case

explain = App(name="explain", help="Measure why adversarial examples exist, and draw it.")

Many = Parameter(consume_multiple=True, negative="")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OfNetwork(Subject):
    """The options of an analysis of a network: which network, data and ball."""

    @property
    def undivided(self) -> bool:
        """Whether there is no other split to train on."""
        return self.data.endswith(".npz") or self.split == "train"

    def ball_for(self, examples: "Examples | LazyExamples") -> "Ball":
        """The ball, which has one radius > 0."""
        from epsball.explain.inputs import radius_of

        ball = super().ball_for(examples)
        radius_of(ball)
        return ball

    def options(self) -> dict[str, Any]:
        """The keywords of the analysis's function."""
        return {}

    def case(self, console: Console) -> "tuple[Case, list[tuple[str, str]]]":
        """What is analysed, and what the output says about it."""
        from epsball.explain.runner import Case

        examples = self.examples()
        ball = self.ball_for(examples)
        train, data = self.parts(examples)
        found, origin = self.network(examples, None, console)
        model = with_gradients(found, "explain")
        fresh = built_in(self.spec) and self.weights is None
        network = self.spec if fresh else "small-mlp"
        keys = {"seed": self.seed, "batch_size": self.batch_size}
        case = Case(model=model, data=data, train=train, ball=ball, network=network, fresh=fresh, **keys)
        return case, [("model", origin), ("data", described(data)), ("ball", self.ball)]

    def parts(self, examples: "Examples") -> "tuple[Examples, Examples]":
        """The examples to train on, and those to measure: half of each class where there is no other split."""
        from epsball.explain.inputs import halves

        return halves(examples) if self.undivided else (self.of_split("train"), examples)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OfTaylor(OfNetwork):
    """The options of `taylor`.

    Parameters
    ----------
    eps
        The radii. Default: the ball's and seven halvings of it.
    loss
        cross_entropy or margin; for a linear model the margin has no gap at all.
    float32
        Measure in the model's own precision; else model and data are converted to float64, since the rounding of
        float32 hides small rises.
    """

    eps: Annotated[tuple[str, ...] | None, Many] = None
    loss: str = "cross_entropy"
    float32: Annotated[bool, Parameter(negative="")] = False

    def options(self) -> dict[str, Any]:
        """The keywords of the analysis's function."""
        from epsball.balls.registry import parse_radius
        from epsball.problem.losses import resolve_loss

        eps = None if self.eps is None else tuple(map(parse_radius, self.eps))
        return {"eps": eps, "loss": resolve_loss(self.loss), "double": not self.float32, "rows": None}

    def ball_for(self, examples: "Examples | LazyExamples") -> "Ball":
        """The ball; where `eps` is given its radius plays no part."""
        return Subject.ball_for(self, examples)

    def parts(self, examples: "Examples") -> "tuple[Examples, Examples]":
        """All examples are measured; no network is trained on any."""
        return examples, examples


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OfLinear:
    """The options of an analysis of linear models, which needs no network.

    Parameters
    ----------
    data
        digits, a folder of images or parquet files, an .npz file with x and y, a table (.csv, .tsv, .parquet, .arrow),
        or a Hugging Face datasets name.
    data_config
        The configuration of a data set that has several.
    split
        The split to measure on; the models are trained on "train".
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
    eps
        The size of the step in each coordinate, a number or a fraction: 8/255.
    pair
        Two classes. Default: 3 and 7 where the data have them, else the first two.
    """

    data: str = "digits"
    data_config: str | None = None
    split: str = "test"
    limit: Annotated[int | None, Parameter(name=("--limit", "--sample"))] = None
    sample_seed: int = 0
    first: int | None = None
    image_column: str | None = None
    label_column: str | None = None
    eps: str = "0.1"
    pair: Annotated[tuple[int, int] | None, Parameter(negative="")] = None
    names: ClassVar[tuple[str, ...]] = ("pair",)

    @property
    def subject(self) -> OfNetwork:
        """The data."""
        names = ("data", "data_config", "split", "limit", "sample_seed", "first", "image_column", "label_column")
        return OfNetwork(**{name: getattr(self, name) for name in names})

    def options(self) -> dict[str, Any]:
        """The keywords of the analysis's function."""
        from epsball.balls.registry import parse_radius

        return {"eps": parse_radius(self.eps)} | {name: getattr(self, name) for name in self.names}

    def case(self, console: Console) -> "tuple[Case, list[tuple[str, str]]]":
        """What is analysed, and what the output says about it."""
        from torch import nn

        from epsball.balls.linf import Linf
        from epsball.explain.runner import Case

        examples = self.subject.examples()
        train, data = self.parts(examples)
        ball = Linf(eps=1.0, lo=examples.lo, hi=examples.hi)
        return Case(model=nn.Identity(), data=data, train=train, ball=ball), [("data", described(examples))]

    def parts(self, examples: "Examples") -> "tuple[Examples, Examples]":
        """The examples to train on, and those to measure."""
        return self.subject.parts(examples)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OfGrowth(OfLinear):
    """The options of `growth`.

    Parameters
    ----------
    sides
        The side lengths that images are resized to.
    draws
        Random weight vectors of each kind.
    seed
        Keys the random weights.
    """

    sides: Annotated[tuple[int, ...], Many] = (7, 14, 28, 56, 112)
    draws: int = 32
    seed: int = 0
    names: ClassVar[tuple[str, ...]] = ("pair", "sides", "draws", "seed")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OfL1(OfLinear):
    """The options of `l1`.

    Parameters
    ----------
    C
        Inverse strength of the weak L2 penalty of the plain model, as in scikit-learn.
    """

    eps: str = "0.2"
    C: Annotated[float, Parameter(name="--C")] = 1.0
    names: ClassVar[tuple[str, ...]] = ("pair", "C")

    def parts(self, examples: "Examples") -> "tuple[Examples, Examples]":
        """The examples to train on, and those to measure: every second row, or as many of each split."""
        if self.subject.undivided:
            return examples.rows(slice(0, None, 2)), examples.rows(slice(1, None, 2))
        return self.subject.of_split("train", limit=self.limit, first=self.first), examples


Options = OfNetwork | OfLinear
OPTIONS: dict[str, type[Options]] = {"taylor": OfTaylor, "growth": OfGrowth, "l1": OfL1}
"""The options of the commands that have some of their own."""


@explain.default
def everything(
    model_: Annotated[str | None, Parameter(name="MODEL", show=False)] = None,
    data_: Annotated[str | None, Parameter(name="DATA", show=False)] = None,
    /,
    *,
    subject: OfNetwork = OfNetwork(),
    only: Annotated[tuple[str, ...] | None, Many] = None,
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
        if get_close_matches(model_, HYPOTHESES, n=1, cutoff=0.5) and not any(door.fits(model_) for door in DOORS):
            check_one_of("command", model_, HYPOTHESES)
        subject = replace(subject, model=model_)
    if data_ is not None:
        subject = replace(subject, data=data_)
    found, about = measured(subject, chosen(only or ()), out, json)
    write_overview(found, about, out)
    if json:
        print_json({answer.name: answer.summary() for answer in found}, out)
    else:
        print_written(str(out / "index.html"))


def command(name: str) -> Callable[..., None]:
    """The command that measures one hypothesis."""
    options = OPTIONS.get(name, OfNetwork)
    defaults = options()

    def analysis(
        *,
        subject: options = defaults,  # pyright: ignore[reportInvalidTypeForm] - it is a class at run time
        out: Path = Path("explain"),
        json: Json = False,
    ) -> None:
        (answer,), _ = measured(subject, (name,), out, json, show=tables.TABLES.get(name))
        if answer.found is None:
            raise BadInput(answer.reason)
        if json:
            print_json(answer.found.summary() if name in tables.TABLES else {name: answer.summary()}, out)
        else:
            print_written(f"{out / name}.png, {out / name}.json", space="" if name in tables.TABLES else "\n")

    hypothesis = HYPOTHESES[name]
    analysis.__doc__ = (
        f"{hypothesis.claim}\n\n{hypothesis.shows} Writes OUT/{name}.png and OUT/{name}.json.\n\n"
        "Parameters\n----------\nout\n    The directory to write to.\njson\n    Print the figures as JSON on stdout.\n"
    )
    return analysis


for name in HYPOTHESES:
    explain.command(command(name), name=name)


def measured(
    subject: Options,
    names: Sequence[str],
    out: Path,
    json: bool,
    show: Callable[[Any, Console], None] | None = None,
) -> "tuple[list[Answer], list[tuple[str, str]]]":
    """Make the analyses of those names, write what they found, and print each answer, or `show` the single record."""
    options = subject.options()  # before anything is loaded
    from epsball.cli.allocator import keep_memory
    from epsball.explain.runner import answers

    errors, console = (
        Console(stderr=True, highlight=False, emoji=False),
        Console(highlight=False, emoji=False, quiet=json),
    )
    keep_memory()
    case, about = subject.case(errors)
    if show is None:
        print_about(about, console)
    found: list[Answer] = []
    with progress(errors) as bar:
        task = bar.add_task("explain", total=None, note="")

        def tell(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        for answer in answers(case, names, out=out, on_progress=tell, **options):
            found.append(answer)
            if show is None:
                print_answer(answer, console)
            elif answer.found is not None:
                print_about(about, console)
                show(answer.found, console)
    return found, about


def print_about(about: list[tuple[str, str]], console: Console) -> None:
    """A line each for the model, the data and the ball."""
    for what, text in about:
        console.print(f"[dim]{what:<6}[/] {escape(text)}", soft_wrap=True)


def print_answer(answer: "Answer", console: Console) -> None:
    """A hypothesis, and the sentence or the reason why there is none."""
    hypothesis = HYPOTHESES[answer.name]
    console.print(f"\n[bold]{hypothesis.title}[/] [dim]({answer.name}, {answer.seconds:.1f} s)[/]")
    console.print(Padding(f"[dim]{escape(hypothesis.claim)}[/]", (0, 0, 0, 2)))
    text = f"[yellow]not measured:[/] {escape(answer.reason)}"
    console.print(Padding(text if answer.found is None else escape(answer.found.sentence), (0, 0, 0, 2)))


def print_json(found: dict[str, Any], out: Path) -> None:
    """The figures, and where they were written."""
    print(encoder.dumps(found | {"out": str(out)}, indent=2, allow_nan=False))


def print_written(files: str, *, space: str = "\n") -> None:
    """The last line."""
    Console(highlight=False, emoji=False).print(f"{space}[dim]written: {escape(files)}[/]", soft_wrap=True)


def write_overview(found: "Sequence[Answer]", about: list[tuple[str, str]], out: Path) -> None:
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
