"""What the records of the analyses have in common: how they are said, and what they are made with."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.version import __version__
from epsball.data.examples import Examples


class Finding(Protocol):
    """What an analysis found: a frozen record with a figure and a sentence. `from_json` of its class gives it again."""

    @property
    def sentence(self) -> str:
        """One sentence with a number that answers the hypothesis."""
        ...

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them."""
        ...

    def to_json(self) -> str:
        """As JSON; `from_json` gives an equal record."""
        ...

    def draw(self, path: str | Path) -> None:
        """Write the figure as a PNG."""
        ...


def said(ball: Ball) -> str:
    """A ball in words.

    >>> from epsball.balls.linf import Linf
    >>> said(Linf(eps=0.1, lo=0, hi=1))
    'linf 0.1'
    """
    return f"{ball.name} {radius_of(ball):.4g}"


def radius_of(ball: Ball) -> float:
    """The radius, where it is one positive finite number for all examples. Raises `BadInput` where it is not."""
    eps = ball.eps.item() if isinstance(ball.eps, Tensor) and ball.eps.numel() == 1 else ball.eps
    if isinstance(eps, Tensor) or not 0 < eps < math.inf:
        shown = f"a tensor {tuple(eps.shape)}" if isinstance(eps, Tensor) else eps
        raise BadInput(f"`ball` must have one radius > 0 and finite, got {shown}; write ball.with_eps(0.1)")
    return float(eps)


def box_of(ball: Ball) -> tuple[float, float] | None:
    """The ends of the box, where they are the same two finite numbers for every coordinate."""
    lo, hi = (end.item() if isinstance(end, Tensor) and end.numel() == 1 else end for end in (ball.lo, ball.hi))
    if isinstance(lo, Tensor) or isinstance(hi, Tensor) or not (math.isfinite(lo) and math.isfinite(hi)):
        return None
    return float(lo), float(hi)


def percent(share: float) -> str:
    """A share as it is written in a sentence.

    >>> percent(0.98712), percent(float("nan"))
    ('98.7 %', '-')
    """
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def or_none(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


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


def class_names(data: Examples) -> tuple[str, ...]:
    """A name for each class: the data's, else its number."""
    return data.label_names or tuple(map(str, range(data.classes)))


def name_of(names: Sequence[str], label: int) -> str:
    """The name of a class; its number, where a model has more classes than the data."""
    return names[label] if label < len(names) else str(label)


def evenly(data: Examples, rows: int) -> Examples:
    """At most `rows` examples, spread over the data in their order."""
    if len(data) <= rows:
        return data
    return data.rows(torch.arange(rows, device=data.x.device) * len(data) // rows)


def halves(data: Examples) -> tuple[Examples, Examples]:
    """Every second example of each class, and the others, both in their order.

    >>> from epsball.data.arrays import from_arrays
    >>> [part.y.tolist() for part in halves(from_arrays(torch.zeros(6, 1), [0, 1, 0, 1, 0, 1]))]
    [[0, 1, 0], [1, 0, 1]]
    """
    by_class = data.y.argsort(stable=True)
    first, second = (data.rows(by_class[part::2].sort().values) for part in (0, 1))
    return first, second
