"""Labelled examples that are read when they are asked for: any number of them, in the memory of those in use.

A source knows its length, its ids and mostly its labels without reading a row. A row that cannot be used (a broken
file, a label that is none of the classes, NaN) is no error of the whole: `read` answers with the usable rows and a
`BadRow` for each of the others, and `rows` raises where there is one.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.data.bad_row import BadRow
from epsball.data.examples import Examples

SHOWN = 12
"""About so many rows that cannot be used are in an error, and so many reasons."""
BLOCK = 64 << 20
"""Bytes of x that are read at a time where all rows are wanted."""


@dataclass(frozen=True, eq=False)
class Block:
    """What a source finds of the rows it is asked for: x and labels of the usable ones, and those that are not.

    `kept` (m,) are the places of the usable rows among those asked for, ascending. `y` (m,) are the labels that come
    with the rows, where they are not known before.
    """

    x: Float[Tensor, "m *shape"]
    kept: Int64[Tensor, " m"]
    bad: tuple[BadRow, ...] = ()
    y: Int64[Tensor, " m"] | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class LazyExamples(ABC):
    """Labelled examples in the box [lo, hi] that are read when they are asked for; see `Examples` for the attributes.

    `shape` and `dtype` are those of x, taken from the first usable row. `y` (n,) is None where the labels come with the
    rows; `classes` is 0 then, unless there are `label_names`. Where it is known, it is -1 for the rows in `bad_labels`,
    which says by id why their labels cannot be used. `places` renumbers labels that come with the rows: label k is
    class `places[k]`, -1 where that is none.

    A source can be pickled, and then opens its files by their paths where it is unpickled and first read.
    """

    name: str
    shape: tuple[int, ...]
    ids: Int64[Tensor, " n"]
    y: Int64[Tensor, " n"] | None = None
    classes: int = 0
    lo: float = -math.inf
    hi: float = math.inf
    label_names: tuple[str, ...] | None = None
    scale: float = 1.0
    feature_names: tuple[str, ...] | None = None
    dtype: torch.dtype = torch.float32
    bad_labels: Mapping[int, str] = field(default_factory=dict)
    places: Int64[Tensor, " k"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def fetch(self, ids: Sequence[int]) -> Block:
        """The rows with these ids, x of `shape` and `dtype`. Values and labels are looked at by the caller."""

    @abstractmethod
    def name_of(self, id: int) -> str:
        """The file of a row, or else its number and the name of the data."""

    @abstractmethod
    def identity(self) -> str:
        """A digest of what would be read, without reading it: two sources with equal ones hold the same rows."""

    @abstractmethod
    def available(self) -> bool:
        """Whether the files are there: on another machine they may not be."""

    def read(self, index: Tensor | slice) -> tuple[Examples, tuple[BadRow, ...]]:
        """The usable rows at the places `index` (m,), distinct numbers from 0 to n-1, in its order, and the others."""
        at = torch.arange(len(self))[index]
        bad = self._bad_labels(at)
        at = at if self.y is None else at[self.y[at] >= 0]
        asked = self.ids[at].tolist()
        block = self.fetch(asked)
        bad += block.bad
        x, at = block.x, at[block.kept]
        found = None if block.y is None else self._numbered(block.y)
        y = self._known(at, found)
        wrong = dict(self._reasons(x, y, block.y))
        if found is not None and block.y is not None:  # a list of labels, and those of the rows
            wrong |= {
                row: f"its label is {int(block.y[row])}, and in the list of labels {int(y[row])}"
                for row in (found != y).nonzero().flatten().tolist()
            }
        if wrong:
            bad += tuple(self._bad(int(self.ids[at[place]]), reason) for place, reason in wrong.items())
            fine = torch.tensor([place for place in range(len(at)) if place not in wrong], dtype=torch.long)
            x, y, at = x[fine], y[fine], at[fine]
        if bad:
            order = {id: place for place, id in enumerate(self.ids[index].tolist())}
            bad = tuple(sorted(bad, key=lambda row: order[row.id]))
        return self._examples(x, y, self.ids[at]), bad

    def rows(self, index: Tensor | slice) -> Examples:
        """The rows at the places `index`, all of them. Raises `BadInput` that names those that cannot be used."""
        at = torch.arange(len(self))[index]
        bad = self._bad_labels(at)
        if not bad:
            found, bad = self.collected(at)
            if not bad:
                return found
        raise BadInput(self.refusal(bad, len(at)))

    def whole(self) -> Examples:
        """All rows, in memory. Raises `BadInput` that names those that cannot be used."""
        return self.rows(slice(None))

    def collected(self, index: Tensor | slice) -> tuple[Examples, tuple[BadRow, ...]]:
        """As `read`, for any number of rows: by blocks, into one tensor."""
        at = torch.arange(len(self))[index]
        x, y, ids = self._empty(len(at)), torch.empty_like(at), torch.empty_like(at)
        bad: tuple[BadRow, ...] = ()
        filled = 0
        for part in at.split(self._rows_of(BLOCK)):
            some, missing = self.read(part)
            bad += missing
            place = slice(filled, filled + len(some))
            x[place], y[place], ids[place] = some.x, some.y, some.ids
            filled += len(some)
        return self._examples(x[:filled], y[:filled], ids[:filled]), bad

    def refusal(self, bad: Sequence[BadRow], count: int) -> str:
        """What is said where some of so many rows cannot be used."""
        return (
            f"`data` must hold rows that can be used, but of {count:,} rows of {self.name} {len(bad):,} cannot: "
            f"{listed(bad)}; mend them, or leave them out of the data"
        )

    def _rows_of(self, size: int) -> int:
        return max(1, size // (max(1, math.prod(self.shape)) * self.dtype.itemsize))

    def _examples(self, x: Tensor, y: Tensor, ids: Tensor) -> Examples:
        classes = self.classes or (int(y.max()) + 1 if len(y) else 0)
        return Examples(
            x=x, y=y, ids=ids, lo=self.lo, hi=self.hi, classes=classes, name=self.name, label_names=self.label_names,
            scale=self.scale, feature_names=self.feature_names,
        )  # fmt: skip

    def _empty(self, count: int) -> Tensor:
        try:
            return torch.empty(count, *self.shape, dtype=self.dtype)
        except (MemoryError, RuntimeError) as error:
            size = "x".join(map(str, self.shape))
            raise BadInput(
                f"`data` must fit into memory, but {count:,} examples of {size} do not; take fewer, or resize"
            ) from error

    def _bad(self, id: int, reason: str) -> BadRow:
        return BadRow(id, self.name_of(id), reason)

    def _bad_labels(self, at: Tensor) -> tuple[BadRow, ...]:
        if not self.bad_labels:
            return ()
        return tuple(self._bad(id, self.bad_labels[id]) for id in self.ids[at].tolist() if id in self.bad_labels)

    def _known(self, at: Tensor, found: Tensor | None) -> Tensor:
        """The labels of rows: those that were known before, or else those found with them."""
        if self.y is not None:
            return self.y[at]
        assert found is not None, "a source without `y` has labels with its rows"
        return found

    def _numbered(self, labels: Tensor) -> Tensor:
        """The classes of labels that came with rows; -1 where they are none."""
        most = self.classes if self.places is None else len(self.places)
        none = (labels < 0) | ((labels >= most) & (most > 0))
        if self.places is None:
            return labels.masked_fill(none, -1)
        return self.places[labels.masked_fill(none, 0)].masked_fill(none, -1)

    def _reasons(self, x: Tensor, y: Tensor, given: Tensor | None) -> Iterator[tuple[int, str]]:
        """Why rows that were read cannot be used, by their places."""
        if given is not None:
            for place in (y < 0).nonzero().flatten().tolist():
                label = int(given[place])
                foreign = self.places is not None and label >= 0
                why = f"its label {label} is none of the model's" if foreign else label_reason(label, self.classes)
                yield place, why
        if not x.numel():
            return
        flat = x.flatten(1)
        lowest, highest = flat.amin(1), flat.amax(1)
        lo, hi = torch.tensor([self.lo, self.hi], dtype=x.dtype)  # as the dtype of x sees them
        fine = (lo <= lowest) & (highest <= hi) & lowest.isfinite() & highest.isfinite()
        for place in (~fine).nonzero().flatten().tolist():
            low, high = lowest[place].item(), highest[place].item()
            if math.isnan(low) or math.isinf(low) or math.isinf(high):
                yield place, f"it holds {'NaN' if math.isnan(low) else 'infinity'}"
            else:
                yield place, f"its values are from {low:g} to {high:g}, outside of the box [{self.lo:g}, {self.hi:g}]"


def listed(bad: Sequence[BadRow]) -> str:
    """Rows that cannot be used, for an error: reason by reason, with about `SHOWN` names in all.

    >>> listed([BadRow(0, "a.png", "cut off"), BadRow(1, "b.png", "empty"), BadRow(2, "c.png", "empty")])
    'a.png: cut off; 2 rows: empty: b.png, c.png'
    """
    names: dict[str, list[str]] = {}
    for row in bad:
        names.setdefault(row.reason, []).append(row.name)
    most = max(1, SHOWN // max(1, len(names)))
    parts = [_of_one_reason(reason, rows, most) for reason, rows in [*names.items()][:SHOWN]]
    left_out = sum(map(len, [*names.values()][SHOWN:]))
    return "; ".join([*parts, f"and {left_out:,} more"] if left_out else parts)


def _of_one_reason(reason: str, names: Sequence[str], most: int) -> str:
    if len(names) == 1:
        return f"{names[0]}: {reason}"
    shown = f", ... ({most} shown)" if len(names) > most else ""
    return f"{len(names):,} rows: {reason}: {', '.join(names[:most])}{shown}"


def label_reason(label: int, classes: int) -> str:
    """Why a label cannot be used.

    >>> label_reason(12, 10)
    'its label 12 is none of the 10 classes, 0 to 9'
    """
    if label == -1:
        return "it has no label (missing, or -1)"
    if label < 0:
        return f"its label {label} is below 0"
    return f"its label {label} is none of the {classes} classes, 0 to {classes - 1}"


def block_of(found: Iterable[tuple[Tensor, int | None] | BadRow], shape: Sequence[int], dtype: torch.dtype) -> Block:
    """A block of rows that are found one by one: their x (*shape) and label, or why they cannot be used."""
    x, kept, bad, labels = [], [], [], []
    for place, row in enumerate(found):
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        kept.append(place)
        x.append(row[0])
        labels.append(row[1])
    return Block(
        x=torch.stack(x) if x else torch.empty(0, *shape, dtype=dtype),
        kept=torch.tensor(kept, dtype=torch.long),
        bad=tuple(bad),
        y=None if any(label is None for label in labels) else torch.tensor(labels, dtype=torch.long),
    )


def digest(*parts: object) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of the parts: tensors by their bytes, others as text."""
    found = hashlib.sha256()
    for part in parts:
        raw = part.contiguous().numpy().tobytes() if isinstance(part, Tensor) else str(part).encode()
        found.update(len(raw).to_bytes(8, "little") + raw)
    return found.hexdigest()[:16]
