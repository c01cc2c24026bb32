"""What an attack remembers about each row between steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Part = TypeVar("Part")


@dataclass(frozen=True, eq=False)
class State:
    """The memory of an attack: tensors whose first dimension is the row.

    `z` is where to look next, `best` the answer if the job ends without success, `t` the number of steps made, `done`
    where the job has ended. Attacks that remember more add fields in a subclass: tensors, parts (dataclasses of
    tensors) such as an optimiser's state, or None for what they do not use.
    """

    z: Float[Tensor, "n *shape"]
    best: Float[Tensor, "n *shape"]
    t: Int64[Tensor, " n"]
    done: Bool[Tensor, " n"]

    @classmethod
    def at(cls, z: Float[Tensor, "n *shape"], **more: Any) -> Self:
        """The state of rows that start at z."""
        t = torch.zeros(len(z), dtype=torch.long, device=z.device)
        return cls(z=z, best=z, t=t, done=t != 0, **more)

    def map(self, function: Callable[..., Tensor], *others: State) -> Self:
        """`function` applied tensor by tensor, to this state and `others` of its type; parts are entered."""
        return map_tensors(function, self, *others)  # pyright: ignore[reportReturnType] - others are of its type


def map_tensors(function: Callable[..., Tensor], part: Part, *others: Part) -> Part:
    """`part`, a dataclass of tensors, None and such dataclasses, with `function` applied to each tensor."""
    parts = (part, *others)
    if part is None:
        return part
    if isinstance(part, Tensor):
        return function(*parts)  # pyright: ignore[reportReturnType] - Part is Tensor here
    names = [f.name for f in fields(part)]  # pyright: ignore[reportArgumentType]
    return type(part)(**{name: map_tensors(function, *(getattr(one, name) for one in parts)) for name in names})
