"""Exact projections and linear maximisers, one row at a time, in non-negative coordinates.

Every function here works on a displacement from the centre of a ball, in absolute values: `size` (n, d) is the wanted
displacement or the gradient, `room` (n, d) how far the box lets each coordinate go in that direction (`inf` where there
is no box), `radius` (n, 1). Signs, boxes and masks are put back by the norms' files.

The Euclidean projection onto {|v|_2 <= r} and the maximiser of a linear function over it share one form,
min(mu * size, room); the projection onto {|v|_1 <= r} is min((size - theta)_+, room); the maximiser over it is a
fractional knapsack (Dantzig, "Discrete-variable extremum problems", 1957). The multipliers are found exactly, by
active sets of piecewise linear functions (compare Duchi et al., ICML 2008, which has no box).

The projection onto a hyperplane asks the other way round, for the shortest step with a given gain: `clipped_sum_root`
(max norm, Euclidean) and `covering_knapsack` (L1), after Croce and Hein (ICML 2020, section 3.2), who sort. There an
elementwise operation with a boolean result costs many times one with a floating point result (torch 2.13, CPU), hence
the comparisons `out=`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Rows = Float[Tensor, "n d"]
OnePerRow = Float[Tensor, "n 1"]

MAX_ITERATIONS = 256
SORTED = 5
"""`covering_knapsack` stops narrowing its bounds where about 2^5 coordinates are left between them, and sorts those."""


def scale_to_l2(size: Rows, room: Rows, radius: OnePerRow) -> Rows:
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
        now_saturated = saturated | (length >= room)
        if torch.equal(now_saturated, saturated):
            break
        saturated = now_saturated
    return torch.where(saturated, room, length)


def shrink_to_l1(size: Rows, room: Rows, radius: OnePerRow) -> Rows:
    """min((size - theta)_+, room) with theta >= 0 the smallest whose sum is at most `radius`.

    The sum falls piecewise linearly in theta: Newton's step is exact on the piece that holds the root; a bracket
    that is bisected every third round bounds the number of rounds.

    >>> shrink_to_l1(torch.tensor([[3.0, 2.0, 0.5]]), torch.tensor([[1.0, 9.0, 9.0]]), torch.tensor([[2.0]]))
    tensor([[1., 1., 0.]])
    """

    def shrunk(theta: Tensor) -> Tensor:
        return torch.minimum((size - theta).clamp_min(0), room)

    low, high = torch.zeros_like(radius), size.amax(1, keepdim=True)
    rounding = 2 * torch.finfo(size.dtype).eps * high
    excess = shrunk(low).sum(1, keepdim=True) - radius
    fits = excess <= 0
    theta, settled = torch.where(fits, 0, (excess / size.shape[1]).clamp_min(0)), fits
    for iteration in range(MAX_ITERATIONS):
        length = shrunk(theta)
        excess = length.sum(1, keepdim=True) - radius
        slope = ((length > 0) & (length < room)).sum(1, keepdim=True)
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
    length = shrunk(theta)
    total = length.sum(1, keepdim=True)
    return torch.where(total > radius, length * (radius / total), length)  # the last bits of theta, times d


def fractional_knapsack(gain: Rows, room: Rows, budget: OnePerRow) -> Rows:
    """The v in [0, room] with sum at most `budget` and the largest <gain, v>: the largest gains are filled first.

    >>> fractional_knapsack(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[9.0, 0.5, 0.4]]), torch.tensor([[1.0]]))
    tensor([[0.1000, 0.5000, 0.4000]])
    """
    order = gain.argsort(dim=1, descending=True, stable=True)
    size = torch.minimum(torch.where(gain > 0, room, 0), budget).gather(1, order)
    before = size.cumsum(1) - size
    return torch.zeros_like(size).scatter(1, order, torch.minimum((budget - before).clamp_min(0), size))


def mask_of_largest(gain: Rows, count: OnePerRow) -> Bool[Tensor, "n d"]:
    """Where the `count` largest positive gains of each row are; the first wins a tie.

    >>> mask_of_largest(torch.tensor([[1.0, 3.0, 3.0, -1.0]]), torch.tensor([[2.0]]))
    tensor([[False,  True,  True, False]])
    """
    order = gain.argsort(dim=1, descending=True, stable=True)
    place = torch.arange(gain.shape[1], device=gain.device).expand_as(order)
    rank = torch.empty_like(order).scatter(1, order, place)
    return (rank < count) & (gain > 0)


def clipped_sum_root(weight: Rows, room: Rows, gain: OnePerRow) -> OnePerRow:
    """The least t >= 0 with sum of weight * min(room, t) = `gain`; where there is none, so large that all room is used.

    The sum is concave and piecewise linear in t: Newton's method from 0 rises to the root, and has reached it once a
    step uses up no further room. Rows that have converged are left out of the remaining rounds. A gap of eight
    roundings of `gain` counts as converged.

    >>> clipped_sum_root(torch.tensor([[3.0, 4.0]]), torch.tensor([[9.0, 0.5]]), torch.tensor([[5.0]]))
    tensor([[1.]])
    """
    tolerance = 8 * torch.finfo(gain.dtype).eps
    root = t = torch.zeros_like(gain)
    rows, missing, buffer = None, gain, torch.empty_like(weight)
    for _ in range(weight.shape[1] + 1):
        slope = torch.gt(room, t, out=buffer).mul_(weight).sum(1, keepdim=True)
        newton = t + (missing / slope).nan_to_num_(nan=0.0, posinf=0.0)
        moves = (missing > tolerance * gain) & (newton > t)
        t = torch.where(moves, newton, t)
        root = t if rows is None else root.index_copy_(0, rows, t)
        open_rows = moves.squeeze(1).nonzero().squeeze(1)
        if not len(open_rows):
            break
        if len(open_rows) < len(t):
            rows = open_rows if rows is None else rows[open_rows]
            weight, room, gain, t = weight[open_rows], room[open_rows], gain[open_rows], t[open_rows]
            buffer = buffer[: len(open_rows)]
        missing = gain - torch.minimum(room, t, out=buffer).mul_(weight).sum(1, keepdim=True)
    return root


def covering_knapsack(price: Rows, room: Rows, gain: OnePerRow) -> Rows:
    """The v in [0, room] with the least sum and <price, v> = `gain`; where there is none, all the room there is.

    The counterpart of `fractional_knapsack`: the highest prices are filled first, the first of a tie before the others.
    The price at which the gain is reached is bracketed as in quickselect, with pivots at the mean price of what lies
    between the bounds, weighted by room: there the dual's tangents at the bounds meet. Only what is left between them
    is sorted. A gap of eight roundings of `gain` counts as none.

    >>> covering_knapsack(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([[9.0, 0.5, 0.4]]), torch.tensor([[2.0]]))
    tensor([[0.0000, 0.5000, 0.2500]])
    """
    (n, d), tiny = price.shape, torch.finfo(price.dtype).tiny
    gain = gain * (1 - 8 * torch.finfo(price.dtype).eps)  # the rounding error is not bought at the lowest price
    alone = price.clamp_min(tiny)
    room = torch.minimum(room, torch.div(gain, alone, out=alone), out=alone)  # and not infinite where there is no box
    buffer = price * room
    # A bound: its price, then the gain and the room of all coordinates above it.
    high = torch.cat([price.amax(1, keepdim=True), gain * 0, gain * 0], 1)
    low = torch.cat([gain * 0, buffer.sum(1, keepdim=True), room.sum(1, keepdim=True)], 1)
    out_of_reach = low[:, 1:2] <= gain
    pivot = high[:, :1] / 2
    for _ in range(max(0, d.bit_length() - SORTED)):
        room_above = torch.gt(price, pivot, out=buffer).mul_(room).sum(1, keepdim=True)
        gain_above = buffer.mul_(price).sum(1, keepdim=True)
        at_pivot, enough = torch.cat([pivot, gain_above, room_above], 1), (gain_above >= gain).to(price)
        low, high = low.lerp(at_pivot, enough), at_pivot.lerp(high, enough)
        between = low - high
        pivot = between[:, 1:2] / between[:, 2:]
    high = high.masked_fill(out_of_reach, 0)
    taken = torch.gt(price, high[:, :1], out=buffer).mul_(room)
    row, column = ((price > low[:, :1]) & (price <= high[:, :1])).nonzero(as_tuple=True)
    if not len(row):
        return taken
    number = row.bincount(minlength=n)
    place = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number)[row]
    prices, most = price.new_zeros(2, n, int(number.amax()))
    prices[row, place], most[row, place] = price[row, column], room[row, column]
    prices, order = prices.sort(dim=1, descending=True, stable=True)
    most = most.gather(1, order)
    worth = prices * most
    missing = gain - high[:, 1:2] - worth.cumsum(1) + worth
    length = torch.minimum((missing / prices.clamp_min(tiny)).clamp_min(0), most)
    taken[row, column] = torch.empty_like(length).scatter_(1, order, length)[row, place]
    return taken
