"""An attack on one image, iterate by iterate, without a stop at the first adversarial example."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from epsball.attacks.attack import Attack
from epsball.attacks.driver import Driver
from epsball.problem.losses import margin
from epsball.problem.objective import Objective
from epsball.problem.task import Task

MOST = 1000
"""The greatest number of points in a path."""


@dataclass(frozen=True, eq=False)
class Path:
    """The points z_0, z_1, ... at which the attack called the model, its answer last, and the model's output there.

    `z` (k, *shape), `logits` (k, classes), and `margin` (k,), which is > 0 where the point is misclassified.
    """

    z: Float[Tensor, "k *shape"]
    logits: Float[Tensor, "k classes"]
    margin: Float[Tensor, " k"]

    def __len__(self) -> int:
        return len(self.z)


def path(attack: Attack, objective: Objective, task: Task) -> Path:
    """The path of the first job of a task of one row; `objective` is open, and made for this attack."""
    driver = Driver(attack, objective, attack.job(task, task.noise.restart)[0])
    points = [(point.z, point.logits) for point in islice(driver.until_end(), MOST - 1)]
    answer = driver.answers
    z = torch.cat([*(z for z, _ in points), answer])
    logits = torch.cat([*(logits for _, logits in points), objective.forward(answer, driver.task)])
    repeated = task.rows(torch.zeros(len(z), dtype=torch.long, device=task.x.device))
    return Path(z, logits, margin(logits, repeated))
