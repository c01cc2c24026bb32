"""The decision boundary of two classes, linearised at a point: a hyperplane, and what attacks compute with it.

At a point z the boundary is the set on which a difference of two logits is zero; with the gradient of that difference
it is a hyperplane, whose nearest point in the box is `Ball.project_onto_hyperplane`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.attacks.attack import LossAttack
from epsball.balls.ball import Ball
from epsball.common.errors import BadInput
from epsball.common.shapes import column, finite, flat
from epsball.problem.losses import dlr, margin
from epsball.problem.objective import Point
from epsball.problem.task import Task

FARTHEST = 1e6
"""No point is evaluated farther out than this times 1 + |x|: where gradients vanish, a hyperplane means nothing."""

REACHED = 0.99
"""The share of the way at which a hyperplane counts as reached: the rest is rounding, or less than a step beyond."""

BEYOND = 1e-4
"""How far beyond the hyperplane `beyond_boundary` goes, as a share of the way."""


def logit_gaps(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, "n *k"]:
    """The differences of logits that are zero on the decision boundaries which a row may cross.

    Towards an aim t it is z_t - z_y, (n,); with a target t that the user demands z_t - max over j != t of z_j, (n,);
    else z_j - z_y for the k classes j != y in their order, (n, k), or (n,) for two classes.
    """
    if task.some_targeted:
        return margin(logits, task)
    own = logits.gather(1, task.y[:, None])
    if task.some_aimed:
        return (logits.gather(1, task.aim[:, None]) - own).squeeze(1)
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    gaps = logits.gather(1, others + (others >= task.y[:, None])) - own
    return gaps.squeeze(1) if logits.shape[1] == 2 else gaps


def nearest_hyperplane(
    z: Float[Tensor, "n *shape"], gap: Float[Tensor, "n k"], grad: Float[Tensor, "n k *shape"], ball: Ball
) -> tuple[Int64[Tensor, " n"], Float[Tensor, "n *shape"]]:
    """The index of the hyperplane, of k, that is nearest to z within the box, and z's projection onto it.

    The authors of FAB and DeepFool take the hyperplane that is nearest without the box. In a corner that one may be out
    of reach for good, and in L1, where the steepest coordinate may have no room, it was up to twice as far away as
    another. Here the distances without the box, which are cheap, are lower bounds: hyperplanes are projected onto in
    their order until no bound is below the least distance found. Where none can be reached it is the authors' choice.
    """
    bound = ball.min_eps_lower_bound(gap, grad)
    nearest, projection = bound.argmin(1), torch.empty_like(z)
    least = torch.full_like(bound[:, 0], math.inf)
    rows, plane = torch.arange(len(z), device=z.device), nearest
    for turn in range(gap.shape[1]):
        normal, wanted, start, part = grad[rows, plane], -gap[rows, plane], z[rows], ball.rows(rows)
        there = part.project_onto_hyperplane(wanted, normal, start)
        reached = linear_change(normal, start, there).abs() >= REACHED * wanted.abs()
        distance = torch.where(reached, part.distance(there, start), math.inf).to(least)
        better = (distance < least[rows]) if turn else rows >= 0
        at = rows[better]
        projection[at], nearest[at], least[at] = there[better], plane[better], distance[better]
        bound[rows, plane] = math.inf
        rows = (bound.amin(1) < least).nonzero().squeeze(1)
        if not len(rows):
            break
        plane = bound[rows].argmin(1)
    return nearest, projection


def linear_change(grad: Float[Tensor, "n *shape"], start: Tensor, end: Tensor) -> Float[Tensor, " n"]:
    """<grad, end - start> of each row, summed in single precision at least."""
    return flat((end - start).mul_(grad)).sum(1, dtype=torch.promote_types(grad.dtype, torch.float32))


def runaway_rows(z: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> Int64[Tensor, " m"]:
    """The rows in which z is farther out than `FARTHEST` allows, or not a number."""
    limit = FARTHEST * (1 + flat(x).abs().amax(1).double())
    return (~(flat(z).abs().amax(1) <= limit)).nonzero().squeeze(1)


def clip_to_range(z: Float[Tensor, "n *shape"], task: Task) -> Float[Tensor, "n *shape"]:
    """z clipped to the box; where there is none, to what `FARTHEST` allows."""
    z = task.ball.clip(z)
    if finite(task.ball.lo) and finite(task.ball.hi):
        return z
    limit = column(FARTHEST * (1 + flat(task.x).abs().amax(1)), z.ndim).to(z)
    return torch.clamp(z, -limit, limit)


def on_mask(grad: Float[Tensor, "n *shape"], ball: Ball) -> Float[Tensor, "n *shape"]:
    """The gradient, zero off the mask."""
    return grad if ball.mask is None else torch.where(ball.mask, grad, 0)


def room_in_box(task: Task) -> Float[Tensor, "n *shape"]:
    """How far each coordinate of x can go in the box; infinite where there is none."""
    lo, hi = (torch.as_tensor(side).to(task.x) for side in (task.ball.lo, task.ball.hi))
    return torch.maximum(hi - task.x, task.x - lo)


def boundary_distance(
    gap: Float[Tensor, " n"], grad: Float[Tensor, "n *shape"], task: Task
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Int64[Tensor, " n"]]:
    """|gap| / |grad|, the Euclidean distance to the linearised boundary; |grad|; and how many coordinates it has.

    The distance is at most the way to the farthest corner of the box, at least what x's precision resolves.
    """
    rows = flat(grad).double()
    slope, count = torch.linalg.vector_norm(rows, dim=1), (rows != 0).sum(1).clamp_min(1)
    scale = 1 + flat(task.x).abs().amax(1).double()
    most = torch.minimum(torch.linalg.vector_norm(flat(room_in_box(task)).double(), dim=1), FARTHEST * scale)
    least = 4 * torch.finfo(task.x.dtype).eps * scale * count.sqrt()
    distance = (gap.double().abs() / slope).nan_to_num_(nan=0.0, posinf=math.inf)
    return torch.minimum(torch.maximum(distance, least), most.clamp_min(torch.finfo(torch.float32).tiny)), slope, count


def logit_rounding(point: Point) -> Float[Tensor, " n"]:
    """How much rounding may change a difference of logits: two units in the last place of the largest."""
    return point.logits.abs().amax(1) * (2 * torch.finfo(point.logits.dtype).eps)


def beyond_boundary(
    gap: Float[Tensor, " n"],
    normal: Float[Tensor, "n *shape"],
    z: Float[Tensor, "n *shape"],
    fooled: Bool[Tensor, " n"],
    task: Task,
) -> Float[Tensor, "n *shape"]:
    """The point nearest to x, in the ball's norm, of the boundary as it is linearised at z, and a little beyond.

    `gap` is zero on the boundary and positive beyond it, `normal` its gradient at z. Where the gradient vanishes, or z
    is adversarial and no farther away, it is the middle of z and x.
    """
    x, z, ball = task.x.to(normal.dtype), z.to(normal.dtype), task.ball
    gain = flat((z - x) * normal).sum(1) - gap
    there = ball.project_onto_hyperplane(gain * (1 + BEYOND), normal, x)
    sound = flat(there).isfinite().all(1) & (~fooled | (ball.distance(there, x) < ball.distance(z, x)))
    return clip_to_range(torch.where(column(sound, z.ndim), there, torch.lerp(x, z, 0.5)), task)


def check_boundary_loss(attack: LossAttack[Any]) -> None:
    """Raise `BadInput` unless the attack's loss is zero on the decision boundary."""
    if attack.loss not in (margin, dlr):
        raise BadInput(
            f"`loss` must be margin or dlr for {type(attack).__name__}, got "
            f"{getattr(attack.loss, '__name__', attack.loss)!r}: one that is zero on the decision boundary"
        )
