"""Labelled examples with ids, in a box: what every loader of data returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples: `x` (n, *shape) in the box [lo, hi], `y` (n,) in 0..classes-1, `ids` (n,) row numbers.

    An example's id is its row number in the unshuffled, unfiltered data; it keys the random numbers. The ends of the
    box are infinite where the box is not known. `label_names` has `classes` entries, or is None. `scale` is what the
    values were divided by when they were read: 255 for 8-bit images. `feature_names` are those of the d columns of x
    (n, d), where these have some.
    """

    x: Float[Tensor, "n *shape"]
    y: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]
    lo: float
    hi: float
    classes: int
    name: str
    label_names: tuple[str, ...] | None = None
    scale: float = 1.0
    feature_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.x.shape[1:])

    def rows(self, index: Tensor | slice) -> Examples:
        """Some of the examples; they keep their ids."""
        return replace(self, x=self.x[index], y=self.y[index], ids=self.ids[index])

    def whole(self) -> Examples:
        """All of the examples: themselves, as they are in memory. Those that are read on demand have it, too."""
        return self
