"""Every door of lazy examples: the rows are those of the whole, bad ones are named, and it opens in another process."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

import epsball as eb
from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.class_names import numbered_like
from epsball.data.collected import examples_of, lazy_examples_of
from epsball.data.examples import Examples
from epsball.data.image_decoding import NotNow
from epsball.data.lazy_examples import LazyExamples
from epsball.data.load import load_data, open_data
from epsball.models.preparation import Preparation
from epsball.report.html import write_report

N = 50
NAMES = ["cat", "dog", "emu"]


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """The caches of `datasets` stay out of the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


X = pixels(N, 5, 4, 3)
Y = np.arange(N) % 3
WANTED = torch.tensor(X).permute(0, 3, 1, 2).float() / 255


def encoded(array: np.ndarray, mode: str | None = None, kind: str = "PNG", **options: Any) -> bytes:
    image, file = Image.fromarray(array), io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **options)
    return file.getvalue()


def table() -> pa.Table:
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    rows = {"image": [{"bytes": encoded(one), "path": None} for one in X], "label": Y.tolist()}
    return datasets.Dataset.from_dict(rows, features=features).data.table


def folder(root: Path) -> Path:
    for row in range(N):
        path = root / "test" / NAMES[Y[row]] / f"{row:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(X[row]))
    return root


def parquet(root: Path) -> Path:
    pq.write_table(table(), root / "t.parquet")
    return root / "t.parquet"


def parquet_folder(root: Path) -> Path:
    (root / "parquet").mkdir()
    pq.write_table(table(), root / "parquet" / "test.parquet")
    return root / "parquet"


def arrow_stream(root: Path) -> Path:
    whole = table()
    with pa.OSFile(str(root / "s.arrow"), "wb") as file, pa.ipc.new_stream(file, whole.schema) as writer:
        writer.write_table(whole)
    return root / "s.arrow"


def arrow_file(root: Path) -> Path:
    feather.write_feather(table(), str(root / "f.arrow"), compression="uncompressed")
    return root / "f.arrow"


def tars(root: Path) -> Path:
    for part in range(2):
        with tarfile.open(root / f"x-{part:02}.tar", "w") as archive:
            for row in range(part * N // 2, (part + 1) * N // 2):
                for name, raw in ((f"{row:03}.png", encoded(X[row])), (f"{row:03}.cls", str(Y[row]).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(raw)
                    archive.addfile(member, io.BytesIO(raw))
    return root / "x-{00..01}.tar"


def npz(root: Path) -> Path:
    np.savez(root / "a.npz", x=X.transpose(0, 3, 1, 2), y=Y)
    return root / "a.npz"


def npz_of_floats(root: Path) -> Path:
    np.savez(root / "b.npz", x=WANTED.numpy(), y=Y, lo=0, hi=1, label_names=NAMES)
    return root / "b.npz"


FILES = [folder, parquet, parquet_folder, arrow_stream, arrow_file, tars, npz, npz_of_floats]


class Rows(Dataset):
    """A data set whose rows are what a function says; `of` what is known of all of them."""

    def __init__(self, row: Callable[[int], Any], count: int = N, **of: Any):
        self.row, self.count = row, count
        self.__dict__ |= of

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.row(index)


def pair(row: int) -> tuple[Any, Any]:
    return WANTED[row], int(Y[row])


def image(row: int) -> dict[str, Any]:
    return {"image": Image.fromarray(X[row]), "label": torch.tensor(Y[row])}


def hub_rows(rows: dict[str, Any]) -> dict[str, Any]:
    return {"pixel_values": [WANTED[row] for row in rows["row"]], "label": [int(Y[row]) for row in rows["row"]]}


OBJECTS: dict[str, Callable[[], Any]] = {
    "rows": lambda: Rows(pair),
    "rows with targets": lambda: Rows(pair, targets=Y.tolist(), classes=NAMES),
    "rows of images": lambda: Rows(image, classes=NAMES),
    "a subset": lambda: Subset(Rows(pair, labels=torch.tensor(Y)), range(N)),
    "two sets": lambda: ConcatDataset(
        [TensorDataset(WANTED[:20], torch.tensor(Y[:20])), Subset(Rows(pair), range(20, N))]
    ),
    "a loader": lambda: DataLoader(Rows(pair), batch_size=7, shuffle=True),
    "a loader with workers": lambda: DataLoader(Rows(pair, classes=NAMES), num_workers=2),
    "a data set of the Hub's library": lambda: datasets.Dataset(table()),
    "one with a transform": lambda: datasets.Dataset.from_dict({"row": list(range(N))}).with_transform(hub_rows),
}


def check_rows(data: Examples | LazyExamples) -> None:
    assert isinstance(data, LazyExamples)
    assert (len(data), data.shape, data.dtype, data.ids.tolist()) == (N, (3, 5, 4), torch.float32, list(range(N)))
    order = torch.tensor([33, 2, 17, 3])
    some, bad = data.read(order)
    assert bad == ()
    by_class = data.y is not None and data.y.tolist() == sorted(Y.tolist())  # a folder
    row = torch.tensor(np.argsort(Y, kind="stable")) if by_class else torch.arange(N)
    assert torch.equal(some.x, WANTED[row[order]])
    assert some.y.tolist() == Y[row[order]].tolist()
    assert some.ids.tolist() == order.tolist()
    assert (some.lo, some.hi, some.name) in ((0.0, 1.0, data.name), (-np.inf, np.inf, data.name))
    assert torch.equal(data.whole().x, WANTED[row])
    assert data.available()


@pytest.mark.parametrize("make", FILES, ids=lambda make: make.__name__)
def test_files_are_read_by_rows_which_are_those_of_the_whole(tmp_path: Path, make: Callable[[Path], Path]):
    place = make(tmp_path)
    data = open_data(place)
    check_rows(data)
    assert isinstance(data, LazyExamples)
    assert data.y is not None
    whole = load_data(place)
    for name in ("name", "lo", "hi", "classes", "label_names", "scale"):
        assert getattr(data, name) == getattr(whole, name), name
    part = load_data(place, limit=12, seed=3)
    assert torch.equal(open_data(place, limit=12, seed=3).read(slice(None))[0].x, part.x)  # pyright: ignore
    assert torch.equal(whole.x[part.ids], part.x)
    assert data.identity() == open_data(place).identity() != open_data(place, limit=12).identity()  # pyright: ignore


@pytest.mark.parametrize("make", OBJECTS.values(), ids=list(OBJECTS))
def test_objects_are_read_by_rows_which_are_those_of_the_whole(make: Callable[[], Any]):
    torch.manual_seed(0)
    data = lazy_examples_of(make())
    check_rows(data)
    whole = examples_of(make())
    assert torch.equal(whole.x, WANTED)
    assert whole.y.tolist() == Y.tolist()
    assert whole.classes == 3
    assert lazy_examples_of(data) is data
    assert torch.equal(examples_of(data).x, WANTED)


def test_what_is_in_memory_stays_there():
    for data in ((WANTED, Y), {"x": WANTED, "y": Y}, TensorDataset(WANTED, torch.tensor(Y))):
        assert isinstance(lazy_examples_of(data), Examples)


def test_labels_are_known_before_a_row_is_read_where_the_data_set_lists_them():
    read: list[int] = []
    listed = Rows(lambda row: read.append(row) or pair(row), targets=Y, classes=NAMES, count=N)
    data = lazy_examples_of(Subset(listed, range(5, N)))
    assert isinstance(data, LazyExamples)
    assert data.y is not None
    assert data.y.tolist() == Y[5:].tolist()
    assert data.label_names == tuple(NAMES)
    assert len(set(read)) == 32
    wrong = lazy_examples_of(Rows(pair, targets=Y[::-1].copy()))  # they are changed when rows are read
    assert isinstance(wrong, LazyExamples)
    assert wrong.y is None
    assert wrong.whole().y.tolist() == Y.tolist()


READER = """
import pickle, torch
every, index = pickle.load(open("data.pickle", "rb"))
assert all(data.available() for data in every)
pickle.dump([(data.rows(index).x, data.identity()) for data in every], open("found.pickle", "wb"))
"""


def test_a_pickled_source_is_opened_anew_in_another_process(tmp_path: Path):
    every = [open_data(make(tmp_path)) for make in (folder, parquet, arrow_stream, npz)]
    index = torch.tensor([4, 40, 5])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data.pickle").write_bytes(pickle.dumps((every, index)))
    assert (elsewhere / "data.pickle").stat().st_size < 30_000  # and not the images
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", READER], cwd=elsewhere, env=environment, check=True)
    found = pickle.loads((elsewhere / "found.pickle").read_bytes())
    for data, (x, identity) in zip(every, found, strict=True):
        assert isinstance(data, LazyExamples)
        assert torch.equal(x, data.rows(index).x)
        assert identity == data.identity()


def test_a_source_says_where_its_files_are_not_there(tmp_path: Path):
    for make in (folder, arrow_stream, npz):
        place = make(tmp_path / make.__name__) if make is folder else make(tmp_path)
        pickled = pickle.dumps(open_data(place))
        place.rename(tmp_path / "gone")
        assert not pickle.loads(pickled).available()
        (tmp_path / "gone").rename(place)
        assert pickle.loads(pickled).available()


def test_a_table_of_paths_says_where_the_images_are_not_there(tmp_path: Path):
    root = folder(tmp_path / "images")
    paths = sorted((root / "test").glob("*/*.png"))
    images = {"image": [{"bytes": None, "path": str(path)} for path in paths], "label": Y.tolist()}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    data = lazy_examples_of(datasets.Dataset.from_dict(images, features=features))
    assert isinstance(data, LazyExamples)
    assert data.available()
    root.rename(tmp_path / "gone")
    assert not data.available()
    (root / "test" / "cat").mkdir(parents=True)
    paths[0].write_bytes(encoded(X[0]))  # one that is there is enough: the others are rows that cannot be used
    assert data.available()


# Rows that cannot be used


def spoiled(root: Path) -> tuple[Path, dict[str, str]]:
    """An image folder with bad files of many kinds, and a part of the reason for each."""
    root = folder(root)
    grey = pixels(5, 4, seed=1)
    bad: dict[str, tuple[bytes | None, str]] = {
        "cat/003.png": (encoded(X[0])[:-30], "Pillow cannot read it"),
        "cat/006.png": (b"", "it is empty, 0 bytes"),
        "cat/009.png": (b"nonsense" * 9, "no image in a format that is read"),
        "cat/012.png": (encoded(grey.astype(np.uint16) * 257), "its pixels are 16 bits grey, not 8 bits"),
        "cat/015.png": (
            encoded(grey.astype(np.float32), kind="TIFF"),
            "its pixels are 32-bit floating point, not",
        ),
        "cat/018.png": (encoded(X[0], "CMYK", "JPEG"), "its colours are CMYK"),
        "dog/004.png": (
            encoded(pixels(4, 5, 3)),
            "it is 4x5 (HxW), but data must hold images of one size",
        ),
        "dog/007.png": (encoded(np.zeros((4001, 4000), np.uint8)), "at most 16 million pixels, got 4000x4001"),
        "dog/010.png": (None, "it is not there"),
        "dog/013.png": (encoded(X[0], kind="JPEG")[:200], "Pillow cannot read it"),
        "dog/016.png": (encoded(grey.astype(np.int32), kind="TIFF"), "its pixels are 32-bit integers, not 8 bits"),
        "emu/005.png": (sixteen_bits(), "its pixels are RGB of 16 bits, not 8 bits"),
    }
    for name, (raw, _) in bad.items():
        (root / "test" / name).write_bytes(raw or b"")
    return root, {str(root / "test" / name): reason for name, (_, reason) in bad.items()}


def sixteen_bits() -> bytes:
    """A PNG in colour with 16 bits a channel, which Pillow reads as 8 bits."""
    import struct
    import zlib

    def chunk(kind: bytes, raw: bytes) -> bytes:
        return struct.pack(">I", len(raw)) + kind + raw + struct.pack(">I", zlib.crc32(kind + raw))

    header = struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(4 * 6) for _ in range(5)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_every_kind_of_bad_image_is_named_by_its_file_and_the_others_are_read(tmp_path: Path):
    root, reasons = spoiled(tmp_path / "images")
    data = open_data(root)
    assert isinstance(data, LazyExamples)
    (root / "test" / "dog" / "010.png").unlink()
    found, bad = data.read(slice(None))
    assert {row.name for row in bad} == set(reasons)
    for row in bad:
        assert reasons[row.name] in row.reason
        assert "object at" not in row.reason
    assert [row.id for row in bad] == sorted(row.id for row in bad)
    assert len(found) == N - 12
    assert {*found.ids.tolist(), *(row.id for row in bad)} == set(range(N))
    with pytest.raises(BadInput, match=r"of 50 rows of .*images 12 cannot: .*cat/003.png: Pillow cannot read it"):
        data.whole()


def test_twelve_kinds_among_500_images_are_listed_and_the_others_evaluated(tmp_path: Path):
    root, reasons = spoiled(tmp_path / "images")
    for number in range(450):
        (root / "test" / "cat" / f"more{number:03}.png").write_bytes(encoded(X[0]))
    data = open_data(root)
    (root / "test" / "dog" / "010.png").unlink()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(data.shape[0] * data.shape[1] * data.shape[2], 3))
    found = eb.evaluate(net, data, "linf:1/255", "fgsm", on_bad="skip", run_dir=tmp_path / "run", diagnose=0)
    assert {row.name for row in found.bad} == set(reasons)
    assert len(found) == 488
    page = write_report(tmp_path / "run").read_text()
    assert "12 rows could not be used" in page
    assert all(name in page for name in reasons)


def test_every_kind_of_bad_label_and_row_is_named():
    rows = {"image": [{"bytes": encoded(one), "path": None} for one in X], "label": Y.tolist()}
    rows["label"][3], rows["label"][5], rows["label"][7] = None, -1, 12
    rows["image"][9] = None
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    plain = datasets.Dataset.from_dict(rows, features=features)
    schema = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    made = datasets.Dataset(plain.data.table.replace_schema_metadata(schema.arrow_schema.metadata))
    data = lazy_examples_of(made)
    assert isinstance(data, LazyExamples)
    _, bad = data.read(slice(None))
    assert [(row.id, row.reason) for row in bad] == [
        (3, "its label in 'label' is missing"),
        (5, "its label in 'label' is -1, below 0: not labelled?"),
        (7, "its label in 'label' is 12, none of 3 classes"),
        (9, "it has no image"),
    ]
    assert all(row.name == f"row {row.id} of a datasets.Dataset" for row in bad)


def test_bad_rows_of_arrays_are_named(tmp_path: Path):
    x, y = WANTED.numpy().copy(), Y.copy()
    x[4, 0, 0, 0], x[6, 1, 1, 1], x[8] = np.nan, np.inf, 2
    y[10] = -1
    np.savez(tmp_path / "a.npz", x=x, y=y, lo=0, hi=1)
    data = open_data(tmp_path / "a.npz")
    assert isinstance(data, LazyExamples)
    _, bad = data.read(slice(None))
    assert [(row.id, row.reason) for row in bad] == [
        (4, "it holds NaN"),
        (6, "it holds infinity"),
        (8, "its values are from 2 to 2, outside of the box [0, 1]"),
        (10, "its label in 'y' is -1, below 0: not labelled?"),
    ]
    with pytest.raises(BadInput, match=r"row 10 of .*a\.npz"):
        load_data(tmp_path / "a.npz")


def loader_of(rows: Rows) -> DataLoader:
    return DataLoader(rows, num_workers=2, collate_fn=first_alone)


def first_alone(rows: list[Any]) -> Any:
    """A row as a batch, where it can be one."""
    (row,) = rows
    return ([row[0]], [row[1]]) if isinstance(row, tuple) else row


def test_bad_rows_of_data_sets_are_named():
    def row(number: int) -> Any:
        x, y = pair(number)
        odd = {
            3: (x[:, :2], y),
            4: (x.double(), y),
            5: (x, None),
            6: (x, -3),
            7: (x, 0.5),
            8: x,
            9: (x * float("nan"), y),
            10: (x, 3),
        }
        if number == 11:
            raise RuntimeError("the disk\nis gone")
        return odd.get(number, (x, y))

    labels = {"targets": [*Y[:5], -1, -3, *Y[7:10], 3, *Y[11:]]}
    for rows in (Rows(row, classes=NAMES), Rows(row, classes=NAMES, **labels), loader_of(Rows(row, classes=NAMES))):
        data = lazy_examples_of(rows)
        assert isinstance(data, LazyExamples)
        _, bad = data.read(slice(None))
        reasons = {one.id: one.reason for one in bad}
        assert all(one.name == f"row {one.id} of Rows" for one in bad)
        wanted = {
            3: "it is float32 (3, 2, 4), and not float32 (3, 5, 4) as the others",
            4: "it is float64 (3, 5, 4), and not float32 (3, 5, 4) as the others",
            5: "it has no label (missing, or -1)",
            6: "its label -3 is below 0",
            9: "it holds NaN",
            11: "it raises RuntimeError: the disk is gone",
        }
        assert reasons.items() >= wanted.items()
        assert "whole numbers, got 0.5" in reasons[7]
        assert "must give pairs" in reasons[8]
        assert len(reasons) in (8, 9)


def test_a_loaders_workers_read_the_rows():
    started: list[int] = []

    def row(number: int) -> Any:
        return torch.full((2,), float(len(started))), number % 3

    data = lazy_examples_of(DataLoader(Rows(row), num_workers=2, worker_init_fn=started.append))
    assert isinstance(data, LazyExamples)
    state = torch.get_rng_state()
    found, bad = data.read(slice(None))
    assert bad == ()
    assert found.y.tolist() == [number % 3 for number in range(N)]
    assert found.x.unique().tolist() == [1.0]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_worker_that_is_killed_stops_the_run_in_a_sentence():
    def row(number: int) -> Any:
        if number == 1:
            os._exit(3)
        return torch.zeros(2), 0

    data = lazy_examples_of(DataLoader(Rows(row, 400), num_workers=2))
    assert isinstance(data, LazyExamples)
    with pytest.raises(BadInput, match=r"by the 2 workers of its DataLoader, .* exited unexpectedly; see to that"):
        data.read(slice(0, 4))
    subprocess.run(["true"], check=True)  # the end of another process is not taken for that of the worker


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_fails_is_no_property_of_a_row(workers: int):
    def row(number: int) -> Any:
        if number == 1:
            raise OSError(errno.EIO, "Input/output error")
        if number == 3:
            raise FileNotFoundError(errno.ENOENT, "No such file", "3.png")
        if number == 5:
            raise OSError("image file is truncated")  # Pillow's, without a number
        return torch.zeros(2), 0

    data = lazy_examples_of(DataLoader(Rows(row, 400), num_workers=workers))
    assert isinstance(data, LazyExamples)
    with pytest.raises(NotNow, match=r"row 1 of Rows raises OSError: \[Errno 5\] Input/output error; see to the disk"):
        data.read(slice(0, 4))
    _, bad = data.read(slice(2, 8))
    assert [(one.id, one.reason.split(":")[0]) for one in bad] == [
        (3, "it raises FileNotFoundError"),
        (5, "it raises OSError"),
    ]


class Noisy(Dataset):
    """Rows with noise of a generator of their own, or of one that others have, too."""

    def __init__(self, noise: Callable[[], float]):
        self.noise = noise

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return WANTED[index] + self.noise(), int(Y[index])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "noise",
    [np.random.random, np.random.default_rng(0).random, random.random, lambda: torch.rand(()).item()],
    ids=["numpy", "a generator", "Python", "torch"],
)
def test_rows_that_are_random_are_refused(noise: Callable[[], float], workers: int):
    with pytest.raises(BadInput, match=r"row \d+ of Noisy is another one when it is read again; fix the seed"):
        lazy_examples_of(DataLoader(Noisy(noise), num_workers=workers))


def test_a_source_of_which_nothing_can_be_used_is_refused(tmp_path: Path):
    (tmp_path / "t").mkdir()
    images = [{"bytes": b"nonsense", "path": None}] * 3
    pq.write_table(pa.table({"img": images, "y": [0, 1, 0]}), tmp_path / "t" / "test.parquet")
    with pytest.raises(BadInput, match=r"of .* none could: 3 rows: it is no .*: row 0 of .*, row 1 of"):
        open_data(tmp_path / "t")
    with pytest.raises(BadInput, match="none could of those looked at: row 0 of Rows: it raises KeyError"):
        lazy_examples_of(Rows({}.__getitem__))


def test_a_colour_image_among_grey_ones_is_a_bad_row_unless_it_was_looked_at(tmp_path: Path):
    images = [encoded(one[:, :, 0]) for one in X]
    images[1] = encoded(X[1])
    (tmp_path / "t").mkdir()
    structs = [{"bytes": raw, "path": None} for raw in [*images, *2 * [encoded(one[:, :, 0]) for one in X]]]
    pq.write_table(pa.table({"img": structs, "y": [*Y, *Y, *Y]}), tmp_path / "t" / "test.parquet")
    data = open_data(tmp_path / "t")
    assert isinstance(data, LazyExamples)
    assert data.shape == (1, 5, 4)
    _, bad = data.read(torch.arange(3))
    assert [row.id for row in bad] == [1]
    assert "it is in colour" in bad[0].reason
    whole = load_data(tmp_path / "t")  # which looks at all
    assert whole.shape == (3, 5, 4)
    assert torch.equal(whole.x[1], WANTED[1])
    assert torch.equal(whole.x[0], WANTED[0, :1].expand(3, 5, 4))
    seen = open_data(tmp_path / "t", first=3)
    assert seen.shape == (3, 5, 4)
    prepared = open_data(tmp_path / "t", preparation=Preparation(channels=3))
    assert prepared.shape == (3, 5, 4)


def test_labels_are_numbered_as_the_models_before_or_after_rows_are_read():
    known = lazy_examples_of(Rows(pair, targets=Y.tolist(), classes=NAMES))
    later = lazy_examples_of(Rows(pair, classes=NAMES))
    model = ["emu", "ant", "dog", "cat"]
    want = [{"cat": 3, "dog": 2, "emu": 0}[NAMES[label]] for label in Y]
    for data in (known, later, examples_of(known)):
        found = numbered_like(data, model).whole()
        assert found.y.tolist() == want
        assert found.label_names == tuple(model)
    with pytest.raises(BadInput, match="got cat"):
        numbered_like(later, ["dog", "emu", "fox"])
    values = numbered_like(lazy_examples_of(Rows(lambda row: (WANTED[row], 5 * int(Y[row])))), ["0", "5", "10"])
    assert values.whole().y.tolist() == Y.tolist()


# What only arrays have


def test_compressed_arrays_and_those_in_fortrans_order_are_read_at_once(tmp_path: Path):
    x = np.asfortranarray(WANTED.numpy())
    np.savez(tmp_path / "f.npz", x=x, y=Y)
    np.savez_compressed(tmp_path / "c.npz", x=WANTED.numpy(), y=Y)
    for name in "fc":
        data = open_data(tmp_path / f"{name}.npz", limit=20)
        assert isinstance(data, Examples)
        assert torch.equal(data.x, WANTED[data.ids])


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", "|u1"])
def test_arrays_of_any_dtype_are_read_by_rows(tmp_path: Path, dtype: str):
    x = X.transpose(0, 3, 1, 2).astype(dtype)
    np.savez(tmp_path / "a.npz", x=x, y=Y.astype(np.float64), label_names=NAMES)
    data, wanted = open_data(tmp_path / "a.npz"), from_arrays(x, Y, label_names=NAMES)
    assert isinstance(data, LazyExamples)
    assert torch.equal(data.rows(torch.tensor([7, 8, 3])).x, wanted.x[[7, 8, 3]])
    assert (data.dtype, data.scale, data.label_names) == (wanted.x.dtype, wanted.scale, wanted.label_names)


def test_a_damaged_array_is_refused_where_all_of_it_is_read(tmp_path: Path):
    place = tmp_path / "a.npz"
    np.savez(place, x=np.tile(X, (40, 1, 1, 1)), y=np.tile(Y, 40))
    raw = bytearray(place.read_bytes())
    raw[90_000] ^= 1
    place.write_bytes(raw)
    assert isinstance(open_data(place), LazyExamples)
    with pytest.raises(BadInput, match="checksum"):
        load_data(place)
    data = open_data(place)
    place.write_bytes(bytes(raw[:2000]))
    with pytest.raises(BadInput, match="cut off"):
        data.read(slice(None))  # pyright: ignore
    assert not data.available()  # pyright: ignore


def test_tars_that_are_not_there_are_named(tmp_path: Path):
    tars(tmp_path)
    assert len(open_data(tmp_path / "x-*.tar")) == N
    assert len(open_data(tmp_path / "x-01.tar")) == N // 2
    for spec in ("x-{00..03}.tar", "y.tar", "y-*.tar", "x-{3..1}.tar"):
        with pytest.raises(BadInput, match="`data` must"):
            open_data(tmp_path / spec)


GROWTH = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image
from epsball.data.load import open_data

root, count = Path(sys.argv[1]), 2000
noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
for row in range(count):
    path = root / "test" / "ab"[row % 2] / f"{row}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise[row % 70 : row % 70 + 224, row % 60 : row % 60 + 224]).save(path)
data = open_data(root)
peaks = []
for block in torch.arange(count).split(100):
    assert len(data.rows(block)) == len(block)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[3], peaks[-1])
"""


@pytest.mark.nightly
def test_memory_stays_flat_while_images_are_read_by_blocks(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "images")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    early, late = map(int, done.stdout.split())
    assert late - early < 64 << 10  # KiB; all of them take 1.2 GB
