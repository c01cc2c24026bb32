"""Everything accepted as data, and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from shared_data import shared_data
from sklearn.datasets import load_digits

from epsball.common.errors import BadInput
from epsball.data.arrays import from_arrays
from epsball.data.load import load_data


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """The caches of `datasets` stay out of the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(array: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, "PNG", **options)
    return file.getvalue()


def parquet(folder: Path, images: list[bytes], split: str = "test", **columns: object) -> Path:
    """A folder of one parquet file with a struct column `img`, without any metadata of `datasets`."""
    folder.mkdir(exist_ok=True)
    structs = [{"bytes": raw, "path": None} for raw in images]
    table = pa.table({"img": structs, **(columns or {"y": list(range(len(images)))})})
    pq.write_table(table, folder / f"{split}.parquet", row_group_size=2)
    return folder


def test_examples_keep_their_ids_when_rows_are_selected():
    data = from_arrays(torch.arange(12.0).reshape(4, 3), [0, 1, 2, 1], ids=[7, 3, 9, 1], lo=-1, hi=20)
    some = data.rows(torch.tensor([2, 0]))
    assert (len(some), some.shape, some.classes, some.lo, some.hi) == (2, (3,), 3, -1.0, 20.0)
    assert some.ids.tolist() == [9, 7]
    assert some.y.tolist() == [2, 0]
    assert some.x[:, 0].tolist() == [6.0, 0.0]
    assert from_arrays(data.x, data.y).ids.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("layout", ["plain", "read-only", "reversed", "fortran", "torch"])
def test_arrays_of_any_layout_keep_values_and_dtype(dtype, layout):
    array = np.random.default_rng(1).normal(size=(5, 4)).astype(dtype)
    want = torch.tensor(array)
    if layout == "read-only":
        array.flags.writeable = False
    elif layout == "reversed":
        array = array[::-1].copy()[::-1]
    elif layout == "fortran":
        array = np.asfortranarray(array)
    data = from_arrays(want if layout == "torch" else array, np.array([0, 1, 0, 1, 1], dtype=np.int32))
    assert data.x.dtype == want.dtype
    assert torch.equal(data.x, want)
    assert (data.lo, data.hi, data.classes, data.y.dtype) == (-np.inf, np.inf, 2, torch.int64)


def test_lists_and_uint8_images_become_float32():
    assert from_arrays([[0.5, 1], [2, 3]], [0, 1]).x.dtype == torch.float32
    image = pixels(3, 4, 4)
    data = from_arrays(image, [0, 0, 0])
    assert torch.equal(data.x, torch.tensor(image).float() / 255)
    assert (data.lo, data.hi) == (0, 1)


@pytest.mark.parametrize(
    ("x", "y", "more", "message"),
    [
        (np.zeros((3, 2), dtype=np.int64), [0, 1, 2], {}, r"write x.astype\('float32'\)"),
        (np.zeros((3, 2), dtype=bool), [0, 1, 2], {}, "must be floating point"),
        (np.zeros((3, 2)), [0, 1], {}, r"`y` must be \(3,\)"),
        (np.zeros((3, 2)), [0, 1, 2], {"ids": [1, 2]}, r"`ids` must be \(3,\)"),
        (np.zeros((3, 2)), [0, 1, -1], {}, "`y` must be >= 0"),
        (np.zeros((3, 2)), [0.0, 1.5, 2.0], {}, "class indices, whole numbers, got 1.5"),
        (np.zeros((3, 2)), [0, 1, 5], {"classes": 5}, "below the 5 classes, got 5"),
        (np.full((3, 2), 255.0), [0, 1, 2], {"lo": 0, "hi": 1}, r"the box \[0, 1\], got values from 255 to 255"),
        (np.array([[0.0], [np.nan]]), [0, 1], {}, "drop NaN"),
        ([[0.0, 1.0], [2.0]], [0, 1], {}, "a list of numbers of one length"),
        (np.array(["a", "b"]), [0, 1], {}, "must be a tensor, an array"),
        (0.5, [0], {}, "first dimension of examples"),
    ],
)
def test_arrays_that_break_a_rule_are_refused_with_the_remedy(x, y, more, message):
    with pytest.raises(BadInput, match=message):
        from_arrays(x, y, **more)


def test_a_box_is_compared_in_the_dtype_of_the_data():
    assert from_arrays(np.full((1, 1), 0.1, dtype=np.float32), [0], lo=0, hi=0.1).hi == 0.1


def test_the_digits_are_split_without_overlap_and_keep_their_row_numbers():
    images, labels = load_digits(return_X_y=True)
    train, test = load_data("digits", split="train"), load_data("digits")
    assert (len(train), len(test), test.shape, test.classes) == (1437, 360, (1, 8, 8), 10)
    assert torch.cat([train.ids, test.ids]).tolist() == list(range(len(images)))
    for data in (train, test):
        assert torch.equal(data.x.flatten(1), torch.tensor(images[data.ids] / 16).float())
        assert data.y.tolist() == labels[data.ids].tolist()
        assert (data.lo, data.hi, data.name) == (0, 1, "digits")
    assert load_data("digits", first=5).ids.tolist() == [1437, 1438, 1439, 1440, 1441]


def test_an_npz_file_is_read_and_pickled_ones_are_refused(tmp_path):
    x = np.random.default_rng(2).normal(size=(6, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6))
    data = load_data(tmp_path / "a.npz", first=4)
    assert torch.equal(data.x, torch.tensor(x[:4]))
    assert (data.classes, data.ids.tolist()) == (6, [0, 1, 2, 3])
    np.savez(tmp_path / "b.npz", x=np.array([{}, {}], dtype=object), y=np.arange(2))
    np.savez(tmp_path / "c.npz", images=x)
    (tmp_path / "d.npz").write_bytes(b"nonsense")
    for name in "bcd":
        with pytest.raises(BadInput, match=r"numpy\.savez"):
            load_data(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(("name", "shape", "rows"), [("mnist", (1, 28, 28), 10_000), ("cifar10", (3, 32, 32), 10_000)])
def test_the_shared_image_sets_are_what_datasets_itself_decodes(name, shape, rows):
    folder = shared_data(name)
    data = load_data(folder, first=40)
    assert (data.shape, len(data), data.classes, len(data.label_names)) == (shape, 40, 10, 10)
    reference = datasets.load_dataset(str(folder), split="test")
    assert len(reference) == rows
    for i, row in enumerate(reference.select(range(40))):
        image, label = row.values()
        want = torch.tensor(np.asarray(image)).reshape(*shape[1:], shape[0]).permute(2, 0, 1) / 255
        assert torch.equal(data.x[i], want)
        assert data.y[i] == label
    assert data.x.is_contiguous()


def test_a_folder_of_images_is_read_in_a_fixed_order_with_its_class_names(tmp_path):
    images = pixels(2, 3, 5, 4, 3)
    for split in ("train", "test"):
        for c, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                Image.fromarray(images[c, i]).save(tmp_path / split / name / f"{i}.png")
    data = load_data(tmp_path)
    assert data.label_names == ("cat", "dog")
    assert data.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(data.x, torch.tensor(images).flatten(0, 1).permute(0, 3, 1, 2) / 255)
    with pytest.raises(BadInput, match="`split` must be one of train, test, got 'tset'; did you mean 'test'"):
        load_data(tmp_path, split="tset")


def test_parquet_without_metadata_is_read_over_row_groups_and_limits(tmp_path):
    images = pixels(5, 3, 4)
    folder = parquet(tmp_path, [png(image) for image in images], y=[4, 0, 1, 0, 2])
    for limit in (None, 1, 3, 99):
        data = load_data(folder, first=limit)
        assert torch.equal(data.x, torch.tensor(images[:limit])[:, None] / 255)
        assert data.y.tolist() == [4, 0, 1, 0, 2][:limit]


def test_every_kind_of_8_bit_image_is_decoded(tmp_path):
    grey, colour = pixels(3, 4), pixels(3, 4, 3, seed=1)
    alpha = np.concatenate([colour, pixels(3, 4, 1, seed=2)], 2)
    palette = Image.fromarray(colour).convert("P")
    as_rgb = np.asarray(palette.convert("RGB"))
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes(range(256)))
    two = np.where(grey > 127, 255, 0).astype(np.uint8)
    three = np.repeat(grey[:, :, None], 3, 2)
    turned = Image.Exif()
    turned[274] = 3  # by 180 degrees
    raws = [
        png(grey),
        png(two, "1"),
        png(grey, "LA"),
        png(colour),
        png(alpha),
        file.getvalue(),
        png(colour, exif=turned),
    ]
    want = [three, np.repeat(two[:, :, None], 3, 2), three, colour, colour, as_rgb, colour[::-1, ::-1]]
    data = load_data(parquet(tmp_path, raws))
    assert data.shape == (3, 3, 4)
    for got, expected in zip(data.x, want, strict=True):
        assert torch.equal(got, torch.tensor(expected.copy()).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (png(pixels(4, 3)), r"it is 4x3 \(HxW\), .* most are 3x4"),
        (b"nonsense", "row 2 of"),
        (png(pixels(3, 4))[:-30], "row 2 of"),
        (png(np.zeros((3, 4), np.uint16)), "row 2 of .* not 8 bits"),
    ],
    ids=["size", "broken", "cut off", "16 bits"],
)
def test_images_that_are_broken_or_of_another_kind_are_refused_with_their_row(tmp_path, last, message):
    folder = parquet(tmp_path, [png(pixels(3, 4)), png(pixels(3, 4)), last])
    assert len(load_data(folder, first=2)) == 2
    with pytest.raises(BadInput, match=message):
        load_data(folder)


def test_columns_are_found_by_type_or_name_and_listed_where_ambiguous(tmp_path):
    images = [png(image) for image in pixels(2, 3, 3)]
    none = parquet(tmp_path / "none", images, target=[0, 1])
    with pytest.raises(BadInput, match="not found among the columns img, target; name it with --label-column"):
        load_data(none)
    assert load_data(none, label_column="target").y.tolist() == [0, 1]
    with pytest.raises(BadInput, match="`label_column` must be one of img, target, got 'targt'; did you mean"):
        load_data(none, label_column="targt")
    with pytest.raises(BadInput, match=r"`image_column` must hold images, got 'target'.*--image-column"):
        load_data(none, image_column="target", label_column="target")
    two = parquet(tmp_path / "two", images, y=[0, 1], label=[1, 0])
    with pytest.raises(BadInput, match="`label_column` is one of label, y among the columns img, y, label"):
        load_data(two)
    assert load_data(two, label_column="label").y.tolist() == [1, 0]
    structs = [{"bytes": raw, "path": None} for raw in images]
    twice = parquet(tmp_path / "twice", images, y=[0, 1], other=structs)
    assert len(load_data(twice)) == 2  # img is the usual name
    hundred = datasets.Features(
        img=datasets.Image(), fine_label=datasets.ClassLabel(names=list("abc")), coarse_label=datasets.ClassLabel(2)
    )
    rows = {"img": structs, "fine_label": [2, 0], "coarse_label": [1, 0]}
    (tmp_path / "hundred").mkdir()
    datasets.Dataset.from_dict(rows, features=hundred).to_parquet(str(tmp_path / "hundred" / "test.parquet"))
    data = load_data(tmp_path / "hundred")
    assert (data.y.tolist(), data.classes, data.label_names) == ([2, 0], 3, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1], r"of 2 rows .* 1 cannot: row 1 of .*: its label in 'target' is -1, below 0: not labelled\?"),
        ([2, -1], r"of 2 rows .* 1 cannot: row 1 of .*: its label in 'target' is -1, below 0: not labelled\?"),
        ([-1, -1], "'target' holds -1 in row 0; -1 often means: not labelled; .*--label-column"),
        ([0, None], "of 2 rows .* 1 cannot: row 1 of .*: its label in 'target' is missing"),
        ([None, None], r"`label_column` must have every value, but 'target' lacks 2 of 2"),
        ([0.5, 1.0], "'target' holds 0.5 in row 0; name another with --label-column"),
    ],
)
def test_rows_without_a_label_are_refused(tmp_path, labels, message):
    folder = parquet(tmp_path, [png(pixels(3, 3))] * 2, target=labels)
    with pytest.raises(BadInput, match=message):
        load_data(folder, label_column="target")


def test_missing_data_are_refused_with_the_most_similar_name(tmp_path, monkeypatch):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "file.csv").write_text("a,b\n")

    def no_network(name: str, config: str | None) -> None:
        raise ConnectionError(f"no network for {name}")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"got 'mnist'.*any data file"):
        load_data("mnist")  # an empty folder
    monkeypatch.setattr(datasets, "load_dataset", no_network)
    for spec, message in (
        ("digts", "did you mean 'digits'"),
        (tmp_path / "mnits", "did you mean '.*/mnist'"),
        ("./nothing", "must be digits, a .npz, .csv"),
        ("file.csv", "at least one row"),
        ("fil.csv", "must be digits, .* got .*, which is not there; did you mean"),
        ("mnits", "did you mean 'mnist'.: no network"),
        ("ylecun/mnist", "no network for ylecun/mnist"),
    ):
        with pytest.raises(BadInput, match=message):
            load_data(spec)
    with pytest.raises(BadInput, match="`first` must be a whole number >= 1"):
        load_data("digits", first=0)
    with pytest.raises(BadInput, match="`split` must be one of train, test"):
        load_data("digits", split="validation")


def test_loading_shows_no_progress_bars_and_restores_their_setting(tmp_path, capfd):
    folder = parquet(tmp_path, [png(pixels(3, 3))] * 2)
    assert not datasets.are_progress_bars_disabled()
    load_data(folder)
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_importing_the_module_does_not_import_the_readers():
    code = "import sys, epsball.data.load; assert not {'datasets', 'sklearn', 'pandas', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
