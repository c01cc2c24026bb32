"""The borders between the classes, and the nearest of them where they are taken for planes.

At a point z each border is the set on which the difference of two logits is zero; linearised, it is a hyperplane, and
its projection within the box is `Ball.project_onto_hyperplane`. FAB and DeepFool walk from plane to plane.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.shapes import flat
from epsball.problem.losses import margin
from epsball.problem.task import Task

FARTHEST = 1e6
"""No point is looked at farther out than this times 1 + |x|: where a gradient vanishes, the plane is no border."""

REACHED = 0.99
"""The share of the way at which a plane counts as reached: what lacks is rounding, or less than a step beyond."""


def hyperplanes(logits: Float[Tensor, "n classes"], task: Task) -> Float[Tensor, "n *k"]:
    """The differences of logits that are zero on the borders which a row may cross.

    Towards an aim t it is z_t - z_y, (n,); with a target t that the user demands z_t - max over j != t of z_j, (n,);
    else z_j - z_y for the k classes j != y in their order, (n, k), or (n,) for two classes.
    """
    if task.some_targeted:
        return margin(logits, task)
    own = logits.gather(1, task.y[:, None])
    if task.some_aimed:
        return (logits.gather(1, task.aim[:, None]) - own).squeeze(1)
    rivals = torch.arange(logits.shape[1] - 1, device=logits.device)
    gaps = logits.gather(1, rivals + (rivals >= task.y[:, None])) - own
    return gaps.squeeze(1) if logits.shape[1] == 2 else gaps


def nearest_plane(
    z: Float[Tensor, "n *shape"], gap: Float[Tensor, "n k"], grad: Float[Tensor, "n k *shape"], ball: Ball
) -> tuple[Int64[Tensor, " n"], Float[Tensor, "n *shape"]]:
    """Which of k planes is nearest to z within the box, and z's projection onto it.

    FAB's and DeepFool's authors take the plane that is nearest without the box. In a corner that one may be out of
    reach for good, and in L1, where the steepest coordinate may have no room, it was up to twice as far away as
    another. A plane that is farther away without the box than another one with it needs no look, so few rows need a
    second one. Where none can be reached it is the authors'.
    """
    below = ball.min_eps_lower_bound(gap, grad)
    nearest, found = below.argmin(1), torch.empty_like(z)
    least = torch.full_like(below[:, 0], math.inf)
    rows, place = torch.arange(len(z), device=z.device), nearest
    for turn in range(gap.shape[1]):
        normal, wanted, start, part = grad[rows, place], -gap[rows, place], z[rows], ball.rows(rows)
        onto = part.project_onto_hyperplane(wanted, normal, start)
        reached = rise(normal, start, onto).abs() >= REACHED * wanted.abs()
        distance = torch.where(reached, part.distance(onto, start), math.inf).to(least)
        better = (distance < least[rows]) if turn else rows >= 0
        at = rows[better]
        found[at], nearest[at], least[at] = onto[better], place[better], distance[better]
        below[rows, place] = math.inf
        rows = (below.amin(1) < least).nonzero().squeeze(1)
        if not len(rows):
            break
        place = below[rows].argmin(1)
    return nearest, found


def rise(grad: Float[Tensor, "n *shape"], start: Tensor, end: Tensor) -> Float[Tensor, " n"]:
    """<grad, end - start> of each row, summed in single precision at least."""
    return flat((end - start).mul_(grad)).sum(1, dtype=torch.promote_types(grad.dtype, torch.float32))


def too_far(ahead: Float[Tensor, "n *shape"], x: Float[Tensor, "n *shape"]) -> Int64[Tensor, " m"]:
    """The rows that have been thrown out of the numbers: farther out than `FARTHEST`, or not a number."""
    limit = FARTHEST * (1 + flat(x).abs().amax(1).double())
    return (~(flat(ahead).abs().amax(1) <= limit)).nonzero().squeeze(1)
