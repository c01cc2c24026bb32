"""Objectives by name: NAME or NAME:KEY=VALUE,KEY=VALUE, as on the command line and in the record of a training.

The options are the fields of the objective's class, and their types say how a value is written. A value that has commas
of its own, as the short form of an attack may have, is put in parentheses.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib import import_module
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from epsball.attacks.attack import Attack
from epsball.attacks.registry import number
from epsball.attacks.registry import parse as parse_attack
from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.lazy import names_in
from epsball.training.training_objective import TrainingObjective

OBJECTIVES: dict[str, tuple[str, str]] = {
    module.rpartition(".")[2].replace("_", "-"): (module, name) for name, module in names_in("epsball.training").items()
}
"""The objectives by name, with module and class: the lines of `training/__init__.pyi`. A file is named like its own."""


def objective_class(name: str) -> type[TrainingObjective]:
    """The class of an objective."""
    module, cls = OBJECTIVES[check_one_of("objective", name.strip().lower().replace("_", "-"), OBJECTIVES)]
    return getattr(import_module(module), cls)


def options_of(cls: type[TrainingObjective]) -> dict[str, Any]:
    """The options of an objective and their defaults, as JSON can hold them.

    >>> options_of(objective_class("plain"))
    {'label_smoothing': 0.0}
    """
    options = {}
    for field in fields(cls):  # type: ignore[arg-type]
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if isinstance(default, Attack | TrainingObjective):
            default = type(default).__name__
        options[field.name] = "none" if default is None else default
    return options


def parse(text: str) -> TrainingObjective:
    """An objective from its short form.

    Raises `BadInput` for an unknown name, option or value.

    >>> parse("plain:label-smoothing=0.1")
    Plain(label_smoothing=0.1)
    """
    name, _, rest = text.strip().partition(":")
    cls = objective_class(name)
    kinds, options = get_type_hints(cls), {}
    known = list(options_of(cls))
    for pair in filter(None, _split_outside_parentheses(rest)):
        key, equals, value = pair.partition("=")
        if not equals or not known:
            rule = f"KEY=VALUE with a key of {', '.join(known)}" if known else "left out"
            raise BadInput(f"`objective` options of {name} must be {rule}, got {pair!r} in {text!r}")
        key = check_one_of(f"{name} option", key.strip().replace("-", "_"), known)
        options[key] = _value(f"{name}:{key}", value.strip(), kinds[key])
    return cls(**options)


def _value(name: str, text: str, kind: Any) -> Any:
    """The value of type `kind` that `text` stands for."""
    kinds = get_args(kind)
    if get_origin(kind) is Literal:
        return check_one_of(name, text, kinds)
    if NoneType in kinds:
        (kind,) = (part for part in kinds if part is not NoneType)
        return None if text.lower() == "none" else _value(name, text, kind)
    if kind in (bool, int, float):
        return number(name, text, kind.__name__)
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    cls = get_origin(kind) or kind
    if isinstance(cls, type) and issubclass(cls, TrainingObjective):
        return parse(text)
    if isinstance(cls, type) and issubclass(cls, Attack):
        return parse_attack(text)
    raise BadInput(f"`{name}` must be given in Python: a {kind} cannot be written on a command line; leave it out here")


def _split_outside_parentheses(text: str) -> list[str]:
    """The parts of a text between commas that are not in parentheses."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts
