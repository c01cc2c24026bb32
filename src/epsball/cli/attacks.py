"""`epsball attacks`: what can be named in --attacks."""

from __future__ import annotations

import json as encoder
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from epsball.attacks.registry import ALIASES, ATTACKS, described
from epsball.engine.protocols import CASCADES, by_norm


def attacks(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the attacks and protocols that --attacks knows: norms, options, what they stand for.

    Parameters
    ----------
    json
        Print the list as JSON.
    """
    listed = {name: described(name) for name in ATTACKS}
    aliases = {name: stands for name, stands in ALIASES.items() if stands.partition(":")[0] in ATTACKS}
    protocols = {name: by_norm(name) for name in CASCADES}
    if json:
        print(encoder.dumps({"attacks": listed, "aliases": aliases, "protocols": protocols}, indent=2))
        return
    console = Console(highlight=False, emoji=False)
    table = _table("attack", "norms", "what it does", "options (name:key=value,...)")
    for name, entry in listed.items():
        options = "\n".join(f"{key}={value}" for key, value in entry["options"].items())
        table.add_row(name, "\n".join(entry["norms"]), entry["summary"], options)
    console.print(table)
    short = _table("other name", "stands for")
    for name, stands in aliases.items():
        short.add_row(name, stands)
    console.print("", short)
    lists = _table("protocol", "norm", "its attacks, each on the examples robust so far")
    for name, norms in protocols.items():
        for row, (norm, parts) in enumerate(norms.items()):
            lists.add_row("" if row else name, norm, " ".join(parts))
    lists.add_row("worst-of(A, B, ...)", "any", "A B ..., as in 'worst-of(fgsm, pgd:steps=100)'")
    console.print("", lists)


def _table(*heads: str) -> Table:
    table: Any = Table(box=None, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(head, no_wrap=number < len(heads) - 2 or number == 0, overflow="fold")
    return table
