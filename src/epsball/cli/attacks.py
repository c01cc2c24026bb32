"""`epsball attacks`: what can be named in --attacks."""

from __future__ import annotations

import json as encoder
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from epsball.attacks import ATTACKS, attack_class, options_of


def attacks(*, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the attacks that --attacks knows, with their options.

    Parameters
    ----------
    json
        Print the list as JSON.
    """
    listed = {}
    for name in ATTACKS:
        cls = attack_class(name)
        summary = (cls.__doc__ or "").partition("\n")[0]
        listed[name] = {"summary": summary, "needs": cls.needs, "options": options_of(cls)}
    if json:
        print(encoder.dumps(listed, indent=2))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("name", "what it does", "options (name:key=value,...)"):
        table.add_column(head)
    for name, entry in listed.items():
        table.add_row(name, entry["summary"], "\n".join(f"{key}={value}" for key, value in entry["options"].items()))
    Console().print(table)
