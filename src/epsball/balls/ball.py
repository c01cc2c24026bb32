"""The ball around each example, {z : |z - x| <= eps, lo <= z <= hi, z = x off the mask}: what every norm shares.

For a linear score the worst point of a ball is known in closed form: `argmax`, with the gain `max_gain`, which without
a box is eps times the dual norm of the gradient (Goodfellow et al. 2015, section 3). `project` is the exact nearest
point of ball and box together, which clipping after projecting is not. The norms themselves are in `balls.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal, Self, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.written import ball_text
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.shapes import BLOCK, RULE, Batch, PerExample, blocks, column, finite, fits, flat, shown

Trait = Literal["dual norm", "count", "euclidean", "sparse", "intervals"]
"""What an attack may need of a ball.

"dual norm": it is the ball of a norm, whose dual bounds the gain. "count": the radius counts coordinates. "euclidean":
the squared distance is the sum of the squared changes. "sparse": the distance is the sum of the absolute changes, and a
steepest step moves a single coordinate. "intervals": each coordinate has an interval of its own (`intervals`).
"""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ball(ABC):
    """The points within `eps` of an example, inside the box [lo, hi], equal to the example off the mask.

    `eps` is in the units of the data: a number >= 0 (`inf` allowed), a tensor (n,) with one radius per example, or,
    for Linf, a tensor (1, *shape) with one per feature. `lo` and `hi` are numbers, or tensors with as many dimensions
    as the data and a first dimension of 1 (shared) or n. `mask` is boolean, of such a shape too; True may change.

    Every method takes batches (n, *shape) in float64, float32, bfloat16 or float16 on any device and answers in kind.

    >>> from epsball import Linf
    >>> ball = Linf(eps=0.3, lo=0, hi=1)
    >>> x = torch.tensor([[0.1, 0.5, 0.9]])
    >>> ball.argmax(torch.tensor([[-1.0, 2.0, 3.0]]), x)
    tensor([[0.0000, 0.8000, 1.0000]])
    """

    name: ClassVar[str]
    """On a command line, and the column of a record's distances."""
    symbol: ClassVar[str]
    """In a sentence or a figure."""
    rule: ClassVar[str]
    """What the radius bounds."""
    unit: ClassVar[str] = "units of the data"
    traits: ClassVar[frozenset[Trait]]

    eps: float | Tensor
    lo: float | Tensor = -math.inf
    hi: float | Tensor = math.inf
    mask: Tensor | None = None
    _bound: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not self._bound:
            self._check_parts()

    @classmethod
    def choose(cls, options: Mapping[Trait, T]) -> T | None:
        """The first of the options whose trait the ball has; None where it has none of them."""
        return next((option for trait, option in options.items() if trait in cls.traits), None)

    @classmethod
    def parts(cls) -> tuple[str, ...]:
        """The names of the radius, the box, the mask and of what else a norm's class has as fields."""
        return tuple(part.name for part in fields(cls) if part.name != "_bound")

    def label(self) -> str:
        """The norm and the radius as they are written in a sentence.

        >>> from epsball import Linf
        >>> Linf(eps=8 / 255, lo=0, hi=1).label()
        'L∞, ε = 8/255'
        """
        if isinstance(self.eps, Tensor) and self.eps.numel() > 1:
            return f"{self.symbol}, ε one per {'example' if self.eps.ndim == 1 else 'feature'}"
        eps, lo, hi = (float(torch.as_tensor(part).double().mean()) for part in (self.eps, self.lo, self.hi))
        return ball_text(self.symbol, eps, lo, hi)

    def _check_parts(self) -> None:
        for name in ("eps", "lo", "hi"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
                raise BadInput(f"`{name}` must be a number or a tensor, got {type(value).__name__}; convert it first")
            if bool(torch.as_tensor(value, dtype=torch.float64).isnan().any()):
                raise BadInput(f"`{name}` must not be NaN, got {shown(value)}; look where it was computed")
        eps, lo, hi = (torch.as_tensor(part, dtype=torch.float64) for part in (self.eps, self.lo, self.hi))
        if bool((eps < 0).any()):
            raise BadInput(f"`eps` must be >= 0, got {shown(self.eps)}; give the radius without a sign")
        if self.mask is not None and (not isinstance(self.mask, Tensor) or self.mask.dtype != torch.bool):
            raise BadInput("`mask` must be a boolean tensor (True: may change); write `mask.bool()`")
        try:
            crossed = bool((lo > hi).any())
        except RuntimeError as error:
            raise BadInput(f"`lo` and `hi` must broadcast together, got {shown(self.lo)}, {shown(self.hi)}") from error
        if crossed:
            raise BadInput(f"`lo` must be <= `hi`, got lo={shown(self.lo)}, hi={shown(self.hi)}; swap them?")

    def bind(self, x: Batch) -> Self:
        """This ball checked against `x`, its tensors on `x`'s device and in its dtype; what follows skips the checks.

        Raises `BadInput` where `x` is not floating point, holds NaN or lies outside the box, or a shape does not fit.
        """
        if self._bound:
            return self
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise BadInput(f"`x` must be a floating point tensor, got {kind}; write `x.float()`, and scale eps with it")
        if x.ndim == 0:
            raise BadInput("`x` must have a first dimension of examples, got a scalar; write `x[None]`")
        parts = {}
        for name in self.parts():
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.ndim == 0:
                value = value.item()
            if isinstance(value, Tensor):
                if not (name == "eps" and self._fits_eps(value, x)) and not (name != "eps" and fits(value, x)):
                    rule = RULE.get(name, RULE["mask"])
                    raise BadInput(f"`{name}` of shape {tuple(value.shape)} does not fit x {tuple(x.shape)}: {rule}")
                value = value.to(x.device, torch.bool if name == "mask" else x.dtype)
            parts[name] = value
        ball = replace(self, **parts, _bound=True)
        if x.numel():
            ball._check_inside(x)
        return ball

    def _fits_eps(self, eps: Tensor, x: Tensor) -> bool:
        return eps.ndim == 1 and len(eps) == len(x)

    def _check_inside(self, x: Batch) -> None:
        smallest, greatest = (end.item() for end in x.aminmax())
        if math.isnan(smallest):
            raise BadInput("`x` must not hold NaN; drop or impute those examples first")
        if isinstance(self.lo, Tensor) or isinstance(self.hi, Tensor):
            inside = bool(((x >= self.lo) & (x <= self.hi)).all())
        elif not (inside := self.lo <= smallest and greatest <= self.hi):
            # The box as x's dtype sees it: a float32 example at float32(0.1) is inside hi=0.1.
            lo, hi = torch.tensor([self.lo, self.hi], dtype=x.dtype).tolist()
            inside = lo <= smallest and greatest <= hi
        if not inside:
            raise BadInput(
                f"`x` must lie in the box [{shown(self.lo)}, {shown(self.hi)}], got values from {smallest:.6g} to "
                f"{greatest:.6g}; eps and box are in the units of x: rescale x, or widen `lo` and `hi`"
            )

    def rows(self, index: Tensor) -> Self:
        """The ball of some of the rows: whatever is per example follows, the shared parts stay."""
        parts = {
            name: value[index]
            for name in self.parts()
            if isinstance(value := getattr(self, name), Tensor)
            and value.ndim > 0
            and (value.shape[0] != 1 or (name == "eps" and value.ndim == 1))
        }
        return replace(self, **parts) if parts else self

    def with_eps(self, eps: float | Tensor) -> Self:
        """The same box and mask with another radius."""
        return replace(self, eps=eps, _bound=False)

    def project(self, z: Batch, x: Batch) -> Batch:
        """The nearest point of ball and box together, in the Euclidean norm; points inside come back as they are.

        The result may share memory with z. Infinite z is not looked for.

        >>> from epsball import L2
        >>> L2(eps=1.0).project(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
        tensor([[0.6000, 0.8000]])
        """
        ball = self.bind(x)
        return ball._project(z, x)

    def argmax(self, grad: Batch, x: Batch) -> Batch:
        """The maximiser of <grad, z> over ball, box and mask: for Linf clip(x + eps * sign(grad)).

        Coordinates whose gradient is zero stay. Raises `BadInput` where the maximum is unbounded: eps is `inf`, and
        the box is too.
        """
        ball = self.bind(x)
        return ball._argmax(grad, x)

    def max_gain(self, grad: Batch, x: Batch) -> PerExample:
        """The gain <grad, argmax(grad, x) - x>; without box and mask, eps times the dual norm (Linf, L2, L1).

        >>> from epsball import L2
        >>> L2(eps=0.5).max_gain(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2))
        tensor([2.5000])
        """
        ball = self.bind(x)
        return flat(grad * (ball._argmax(grad, x) - x)).sum(1)

    def max_gains(self, grads: Float[Tensor, "k *shape"], x: Batch) -> Float[Tensor, "n k"]:
        """`max_gain` of each of k directions, shared by all points, at each point; without the pairs (n, k, *shape).

        The gain is that of the exact maximiser, before the point is rounded to x's dtype. Memory beyond the answer is
        a few blocks of `BLOCK` numbers, or one row if that is longer. Raises `BadInput` as `argmax` does.

        >>> from epsball import Linf
        >>> ball = Linf(eps=0.3, lo=0, hi=1)
        >>> x = torch.tensor([[0.5, 0.9], [0.1, 0.5]])
        >>> ball.max_gains(torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.0, 0.0]]), x)
        tensor([[0.5000, 0.3000, 0.0000],
                [0.9000, 0.1000, 0.0000]])
        """
        ball = self.bind(x)
        if grads.shape[1:] != x.shape[1:] or grads.ndim != x.ndim:
            raise BadInput(
                f"`grads` must be (k, *shape) for x (n, *shape), got {tuple(grads.shape)} for {tuple(x.shape)}; "
                "one direction is grads[None]"
            )
        wide = torch.promote_types(x.dtype, torch.float32)
        grads, found = grads.to(x.device, wide), x.new_empty(len(x), len(grads))
        if x.numel() <= BLOCK:
            return ball._max_gains(grads, x.to(wide)).to(x.dtype)
        for rows in blocks(len(x), math.prod(x.shape[1:]), x.device):
            found[rows] = ball.rows(rows)._max_gains(grads, x[rows].to(wide)).to(x.dtype)
        return found

    def min_eps(
        self, gain: PerExample, grad: Batch, x: Batch, *, strict: bool | Bool[Tensor, " n"] = False
    ) -> Float[Tensor, " n"]:
        """The smallest radius at which <grad, z> rises by `gain` (n,) within box and mask; `inf` where none does.

        The ball's own eps is not used. The gain is piecewise linear (L2: in the multiplier) with breakpoints where
        coordinates reach the box; the piece is found by sorting and solved in closed form, in double precision. With
        `strict` the gain must be exceeded: then the answer is an infimum, in L0 still a count. A gain <= 0 (strict:
        < 0) needs no radius.
        Returns float64 whatever x's dtype.

        >>> from epsball import Linf
        >>> x, w = torch.tensor([[0.0, 0.9]]), torch.tensor([[1.0, 2.0]])
        >>> Linf(eps=0).min_eps(torch.tensor([0.6]), w, x), Linf(eps=0, hi=1).min_eps(torch.tensor([0.6]), w, x)
        (tensor([0.2000], dtype=torch.float64), tensor([0.4000], dtype=torch.float64))
        """
        ball, gain = self.bind(x), gain.double()
        strictly = torch.as_tensor(strict, device=x.device).expand(len(x))
        if ball._is_free():
            slope = ball.dual(grad.double())
            radius, reached = gain / slope, slope > 0
        else:
            size, room = ball._orthant(grad.double(), x.double())
            radius, reached = ball._cheapest(size, torch.where(size > 0, room, 0), gain[:, None], strictly[:, None])
        needless = torch.where(strictly, gain < 0, gain <= 0)
        return torch.where(needless, 0, torch.where(reached, radius.clamp_min(0), math.inf))

    def project_onto_hyperplane(self, gain: PerExample, grad: Batch, z: Batch) -> Batch:
        """The point of box and mask nearest to z in the ball's norm at which <grad, .> is greater by `gain` (n,).

        A projection onto a hyperplane, from either side: where `gain` is negative it falls by that much. Where the box
        does not allow it, the corner that does most. Coordinates with a gradient of zero stay. The ball's radius plays
        no part, but where `eps` is one per feature (Linf), distance is measured in units of it. Exact up to rounding in
        z's dtype, in single precision at least: Croce and Hein (ICML 2020), section 3.2.

        >>> from epsball import Linf
        >>> x, w = torch.tensor([[0.0, 0.9]]), torch.tensor([[1.0, 2.0]])
        >>> Linf(eps=0).project_onto_hyperplane(torch.tensor([0.6]), w, x)
        tensor([[0.2000, 1.1000]])
        >>> Linf(eps=0, hi=1).project_onto_hyperplane(torch.tensor([0.6]), w, x)
        tensor([[0.4000, 1.0000]])
        """
        ball, wide = self.bind(z), torch.promote_types(z.dtype, torch.float32)
        near, slope, gain = z.to(wide), grad.to(wide), gain.to(wide)
        side = slope.sign().mul_(column(gain.sign(), z.ndim))
        room = ball._clip_(torch.add(near, side, alpha=torch.finfo(wide).max / 4)).sub_(near).abs_()
        if ball.mask is not None:
            room *= ball.mask
        size, unit = slope.abs(), ball._unit(near)
        if unit is not None:
            size, room = size.mul_(unit), room.div_(unit)
        length = ball._least(flat(size), flat(room), gain.abs()[:, None]).reshape(z.shape)
        side.mul_(length if unit is None else length * unit)
        return ball._clip_(side.add_(near).to(z.dtype))

    def min_eps_lower_bound(
        self, gain: Float[Tensor, "n k"], grads: Float[Tensor, "n k *shape"]
    ) -> Float[Tensor, "n k"]:
        """A radius below which <grad, z> cannot change by `gain`: |gain| / dual norm; without a box, `min_eps` itself.

        >>> from epsball import L2
        >>> L2(eps=0).min_eps_lower_bound(torch.tensor([[10.0, -1.0]]), torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]))
        tensor([[2.0000, 0.5000]])
        """
        if self.mask is not None:
            grads = grads * self.mask.unsqueeze(1)
        if (unit := self._unit(grads[:, 0])) is not None:
            grads = grads * unit
        dual = self._dual(grads.flatten(0, 1)).reshape(gain.shape)
        return gain.abs() / dual.clamp_min(torch.finfo(dual.dtype).tiny)

    def distance(self, z: Batch, x: Batch) -> PerExample:
        """The norm of z - x; where `eps` is one per feature (Linf), the greatest share of it that a coordinate uses."""
        delta, unit = z - x, self._unit(x)
        return self.norm(delta if unit is None else delta / unit)

    def intervals(self, x: Batch) -> tuple[Batch, Batch]:
        """The least and the greatest value of each coordinate in ball, box and mask; of balls with that trait."""
        raise NotImplementedError(f"{type(self).__name__} is not an interval per coordinate")

    def clip(self, z: Batch) -> Batch:
        """z, clipped to the box."""
        return self._clip(z)

    def dual(self, grads: Batch) -> PerExample:
        """The dual norm of each direction over the coordinates that a shared mask leaves open.

        It bounds the gain per unit of radius at every point, and is that gain where there is no box. L0 counts
        coordinates, so there the bound is the greatest |gradient| times the width of the box.

        >>> from epsball import Linf
        >>> Linf(eps=0.1).dual(torch.tensor([[3.0, -4.0]]))
        tensor([7.])
        """
        if self.mask is not None and len(self.mask) == 1:
            grads = torch.where(self.mask.to(grads.device), grads, 0)
        return self._dual(grads)

    def ascent(self, grad: Batch, z: Batch) -> Batch:
        """The steepest direction of norm one among those that box and mask leave open at z; zero where all are shut.

        In L0, whose norm only counts, it is the move of one coordinate to its end of the box.
        """
        ball = self.bind(z)
        return ball._ascent(ball._open(grad, z), z)

    def step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch:
        """The point of the ball reached from z by the steepest step of length `size` * eps, projected back.

        `size` is a number or (n,), one per row.

        In Linf this is the signed step; in L2 and L1 the projected gradient step, whose fixed point is `argmax`
        (moving the steepest coordinate alone stops at 94 % of the linear optimum in L1 after 40 steps, this at 99 %);
        in L0 the maximiser over the small ball around z.
        """
        ball = self.bind(x)
        return ball._step(grad, z, x, size)

    def sample(self, x: Batch, noise: Noise, *, in_box: bool = True) -> Batch:
        """A uniform draw from the ball without its box (L0: from the box, on floor(eps) coordinates), projected.

        Not `in_box`, it is left where it was drawn; the mask holds.
        """
        ball = self.bind(x)
        drawn = ball._sample(x, noise)
        return ball._project(drawn, x) if in_box else ball._masked(drawn, x)

    def contains(self, z: Batch, x: Batch) -> Bool[Tensor, " n"]:
        """Whether z is in ball, box and mask: in float64, norm <= eps + 4 ulp of x's dtype at the data's scale."""
        ball = self.bind(x)
        delta = z.double() - x.double()
        scale = torch.maximum(flat(z).abs().amax(1), flat(x).abs().amax(1)).double()
        inside = ball._within(delta, 4 * torch.finfo(x.dtype).eps * scale, x)
        inside &= flat((z >= ball.lo) & (z <= ball.hi)).all(1)
        if ball.mask is not None:
            inside &= flat((z == x) | ball.mask).all(1)
        return inside

    @abstractmethod
    def norm(self, delta: Batch) -> PerExample:
        """The norm of each row, (n,)."""

    @abstractmethod
    def _project(self, z: Batch, x: Batch) -> Batch: ...

    @abstractmethod
    def _argmax(self, grad: Batch, x: Batch) -> Batch: ...

    @abstractmethod
    def _dual(self, grads: Batch) -> PerExample: ...

    def _max_gains(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        """The gains of shared directions for a bound ball and a block of rows, in at least single precision."""
        return torch.stack([self.max_gain(grad.expand(x.shape), x) for grad in grads], 1)

    @abstractmethod
    def _cheapest(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """The radius at which the gain is had, and whether it can be; room is 0 where size is."""

    @abstractmethod
    def _least(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        """The least lengths in [0, room] whose product with `size` is `gain`, or all the room that helps.

        `size` and `room` are its own to write over.
        """

    def _unit(self, like: Batch) -> Tensor | None:
        """The length of each feature's unit, in `like`'s dtype, where that is not one for all."""
        return None

    @abstractmethod
    def _ascent(self, grad: Batch, z: Batch) -> Batch: ...

    @abstractmethod
    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch: ...

    @abstractmethod
    def _sample(self, x: Batch, noise: Noise) -> Batch: ...

    def _within(self, delta: Batch, slack: PerExample, x: Batch) -> Bool[Tensor, " n"]:
        return self.norm(delta) <= self._radius(slack) + slack

    def _radius(self, like: Tensor) -> Tensor:
        """eps in double precision, so that it broadcasts against `like`, whose first dimension is the rows."""
        eps = torch.as_tensor(self.eps, dtype=torch.float64, device=like.device)
        return column(eps, like.ndim) if eps.ndim <= 1 else eps

    def _length(self, z: Batch, size: float | PerExample) -> Tensor:
        """size * eps in z's precision, to broadcast against z."""
        return (self._radius(z) * (column(size, z.ndim) if isinstance(size, Tensor) else size)).to(z)

    def _reach(self, size: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        """The radius to aim at in size's precision: short of eps by the rounding of a sum."""
        return (self._radius(size) * (1 - 4 * torch.finfo(size.dtype).eps)).to(size).expand(len(size), 1)

    def _clip(self, z: Batch) -> Batch:
        return z if self._no_box else self._clip_(z.clone())

    def _clip_(self, own: Batch) -> Batch:
        """`own`, clipped in place to the box."""
        if isinstance(self.lo, Tensor) or isinstance(self.hi, Tensor):
            return own.clamp_(*self._sides(own))
        return own if self._no_box else own.clamp_(self.lo, self.hi)

    def _sides(self, like: Batch) -> tuple[Tensor, Tensor]:
        """`lo` and `hi` as tensors of `like`'s dtype and device."""
        lo, hi = (torch.as_tensor(side, dtype=like.dtype, device=like.device) for side in (self.lo, self.hi))
        return lo, hi

    @property
    def _no_box(self) -> bool:
        return not isinstance(self.lo, Tensor) and not isinstance(self.hi, Tensor) and self.lo == -self.hi == -math.inf

    def _is_free(self) -> bool:
        """Whether every point has the same set around it: no box, and no mask per example."""
        return self._no_box and (self.mask is None or len(self.mask) == 1)

    def _masked(self, z: Batch, x: Batch) -> Batch:
        return z if self.mask is None else torch.where(self.mask, z, x)

    def _open(self, grad: Batch, z: Batch) -> Batch:
        """The gradient without the coordinates that box or mask hold fast at z."""
        shut = ((grad > 0) & (z >= self.hi)) | ((grad < 0) & (z <= self.lo))
        if self.mask is not None:
            shut |= ~self.mask
        return torch.where(shut, 0, grad)

    def _orthant(self, direction: Batch, x: Batch) -> tuple[Tensor, Tensor]:
        """|direction| and the room that box and mask leave it at x, flat; computed in at least single precision."""
        wide = torch.promote_types(direction.dtype, torch.float32)
        lo, hi = self._sides(x.to(wide))
        room = torch.where(direction > 0, hi - x, x - lo).clamp_min(0)
        if self.mask is not None:
            room = torch.where(self.mask, room, 0)
        return flat(direction.to(wide).abs()), flat(room.to(wide))

    def _moved(self, x: Batch, direction: Batch, length: Float[Tensor, "n d"]) -> Batch:
        """x + sign(direction) * length, rounded towards x where rounding would leave the ball."""
        delta = torch.sign(direction).to(length) * length.reshape(x.shape)
        z = self._masked(self._clip((x + delta).to(x.dtype)), x)
        distance = self.norm(z.double() - x.double())
        return torch.where(column(distance > self._radius(distance), x.ndim), torch.nextafter(z, x), z)

    def _endless(self) -> bool:
        """Whether some radius is infinite."""
        return bool(self.eps.isinf().any()) if isinstance(self.eps, Tensor) else self.eps == math.inf

    def _need_box(self) -> None:
        if self._endless() and not (finite(self.lo) and finite(self.hi)):
            raise BadInput("`eps` must be finite where the box is not, got inf; give `lo` and `hi`, or a finite eps")
