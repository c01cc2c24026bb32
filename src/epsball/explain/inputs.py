"""What the analyses ask of the examples and of the ball."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.problem.task import Task, task_of

PAPERS_PAIR = (3, 7)


def task_for(data: Examples, ball: Ball, seed: int) -> Task:
    """The task of all examples. Raises `BadInput` where there are none, or the ball does not fit."""
    if len(data) == 0:
        raise BadInput("`data` must hold at least one example, got none; raise the limit")
    return task_of(data.x, data.y, ball, ids=data.ids, seed=seed)


def radius_of(ball: Ball) -> float:
    """The radius, where it is one positive finite number for all examples. Raises `BadInput` where it is not."""
    eps = ball.eps.item() if isinstance(ball.eps, Tensor) and ball.eps.numel() == 1 else ball.eps
    if isinstance(eps, Tensor) or not 0 < eps < math.inf:
        shown = f"a tensor {tuple(eps.shape)}" if isinstance(eps, Tensor) else eps
        raise BadInput(f"`ball` must have one radius > 0 and finite, got {shown}; write ball.with_eps(0.1)")
    return float(eps)


def radii_of(eps: Sequence[float]) -> list[float]:
    """The radii, rising, each once. Raises `BadInput` unless there are some, all positive and finite."""
    radii = sorted({float(radius) for radius in eps})
    if not radii or not all(0 < radius < math.inf for radius in radii):
        raise BadInput(f"`eps` must be radii > 0 and finite, got {radii}; write for example (0.01, 0.1)")
    return radii


def ball_name(ball: Ball) -> str:
    """Norm and radius as a text.

    >>> from epsball.balls.linf import Linf
    >>> ball_name(Linf(eps=0.1, lo=0, hi=1))
    'linf 0.1'
    """
    return f"{ball.name} {radius_of(ball):.4g}"


def box_of(ball: Ball) -> tuple[float, float] | None:
    """The ends of the box, where they are the same two finite numbers for every coordinate."""
    lo, hi = (end.item() if isinstance(end, Tensor) and end.numel() == 1 else end for end in (ball.lo, ball.hi))
    if isinstance(lo, Tensor) or isinstance(hi, Tensor) or not (math.isfinite(lo) and math.isfinite(hi)):
        return None
    return float(lo), float(hi)


def check_images(**parts: Examples) -> None:
    """Raise `BadInput` unless each part holds images (c, h, w) or (h, w)."""
    for name, part in parts.items():
        if part.x.ndim not in (3, 4) or len(part) == 0:
            raise BadInput(
                f"`{name}` must be images (c, h, w) or (h, w), got {len(part)} examples of shape {part.shape}; "
                "reshape x"
            )


def classes_of_pair(data: Examples, pair: tuple[int, int] | None = None) -> tuple[int, int]:
    """`pair`, or by default 3 and 7, the paper's, where the data have them, else the two smallest labels.

    Raises `BadInput` where one of the pair is not among the data.
    """
    labels = data.y.unique().tolist()
    if len(labels) < 2:
        raise BadInput(f"`examples` must hold at least two classes, got {labels}; raise the limit")
    if pair is None:
        return PAPERS_PAIR if set(PAPERS_PAIR) <= set(labels) else (labels[0], labels[1])
    if len(set(pair)) != 2 or not set(pair) <= set(labels):
        raise BadInput(f"`pair` must be two different labels among {labels}, got {pair}")
    return pair


def of_pair(data: Examples, pair: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """(x, y) of the examples of two classes, those of `classes_of_pair`."""
    pair = classes_of_pair(data, pair)
    rows = (data.y == pair[0]) | (data.y == pair[1])
    return data.x[rows].cpu(), data.y[rows].cpu()


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
