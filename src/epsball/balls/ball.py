"""The ball around each example, {z : |z - x| <= eps, lo <= z <= hi, z = x off the mask}: what every norm answers.

For a linear score the worst point of a ball is known in closed form: `argmax`, with the gain `max_gain`, which without
a box is eps times the dual norm of the gradient (Goodfellow et al. 2015, section 3). `project` is the exact nearest
point of ball and box together, which clipping after projecting is not. Each norm is in a file of its own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from epsball.balls.region import Region
from epsball.balls.written import ball_text
from epsball.common.errors import BadInput
from epsball.common.noise import Noise
from epsball.common.shapes import BLOCK, Batch, PerExample, blocks, column, flat

Trait = Literal["dual norm", "count", "euclidean", "sparse", "intervals"]
"""What an attack may need of a ball.

"dual norm": it is the ball of a norm, whose dual bounds the gain. "count": the radius counts coordinates. "euclidean":
the squared distance is the sum of the squared changes. "sparse": the distance is the sum of the absolute changes, and a
steepest step moves a single coordinate. "intervals": each coordinate has an interval of its own (`intervals`).
"""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Ball(Region):
    """The points within `eps` of an example, inside the box [lo, hi], equal to the example off the mask.

    `eps` is in the units of the data: a number >= 0 (`inf` allowed), a tensor (n,) or (n, 1, ..., 1) with one radius
    per example, or, for Linf, a tensor (1, *shape) with one per feature, where 0 says what `mask` says: it may not
    change. Where x is (n, n), a radius (n,) is refused: it may be meant either way. `lo` and `hi` are numbers, or
    tensors with as many dimensions as the data and a first dimension of 1 (shared) or n. `mask` is boolean, of such a
    shape too; True may change.

    Every method takes batches (n, *shape) in float64, float32, bfloat16 or float16 on any device and answers in kind.

    A norm is a subclass with the class variables below and the abstract methods at the end; see CONTRIBUTING.md.

    >>> from epsball import Linf
    >>> ball = Linf(eps=0.3, lo=0, hi=1)
    >>> x = torch.tensor([[0.1, 0.5, 0.9]])
    >>> ball.argmax(torch.tensor([[-1.0, 2.0, 3.0]]), x)
    tensor([[0.0000, 0.8000, 1.0000]])
    """

    name: ClassVar[str]
    """On a command line, and the name of a column of distances."""
    symbol: ClassVar[str]
    """In a sentence or a figure."""
    rule: ClassVar[str]
    """What the radius bounds."""
    unit: ClassVar[str] = "units of the data"
    """Of the radius."""
    traits: ClassVar[frozenset[Trait]]
    """What attacks may rely on."""

    @classmethod
    def choose(cls, options: Mapping[Trait, T]) -> T | None:
        """The first of the options whose trait the ball has; None where it has none of them."""
        return next((option for trait, option in options.items() if trait in cls.traits), None)

    def label(self) -> str:
        """The norm and the radius as they are written in a sentence.

        >>> from epsball import Linf
        >>> Linf(eps=8 / 255, lo=0, hi=1).label()
        'L∞, ε = 8/255'
        """
        if isinstance(self.eps, Tensor) and self.eps.numel() > 1:
            return f"{self.symbol}, ε one per {'example' if self.eps.ndim == 1 or len(self.eps) > 1 else 'feature'}"
        numbers = (torch.as_tensor(part, dtype=torch.float64).mean().item() for part in (self.eps, self.lo, self.hi))
        return ball_text(self.symbol, *numbers)

    def project(self, z: Batch, x: Batch) -> Batch:
        """The nearest point of ball and box together, in the Euclidean norm; points inside come back as they are.

        The result may share memory with z, which must be finite.

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
        grads, gains = grads.to(x.device, wide), x.new_empty(len(x), len(grads))
        if not len(grads):
            return gains
        if x.numel() <= BLOCK:
            return ball._max_gains(grads, x.to(wide)).to(x.dtype)
        for rows in blocks(len(x), math.prod(x.shape[1:]), x.device):
            gains[rows] = ball.rows(rows)._max_gains(grads, x[rows].to(wide)).to(x.dtype)
        return gains

    def min_eps(
        self, gain: PerExample, grad: Batch, x: Batch, *, strict: bool | Bool[Tensor, " n"] = False
    ) -> Float[Tensor, " n"]:
        """The smallest radius at which <grad, z> rises by `gain` (n,) within box and mask; `inf` where none does.

        The ball's own eps is not used. The gain is piecewise linear (L2: in the multiplier) with breakpoints where
        coordinates reach the box; the piece is found by sorting and solved in closed form, in double precision. With
        `strict` the gain must be exceeded: then the answer is an infimum, but where the radius counts coordinates. A
        gain <= 0 (strict: < 0) needs no radius. Returns float64 whatever x's dtype.

        >>> from epsball import Linf
        >>> x, w = torch.tensor([[0.0, 0.9]]), torch.tensor([[1.0, 2.0]])
        >>> Linf(eps=0).min_eps(torch.tensor([0.6]), w, x), Linf(eps=0, hi=1).min_eps(torch.tensor([0.6]), w, x)
        (tensor([0.2000], dtype=torch.float64), tensor([0.4000], dtype=torch.float64))
        """
        ball, gain = self.bind(x), gain.double()
        strictly = torch.as_tensor(strict, device=x.device).expand(len(x))
        if ball._is_same_for_all:
            dual = ball.dual(grad.double())
            radius, reached = gain / dual, dual > 0
        else:
            size, room = ball._size_and_room(grad.double(), x.double())
            radius, reached = ball._min_radius(size, torch.where(size > 0, room, 0), gain[:, None], strictly[:, None])
        needs_none = torch.where(strictly, gain < 0, gain <= 0)
        return torch.where(needs_none, 0, torch.where(reached, radius.clamp_min(0), math.inf))

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
        if (unit := self.feature_units(grads[:, 0])) is not None:
            grads = grads * unit
        dual = self._dual(grads.flatten(0, 1)).reshape(gain.shape)
        return gain.abs() / dual.clamp_min(torch.finfo(dual.dtype).tiny)

    def project_onto_hyperplane(self, gain: PerExample, grad: Batch, z: Batch) -> Batch:
        """The point of box and mask nearest to z in the ball's norm at which <grad, .> is greater by `gain` (n,).

        A projection onto a hyperplane, from either side: where `gain` is negative, <grad, .> falls by that much. Where
        the box does not allow it, the corner that does most. Coordinates with a gradient of zero stay. The ball's
        radius plays no part, but where `eps` is one per feature (Linf), distance is measured in units of it. Exact up
        to rounding in z's dtype, in single precision at least: Croce and Hein (ICML 2020), section 3.2.

        >>> from epsball import Linf
        >>> x, w = torch.tensor([[0.0, 0.9]]), torch.tensor([[1.0, 2.0]])
        >>> Linf(eps=0).project_onto_hyperplane(torch.tensor([0.6]), w, x)
        tensor([[0.2000, 1.1000]])
        >>> Linf(eps=0, hi=1).project_onto_hyperplane(torch.tensor([0.6]), w, x)
        tensor([[0.4000, 1.0000]])
        """
        ball, wide = self.bind(z), torch.promote_types(z.dtype, torch.float32)
        start, grad, gain = z.to(wide), grad.to(wide), gain.to(wide)
        side = grad.sign().mul_(column(gain.sign(), z.ndim))
        room = ball.clip_(torch.add(start, side, alpha=torch.finfo(wide).max / 4)).sub_(start).abs_()
        if ball.mask is not None:
            room *= ball.mask
        size, unit = grad.abs(), ball.feature_units(start)
        if unit is not None:
            size, room = size.mul_(unit), room.div_(unit)
        length = ball._shortest_step(flat(size), flat(room), gain.abs()[:, None]).reshape(z.shape)
        side.mul_(length if unit is None else length * unit)
        return ball.clip_(side.add_(start).to(z.dtype))

    def distance(self, z: Batch, x: Batch) -> PerExample:
        """The norm of z - x; where `eps` is one per feature (Linf), the greatest share of it that a coordinate uses."""
        delta, unit = z - x, self.feature_units(x)
        return self.norm(delta if unit is None else delta / unit)

    def dual(self, grads: Batch) -> PerExample:
        """The dual norm of each direction over the coordinates that a shared mask lets change.

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
        """The steepest direction of norm one among those that box and mask allow at z; zero where they allow none.

        In L0, whose norm only counts, it is the move of one coordinate to its end of the box.
        """
        ball = self.bind(z)
        return ball._ascent(ball.free_gradient(grad, z), z)

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

        Not `in_box`, it is not projected; the mask holds.
        """
        ball = self.bind(x)
        drawn = ball._sample(x, noise)
        return ball._project(drawn, x) if in_box else ball.apply_mask(drawn, x)

    def contains(self, z: Batch, x: Batch) -> Bool[Tensor, " n"]:
        """Whether z is in ball, box and mask: in float64, norm <= eps + 4 ulp of x's dtype at the data's scale."""
        ball = self.bind(x)
        parts = blocks(len(x), math.prod(x.shape[1:]), x.device)
        if len(parts) <= 1:
            return ball._contains(z, x)
        return torch.cat([ball.rows(rows)._contains(z[rows], x[rows]) for rows in parts])

    def _contains(self, z: Batch, x: Batch) -> Bool[Tensor, " n"]:
        scale = torch.maximum(flat(z).abs().amax(1), flat(x).abs().amax(1)).double()
        inside = self._within(z.double() - x.double(), 4 * torch.finfo(x.dtype).eps * scale, x)
        inside &= flat((z >= self.lo) & (z <= self.hi)).all(1)
        if self.mask is not None:
            inside &= flat((z == x) | self.mask).all(1)
        return inside

    def exact_distance(self, z: Batch, x: Batch) -> Float[Tensor, " n"]:
        """The norm of z - x in double precision, block by block: no copy of all rows is made."""
        parts = blocks(len(x), math.prod(x.shape[1:]), x.device)
        return torch.cat([self.norm(z[rows].double() - x[rows].double()).double() for rows in parts])

    def intervals(self, x: Batch) -> tuple[Batch, Batch]:
        """The least and the greatest value of each coordinate in ball, box and mask; of balls with that trait."""
        raise NotImplementedError(f"{type(self).__name__} is not an interval per coordinate")

    def feature_units(self, like: Batch) -> Tensor | None:
        """The unit of distance of each feature, in `like`'s dtype; None where it is one for all."""
        return None

    # What a norm's file defines. `size` is |gradient| or |displacement|, `room` how far box and mask let it go.

    @abstractmethod
    def norm(self, delta: Batch) -> PerExample:
        """The norm of each row, (n,)."""

    @abstractmethod
    def _project(self, z: Batch, x: Batch) -> Batch: ...

    @abstractmethod
    def _argmax(self, grad: Batch, x: Batch) -> Batch: ...

    @abstractmethod
    def _ascent(self, grad: Batch, z: Batch) -> Batch: ...

    @abstractmethod
    def _step(self, grad: Batch, z: Batch, x: Batch, size: float | PerExample) -> Batch: ...

    @abstractmethod
    def _sample(self, x: Batch, noise: Noise) -> Batch: ...

    @abstractmethod
    def _dual(self, grads: Batch) -> PerExample: ...

    @abstractmethod
    def _min_radius(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"], strict: Tensor
    ) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """The least radius with that gain (`strict`: with more), and whether there is one; room is 0 where size is."""

    @abstractmethod
    def _shortest_step(
        self, size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], gain: Float[Tensor, "n 1"]
    ) -> Float[Tensor, "n d"]:
        """The lengths in [0, room] of least norm whose product with `size` is `gain`, or all the room that helps.

        `size` and `room` may be overwritten.
        """

    @abstractmethod
    def exact_gain(self, size: np.ndarray, room: np.ndarray, eps: Any) -> tuple[Any, Any]:
        """The gain of one example as (a, b) for a + sqrt(b), in the arithmetic of Python's integers or fractions.

        `size` (d,) >= 0 and `room` (d,) >= 0, zero where `size` is, are arrays of objects. `room` and the radius `eps`
        are in one unit (where it counts coordinates, in units of one) and may be `inf`, though not both.
        """

    def _max_gains(self, grads: Batch, x: Batch) -> Float[Tensor, "n k"]:
        """The gains of shared directions for a block of rows, in at least single precision."""
        return torch.stack([self.max_gain(grad.expand(x.shape), x) for grad in grads], 1)

    def _within(self, delta: Batch, slack: PerExample, x: Batch) -> Bool[Tensor, " n"]:
        return self.norm(delta) <= self.radius_like(slack) + slack

    def _move_by(self, x: Batch, direction: Batch, length: Float[Tensor, "n d"]) -> Batch:
        """x + sign(direction) * length, rounded towards x where rounding would leave the ball."""
        delta = torch.sign(direction).to(length) * length.reshape(x.shape)
        z = self.apply_mask(self.clip((x + delta).to(x.dtype)), x)
        distance = self.norm(z.double() - x.double())
        return torch.where(column(distance > self.radius_like(distance), x.ndim), torch.nextafter(z, x), z)
