"""What the analyses of a network measure a batch at a time, and the control that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.noise import Noise
from epsball.common.shapes import flat
from epsball.explain.finding import nested
from epsball.problem.losses import Loss, cross_entropy
from epsball.problem.objective import Model, Objective, Point, check_labels
from epsball.problem.task import Task

QUANTILES = (0.05, 0.5, 0.95)
"""What a band shows of the examples: low, middle, high."""


def batches(objective: Objective, examples: Task, batch_size: int) -> Iterator[tuple[Task, Point]]:
    """Evaluate the objective at the examples, `batch_size` at a time: tasks with `clean` logits, and what was found.

    Raises `BadInput` where a label is no class of the model.
    """
    for first, rows in enumerate(torch.arange(len(examples.x), device=examples.x.device).split(batch_size)):
        task = examples.rows(rows)
        point = objective(task.x, task)
        if first == 0:
            check_labels(point.logits, examples)
        yield replace(task, clean=point.logits), point


def input_gradients(
    model: Model, task: Task, *, loss: Loss = cross_entropy, batch_size: int
) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n *shape"]]:
    """Logits and input gradients of the loss at the examples; a gradient that is not finite counts as zero."""
    with Objective(model, loss) as objective:
        found = [(point.logits, point.grad) for _, point in batches(objective, task, batch_size)]
    return torch.cat([logits for logits, _ in found]), torch.cat([grad for _, grad in found])


def logits_at(model: Model, z: Float[Tensor, "n *shape"], *, batch_size: int) -> Float[Tensor, "n classes"]:
    """Logits at points, which need not lie in any box."""
    with Objective(model, cross_entropy) as objective:
        return torch.cat([objective.forward(part) for part in z.split(batch_size)])


def correct(logits: Float[Tensor, "n classes"], y: Tensor) -> Bool[Tensor, " n"]:
    """Where the label is predicted; logits that are not finite predict nothing."""
    return (logits.argmax(1) == y) & logits.isfinite().all(1)


def shuffled(delta: Float[Tensor, "n *shape"], noise: Noise, mask: Tensor | None = None) -> Float[Tensor, "n *shape"]:
    """The control of a perturbation: its coordinates in a random order and with random signs, each row its own.

    It has the same size in every norm, and no direction. Coordinates off the `mask` keep their place.

    >>> noise = Noise(0, torch.tensor([4]), torch.tensor([0]))
    >>> shuffled(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), noise).abs().sort().values
    tensor([[1., 2., 3., 4.]])
    """
    rows, shape = flat(delta), delta.shape[1:]
    place = torch.arange(rows.shape[1], device=delta.device).expand_as(rows)
    key = flat(noise.uniform(shape, draw=1, dtype=torch.float64))
    shut = torch.zeros_like(key, dtype=torch.bool) if mask is None else flat(~mask).expand_as(key)
    # Open coordinates come first, in their own order and in a random one; those that are shut follow in theirs.
    source = torch.where(shut, place + rows.shape[1], place).argsort(1)
    order = torch.where(shut, place + 1.0, key).argsort(1)
    moved = torch.zeros_like(rows).scatter_(1, order, rows.gather(1, source))
    return (moved * flat(noise.sign(shape, draw=2, dtype=delta.dtype))).reshape(delta.shape)


def without_box(ball: Ball) -> Ball:
    """The same ball and mask, with nothing around it."""
    return replace(ball, lo=-torch.inf, hi=torch.inf, _bound=False, _per_example=ball._bound or ball._per_example)


def cosines(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """The cosine of each pair of rows, in float64; NaN where a row is zero."""
    units = [rows.double() / torch.linalg.vector_norm(rows.double(), dim=1, keepdim=True) for rows in (first, second)]
    return units[0] @ units[1].T


def quantiles(values: np.ndarray) -> np.ndarray:
    """(3, k): the `QUANTILES` over the rows of an (n, k) array, without what is not finite; NaN where nothing is."""
    columns = [column[np.isfinite(column)] for column in values.T]
    return np.array([np.quantile(c, QUANTILES) if len(c) else np.full(3, np.nan) for c in columns]).T


def band(values: Float[Tensor, "n k"]) -> tuple[tuple[float | None, ...], ...]:
    """The quantiles of a tensor, as a record holds them: None where nothing is finite."""
    return nested(quantiles(values.double().cpu().numpy()))


def median(values: Iterable[float | None]) -> float | None:
    """The median of what is finite; None where nothing is.

    >>> median([1.0, None, 3.0]), median([])
    (2.0, None)
    """
    found = np.array([value for value in values if value is not None], dtype=np.float64)
    found = found[np.isfinite(found)]
    return float(np.median(found)) if len(found) else None
