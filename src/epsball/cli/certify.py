"""`epsball certify`: what is proved of a model, on data or about a property in VNN-LIB."""

from __future__ import annotations

import csv
import json as encoder
import sys
from pathlib import Path

from rich.console import Console

from epsball.cli.common import Json, Subject, described
from epsball.common.errors import BadInput


def certify(
    *,
    subject: Subject = Subject(),  # noqa: B008 - it is frozen
    method: str = "auto",
    budget: float = 10.0,
    property: Path | None = None,
    instances: Path | None = None,
    timeout: float | None = None,
    out: Path | None = None,
    json: Json = False,
) -> None:
    """Prove that no point of each example's ball is misclassified; or answer properties in VNN-LIB, as VNN-COMP asks.

    With --property it prints sat and a counterexample, unsat, unknown or timeout for the ONNX network of --model; with
    --instances a line for each of a benchmark. Data and ball are those of the property then.

    Parameters
    ----------
    method
        auto, one bound alone (ibp, crown-ibp, crown, alpha-crown), or smoothing:sigma=0.25,n=1000,n0=100,alpha=0.001.
    budget
        Seconds an example, on average.
    property
        A .vnnlib or .vnnlib.gz file.
    instances
        A file with lines NETWORK.onnx,PROPERTY.vnnlib,SECONDS; the files are beside it.
    timeout
        Seconds for a property. Default: 60; with --instances those of each line, and never more than this.
    out
        Write the result there: as JSON, with --instances as CSV.
    json
        Print the result as JSON on stdout.
    """
    if property is not None or instances is not None:
        if property is not None and instances is not None:
            raise BadInput("`property` must be left out with `instances`, which names properties, got both")
        _properties(subject, property, instances, timeout, out, json)
        return
    if timeout is not None:
        raise BadInput("`timeout` must be given with `property` or `instances` only; on data it is `budget`")
    from epsball.certify.certify import certify as prove
    from epsball.cli.allocator import keep_memory

    keep_memory()
    errors = Console(stderr=True, highlight=False, emoji=False)
    examples = subject.examples()
    ball = subject.ball_for(examples)
    model, origin = subject.network(examples, None, errors)
    found = prove(model, examples, ball, method=method, budget=budget, seed=subject.seed)
    if out is not None:
        found.save(out)
    if json:
        print(encoder.dumps(found.summary(), indent=2))
        return
    console = Console(highlight=False, emoji=False)
    console.print(f"[dim]model[/]  {origin}", soft_wrap=True)
    console.print(f"[dim]data[/]   {described(examples)}", soft_wrap=True)
    console.print(f"[dim]ball[/]   {subject.ball}\n")
    console.print(str(found), markup=False, soft_wrap=True)
    if out is not None:
        console.print(f"[dim]written: {out}[/]", soft_wrap=True)


def _properties(
    subject: Subject, property: Path | None, instances: Path | None, timeout: float | None, out: Path | None, json: bool
) -> None:
    from epsball.evaluation.property_check import check_instances, check_property

    if property is not None:
        if subject.model is None:
            raise BadInput("`model` must be an ONNX file with `property`, got none; name it with --model")
        answer = check_property(subject.model, property, timeout=timeout or 60.0, seed=subject.seed)
        print(answer.to_json(indent=2) if json else answer.text())
        if answer.reason:
            Console(stderr=True, highlight=False, emoji=False).print(answer.reason, markup=False, soft_wrap=True)
        if out is not None:
            answer.save(out)
        return
    assert instances is not None
    rows, records = [], []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    for instance, answer in check_instances(instances, seed=subject.seed, most_seconds=timeout):
        rows.append((instance.model, instance.property, answer.answer, f"{answer.seconds:.2f}"))
        records.append(instance.to_record() | answer.to_record())
        if not json:
            writer.writerow(rows[-1])
            sys.stdout.flush()
        if answer.reason:
            Console(stderr=True, highlight=False, emoji=False).print(answer.reason, markup=False, soft_wrap=True)
        if out is not None:
            with out.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)
    if json:
        print(encoder.dumps(records, indent=2))
