"""Examples that are read when they are asked for: the usable rows, and the others by name."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.data.bad_row import BadRow
from epsball.data.lazy_examples import Block, LazyExamples, block_of, digest


@dataclass(frozen=True, eq=False, kw_only=True)
class Numbers(LazyExamples):
    """Row k of the data is `values[k]`; None cannot be read."""

    values: tuple[float | None, ...]
    labels: tuple[int, ...] | None = None

    def fetch(self, ids: Sequence[int]) -> Block:
        return block_of((self._row(id) for id in ids), self.shape, self.dtype)

    def _row(self, id: int) -> tuple[Tensor, int | None] | BadRow:
        value = self.values[id]
        if value is None:
            return BadRow(id, self.name_of(id), "it cannot be read")
        return torch.full(self.shape, value), None if self.labels is None else self.labels[id]

    def name_of(self, id: int) -> str:
        return f"row {id} of {self.name}"

    def identity(self) -> str:
        return digest(self.values, self.ids)

    def available(self) -> bool:
        return True


def numbers(*values: float | None, y: Sequence[int] | None = None, **more: object) -> Numbers:
    ids = torch.arange(len(values))
    labels = torch.zeros(len(values), dtype=torch.long) if y is None else torch.tensor(y)
    known = {"y": labels, "classes": 3, "lo": -1.0, "hi": 2.0} | more
    return Numbers(name="numbers", shape=(2,), ids=ids, values=values, **known)  # type: ignore[arg-type]


NAN, INF = float("nan"), float("inf")


def test_rows_are_read_in_the_order_of_the_index_and_keep_their_ids():
    data = numbers(0.0, 0.5, 1.0, 1.5, y=[0, 1, 2, 0])
    some, bad = data.read(torch.tensor([3, 0, 1]))
    assert (some.ids.tolist(), some.y.tolist(), some.x[:, 0].tolist()) == ([3, 0, 1], [0, 0, 1], [1.5, 0.0, 0.5])
    assert (bad, some.classes, some.lo, some.hi, len(data)) == ((), 3, -1.0, 2.0, 4)
    assert data.rows(slice(1, 3)).ids.tolist() == [1, 2]
    assert torch.equal(data.whole().x, data.rows(torch.arange(4)).x)


def test_rows_that_cannot_be_used_are_told_by_name_in_the_order_of_the_index():
    data = numbers(0.0, None, NAN, INF, 3.0, 1.0, y=[0, 1, 2, 0, 1, -1], bad_labels={5: "it has no label"})
    some, bad = data.read(torch.tensor([5, 4, 3, 2, 1, 0]))
    assert some.ids.tolist() == [0]
    assert [(row.id, row.name, row.reason) for row in bad] == [
        (5, "row 5 of numbers", "it has no label"),
        (4, "row 4 of numbers", "its values are from 3 to 3, outside of the box [-1, 2]"),
        (3, "row 3 of numbers", "it holds infinity"),
        (2, "row 2 of numbers", "it holds NaN"),
        (1, "row 1 of numbers", "it cannot be read"),
    ]
    with pytest.raises(BadInput, match=r"of 4 rows of numbers 3 cannot: row 1 of numbers: it cannot be read; row 2"):
        data.rows(slice(0, 4))


def test_an_error_lists_twelve_rows_of_a_reason_and_twelve_reasons():
    with pytest.raises(
        BadInput, match=r"cannot: 20 rows: it cannot be read: .*, row 11 of numbers, \.\.\. \(12 shown\); "
    ):
        numbers(*[None] * 20).whole()
    with pytest.raises(BadInput, match=r"cannot: 20 rows: it holds NaN: (row \d+ of numbers, ){6}\.\.\. .*; row 20 of"):
        numbers(*[NAN] * 20, None).whole()
    with pytest.raises(BadInput, match=r"cannot: row 0 of numbers: its .*; row 11 of numbers: [^:]*; and 8 more; "):
        numbers(*[float(value) for value in range(3, 23)]).whole()


def test_no_row_is_read_where_labels_cannot_be_used():
    data = replace(numbers(0.0, 1.0, y=[0, -1], bad_labels={1: "it has no label"}), values=())
    with pytest.raises(BadInput, match="row 1 of numbers: it has no label"):
        data.whole()


@pytest.mark.parametrize(
    ("places", "want", "foreign"),
    [
        (None, [0, 2], "its label 3 is none of the 3 classes, 0 to 2"),
        (torch.tensor([4, -1, 1]), [4, 1], "its label 3 is none of the model's"),
    ],
)
def test_labels_that_come_with_the_rows_are_checked_and_renumbered(places, want, foreign):
    data = numbers(0.0, 0.0, 0.0, 0.0, 0.0, y=None, places=places)
    data = replace(data, y=None, labels=(0, 2, 3, -1, -7), classes=3 if places is None else 5)
    some, bad = data.read(slice(None))
    assert some.y.tolist() == want
    assert [row.id for row in bad] == [2, 3, 4]
    assert bad[0].reason == foreign
    assert bad[1].reason == "it has no label (missing, or -1)"
    assert bad[2].reason == "its label -7 is below 0"


def test_classes_are_those_of_the_labels_that_were_read_where_they_are_not_known():
    data = replace(numbers(0.0, 1.0), y=None, classes=0, labels=(4, 1))
    assert data.whole().classes == 5


def test_a_box_is_compared_in_the_dtype_of_the_rows():
    assert len(numbers(0.1, lo=0.0, hi=0.1).whole()) == 1


def test_whole_data_are_read_by_blocks(monkeypatch):
    monkeypatch.setattr("epsball.data.lazy_examples.BLOCK", 16)  # two rows
    asked = []
    monkeypatch.setattr(Numbers, "fetch", lambda self, ids, fetch=Numbers.fetch: asked.append(ids) or fetch(self, ids))
    assert numbers(*[0.5] * 5).whole().x.tolist() == [[0.5, 0.5]] * 5
    assert asked == [[0, 1], [2, 3], [4]]


def test_an_empty_index_reads_nothing():
    some, bad = numbers(None, None).read(torch.zeros(0, dtype=torch.long))
    assert (len(some), some.x.shape, bad) == (0, (0, 2), ())
    assert len(numbers(None).rows(slice(0, 0))) == 0


def test_a_source_is_the_same_after_pickling():
    data = numbers(0.0, None, 1.0)
    other = pickle.loads(pickle.dumps(data))
    assert other.identity() == data.identity()
    assert other.read(slice(None))[1] == data.read(slice(None))[1]
