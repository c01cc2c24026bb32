"""What the analyses return: a frozen record with figures, the sentence that answers the hypothesis, and its making.

A record holds nested tuples, and None for a number that is not finite or that there is none of.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common import fingerprint
from epsball.common.config import Config
from epsball.common.record import Record
from epsball.common.version import __version__
from epsball.data.examples import Examples
from epsball.explain.inputs import ball_name

Share = float | None
"""A share from 0 to 1; None where there is nothing to count."""


@dataclass(frozen=True, kw_only=True)
class Finding(Record):
    """What an analysis found. `config` says on what, with which options and with which versions.

    Its JSON holds the fields and what follows from them (`derived`), also of the records within it.
    """

    details: ClassVar[tuple[str, ...]] = ()
    """The fields of single examples, which the JSON holds and `summary` leaves out."""

    config: dict[str, Any]

    @property
    def sentence(self) -> str:
        """One sentence with a number that answers the hypothesis."""
        raise NotImplementedError

    def to_record(self) -> dict[str, Any]:
        """The sentence, the fields and what follows from them, as JSON can hold them."""
        return {"sentence": self.sentence} | nested(self)

    def summary(self) -> dict[str, Any]:
        """The same without the single examples."""
        return {name: value for name, value in self.to_record().items() if name not in self.details}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The record that `to_record` gave. Raises `ValueError` for what is none."""
        return super().from_record(nested(dict(record)))


def nested(values: Any) -> Any:
    """Records, mappings, arrays, tensors and lists as dicts and nested tuples; None for a number that is not finite.

    >>> nested(torch.tensor([[1.0, float("nan")]])), nested({"sides": [7, 14]})
    (((1.0, None),), {'sides': (7, 14)})
    """
    if isinstance(values, Record):
        names = (*(field.name for field in fields(values)), *values.derived)
        return {name: nested(getattr(values, name)) for name in names}
    if isinstance(values, Tensor | np.ndarray | np.generic):
        return nested(values.tolist())
    if isinstance(values, dict):
        return {name: nested(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return tuple(nested(value) for value in values)
    return values if not isinstance(values, float) or math.isfinite(values) else None


def numbers(values: Any, missing: float = math.nan) -> np.ndarray:
    """Nested tuples with None as an array, None as `missing`.

    >>> numbers((1.0, None), missing=math.inf)
    array([ 1., inf])
    """
    found = np.array(values, dtype=np.float64)
    return np.where(np.isnan(found), missing, found)


def made_of(
    model: Callable[..., Any] | Mapping[str, Any] | None,
    data: Examples,
    ball: Ball | None,
    options: Config,
    /,
    **more: Any,
) -> dict[str, Any]:
    """The `config` of a finding: fingerprints of model(s) and ball, the name of the data, its options, and versions."""
    known: dict[str, Any] = {"data": data.name}
    if isinstance(model, Mapping):
        known["models"] = {name: fingerprint.of_model(one) for name, one in model.items()}
    elif model is not None:
        known["model"] = fingerprint.of_model(model)
    if ball is not None:
        known |= {"ball": fingerprint.described(ball), "ball_name": ball_name(ball)}
    return nested(known | options.to_record() | {"rows": len(data)} | more | {"versions": versions()})


def percent(share: Share) -> str:
    """A share as it is written in a sentence.

    >>> percent(0.98712), percent(None)
    ('98.7 %', '-')
    """
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f} %"


def exponent(n: Sequence[int], values: Sequence[float | None]) -> float | None:
    """The p for which `values` grow like n^p: a least-squares fit of the logarithms.

    None for fewer than two sizes, and where a value is not positive and finite.

    >>> round(exponent((4, 16, 64), (2.0, 4.0, 8.0)), 9), exponent((4,), (2.0,))
    (0.5, None)
    """
    found, size = np.array(values, dtype=np.float64), np.log(n)
    if len(found) < 2 or not (np.isfinite(found).all() and (found > 0).all()):
        return None
    size = size - size.mean()
    return float(size @ np.log(found) / (size @ size))


def versions() -> dict[str, str]:
    """What a record was made with."""
    return {"epsball": __version__, "torch": torch.__version__, "python": platform.python_version()}
