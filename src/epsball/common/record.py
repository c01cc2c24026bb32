"""What every result is: a frozen dataclass that goes to JSON and comes back equal.

The conversion is cattrs'. JSON has no NaN and no infinity: a number that is not finite is written as "nan", "inf" or
"-inf", and read as what it was. What follows from the fields is listed in `derived`, and only `summary` shows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from cattrs import Converter
from cattrs.errors import BaseValidationError
from cattrs.strategies import configure_union_passthrough

from epsball.common.atomic_files import write_whole
from epsball.common.errors import BadInput
from epsball.common.json_files import read_values
from epsball.common.limits import parse_json

_converter = Converter()
configure_union_passthrough(bool | int | float | str | None, _converter)
_converter.register_unstructure_hook(float, lambda value: float(value) if math.isfinite(value) else str(float(value)))
_converter.register_structure_hook(float, lambda value, _: math.nan if value is None else float(value))


@dataclass(frozen=True)
class Record:
    """A frozen result. Subclasses are dataclasses of numbers, text, tuples, mappings and other records.

    >>> @dataclass(frozen=True)
    ... class Radius(Record):
    ...     name: str
    ...     eps: float
    >>> Radius("linf", math.inf).to_json()
    '{"name": "linf", "eps": "inf"}'
    >>> Radius.from_json('{"name": "linf", "eps": "inf"}')
    Radius(name='linf', eps=inf)
    """

    derived: ClassVar[tuple[str, ...]] = ()
    """The properties that `summary` adds to the fields."""

    def to_record(self) -> dict[str, Any]:
        """The fields, as JSON can hold them."""
        return _converter.unstructure(self)

    def summary(self) -> dict[str, Any]:
        """The fields and what follows from them, as JSON can hold it."""
        return self.to_record() | {name: _converter.unstructure(getattr(self, name)) for name in self.derived}

    def to_json(self, *, indent: int | None = None) -> str:
        """As JSON; `from_json` gives an equal record."""
        return json.dumps(self.to_record(), indent=indent, allow_nan=False)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The record that `to_record` gave. Raises `ValueError` for what is none."""
        try:
            return _converter.structure(record, cls)
        except BaseValidationError as error:
            raise ValueError(f"no {cls.__name__}: {error.exceptions[0]!r}") from error

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The record that `to_json` wrote. Raises `ValueError` for what is none."""
        return cls.from_record(parse_json(text))

    def save(self, path: str | Path) -> None:
        """Write the JSON file, whole or not at all."""
        write_whole(Path(path), lambda draft: draft.write_text(self.to_json(indent=1)))

    @classmethod
    def load(cls, path: str | Path, *, remedy: str = "make it again") -> Self:
        """The record of a file. Raises `BadInput` with the file and the remedy where it holds none."""
        try:
            return cls.from_record(read_values(path))
        except (OSError, ValueError) as error:
            raise BadInput(f"{path} is missing or damaged ({error}); {remedy}") from error
