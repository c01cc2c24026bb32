"""Per-example losses that an attacker climbs: larger is worse for the model, never reduced over the batch.

A loss takes (logits, task) and gives (n,), or (n, k) for k gradients on one forward. Logits have one column per
class; a model with a single logit z reaches a loss as the two columns (0, z), for which cross-entropy is the binary
one and the first argmax on ties is the rule z > 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from epsball.errors import BadInput
from epsball.suggest import one_of
from epsball.task import Task

Loss = Callable[[Tensor, Task], Tensor]


def cross_entropy(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """-log softmax of the label, or, with a target t, log softmax of t."""
    return task.signed(F.cross_entropy(logits, task.goal, reduction="none"))


def margin(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """max over j != y of z_j - z_y, or, with a target t, z_t - max over j != t of z_j: > 0 is success.

    The difference of logits of Carlini and Wagner (2017), loss f_6; it does not saturate.
    """
    goal = task.goal[:, None]
    rival = logits.scatter(1, goal, -torch.inf).amax(1)
    return task.signed(rival - logits.gather(1, goal).squeeze(1))


@dataclass(frozen=True)
class UserLoss:
    """A user's (logits, y) -> (n,), to be raised; with a target t it is -loss(logits, t)."""

    loss: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
        value = self.loss(logits, task.goal)
        if value.shape != logits.shape[:1]:
            raise BadInput(
                f"`loss` must return one value per example, ({len(logits)},), got {tuple(value.shape)}; "
                "use reduction='none' and sum over all but the first dimension"
            )
        return task.signed(value)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin}


def resolve_loss(name: str) -> Loss:
    """The loss of that name in `LOSSES`."""
    return LOSSES[one_of("loss", name, LOSSES)]
