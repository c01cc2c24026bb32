"""The four norms: Linf, L2, L1, L0. Everything that depends on the norm is in this file.

Units are those of the data throughout. The exact maximisers and projections rest on `projections.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.ball import Ball, Batch, PerExample, column, finite, fits, flat, shown
from epsball.errors import BadInput
from epsball.noise import Noise
from epsball.projections import cover, knapsack, largest, level, scale_to_l2, shrink_to_l1


class Linf(Ball):
    """The max-norm ball: no coordinate moves by more than eps. `eps` may also be (1, *shape), one per feature."""

    name = "linf"

    def norm(self, delta: Batch) -> PerExample:
        return _greatest(flat(delta))

    def _fits_eps(self, eps: Tensor, x: Tensor) -> bool:
        return super()._fits_eps(eps, x) or (eps.ndim == x.ndim > 1 and eps.shape[0] == 1 and fits(eps, x))

    def _ends(self, x: Batch) -> tuple[Batch, Batch]:
        """Ball, box and mask together are one interval per coordinate; kept for the x last asked for."""
        kept = self.__dict__.get("_kept")
        if kept is None or kept[0] is not x or kept[3] != x._version:
            eps = self._radius(x).to(x)
            low, high = self._sides(x)
            low, high = self._masked(torch.maximum(x - eps, low), x), self._masked(torch.minimum(x + eps, high), x)
            kept = (x, low, high, x._version)
            object.__setattr__(self, "_kept", kept)
        return kept[1], kept[2]

    def _project(self, z: Batch, x: Batch) -> Batch:
        return z.clamp(*self._ends(x))

    def _argmax(self, grad: Batch, x: Batch) -> Batch:
        return self._masked(self._clip_(self._signed(grad, 1).add_(x)), x)

    def _dual(self, grads: Batch) -> PerExample:
        return flat(grads).abs().sum(1)

    def _supports(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        self._need_box()
        if self._is_free() and isinstance(self.eps, Tensor) and self.eps.ndim > 1:
            return self.dual(grads * self.eps.to(grads)).expand(len(x), -1)
        if self._is_free():
            return _everywhere(self, grads, x)
        # Each coordinate has an interval of its own, whatever the direction: two matrix products are all the pairs.
        eps, rows = self.eps if not isinstance(self.eps, Tensor) else self._radius(x).to(x), flat(grads)
        up, down = (self.hi - x).clamp_min_(0).clamp_max_(eps), (x - self.lo).clamp_min_(0).clamp_max_(eps)
        if self.mask is not None:
            up, down = torch.where(self.mask, up, 0), torch.where(self.mask, down, 0)
        return torch.addmm(flat(up) @ rows.clamp_min(0).T, flat(down), (-rows).clamp_min(0).T)

    def _cheapest(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        room, order = room.sort(1)
        size = size.gather(1, order)
        return _segment(_before(size * room), _onwards(size), room, gain, strict)

    def _least(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        return torch.minimum(room, level(size, room, gain), out=room)

    def _unit(self, like: Batch) -> Tensor | None:
        if not isinstance(self.eps, Tensor) or self.eps.ndim < 2:
            return None
        eps, tiny = self.eps.to(like), torch.finfo(like.dtype).tiny
        if not self._endless():
            return eps.clamp_min(tiny)
        self._need_box()
        lo, hi = self._sides(like)
        return torch.where(eps.isinf(), hi - lo, eps).clamp_min(tiny)

    def _signed(self, grad: Batch, size: float | PerExample) -> Batch:
        """size * eps * sign(grad), a new tensor."""
        sign = grad.sign()
        if isinstance(self.eps, Tensor):
            sign *= self._length(grad, size)
        elif isinstance(size, Tensor):
            sign *= column(size * self.eps, grad.ndim)
        else:
            sign *= self.eps * size
        if self._endless():
            self._need_box()
            sign.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)  # inf * sign(0)
        return sign

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        return grad.sign()

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        low, high = self._ends(x)
        if isinstance(self.eps, Tensor) or isinstance(size, Tensor) or self._endless():
            return self._signed(grad, size).add_(z).clamp_(low, high)
        sign = grad.sign()  # the only new memory of a step: fetching memory is most of what a step costs
        return torch.add(z, sign, alpha=size * self.eps, out=sign).clamp_(low, high)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        unit = noise.uniform(x.shape[1:], dtype=x.dtype)
        eps = self._radius(x).to(x)
        if not self._endless():
            return unit.sub_(0.5).mul_(2 * eps).add_(x)
        self._need_box()
        low, high = self._ends(x)
        return torch.where(eps.isinf(), low + (high - low) * unit, x + 2 * eps.nan_to_num(posinf=0) * (unit - 0.5))

    def _within(self, delta: Float[Tensor, "n d"], slack: PerExample, x: Batch) -> Bool[Tensor, " n"]:
        return (delta.abs() <= flat(self._radius(x).expand(x.shape)) + slack[:, None]).all(1)


class L2(Ball):
    """The Euclidean ball."""

    name = "l2"

    def norm(self, delta: Batch) -> PerExample:
        return torch.linalg.vector_norm(flat(delta), dim=1)

    def _project(self, z: Batch, x: Batch) -> Batch:
        return _pulled(self, z, x, lambda size, room, radius: torch.minimum(scale_to_l2(size, room, radius), size))

    def _argmax(self, grad: Batch, x: Batch) -> Batch:
        self._need_box()
        size, room = self._orthant(grad, x)
        return self._moved(x, grad, scale_to_l2(size, room, self._reach(size)))

    def _dual(self, grads: Batch) -> PerExample:
        return torch.linalg.vector_norm(flat(grads), dim=1)

    def _supports(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        self._need_box()
        if self._is_free():
            return _everywhere(self, grads, x)
        return _each(self, grads, x, lambda size, room: (size * scale_to_l2(size, room, self._reach(size))).sum(1))

    def _cheapest(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        # The best point is min(mu * size, room); its gain is piecewise linear in mu, and its norm is the radius.
        scale = size.amax(1, keepdim=True).clamp_min(torch.finfo(size.dtype).tiny)  # squares may underflow
        size, gain = size / scale, gain / scale
        full, order = torch.where(size > 0, room / size, 0).sort(1)
        sizes = size.gather(1, order)
        mu, reached = _segment(_before(sizes * room.gather(1, order)), _onwards(sizes.square()), full, gain, strict)
        return torch.linalg.vector_norm(torch.minimum(mu[:, None] * size, room), dim=1), reached

    def _least(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        tiny = torch.finfo(size.dtype).tiny
        scale = size.amax(1, keepdim=True).clamp_min_(tiny)  # squares may underflow
        size /= scale
        full = size.clamp_min(tiny)
        share = level(size.square(), torch.div(room, full, out=full), gain / scale)
        return torch.minimum(size.mul_(share), room, out=size)

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        tiny = torch.finfo(grad.dtype).tiny
        rows = flat(grad)
        rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(tiny)
        return (rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(tiny)).reshape(grad.shape)

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        # The whole gradient, so that the projection leaves shut coordinates shut; measured by its open part, so that
        # they do not use the step up.
        if self._endless():
            return _to_the_end(self, grad, z, x, size)
        grad = grad / column(_greatest(flat(grad)).clamp_min(torch.finfo(grad.dtype).tiny), z.ndim)
        length = column(self.norm(self._open(grad, z)), z.ndim)
        return self._project(z + grad * torch.where(length > 0, self._length(z, size) / length, 0), x)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        self._need_box()
        d = math.prod(x.shape[1:])
        direction = flat(noise.normal(x.shape[1:]).to(x.dtype))
        unit = noise.uniform((1,), draw=1).to(x.dtype) ** (1 / d)
        return _scattered(self, x, noise, direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True) * unit)


class L1(Ball):
    """The L1 ball: its maximiser spends eps where the gradient is largest and the box has room."""

    name = "l1"

    def norm(self, delta: Batch) -> PerExample:
        return flat(delta).abs().sum(1)

    def _project(self, z: Batch, x: Batch) -> Batch:
        return _pulled(self, z, x, shrink_to_l1)

    def _argmax(self, grad: Batch, x: Batch) -> Batch:
        self._need_box()
        size, room = self._orthant(grad, x)
        return self._moved(x, grad, knapsack(size, room, self._reach(size)))

    def _dual(self, grads: Batch) -> PerExample:
        return _greatest(flat(grads))

    def _supports(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        self._need_box()
        if self._is_free():
            return _everywhere(self, grads, x)
        found = x.new_empty(len(x), len(grads))
        budget = self._reach(flat(x))
        for k, grad in enumerate(grads):  # as `knapsack`, but all rows share the order
            size, order = flat(grad[None]).abs()[0].sort(descending=True, stable=True)
            _, room = self._orthant(grad.expand(x.shape), x)
            room = torch.minimum(torch.where(size > 0, room[:, order], 0), budget)
            left = (budget - (room.cumsum(1) - room)).clamp_min(0)
            found[:, k] = torch.minimum(left, room) @ size
        return found

    def _cheapest(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        size, order = size.sort(1, descending=True)
        room = room.gather(1, order)
        before, spent = _before(size * room), _before(room)
        place, reached = _first(before + size * room, gain, strict)
        return (spent + (gain - before) / size).gather(1, place)[:, 0], reached

    def _least(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        return cover(size, room, gain)

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        rows = flat(grad)
        place = rows.abs().argmax(1, keepdim=True)
        return torch.zeros_like(rows).scatter(1, place, rows.gather(1, place).sign()).reshape(grad.shape)

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        if self._endless():
            return _to_the_end(self, grad, z, x, size)
        # Measured by the whole gradient: its greatest open coordinate jumps when rounding opens one.
        dual = column(_greatest(flat(grad)).clamp_min(torch.finfo(grad.dtype).tiny), z.ndim)
        return self._project(z + grad / dual * self._length(z, size), x)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        self._need_box()
        d = math.prod(x.shape[1:])
        size = noise.exponential((d + 1,)).to(x.dtype)
        sign = noise.sign((d,), draw=1).to(x.dtype)
        return _scattered(self, x, noise, sign * (size / size.sum(1, keepdim=True))[:, :d])


class L0(Ball):
    """At most floor(eps) coordinates change, anywhere in the box, which must be finite. Coordinates, not pixels."""

    name = "l0"

    def _check_parts(self) -> None:
        super()._check_parts()
        if not (finite(self.lo) and finite(self.hi)):
            raise BadInput(
                f"`lo` and `hi` must be finite in L0, got [{shown(self.lo)}, {shown(self.hi)}]: a coordinate may go "
                "anywhere in the box; write for example L0(eps=10, lo=0, hi=1)"
            )

    def norm(self, delta: Batch) -> PerExample:
        return (flat(delta) != 0).sum(1).to(torch.promote_types(delta.dtype, torch.float32))

    def _count(self, x: Batch) -> Float[Tensor, "n 1"]:
        return column(self._radius(flat(x)[:, 0]), 2).floor().expand(len(x), 1)

    def _project(self, z: Batch, x: Batch) -> Batch:
        inside = self._masked(self._clip(z), x)
        far, near = (z.double() - x.double()).square(), (z.double() - inside.double()).square()
        saved = flat(far - near)
        return torch.where(largest(saved, self._count(x)).reshape(x.shape), inside, x)

    def _argmax(self, grad: Batch, x: Batch) -> Batch:
        size, room = self._orthant(grad, x)
        return self._moved(x, grad, torch.where(largest(size * room, self._count(x)), room, 0))

    def _dual(self, grads: Batch) -> PerExample:
        lo, hi = (torch.as_tensor(side).to(grads) for side in (self.lo, self.hi))
        width = hi - lo
        return _greatest(flat(grads * (width.amax(0) if width.ndim else width)))

    def _supports(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        count = self._count(flat(x))
        most = int(count.clamp_max(flat(x).shape[1]).max()) if len(x) else 0
        place = torch.arange(most, device=x.device)

        def gain(size: Tensor, room: Tensor) -> PerExample:
            return torch.where(place < count, (size * room).topk(most, 1).values, 0).sum(1)

        return _each(self, grads, x, gain)

    def _cheapest(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        place, reached = _first((size * room).sort(1, descending=True).values.cumsum(1), gain, strict)
        return (place[:, 0] + 1).to(size), reached

    def _least(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        worth, order = (size * room).sort(dim=1, descending=True, stable=True)
        share = ((gain - worth.cumsum(1) + worth) / worth).nan_to_num_(nan=0.0).clamp_(0, 1)
        return torch.empty_like(room).scatter_(1, order, share).mul_(room)

    def _within(self, delta: Float[Tensor, "n d"], slack: PerExample, x: Batch) -> Bool[Tensor, " n"]:
        return self.norm(delta) <= self._radius(slack).floor()  # a count needs no slack

    def _ascent(self, grad: Batch, z: Batch) -> Batch:
        return replace(self, eps=1)._argmax(grad, z) - z

    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        count = (torch.as_tensor(self.eps, dtype=torch.float64, device=z.device) * size).clamp_min(1)  # or no step
        return self._project(replace(self, eps=count)._argmax(grad, z), x)

    def _sample(self, x: Batch, noise: Noise) -> Batch:
        lo, hi = self._sides(x)
        chosen = largest(flat(noise.uniform(x.shape[1:], draw=1)) + 1, self._count(x)).reshape(x.shape)
        return torch.where(chosen, lo + (hi - lo) * noise.uniform(x.shape[1:], dtype=x.dtype), x)


BALLS: dict[str, type[Ball]] = {"linf": Linf, "l2": L2, "l1": L1, "l0": L0}


def parse(text: str, *, lo: float = -math.inf, hi: float = math.inf) -> Ball:
    """A ball from its short form NORM:RADIUS, as on the command line; the radius may be a fraction.

    >>> parse("linf:8/255", lo=0, hi=1)
    Linf(eps=0.03137254901960784, lo=0, hi=1, mask=None)
    """
    name, colon, radius = text.strip().lower().partition(":")
    if name not in BALLS or not colon:
        raise BadInput(
            f"`ball` must be one of {', '.join(BALLS)}, a colon and a radius, got {text!r}; as in linf:8/255"
        )
    return BALLS[name](eps=parse_radius(radius), lo=lo, hi=hi)


def parse_radius(text: str) -> float:
    """A radius written as a number or a fraction.

    >>> parse_radius("8/255")
    0.03137254901960784
    """
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError) as error:
        raise BadInput(f"`eps` must be a number or a fraction such as 8/255, got {text!r}") from error


def _everywhere(ball: Ball, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
    """The gains where the same set is around every point: radius times dual norm."""
    dual = ball.dual(grads)
    return (ball._radius(flat(x)).to(x) * dual).expand(len(x), len(dual))


def _each(ball: Ball, grads: Batch, x: Batch, gain: Callable[[Tensor, Tensor], PerExample]) -> Float[Tensor, "n k"]:
    """The gains, one direction after the other: each `gain`(size, room)."""
    found = x.new_empty(len(x), len(grads))
    for k, grad in enumerate(grads):
        size, room = ball._orthant(grad.expand(x.shape), x)
        found[:, k] = gain(size, room)
    return found


def _before(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The sum of what comes earlier in the row."""
    return torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1].cumsum(1)], 1)


def _onwards(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The sum of this one and what comes later in the row."""
    return rows.flip(1).cumsum(1).flip(1)


def _first(value: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor) -> tuple[Tensor, Tensor]:
    """The first place (n, 1) where the rising values have the gain, and whether there is one (n,)."""
    enough = torch.where(strict, value > gain, value >= gain)
    return enough.byte().argmax(1, keepdim=True), enough.any(1)


def _segment(
    filled: Float[Tensor, "n d"],
    slope: Float[Tensor, "n d"],
    ends: Float[Tensor, "n d"],
    gain: Float[Tensor, "n 1"],
    strict: Tensor,
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """Where `filled` + `slope` * t, one line up to each of the rising `ends`, has the gain; and whether it does."""
    place, reached = _first(filled + slope * ends, gain, strict)
    return ((gain - filled) / slope).gather(1, place)[:, 0], reached


def _greatest(rows: Float[Tensor, "n d"]) -> PerExample:
    return rows.abs().amax(1)


def _pulled(ball: Ball, z: Batch, x: Batch, shorten: Callable[[Tensor, Tensor, Tensor], Float[Tensor, "n d"]]) -> Batch:
    """z where ball and box hold it; elsewhere x moved towards z by `shorten`(|z - x|, room, radius)."""
    clipped = ball._masked(ball._clip(z), x)
    distance = ball.norm(clipped.double() - x.double())
    fits = distance <= ball._radius(distance)
    if bool(fits.all()):
        return clipped
    size, room = ball._orthant(z - x, x)
    near = ball._moved(x, z - x, shorten(size, room, ball._reach(size)))
    return torch.where(column(fits, x.ndim), clipped, near)


def _to_the_end(ball: Ball, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
    """A step of a ball with infinite radii: those rows go to the maximiser over the box, the others as ever."""
    far = ball._argmax(grad, x)
    if not isinstance(ball.eps, Tensor):
        return far
    near = replace(ball, eps=ball.eps.nan_to_num(posinf=0))._step(grad, z, x, size)
    return torch.where(column(ball.eps.isinf(), x.ndim), far, near)


def _scattered(ball: Ball, x: Batch, noise: Noise, unit: Float[Tensor, "n d"]) -> Batch:
    """x moved by eps times a draw from the unit ball; where eps is infinite, a uniform draw of the box."""
    radius = ball._radius(x).to(x)
    unit = unit.reshape(x.shape)
    if not ball._endless():
        return x + radius * unit
    lo, hi = ball._sides(x)
    anywhere = lo + (hi - lo) * noise.uniform(x.shape[1:], draw=2, dtype=x.dtype)
    return torch.where(radius.isinf(), anywhere, x + radius.nan_to_num(posinf=0) * unit)
