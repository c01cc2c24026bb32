"""What attacks share that weigh distance against a loss: their units, Adam, the search for a constant, the border.

Nothing here depends on the scale of the data or of the logits: lengths are measured by the distance at which the loss,
linearised where a job starts, has risen by what is wanted.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from epsball.balls.ball import Ball
from epsball.common.shapes import column, flat
from epsball.problem.objective import Point
from epsball.problem.task import Task

BETA_1, BETA_2, TINY = 0.9, 0.999, 1e-8
"""Adam's (Kingma and Ba 2015); the gradients that it sees are in units in which they are about 1."""

GROWTH = 10.0
"""The factor of c while no success, or no failure, bounds it from the other side (Carlini and Wagner's)."""

BEYOND, POLISH = 1e-4, 6
"""By how much beyond the border the last points go, as a share of the way, and how many of them are tried."""

FARTHEST = 1e6
"""No linearisation is believed, and no point looked at, beyond this times 1 + |x|."""

LARGEST = 1e10
"""The constant that no row goes beyond (Carlini and Wagner's)."""


def starting(task: Task, jobs: int) -> Float[Tensor, "n *shape"]:
    """Where a job starts: restart_indices below `jobs` at the example, later ones a tenth of the way to a draw of the ball."""
    first = task.noise.restart < jobs
    if bool(first.all()):
        return task.x
    drawn = torch.lerp(task.x, task.ball.sample(task.x, task.noise), 0.1)
    return torch.where(column(first, task.x.ndim), task.x, drawn)


def anywhere(task: Task) -> Float[Tensor, "n *shape"]:
    """A uniform draw of the box; of the ball, where the box is not finite."""
    lo, hi = (torch.as_tensor(side, dtype=torch.float64) for side in (task.ball.lo, task.ball.hi))
    finite = bool(lo.isfinite().all() and hi.isfinite().all())
    ball = task.ball.with_eps(math.inf) if finite else task.ball
    return ball.sample(task.x, task.noise)


def open_part(grad: Float[Tensor, "n *shape"], ball: Ball) -> Float[Tensor, "n *shape"]:
    """The gradient where the mask lets x change."""
    return grad if ball.mask is None else torch.where(ball.mask, grad, 0)


def room(task: Task) -> Float[Tensor, "n *shape"]:
    """How far each coordinate can go in the box; infinite where there is none."""
    lo, hi = (torch.as_tensor(side).to(task.x) for side in (task.ball.lo, task.ball.hi))
    return torch.maximum(hi - task.x, task.x - lo)


def reaching(gap: Float[Tensor, " n"], grad: Float[Tensor, "n *shape"], task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """How far away the linearised loss has risen by `gap`, its slope, and how many coordinates have one.

    The distance is at most the way to the farthest corner of the box, at least what the data's precision resolves.
    """
    rows = flat(grad).double()
    slope, count = torch.linalg.vector_norm(rows, dim=1), (rows != 0).sum(1).clamp_min(1)
    scale = 1 + flat(task.x).abs().amax(1).double()
    most = torch.minimum(torch.linalg.vector_norm(flat(room(task)).double(), dim=1), FARTHEST * scale)
    least = 4 * torch.finfo(task.x.dtype).eps * scale * count.sqrt()
    reach = (gap.double().abs() / slope).nan_to_num_(nan=0.0, posinf=math.inf)
    return torch.minimum(torch.maximum(reach, least), most.clamp_min(torch.finfo(torch.float32).tiny)), slope, count


def near_enough(z: Float[Tensor, "n *shape"], task: Task) -> Float[Tensor, "n *shape"]:
    """z clipped to the box; where there is none, to numbers that are not out of all proportion to x."""
    z, lo, hi = task.ball.clip(z), torch.as_tensor(task.ball.lo), torch.as_tensor(task.ball.hi)
    if bool(lo.isfinite().all() and hi.isfinite().all()):
        return z
    limit = column(FARTHEST * (1 + flat(task.x).abs().amax(1)), z.ndim).to(z)
    return torch.clamp(z, -limit, limit)


def rounding(point: Point) -> Float[Tensor, " n"]:
    """By how much a difference of logits may be off: two units in the last place of the largest."""
    return point.logits.abs().amax(1) * (2 * torch.finfo(point.logits.dtype).eps)


def at_border(
    lead: Float[Tensor, " n"],
    normal: Float[Tensor, "n *shape"],
    z: Float[Tensor, "n *shape"],
    fooled: Bool[Tensor, " n"],
    task: Task,
) -> Float[Tensor, "n *shape"]:
    """The point nearest to x, in the ball's norm, of the border as it is linearised at z, and a little beyond.

    Where z fools and that is no nearer, or the gradient has vanished, half of the way from z to x.
    """
    x, z, ball = task.x.to(normal.dtype), z.to(normal.dtype), task.ball
    rise = flat((z - x) * normal).sum(1) - lead
    ahead = ball.project_onto_hyperplane(rise * (1 + BEYOND), normal, x)
    sound = flat(ahead).isfinite().all(1) & (~fooled | (ball.distance(ahead, x) < ball.distance(z, x)))
    return near_enough(torch.where(column(sound, z.ndim), ahead, torch.lerp(x, z, 0.5)), task)


def adam(
    z: Float[Tensor, "n *shape"],
    first: Float[Tensor, "n *shape"],
    second: Float[Tensor, "n *shape"],
    grad: Float[Tensor, "n *shape"],
    made: Int64[Tensor, " n"],
    size: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "n *shape"], Float[Tensor, "n *shape"], Float[Tensor, "n *shape"]]:
    """z after a step of `size` (n,) against `grad`, and the two moments; `made` (n,) steps went before."""
    # Fetching memory is most of what this costs: one new tensor for each thing that is kept, one for the root.
    first = torch.lerp(first, grad, 1 - BETA_1)
    second = (second * BETA_2).addcmul_(grad, grad, value=1 - BETA_2)
    count = (made + 1).to(first.dtype)
    share = size.to(first.dtype) * (1 - BETA_2**count).sqrt_() / (1 - BETA_1**count)
    root = second.sqrt().add_(TINY).div_(column(share, z.ndim))
    return torch.addcdiv(z, first, root, value=-1), first, second


def tightened(
    c: Float[Tensor, " n"], low: Float[Tensor, " n"], high: Float[Tensor, " n"], hit: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """The next constant and the bracket after a round with `c` that found a fooling point where `hit`.

    The middle of the bracket is that of the logarithms, since nothing is known of the scale.

    >>> tightened(torch.tensor([4.0]), torch.tensor([1.0]), torch.tensor([math.inf]), torch.tensor([True]))
    (tensor([2.]), tensor([1.]), tensor([4.]))
    """
    low, high = torch.where(hit, low, torch.maximum(low, c)), torch.where(hit, torch.minimum(high, c), high)
    middle = (low * high).sqrt()
    return (
        torch.where(high.isinf(), (c * GROWTH).clamp_max(LARGEST), torch.where(low > 0, middle, c / GROWTH)),
        low,
        high,
    )


def half_way(task: Task) -> Float[Tensor, " n"]:
    """Half of the way that any coordinate has in the box: no step is longer."""
    return flat(room(task)).amax(1) / 2
