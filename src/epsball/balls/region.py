"""What a ball has before it has a norm: a radius, a box and a mask, checked, bound to a batch, cut into rows."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.common.shapes import Batch, PerExample, column, finite, fits, flat, shown


def _rule(name: str) -> str:
    """Which shapes a part may have that is to fit a batch x (n, *shape)."""
    if name == "eps":
        return (
            "a number, or one per example, (n,) or (n, 1, ..., 1) with as many dimensions as x; Linf also takes one "
            "per feature, (1, *shape): write `eps[None]`"
        )
    shape = f"as many dimensions as x with a first one of 1 or n; write `{name}[None]` for one per feature"
    return shape if name == "mask" else f"a number, or {shape}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Region(ABC):
    """A radius, a box [lo, hi] and a mask. `Ball` adds the norm, and says what they mean.

    Methods whose names begin with an underscore are for the files of norms; they expect a bound region.
    """

    eps: float | Tensor
    lo: float | Tensor = -math.inf
    hi: float | Tensor = math.inf
    mask: Tensor | None = None
    _bound: bool = field(default=False, repr=False)
    _per_example: bool = field(default=False, repr=False)  # what an `eps` of one dimension is, is known

    def __post_init__(self) -> None:
        if not self._bound:
            self._take_numpy()
            self._check_parts()

    @classmethod
    def parts(cls) -> tuple[str, ...]:
        """The names of the radius, the box, the mask, and of further fields of a norm's class."""
        return tuple(part.name for part in fields(cls) if not part.name.startswith("_"))

    def _take_numpy(self) -> None:
        """Numbers and arrays of numpy become numbers and tensors."""
        for name in self.parts():
            value = getattr(self, name)
            if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
                native = np.array(value, dtype=bool if value.dtype.kind == "b" else np.float64)
                object.__setattr__(self, name, native.item() if native.ndim == 0 else torch.from_numpy(native))

    def _check_parts(self) -> None:
        for name in ("eps", "lo", "hi"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, Tensor)):
                remedy = f"write torch.tensor({name})" if isinstance(value, list | tuple) else "convert it first"
                raise BadInput(f"`{name}` must be a number or a tensor, got {type(value).__name__}; {remedy}")
            if isinstance(value, Tensor) and (value.is_complex() or value.is_meta or value.layout != torch.strided):
                raise BadInput(f"`{name}` must hold real numbers, dense, got {value.dtype}, {value.layout}; convert it")
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
        """This ball checked against `x`, its tensors on the device and in the dtype of `x`.

        A bound ball is not checked again; its radii per example are (n,), and features with a radius of 0 are off its
        mask. Raises `BadInput` where `x` is not floating point, holds NaN or lies outside the box, or where a shape
        does not fit.
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
                value = self._per_example_eps(value, x) if name == "eps" else value
                if not (self._fits_eps(value, x) if name == "eps" else fits(value, x)):
                    misfit = f"`{name}` of shape {tuple(value.shape)} does not fit x {tuple(x.shape)}"
                    raise BadInput(f"{misfit}: {_rule(name)}")
                value = value.to(x.device, torch.bool if name == "mask" else x.dtype)
            parts[name] = value
        eps, mask = parts["eps"], parts["mask"]
        if isinstance(eps, Tensor) and eps.ndim > 1 and bool((eps == 0).any()):
            parts["mask"] = eps > 0 if mask is None else mask & (eps > 0)
        ball = replace(self, **parts, _bound=True)
        if x.numel():
            ball._check_inside_box(x)
        return ball

    def _per_example_eps(self, eps: Tensor, x: Batch) -> Tensor:
        """`eps` (n, 1, ..., 1) as (n,). Raises `BadInput` where (n,) may as well be meant as one radius per feature."""
        if eps.ndim == 1 and x.ndim == 2 and x.shape[1] == len(eps) == len(x) > 1 and not self._per_example:
            raise BadInput(
                f"`eps` must say what it is one of where x is square, got {tuple(eps.shape)} for x {tuple(x.shape)}; "
                "write eps[:, None] for one radius per example, or eps[None] for one per feature (Linf)"
            )
        is_column = eps.ndim == x.ndim > 1 and eps.shape[0] == len(x) == eps.numel()
        return eps.reshape(-1) if is_column and not self._fits_eps(eps, x) else eps

    def _fits_eps(self, eps: Tensor, x: Tensor) -> bool:
        return eps.ndim == 1 and len(eps) == len(x)

    def _check_inside_box(self, x: Batch) -> None:
        smallest, greatest = (end.item() for end in x.aminmax())
        if math.isnan(smallest):
            raise BadInput("`x` must not hold NaN; drop or impute those examples first")
        if math.isinf(smallest) or math.isinf(greatest):
            raise BadInput("`x` must be finite, got infinite values; drop or clip those examples first")
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
        """The ball of some of the rows: its parts per example follow (a radius (n,) is one), shared ones stay."""
        parts = {
            name: value[index]
            for name in self.parts()
            if isinstance(value := getattr(self, name), Tensor)
            and value.ndim > 0
            and (value.shape[0] != 1 or (name == "eps" and value.ndim == 1))
        }
        per_example = self._per_example or (isinstance(self.eps, Tensor) and self.eps.ndim == 1)
        return replace(self, **parts, _per_example=per_example) if parts else self

    def held(self, x: Batch) -> Self:
        """This ball, bound to `x`, for many questions about the same `x`: what depends on `x` alone is computed once.

        The memory under `x` must not change for as long as this ball is used.
        """
        return self.bind(x)

    def __getstate__(self) -> dict[str, Any]:
        return {part.name: getattr(self, part.name) for part in fields(self)}  # not what a ball that is held computed

    def with_eps(self, eps: float | Tensor) -> Self:
        """The same box and mask with another radius, of one of the shapes that `eps` may have."""
        return replace(self, eps=eps, _bound=False, _per_example=self._per_example or self._bound)

    # The radius.

    def radius_like(self, like: Tensor) -> Tensor:
        """eps in double precision, so that it broadcasts against `like`, whose first dimension is the rows."""
        eps = torch.as_tensor(self.eps, dtype=torch.float64, device=like.device)
        return column(eps, like.ndim) if eps.ndim <= 1 else eps

    @property
    def has_infinite_radius(self) -> bool:
        """Whether the radius of some example (or feature) is infinite."""
        return bool(self.eps.isinf().any()) if isinstance(self.eps, Tensor) else self.eps == math.inf

    def require_box(self) -> None:
        """Raise `BadInput` where a radius is infinite and the box is not finite."""
        if self.has_infinite_radius and not (finite(self.lo) and finite(self.hi)):
            raise BadInput("`eps` must be finite where the box is not, got inf; give `lo` and `hi`, or a finite eps")

    def _step_length(self, z: Batch, size: float | PerExample) -> Tensor:
        """size * eps in z's precision, to broadcast against z."""
        return (self.radius_like(z) * (column(size, z.ndim) if isinstance(size, Tensor) else size)).to(z)

    def _safe_radius(self, size: Float[Tensor, "n d"]) -> Float[Tensor, "n 1"]:
        """eps in the precision of `size`, less the rounding error of a sum."""
        return (self.radius_like(size) * (1 - 4 * torch.finfo(size.dtype).eps)).to(size).expand(len(size), 1)

    # The box and the mask.

    def clip(self, z: Batch) -> Batch:
        """z, clipped to the box."""
        return z if self._has_no_box else self.clip_(z.clone())

    def clip_(self, z: Batch) -> Batch:
        """z, clipped in place to the box."""
        if isinstance(self.lo, Tensor) or isinstance(self.hi, Tensor):
            return z.clamp_(*self._box_like(z))
        return z if self._has_no_box else z.clamp_(self.lo, self.hi)

    def apply_mask(self, z: Batch, x: Batch) -> Batch:
        """z where the mask lets coordinates change, x elsewhere."""
        return z if self.mask is None else torch.where(self.mask, z, x)

    def free_gradient(self, grad: Batch, z: Batch) -> Batch:
        """The gradient without the coordinates that cannot follow it at z: at the end of the box, or masked."""
        blocked = ((grad > 0) & (z >= self.hi)) | ((grad < 0) & (z <= self.lo))
        if self.mask is not None:
            blocked |= ~self.mask
        return torch.where(blocked, 0, grad)

    def _box_like(self, like: Batch) -> tuple[Tensor, Tensor]:
        """`lo` and `hi` as tensors of `like`'s dtype and device."""
        lo, hi = (torch.as_tensor(side, dtype=like.dtype, device=like.device) for side in (self.lo, self.hi))
        return lo, hi

    @property
    def _has_no_box(self) -> bool:
        return not isinstance(self.lo, Tensor) and not isinstance(self.hi, Tensor) and self.lo == -self.hi == -math.inf

    @property
    def _is_same_for_all(self) -> bool:
        """Whether the region is the same around every example: no box, and no mask per example."""
        return self._has_no_box and (self.mask is None or len(self.mask) == 1)

    def _size_and_room(self, direction: Batch, x: Batch) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """|direction|, and how far box and mask let each coordinate of x go that way; in single precision at least."""
        wide = torch.promote_types(direction.dtype, torch.float32)
        lo, hi = self._box_like(x.to(wide))
        room = torch.where(direction > 0, hi - x, x - lo).clamp_min(0)
        if self.mask is not None:
            room = torch.where(self.mask, room, 0)
        return flat(direction.to(wide).abs()), flat(room.to(wide))
