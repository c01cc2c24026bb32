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

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.problem.task import AWAY, Task

Loss = Callable[[Tensor, Task], Tensor]


def cross_entropy(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """-log softmax of the label, or, with a target t, log softmax of t.

    Written as softplus(log sum over j != y of exp z_j - z_y), as the label's part of softmax's gradient, p_y - 1, is
    rounded to 0 where the margin is above 16 (float32): then the step leaves z_y out of account.
    """
    goal = task.goal[:, None]
    rivals = logits.scatter(1, goal, -torch.inf).logsumexp(1)
    return task.signed(F.softplus(rivals - logits.gather(1, goal).squeeze(1)))


def margin(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """max over j != y of z_j - z_y, or, with a target t, z_t - max over j != t of z_j: > 0 is success.

    The difference of logits of Carlini and Wagner (2017), loss f_6; it does not saturate.
    """
    goal = task.goal[:, None]
    rival = logits.scatter(1, goal, -torch.inf).amax(1)
    return task.signed(rival - logits.gather(1, goal).squeeze(1))


def dlr(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, " n"]:
    """The difference of logits ratio: the margin over a spread of the largest logits, so that no scale saturates it.

    Croce and Hein (ICML 2020), equations 6 and 7, with z_1 >= z_2 >= ...: away from y it is (max over j != y of z_j -
    z_y) / (z_1 - z_3); towards an aim t it is (z_t - z_y) / (z_1 - (z_3 + z_4) / 2); for a target that the user
    demands the numerator is that of `margin` and the denominator that of an aim. Away from y it is 1, without a slope,
    where y comes third: misclassified already. Below four classes `margin` takes its place, since the last denominator
    has no z_4, and so that three classes have a slope everywhere. A spread below the rounding of its logits counts as
    that rounding (the published code adds 1e-12), so that ties give a finite loss at any scale.

    >>> from epsball.balls.linf import Linf
    >>> from epsball.problem.task import task_of
    >>> z = torch.tensor([[5.0, 1, 4, 3]])
    >>> task = task_of(torch.zeros(1, 1), 0, Linf(eps=1.0))
    >>> dlr(z, task), dlr(100 * z, task)  # (4 - 5) / (5 - 3)
    (tensor([-0.5000]), tensor([-0.5000]))
    >>> dlr(z, task.with_jobs(task.noise.restart, torch.tensor([2])))  # (4 - 5) / (5 - (3 + 1) / 2)
    tensor([-0.3333])
    """
    gain = margin(logits, task)
    if logits.shape[1] < 4:
        return gain
    top = logits.topk(4 if task.some_aimed else 3, dim=1).values
    low = top[:, 2]
    if task.some_aimed:
        away = logits.gather(1, torch.stack([task.goal, task.y], 1))
        gain = torch.where(task.aimed & (task.target == AWAY), away[:, 0] - away[:, 1], gain)
        low = torch.where(task.aimed, top[:, 2].lerp(top[:, 3], 0.5), low)
    rounding, tiny = torch.finfo(logits.dtype).eps, torch.finfo(logits.dtype).tiny
    least = top[:, 0].detach().abs().add_(gain.detach().abs()).mul_(rounding).add_(tiny)
    return gain / torch.maximum(top[:, 0] - low, least)


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


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}


def resolve_loss(name: str) -> Loss:
    """The loss of that name in `LOSSES`."""
    return LOSSES[check_one_of("loss", name, LOSSES)]
