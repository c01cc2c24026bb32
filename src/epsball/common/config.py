'''What a configuration is: a frozen dataclass of plain values, whose fields are written down once.

One field gives the Python keyword of the library function, the command line's flag with its help, a line of the TOML
file, and an entry of the JSON record. Its name, type, default, rule and documentation stand in the class:

    class FitConfig(Config):
        """How a model is trained.

        Parameters
        ----------
        epochs
            Passes through the data.
        optimizer
            adam, or sgd with a Nesterov momentum of 0.9.
        """

        epochs: Annotated[int, Rule(check_whole, 1)] = 5
        lr: Annotated[float, Rule(check_positive, "usual is 1e-3 for adam")] = 1e-3
        optimizer: Literal["adam", "sgd"] = "adam"
        patience: Annotated[int | None, Rule(check_whole, 1)] = None

Python: the function has these keywords, and its body makes `FitConfig(epochs=epochs, ...)` once, or takes a mapping by
`FitConfig.of(options)`. Command line: a parameter `config: Annotated[FitConfig, Parameter(name="*")] = FitConfig()`,
which cyclopts flattens; a subclass in `cli/` may add flags that are not the library's. TOML: the command is registered
with `config=cli.filling.fill` and has a parameter `config: Path | None`; in Python `FitConfig.from_toml(path)`.

A module with a configuration has no `from __future__ import annotations`: cyclopts would look the types of inherited
fields up in the module of the subclass.
'''

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, cast, dataclass_transform, get_args, get_origin, get_type_hints

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.limits import MOST_CONFIG, check_toml, read_bytes
from epsball.common.record import Record


class Rule:
    """The rule of a field: a check of `common.checks`, with what comes after the name and the value."""

    def __init__(self, check: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self.check, self.arguments, self.options = check, arguments, options

    def __call__(self, name: str, value: Any) -> None:
        """Raise `BadInput` where `value` breaks the rule."""
        self.check(name, value, *self.arguments, **self.options)


@cache
def _types(cls: type["Config"]) -> dict[str, tuple[Any, bool, tuple[Rule, ...]]]:
    """Of each field: its type without None, whether None is allowed, and its rules."""
    found = {}
    hints = get_type_hints(cls, include_extras=True)
    for name in cls.names():
        kind, *extras = get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        inner = [part for part in parts if part is not type(None)]
        rules = tuple(extra for extra in extras if isinstance(extra, Rule))
        found[name] = (inner[0] if len(inner) == 1 else Any, len(inner) < len(parts), rules)
    return found


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclass(frozen=True, kw_only=True)
class Config(Record):
    """The base of configurations; a subclass becomes a frozen dataclass with keywords only, without a decorator.

    Every value is checked: by the rules of its field, as one of the values of a `Literal`, as true or false for a
    `bool`; what holds between fields is checked by `check`, which a subclass overrides. An error names the field in
    backticks; the command line writes those names as flags.

    >>> from epsball.common.checks import check_between, check_whole
    >>> class Training(Config):
    ...     epochs: Annotated[int, Rule(check_whole, 1)] = 5
    ...     ramp: Annotated[float, Rule(check_between, 0, 1, ends="[)")] = 0.0
    ...     optimizer: Literal["adam", "sgd"] = "adam"
    >>> Training(epochs=0)
    Traceback (most recent call last):
    epsball.common.errors.BadInput: `epochs` must be a whole number >= 1, got 0; as in epochs=1
    >>> Training(ramp=1.0)
    Traceback (most recent call last):
    epsball.common.errors.BadInput: `ramp` must be in [0, 1), got 1.0
    >>> Training.of({"epoch": 3})
    Traceback (most recent call last):
    epsball.common.errors.BadInput: `option` must be one of epochs, ramp, optimizer, got 'epoch'; did you mean 'epochs'?
    >>> Training.from_json(Training(epochs=3).to_json())
    Training(epochs=3, ramp=0.0, optimizer='adam')
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for name, (kind, optional, rules) in _types(type(self)).items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if get_origin(kind) is Literal:
                check_one_of(name, cast(str, value), get_args(kind))
            elif kind is bool and not isinstance(value, bool):
                raise BadInput(f"`{name}` must be true or false, got {value!r}")
            elif kind is float and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise BadInput(f"`{name}` must be a number, got {value!r}")
            for rule in rules:
                rule(name, value)
        self.check()

    def check(self) -> None:
        """Raise `BadInput` where fields do not go together."""

    @classmethod
    def names(cls) -> list[str]:
        """The names of the fields."""
        return [field.name for field in fields(cls)]

    @classmethod
    def of(cls, options: Mapping[str, Any], *, what: str = "option") -> Self:
        """The configuration of those names. Raises `BadInput` for an unknown one, with the nearest name."""
        known = cls.names()
        return cls(**{check_one_of(what, name, known): value for name, value in options.items()})

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """The configuration of a TOML file; what it leaves out has its default."""
        values = read_toml(path, cls.names())
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def read_toml(path: str | Path, known: Iterable[str]) -> dict[str, Any]:
    """The values of a TOML file by name, with underscores. Raises `BadInput` for a name that is not `known`."""
    path = Path(path).expanduser()
    try:
        text = read_bytes(path, MOST_CONFIG).decode()
        check_toml(text)
        values = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"`config` must be a TOML file, got {path}: {error}; a line of it is seed = 5") from error
    return {
        check_one_of(f"config {path}: name", name.replace("-", "_"), known): value for name, value in values.items()
    }
