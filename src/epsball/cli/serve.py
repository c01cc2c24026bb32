"""`epsball serve`: a page to drag epsilon on."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from epsball.cli.common import BATCH, Subject, built_in, described, progress, with_gradients
from epsball.common.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

    from epsball.data.examples import Examples
    from epsball.serve.exhibit import Shown


NOT_A_FLAG = Parameter(parse=False)


@dataclass(frozen=True, kw_only=True)
class Served(Subject):
    """What the page shows; its model and its data are arguments of the command.

    Parameters
    ----------
    beside
        A second model, shown beside the first. Default: where the first is trained on the spot, the same network,
        trained against the ball.
    beside_weights
        A .safetensors or .pt file for the second model.
    split
        The split to show; a built-in network without weights is trained on "train".
    ball
        The ball that the page begins with, and that the second network is trained against: NORM:RADIUS as in
        linf:8/255.
    lo
        Black. Default: the data's (0 for images).
    hi
        White. Default: the data's (1 for images).
    seed
        Keys the training on the spot.
    """

    model: Annotated[str | None, NOT_A_FLAG] = None
    data: Annotated[str, NOT_A_FLAG] = "digits"
    batch_size: Annotated[int, NOT_A_FLAG] = BATCH
    beside: str | None = None
    beside_weights: Path | None = None


def serve(
    model: str | None = None,
    data: str = "digits",
    *,
    served: Served = Served(),
    port: int = 8000,
    open_: Annotated[bool, Parameter(name="--open", negative="--no-open")] = False,
) -> None:
    """A page on this machine: drag epsilon and see what becomes of an image, and of what classifiers say of it.

    With no argument it shows scikit-learn's digits and two small networks, trained on the spot: one plainly, one
    against adversarial examples. The page is at 127.0.0.1 alone; it sends nothing anywhere. Ctrl-C stops it.

    Parameters
    ----------
    model
        A built-in network (small-mlp, small-cnn, maxout, preact-resnet18:width=16), trained on the spot unless
        --weights is given, package.module:factory, or a folder that `epsball train` wrote. Default: small-mlp for
        digits, else small-cnn.
    data
        digits, a folder of parquet files or images, an .npz file with x and y, or a Hugging Face datasets name.
    port
        The port to listen on; 0 takes any that is free.
    open_
        Open the page in a browser.
    """
    from epsball.cli.allocator import keep_memory
    from epsball.serve.server import listen, run

    # What can be refused is refused before a network is trained.
    subject = replace(served, model=model, data=data)
    if subject.beside is None and subject.beside_weights is not None:
        raise BadInput(
            f"`--beside` must name the network that {subject.beside_weights} is for, got none; as in small-cnn"
        )
    place = listen(port)
    try:
        keep_memory()
        errors = Console(stderr=True, highlight=False, emoji=False)
        examples = subject.examples()
        near = subject.ball_for(examples)
        from epsball.serve.app import application
        from epsball.serve.exhibit import Exhibit

        exhibit = Exhibit(models=_models(subject, examples, errors), examples=examples, ball=near)
        app = application(exhibit)
    except BaseException:
        place.close()
        raise
    console = Console(highlight=False, emoji=False)
    for shown in exhibit.models:
        console.print(f"[dim]model[/]  {escape(shown.origin)}", soft_wrap=True)
    console.print(f"[dim]data[/]   {escape(described(examples))}", soft_wrap=True)

    def ready(address: str) -> None:
        console.print(f"\n[bold]{address}[/]  [dim]on this machine only; Ctrl-C stops it[/]", soft_wrap=True)
        if open_:
            webbrowser.open(address)

    run(app, place, ready)
    console.print("[dim]stopped[/]")


def _models(subject: Served, examples: Examples, errors: Console) -> tuple[Shown, ...]:
    """The model, and the one beside it if there is one."""
    from epsball.serve.exhibit import Shown

    model, origin = subject.network(examples, None, errors)
    first = Shown(name=subject.spec, origin=origin, model=with_gradients(model, "serve"))
    if (beside := subject.beside) is not None:
        other, origin = subject.source(beside, subject.beside_weights, examples, None, errors)
        name = beside if beside != subject.spec else f"{beside} (2)"
        return first, Shown(name=name, origin=origin, model=with_gradients(other, "serve"))
    if subject.weights is not None or not built_in(subject.spec):
        return (first,)
    trained, said = _trained_against(subject, examples, errors)
    return (
        Shown(name="plain", origin=origin, model=model),
        Shown(name="trained against attacks", origin=said, model=trained),
    )


def _trained_against(subject: Subject, examples: Examples, errors: Console) -> tuple[nn.Module, str]:
    """The same network, trained on half clean, half FGSM examples of the ball (Goodfellow et al. 2015, section 6)."""
    from epsball.models.opening import load
    from epsball.training.fgsm_mix import FGSMMix
    from epsball.training.fit import fit

    train = subject.of_split("train")
    near = subject.ball_for(train)
    classes = max(examples.classes, train.classes)
    model = load(subject.spec, shape=train.shape, classes=classes, seed=subject.seed)
    steps = ceil(len(train) / BATCH)
    epochs = subject.epochs or min(60, max(3, ceil(1500 / steps)))
    with progress(errors) as bar:
        task = bar.add_task("training against attacks", total=epochs * steps, note="")
        fit(
            model,
            train,
            near,
            objective=FGSMMix(),
            epochs=epochs,
            batch_size=BATCH,
            lr=3e-3,
            seed=subject.seed,
            progress=lambda at: bar.update(task, completed=at.step, note=f"loss {at.loss:.3f}"),
        )
    length = f"{epochs} epoch{'s' * (epochs != 1)}"
    return model, f"{subject.spec}, trained here with fgsm-mix against {subject.ball}: {length}"
