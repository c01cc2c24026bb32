"""The attacks by name, from the lines of `attacks/__init__.pyi`. Names can be read without importing torch."""

from __future__ import annotations

import re
import sys
from ast import literal_eval
from importlib import import_module
from inspect import formatannotation
from typing import TYPE_CHECKING, Any

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.lazy import names_in

if TYPE_CHECKING:
    from epsball.attacks.attack import Attack

ATTACKS: dict[str, tuple[str, str]] = {
    module.rpartition(".")[2].replace("_", "-"): (module, name) for name, module in names_in("epsball.attacks").items()
}
"""The attacks by name, with module and class: the lines of `attacks/__init__.pyi`. A file is named like its attack."""

ALIASES: dict[str, str] = {
    "apgd-ce": "apgd",
    "apgd-dlr": "apgd:loss=dlr",
    "apgd-t": "apgd:loss=dlr,n_targets=9",
    "fab-t": "fab:n_targets=9",
}
"""Other names of the literature, for an attack with options."""

CITATION = re.compile(r"[A-Z][^.\"()]*?(?: et al\.)?,? \"[^\"]+\" \([^)]*\d{4}[^)]*\)")
"""Authors, title and year, as the docstring of an attack's module cites its source."""


def attack_class(name: str) -> type[Attack]:
    """The class that the table names."""
    module, cls = ATTACKS[check_one_of("attack", name, ATTACKS)]
    return getattr(import_module(module), cls)


def options_of(cls: type[Attack]) -> dict[str, object]:
    """The options of an attack and their defaults, as they are written on a command line."""
    from dataclasses import fields

    defaults = {f.name: getattr(f.default, "__name__", f.default) for f in fields(cls)}
    return {name: at if at is None or isinstance(at, str | int | float) else repr(at) for name, at in defaults.items()}


def described(name: str) -> dict[str, Any]:
    """What lists of the attacks say of one: `class`, `needs`, `norms`, `summary`, `options`, `source` (a citation).

    >>> described("pgd")["source"]
    'Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks" (ICLR 2018)'
    """
    cls = attack_class(name)
    cited = CITATION.search(" ".join((sys.modules[cls.__module__].__doc__ or "").split()))
    return {
        "class": cls.__name__,
        "needs": cls.needs,
        "norms": list(cls.norms()),
        "summary": (cls.__doc__ or "").partition("\n")[0],
        "options": options_of(cls),
        "source": cited[0] if cited else "",
    }


def markdown_table() -> str:
    """The table of all attacks in docs/attacks.md, which the build of the docs writes there."""
    rows = ["| name | class | needs | norms | what it does | options | source |", "| --- " * 7 + "|"]
    for name in ATTACKS:
        of = described(name)
        options = ", ".join(f"{key}={value}" for key, value in of["options"].items())
        cells = (f"`{name}`", of["class"], of["needs"], ", ".join(of["norms"]), of["summary"], options, of["source"])
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def parse(text: str) -> Attack:
    """An attack from its short form NAME or NAME:KEY=VALUE,KEY=VALUE, as on the command line.

    >>> parse("pgd:steps=100,loss=margin").steps
    100
    >>> parse("apgd-t:n_targets=3").n_targets
    3
    """
    from dataclasses import fields

    from epsball.problem.losses import resolve_loss

    name, _, rest = text.strip().partition(":")
    name = check_one_of("attack", name.lower(), (*ATTACKS, *ALIASES))
    name, _, preset = ALIASES.get(name, name).partition(":")
    cls, rest = attack_class(name), f"{preset},{rest}"
    kinds = {f.name: f.type if isinstance(f.type, str) else formatannotation(f.type) for f in fields(cls)}
    options = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise BadInput(f"`attack` options are KEY=VALUE, got {pair!r} in {text!r}; as in pgd:steps=40,restarts=2")
        key = check_one_of(f"{name} option", key.strip().replace("-", "_"), kinds)
        options[key] = resolve_loss(value) if key == "loss" else number(f"{name}:{key}", value, kinds[key])
    return cls(**options)


def number(name: str, value: str, kind: str) -> float | bool | str:
    """An option's value from its text; `kind` is bool, int, float or a Literal of words."""
    if kind == "bool":
        return {"true": True, "false": False}[check_one_of(name, value.strip().lower(), ("true", "false"))]
    if kind.startswith("Literal["):
        return check_one_of(name, value.strip().lower(), literal_eval(kind.removeprefix("Literal")))
    if kind not in ("int", "float"):
        raise BadInput(f"`{name}` must be left out in words, got {value!r}: it holds tensors; say it in Python")
    try:
        return int(value) if kind == "int" else float(value)
    except ValueError as error:
        raise BadInput(f"`{name}` must be of type {kind}, got {value!r}") from error
