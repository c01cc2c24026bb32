"""Exact projections and linear maximisers, one row at a time, in non-negative coordinates.

Every function here works on a displacement from the centre of a ball, seen in the orthant of its own signs:
`size` is the absolute value of the wished displacement, `room` how far the box lets each coordinate go in that
direction (`inf` where there is no box). Both have shape (n, d); `radius` has shape (n, 1). Signs, boxes and
masks are put back by `balls.py`.

The Euclidean projection onto {|v|_2 <= r} and the maximiser of a linear function over it share one form,
min(mu * size, room); the projection onto {|v|_1 <= r} is min((size - theta)_+, room); the maximiser over it is a
fractional knapsack (Dantzig, "Discrete-variable extremum problems", 1957). The multipliers are found exactly, by
active sets of piecewise linear functions (compare Duchi et al., ICML 2008, which has no box).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_ITERATIONS = 256


def scale_to_l2(
    size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], radius: Float[Tensor, "n 1"]
) -> Float[Tensor, "n d"]:
    """min(mu * size, room) with mu >= 0 such that its Euclidean norm is `radius`, or all the room there is.

    mu rises monotonically: with the coordinates that are saturated at the present mu taken out, the rest must carry
    what is left of radius^2; each round saturates more of them or is the last.

    >>> scale_to_l2(torch.tensor([[3.0, 4.0]]), torch.tensor([[9.0, 0.6]]), torch.tensor([[1.0]]))
    tensor([[0.8000, 0.6000]])
    """
    saturated = (room <= 0) | (size <= 0)
    room = torch.where(size > 0, room, 0)
    length = torch.zeros_like(size)
    for _ in range(size.shape[1] + 1):
        rest = (radius.square() - torch.where(saturated, room, 0).square().sum(1, keepdim=True)).clamp_min(0).sqrt()
        free = torch.where(saturated, 0, size)
        free = free / free.amax(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)  # squares may underflow
        length = free * (rest / torch.linalg.vector_norm(free, dim=1, keepdim=True).clamp_min(1))
        fuller = saturated | (length >= room)
        if torch.equal(fuller, saturated):
            break
        saturated = fuller
    return torch.where(saturated, room, length)


def shrink_to_l1(
    size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], radius: Float[Tensor, "n 1"]
) -> Float[Tensor, "n d"]:
    """min((size - theta)_+, room) with theta >= 0 the smallest whose sum is at most `radius`.

    The sum falls piecewise linearly in theta: Newton's step is exact on the piece that holds the root; a bracket
    that is bisected every third round bounds the number of rounds.

    >>> shrink_to_l1(torch.tensor([[3.0, 2.0, 0.5]]), torch.tensor([[1.0, 9.0, 9.0]]), torch.tensor([[2.0]]))
    tensor([[1., 1., 0.]])
    """

    def taken(theta: Tensor) -> Tensor:
        return torch.minimum((size - theta).clamp_min(0), room)

    low, high = torch.zeros_like(radius), size.amax(1, keepdim=True)
    rounding = 2 * torch.finfo(size.dtype).eps * high
    excess = taken(low).sum(1, keepdim=True) - radius
    fits = excess <= 0
    theta, settled = torch.where(fits, 0, (excess / size.shape[1]).clamp_min(0)), fits
    for iteration in range(MAX_ITERATIONS):
        part = taken(theta)
        excess = part.sum(1, keepdim=True) - radius
        slope = ((part > 0) & (part < room)).sum(1, keepdim=True)
        low, high = torch.where(excess > 0, theta, low), torch.where(excess > 0, high, theta)
        newton = theta + excess / slope
        middle = low + (high - low) / 2
        bisect = (slope == 0) | (newton < low) | (newton > high)
        if iteration % 3 == 2:
            bisect |= (newton - theta).abs() > 1e-3 * (high - low)
        proposed = torch.where(settled, theta, torch.where(bisect, middle, newton))
        settled = settled | ~((proposed - theta).abs() > rounding)  # a settled row stays: no row waits for another
        theta = proposed
        if settled.all():
            break
    part = taken(theta)
    total = part.sum(1, keepdim=True)
    return torch.where(total > radius, part * (radius / total), part)  # the last bits of theta, times d


def knapsack(
    gain: Float[Tensor, "n d"], room: Float[Tensor, "n d"], budget: Float[Tensor, "n 1"]
) -> Float[Tensor, "n d"]:
    """The v in [0, room] with sum at most `budget` and the largest <gain, v>: the dearest coordinates are filled first.

    >>> knapsack(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[9.0, 0.5, 0.4]]), torch.tensor([[1.0]]))
    tensor([[0.1000, 0.5000, 0.4000]])
    """
    order = gain.argsort(dim=1, descending=True, stable=True)
    size = torch.minimum(torch.where(gain > 0, room, 0), budget).gather(1, order)
    before = size.cumsum(1) - size
    return torch.zeros_like(size).scatter(1, order, torch.minimum((budget - before).clamp_min(0), size))


def largest(gain: Float[Tensor, "n d"], count: Float[Tensor, "n 1"]) -> Bool[Tensor, "n d"]:
    """Where the `count` largest positive gains of each row are; the first wins a tie.

    >>> largest(torch.tensor([[1.0, 3.0, 3.0, -1.0]]), torch.tensor([[2.0]]))
    tensor([[False,  True,  True, False]])
    """
    order = gain.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(gain.shape[1], device=gain.device).expand_as(order)
    rank = torch.empty_like(order).scatter(1, order, place)
    return (rank < count) & (gain > 0)
