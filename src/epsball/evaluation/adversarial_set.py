"""One attack on every example: the adversarial set.

Unlike an evaluation it keeps what the attack returned for every example, also where it failed: for training, transfer,
and pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.data.examples import Examples
from epsball.evaluation import run_directory
from epsball.problem.inputs import inputs_for
from epsball.problem.losses import cross_entropy
from epsball.problem.objective import Model, Objective, prediction
from epsball.problem.task import task_of


@dataclass(frozen=True, eq=False)
class AdversarialSet:
    """The attacked examples, predictions (n,) and confidences (n,) in [0, 1] before and after the attack.

    `fooled` are those that were classified correctly before and inside the ball no longer are. `direction` (n, *shape)
    is the sign of the loss's gradient at x, None where the model gives no gradient.
    """

    examples: Examples
    x_adv: Float[Tensor, "n *shape"]
    fooled: Bool[Tensor, " n"]
    before: Int64[Tensor, " n"]
    after: Int64[Tensor, " n"]
    confidence_before: Float[Tensor, " n"]
    confidence_after: Float[Tensor, " n"]
    direction: Float[Tensor, "n *shape"] | None

    @property
    def clean_accuracy(self) -> float:
        """The share classified correctly before the attack."""
        return float((self.before == self.examples.y).double().mean())

    @property
    def accuracy(self) -> float:
        """The share classified correctly after it."""
        return float((self.after == self.examples.y).double().mean())

    def summary(self) -> dict[str, Any]:
        """The figures, as JSON can hold them."""
        return {
            "n": len(self.examples),
            "clean_accuracy": self.clean_accuracy,
            "accuracy": self.accuracy,
            "fooled": int(self.fooled.sum()),
        }

    def save(self, path: str | Path) -> None:
        """Write a parquet file that `datasets` loads: a row per example, with x_adv in its shape."""
        x_adv = self.x_adv.cpu()
        x_adv = x_adv if x_adv.dtype == torch.float64 else x_adv.float()
        columns = {
            "id": self.examples.ids.cpu().numpy(),
            "label": self.examples.y.cpu().numpy(),
            "fooled": self.fooled.cpu().numpy(),
            "prediction": self.before.cpu().numpy(),
            "confidence": self.confidence_before.cpu().double().numpy(),
            "adversarial_prediction": self.after.cpu().numpy(),
            "adversarial_confidence": self.confidence_after.cpu().double().numpy(),
            "x_adv": run_directory.nested(x_adv.numpy(), np.full(len(x_adv), True)),
        }
        run_directory.save(Path(path), run_directory.table(columns, {"x_adv": tuple(x_adv.shape[1:])}))


def make(
    model: Model,
    examples: Examples,
    ball: Ball,
    attack: Attack,
    *,
    target: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    on_progress: Callable[[int], None] | None = None,
) -> AdversarialSet:
    """Attack every example, `batch_size` at a time. The model comes back as it was.

    Examples of the class `target` are left out.
    """
    model, examples, ball = inputs_for(model, examples, ball)
    ball = ball.bind(examples.x)
    if target is not None:
        others = (examples.y != target).nonzero().squeeze(1)
        examples, ball = examples.rows(others), ball.rows(others)
    parts: list[tuple[Tensor, ...]] = []
    directions: list[Tensor] = []
    for start in range(0, len(examples), batch_size):
        index = torch.arange(start, min(start + batch_size, len(examples)))
        part, part_ball = examples.rows(index), ball.rows(index)
        x_adv = attack(model, part.x, part.y, part_ball, target=target, ids=part.ids, seed=seed)
        with Objective(model, cross_entropy) as objective:
            task = task_of(part.x, part.y, part_ball, target=target)
            before, after = objective.forward(part.x), objective.forward(x_adv)
            fooled = (
                objective.succeeds(after, task) & (prediction(before) == part.y) & part_ball.contains(x_adv, part.x)
            )
            if attack.needs == "grad":
                directions.append(objective(part.x, task).grad.sign())
        confidences = [
            out.softmax(1).amax(1) if out.is_floating_point() else torch.ones(len(out)) for out in (before, after)
        ]
        parts.append((x_adv, fooled, prediction(before), prediction(after), *confidences))
        if on_progress is not None:
            on_progress(int(index[-1]) + 1)
    if not parts:
        of = "" if target is None else f" of another class than the `target` {target}"
        raise BadInput(f"`examples` must hold at least one example{of}, got none; raise --limit")
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return AdversarialSet(examples, *columns, direction=torch.cat(directions) if directions else None)
