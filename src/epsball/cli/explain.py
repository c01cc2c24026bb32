"""`epsball explain`: why there is an adversarial example; the commands of the analyses that have their own options."""

from __future__ import annotations

import json as encoder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console

from epsball.cli import explain_tables as tables
from epsball.cli.common import Json, Subject, described, progress
from epsball.cli.explain_every import add_to
from epsball.common.atomic_files import write_whole

if TYPE_CHECKING:
    from epsball.explain.dimension import Growth
    from epsball.explain.l1 import L1Equivalence
    from epsball.explain.taylor import TaylorGap

explain = App(name="explain", help="Measure why adversarial examples exist, and draw it.")
add_to(explain)


@explain.command
def growth(
    *,
    data: str = "digits",
    split: str = "test",
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    eps: str = "0.1",
    sides: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (7, 14, 28, 56, 112),
    pair: Annotated[tuple[int, int] | None, Parameter(negative="")] = None,
    draws: int = 32,
    seed: int = 0,
    out: Path = Path("explain"),
    json: Json = False,
) -> None:
    """The gain eps * m * n of a linear activation grows with the dimension n: does the clean activation keep up?

    Images are resized to several sizes; weights are drawn, and trained on two classes. Writes OUT/growth.png and
    OUT/growth.json.

    Parameters
    ----------
    data
        Images: digits, a folder of parquet files or images, an .npz file with x and y, or a Hugging Face datasets
        name.
    split
        The split to measure on; the classifier is trained on "train".
    limit
        Take only the first examples of the split.
    image_column
        The column with the images, where it cannot be told from its type.
    label_column
        The column with the labels, where it cannot be told from its type.
    eps
        The size of the step in each coordinate, a number or a fraction: 8/255.
    sides
        The side lengths that images are resized to.
    pair
        Two classes. Default: 3 and 7 where the data have them, else the first two.
    draws
        Random weight vectors of each kind.
    seed
        Keys the random weights.
    out
        The directory to write to.
    json
        Print the figures as JSON on stdout.
    """
    from epsball import explain as analyses
    from epsball.balls.registry import parse_radius
    from epsball.explain.dimension import KINDS

    radius, errors = parse_radius(eps), Console(stderr=True, highlight=False)
    subject = Subject(
        data=data, split=split, limit=limit, image_column=image_column, label_column=label_column, seed=seed
    )
    examples = subject.examples(limit=limit)
    # An .npz has no splits: the analysis then trains on every second row and measures on the others.
    train = None if data.endswith(".npz") or split == "train" else subject.examples(split="train")
    with progress(errors) as bar:
        task = bar.add_task("growth", total=3 * len(sides), note="")
        found = analyses.growth(
            examples,
            eps=radius,
            sides=sides,
            train=train,
            pair=pair,
            seed=seed,
            draws=draws,
            on_progress=lambda done, now: bar.update(task, completed=done, note=now),
        )
    _kept(found, out, "growth")
    if json:
        print(encoder.dumps(found.summary() | {"out": str(out)}, indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(f"[dim]data[/]   {described(examples)}", soft_wrap=True)
    first, second = found.config["pair"]
    console.print(f"[dim]eps[/]    {eps}; classes {first} and {second}, {found.config['rows']} images\n")
    for weights, said in KINDS.items():
        console.print(f"weights [bold]{said}[/]")
        console.print(tables.rungs(found, weights), "")
    console.print(tables.accuracies(found.of("trained")), "")
    console.print("[dim]change: w.(x_adv - x), x_adv = x + eps sign(w); like |w.x|, a mean[/]")
    console.print("[dim]std: that of w.x over images; p: fitted, how the column grows with n[/]")
    console.print(f"[dim]written: {out / 'growth.png'}, {out / 'growth.json'}[/]", soft_wrap=True)


@explain.command
def l1(
    *,
    data: str = "digits",
    split: str = "test",
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    eps: str = "0.2",
    pair: Annotated[tuple[int, int] | None, Parameter(negative="")] = None,
    C: Annotated[float, Parameter(name="--C")] = 1.0,
    out: Path = Path("explain"),
    json: Json = False,
) -> None:
    """Is adversarial training L1 regularisation? Logistic regressions of two classes, side by side.

    Plain, adversarially trained (exact), with the gradient penalty, and with L1 decay of three strengths. Writes
    OUT/l1.png and OUT/l1.json.

    Parameters
    ----------
    data
        Examples: digits, a folder of parquet files or images, an .npz file with x and y, or a Hugging Face datasets
        name.
    split
        The split to measure on; the models are fitted on "train".
    limit
        Take only the first examples of each split.
    image_column
        The column with the images, where it cannot be told from its type.
    label_column
        The column with the labels, where it cannot be told from its type.
    eps
        The attacker's radius in the max norm, a number or a fraction: 8/255.
    pair
        Two classes. Default: 3 and 7 where the data have them, else the first two.
    C
        Inverse strength of the weak L2 penalty of the plain model, as in scikit-learn.
    out
        The directory to write to.
    json
        Print the figures as JSON on stdout.
    """
    from epsball import explain as analyses
    from epsball.balls.registry import parse_radius
    from epsball.explain.l1 import MODELS, of_pair

    radius, errors = parse_radius(eps), Console(stderr=True, highlight=False)
    subject = Subject(data=data, split=split, limit=limit, image_column=image_column, label_column=label_column)
    examples = subject.examples(limit=limit)
    # An .npz has no splits: the models are then fitted to every second row and measured on the others.
    halved = data.endswith(".npz") or split == "train"
    fitted = examples.rows(slice(0, None, 2)) if halved else subject.examples(split="train", limit=limit)
    held = of_pair(examples.rows(slice(1, None, 2)) if halved else examples, pair)
    with progress(errors) as bar:
        task = bar.add_task("l1", total=len(MODELS), note="")
        found = analyses.l1_equivalence(
            *of_pair(fitted, tuple(held[1].unique().tolist())),
            eps=radius,
            test=held,
            C=C,
            on_progress=lambda done, now: bar.update(task, completed=done, note=now),
        )
    _kept(found, out, "l1")
    if json:
        print(encoder.dumps(found.summary() | {"out": str(out)}, indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(f"[dim]data[/]   {described(examples)}", soft_wrap=True)
    first, second = found.config["classes"]
    console.print(
        f"[dim]eps[/]    {eps}; classes {first} and {second}; fitted to {found.config['rows']:,}, measured on "
        f"{found.config['test_rows']:,}\n"
    )
    console.print(tables.models(found), "")
    console.print(tables.costs(found), "")
    fading = found.fading
    carried = {form: f"{share:.0%}" for form, share in fading.carried.items()}
    console.print(
        f"{fading.beyond:.0%} of the examples are beyond the adversarial model's attacker. They carry "
        f"{carried['exact']}\n"
        f"of the exact penalty, {carried['gradient']} of the gradient penalty, {carried['l1']} of L1."
    )
    if found.of("gradient").endless:
        console.print("The classes can be separated: the gradient penalty has no minimum.")
    console.print(f"\n[dim]written: {out / 'l1.png'}, {out / 'l1.json'}[/]", soft_wrap=True)


@explain.command
def taylor(
    *,
    subject: Subject = Subject(),  # noqa: B008 - it is frozen
    eps: Annotated[tuple[str, ...] | None, Parameter(consume_multiple=True, negative="")] = None,
    loss: str = "cross_entropy",
    float32: Annotated[bool, Parameter(negative="")] = False,
    out: Path = Path("explain"),
    json: Json = False,
) -> None:
    """How far the first-order story carries: the true rise of the loss beside eps times the gradient's dual norm.

    Writes OUT/taylor.png and OUT/taylor.json.

    Parameters
    ----------
    eps
        The radii. Default: the ball's and seven halvings of it.
    loss
        cross_entropy or margin; for a linear model the margin has no gap at all.
    float32
        Measure in the model's own precision; else model and data are taken to float64, since small rises drown in
        rounding.
    out
        The directory to write to.
    json
        Print the figures as JSON on stdout.
    """
    from epsball import explain as analyses
    from epsball.balls.registry import parse_radius
    from epsball.cli.allocator import keep_memory
    from epsball.problem.losses import resolve_loss

    chosen = resolve_loss(loss)
    radii = None if eps is None else [parse_radius(radius) for radius in eps]
    keep_memory()
    errors = Console(stderr=True, highlight=False)
    examples = subject.examples(limit=subject.limit)
    ball = subject.ball_for(examples)
    model, origin = subject.network(examples, None, errors)
    x = examples.x
    if not float32:
        model, x = model.double(), x.double()
    with progress(errors) as bar:
        task = bar.add_task("taylor", total=len(examples), note="")
        found = analyses.taylor_gap(
            model,
            x,
            examples.y,
            ball,
            eps=radii,
            loss=chosen,
            batch_size=subject.batch_size,
            on_progress=lambda done: bar.update(task, completed=done),
        )
    _kept(found, out, "taylor")
    if json:
        print(encoder.dumps(found.summary() | {"out": str(out)}, indent=2, allow_nan=False))
        return
    console = Console(highlight=False)
    console.print(f"[dim]model[/]  {origin}", soft_wrap=True)
    console.print(f"[dim]data[/]   {described(examples)}", soft_wrap=True)
    console.print(f"[dim]ball[/]   {subject.ball.partition(':')[0]}, loss {loss}\n")
    console.print(tables.radii(found), "")
    console.print("[dim]medians over the examples; gap: what the first order leaves out of the rise[/]")
    console.print(f"[dim]written: {out / 'taylor.png'}, {out / 'taylor.json'}[/]", soft_wrap=True)


def _kept(found: Growth | L1Equivalence | TaylorGap, out: Path, name: str) -> None:
    write_whole(out / f"{name}.json", lambda draft: draft.write_text(found.to_json()))
    found.draw(out / f"{name}.png")
