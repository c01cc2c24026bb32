"""`epsball verify`: a run directory, recomputed with a fresh model."""

from __future__ import annotations

import json as encoder
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from epsball.cli.common import Json, Subject, built_in, finite, limited_as_before
from epsball.common.errors import BadInput
from epsball.common.printable import printable

if TYPE_CHECKING:
    from torch import nn

    from epsball.evaluation.verify import Verification

SHOWN = 20
SUBJECT = {
    **dict.fromkeys(("model", "weights", "data", "data_config", "split", "image_column", "label_column"), str),
    **dict.fromkeys(("limit", "sample_seed", "first", "seed"), int),
    "black_box": bool,
}
"""What a verification takes of the subject in `command.json`, and its types."""
OF_THE_DATA = ("data_config", "split", "limit", "first", "image_column", "label_column")


def verify(
    run: Path,
    /,
    *,
    model: str | None = None,
    weights: Path | None = None,
    data: str | None = None,
    batch_size: int | Literal["auto"] = 128,
    trust: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> int:
    """Recompute every success, containment and figure of a run from its files, with a fresh model.

    Exits with 0 where all agrees, with 1 where anything differs; each difference names its example.

    Parameters
    ----------
    run
        The directory that `epsball evaluate --out` wrote.
    model
        The model, as in `epsball evaluate`. Default: the one that the run names.
    weights
        Its weights. Default: those that the run names, or those of the network that it trained on the spot.
    data
        Also compare the examples that the run stores with this data, as in `epsball evaluate`, and make every clean
        prediction anew.
    batch_size
        Examples of one model call, or auto.
    trust
        Run the code that the run names, or ask the service that it names, where --model is left out.
    json
        Print everything, with all differences, as JSON on stdout.
    """
    from epsball.cli.allocator import keep_memory
    from epsball.data.load import open_data
    from epsball.evaluation.run_directory import read_config
    from epsball.evaluation.verify import verify as library_verify
    from epsball.models.preparation import PREPARATION

    keep_memory()
    if not (run / "config.json").exists():
        raise BadInput(
            f"`run` must be a directory that `epsball evaluate --out` wrote, got {run}; is it spelled right?"
        )
    config = read_config(run)
    command = _command(run)
    network, origin = _model(run, config, command, model, weights, trust=trust)
    examples = None
    if data is not None:
        subject = command.get("subject", {})
        options = {name: subject[name] for name in OF_THE_DATA if name in subject}
        options |= {"seed": subject.get("sample_seed") or 0}
        examples = open_data(data, **options, preparation=getattr(network, PREPARATION, None))
    found = library_verify(run, network, data=examples, batch_size=batch_size)
    if json:
        print(encoder.dumps(finite(found.summary()), indent=2, allow_nan=False))
    else:
        _report(found, str(run), origin, data)
    return int(not found.agrees)


def _read(path: Path, remedy: str) -> dict[str, Any] | None:
    """A JSON file; None where there is none."""
    from epsball.common.json_files import read_json

    return read_json(path, remedy) if path.exists() else None


def _command(run: Path) -> dict[str, Any]:
    """What the run's `command.json` says, {} where there is none: its own words, none of which is `trust`."""
    remedy = "delete it and give --model, and --weights"
    command = _read(run / "command.json", remedy)
    if command is None:
        return {}
    given = command.get("subject")
    subject = {name: limited_as_before(given).get(name) for name in SUBJECT} if isinstance(given, dict) else {}
    wrong = [name for name, value in subject.items() if value is not None and type(value) is not SUBJECT[name]]
    classes = command.get("classes")
    if not subject or wrong or not isinstance(command.get("directory"), str) or not isinstance(classes, int | None):
        raise BadInput(f"{run / 'command.json'} is damaged ({', '.join(wrong) or 'a part is missing'}); {remedy}")
    return command | {"subject": {name: value for name, value in subject.items() if value is not None}}


def _model(
    run: Path, config: dict[str, Any], command: dict[str, Any], model: str | None, weights: Path | None, *, trust: bool
) -> tuple[nn.Module, str]:
    """The model that is asked for, else the one that the run names, and a line about where it comes from."""
    from epsball.models.doors import names_place, needs_trust
    from epsball.models.opening import load

    subject = Subject(**command.get("subject", {}))
    if model is None and not command:
        raise BadInput(f"`--model` must be given: {run} names none (no command.json), as it was not made by a command")
    spec, saved = model or subject.spec, run / "model.safetensors"
    if model is None and names_place(spec, within=command["directory"]):
        spec = str(Path(command["directory"]) / Path(spec).expanduser())
    if model is None and needs_trust(spec) and not trust:
        shown = printable(spec)
        raise BadInput(
            f"`run` {run} names the model {shown}, which is code that was not run, or a service that was not asked; "
            f"where you trust it, add --model {shown}, or --trust"
        )
    ours = model is None or model == subject.spec
    if weights is None and ours and subject.weights is not None:
        weights = Path(command["directory"]) / subject.weights
    elif weights is None and ours and built_in(spec):
        weights = saved
    if weights is None and built_in(spec):
        raise BadInput(f"`--weights` must be given with --model {spec}: the run has none for it")
    card = (_read(run / "model.json", "give --weights") or {}) if weights == saved else {}
    classes = card.get("classes") or command.get("classes") or _classes(run)
    try:
        network = load(
            spec,
            shape=config["data"]["shape"],
            classes=classes,
            weights=weights,
            seed=subject.seed,
            trust=trust,
            black_box=subject.black_box,
        )
    except BadInput as error:
        if "directory" not in command:
            raise
        raise BadInput(f"{error} (the run was made in {command['directory']})") from error
    return network, f"{spec}{f' with {weights}' if weights else ''}"


def _classes(run: Path) -> int:
    """As many classes as the logits that the run keeps have columns."""
    from epsball.evaluation import run_directory

    clean = run_directory.load(run / "stages" / "00000-clean.parquet")
    return run_directory.points(clean["logits"], (-1,)).shape[1] if "logits" in clean.column_names else 1


def _report(found: Verification, run: str, origin: str, data: str | None) -> None:
    console = Console(highlight=False, emoji=False)
    console.print(f"[dim]run[/]    {escape(run)}", soft_wrap=True)
    console.print(f"[dim]model[/]  {escape(printable(origin))}", soft_wrap=True)
    if data is not None:
        console.print(f"[dim]data[/]   {escape(data)}", soft_wrap=True)
    whose = "all" if found.with_data else "the fooled"
    proofs, ends = "", f"robust accuracy {found.robust_accuracy:.2%}"
    if found.certified is not None:
        ends = f"robust accuracy {found.certified_accuracy:.2%} to {found.robust_accuracy:.2%}"
        proofs = (
            f"{found.recertified:,} of {found.certified:,} certificates evaluated anew, and they prove their examples\n"
        )
    console.print(
        f"\n{found.n:,} examples; {found.confirmed:,} of {found.fooled:,} successes reproduced, inside the ball\n"
        f"{found.clean_checked:,} clean predictions made anew ({whose})\n{proofs}"
        f"{ends}, clean accuracy {found.clean_accuracy:.2%}"
    )
    if found.eot > 1:
        console.print(
            f"[dim]The model is stochastic: predictions are the mean of {found.eot} model calls, as in the run; near "
            "the decision boundary they need not repeat.[/]"
        )
    if found.agrees:
        console.print("\n[bold]no differences[/]")
        return
    rows = found.differences
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head, most in (("id", 10), ("what", 17), ("stored", 24), ("found", 24)):
        table.add_column(head, overflow="ellipsis", no_wrap=True, max_width=most)
    for row in rows[:SHOWN]:
        table.add_row("run" if row.id is None else str(row.id), *map(escape, (row.what, row.stored, row.found)))
    console.print("", table)
    if len(rows) > SHOWN:
        console.print(f"[dim]and {len(rows) - SHOWN:,} more: --json prints all[/]")
    kinds = ", ".join(f"{count:,} {what}" for what, count in Counter(row.what for row in rows).most_common())
    touched = len({row.id for row in rows if row.id is not None})
    console.print(f"\n[bold red]{len(rows):,} differences[/] on {touched:,} examples: {kinds}")
