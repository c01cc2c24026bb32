"""What can only be iterated over is written once, and read from there by rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from epsball.common.errors import BadInput
from epsball.data.collected import lazy_examples_of
from epsball.data.examples import Examples
from epsball.data.lazy_examples import LazyExamples
from epsball.data.spool import spooled

X = torch.rand(30, 2, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(30) % 4


class Stream(IterableDataset):
    """Rows one after the other; how often they were asked for is counted."""

    def __init__(self, rows: list[Any], classes: list[str] | None = None):
        self.rows, self.begun, self.given = rows, 0, 0
        self.classes = classes

    def __iter__(self) -> Iterator[Any]:
        self.begun += 1
        for row in self.rows:
            if isinstance(row, Exception):
                raise row
            self.given += 1
            yield row


def pairs() -> list[Any]:
    return list(zip(X, Y, strict=True))


def lazy(data: Examples | LazyExamples) -> LazyExamples:
    assert isinstance(data, LazyExamples)
    return data


def test_a_stream_is_written_once_and_read_by_rows(tmp_path: Path):
    stream = Stream(pairs(), classes=list("abcd"))
    data = lazy(lazy_examples_of(stream, spool=tmp_path))
    assert stream.given == 31  # the first row says which stream it is
    some, bad = data.read(torch.tensor([29, 4, 5]))
    assert bad == ()
    assert torch.equal(some.x, X[[29, 4, 5]])
    assert some.y.tolist() == Y[[29, 4, 5]].tolist()
    assert (len(data), data.label_names, data.classes) == (30, tuple("abcd"), 4)
    again = lazy(spooled(Stream(pairs(), classes=list("abcd")), tmp_path))
    assert again.identity() == data.identity()
    stream.given = 0
    spooled(stream, tmp_path)
    assert stream.given == 1


@pytest.mark.parametrize("batch_size", [7, None])
def test_a_loader_over_a_stream_gives_its_rows(tmp_path: Path, batch_size: int | None):
    before = torch.random.get_rng_state()
    data = lazy(spooled(DataLoader(Stream(pairs()), batch_size=batch_size), tmp_path))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(data.whole().x, X)
    assert data.y is not None
    assert data.y.tolist() == Y.tolist()


def test_images_in_a_torch_stream_are_divided_by_255(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), np.uint8)
    data = spooled(Stream([(Image.fromarray(one), k) for k, one in enumerate(pixels)]), tmp_path)
    assert torch.equal(data.whole().x * 255, torch.tensor(pixels).permute(0, 3, 1, 2).float())
    assert (data.scale, data.lo, data.hi) == (255, 0, 1)


def test_a_stream_that_was_cut_off_is_written_again(tmp_path: Path):
    with pytest.raises(BadInput, match="after 12 rows it raises OSError: the network is gone"):
        spooled(Stream([*pairs()[:12], OSError("the network is gone")]), tmp_path)
    assert not (tmp_path / "spool" / "spool.json").exists()
    assert torch.equal(spooled(Stream(pairs()), tmp_path).whole().x, X)


def test_rows_of_another_stream_are_not_taken_for_those_in_the_folder(tmp_path: Path):
    spooled(Stream(pairs()), tmp_path)
    with pytest.raises(BadInput, match="choose a new directory"):
        spooled(Stream(pairs()[1:]), tmp_path)
    with pytest.raises(BadInput, match="another kind; choose a new directory"):
        spooled(datasets.Dataset.from_dict({"a": [0.5], "y": [1]}).to_iterable_dataset(), tmp_path)


def test_a_damaged_spool_is_refused(tmp_path: Path):
    spooled(Stream(pairs()), tmp_path)
    raw = (tmp_path / "spool" / "inputs.bin").read_bytes()
    (tmp_path / "spool" / "inputs.bin").write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    with pytest.raises(BadInput, match="checksum"):
        spooled(Stream(pairs()), tmp_path).whole()
    (tmp_path / "spool" / "inputs.bin").write_bytes(raw[:-1])
    with pytest.raises(BadInput, match="not a whole spool; choose a new directory"):
        spooled(Stream(pairs()), tmp_path)


def test_bad_rows_of_a_stream_keep_their_place_and_are_named(tmp_path: Path):
    rows = pairs()
    rows[0] = "nothing"
    rows[3] = (X[3, :1], 0)
    rows[5] = (X[5], -1)
    rows[7] = (X[7] * float("nan"), 1)
    data = lazy(spooled(Stream(rows), tmp_path))
    found, bad = data.read(slice(None))
    assert torch.equal(found.x, X[[row for row in range(30) if row not in (0, 3, 5, 7)]])
    assert [row.id for row in bad] == [0, 3, 5, 7]
    assert [row.name for row in bad] == [f"row {row} of Stream" for row in (0, 3, 5, 7)]
    assert "must give pairs" in bad[0].reason
    assert bad[1].reason == "it is float32 (1, 3), and not float32 (2, 3) as the others"
    assert bad[2].reason == "it has no label (missing, or -1)"
    assert bad[3].reason == "it holds NaN"


@pytest.mark.parametrize("rows", [[], ["nothing"]])
def test_a_stream_without_rows_that_can_be_used_is_refused(tmp_path: Path, rows: list[Any]):
    with pytest.raises(BadInput, match=r"at least one example|none could"):
        spooled(Stream(rows), tmp_path)


def test_streams_of_the_hubs_library_keep_images_encoded_and_tables_whole(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3, 3), np.uint8)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["u", "v"]))
    rows = {"image": list(map(Image.fromarray, pixels)), "label": [0, 1] * 3}
    made = datasets.Dataset.from_dict(rows, features=features)
    data = lazy(spooled(made.to_iterable_dataset(), tmp_path / "images"))
    assert torch.equal(
        data.rows(torch.tensor([4, 1])).x * 255, torch.tensor(pixels)[[4, 1]].permute(0, 3, 1, 2).float()
    )
    assert data.label_names == ("u", "v")
    assert lazy(spooled(made.to_iterable_dataset(), tmp_path / "images")).identity() == data.identity()
    table = datasets.Dataset.from_dict({"a": [0.1, 0.2, 0.3], "y": [1, 0, 1]}).to_iterable_dataset()
    found = spooled(table, tmp_path / "table")
    assert isinstance(found, Examples)
    assert found.y.tolist() == [1, 0, 1]


def test_without_a_folder_a_stream_is_refused_with_the_two_remedies():
    for stream in (Stream(pairs()), DataLoader(Stream(pairs()))):
        with pytest.raises(BadInput, match=r"name a `run_dir` for `evaluate`.*, or write tuple\(zip\("):
            lazy_examples_of(stream)
