"""Tables as examples: files, data frames, data sets; what is no number, and labels that are in doubt, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from epsball.common.errors import BadInput
from epsball.data.collected import examples_of
from epsball.data.load import load_data

X = np.array([[0.1, 3.0], [2.5, -4.0], [1e-3, 5.0], [7.25, 6.0]])
KIND = ["plum", "fig", "plum", "apple"]
COLUMNS = {"width": X[:, 0], "length": X[:, 1], "kind": KIND}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def written(folder: Path, suffix: str, **columns: Any) -> Path:
    """A table in a file of that kind; "folder": a folder of one parquet file."""
    table, path = pa.table(columns), folder / f"t{suffix}"
    if suffix == "folder":
        (folder / "t").mkdir()
        pq.write_table(table, folder / "t" / "test.parquet")
        return folder / "t"
    if suffix == ".parquet":
        pq.write_table(table, path)
    elif suffix == ".arrow":
        feather.write_feather(table, str(path))
    else:
        table.to_pandas().to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".arrow", "folder"])
def test_a_table_in_any_file_is_the_same_examples(suffix, tmp_path):
    path = written(tmp_path, suffix, **COLUMNS)
    data = load_data(path)
    assert torch.equal(data.x, torch.tensor(X))
    assert (data.y.tolist(), data.label_names) == ([2, 1, 2, 0], ("apple", "fig", "plum"))
    assert (data.lo, data.hi, data.scale, data.name) == (-np.inf, np.inf, 1, str(path))
    few = load_data(path, first=2)
    assert (few.y.tolist(), few.classes, few.ids.tolist()) == ([2, 1], 3, [0, 1])  # names that are not drawn count
    drawn = load_data(path, limit=2)
    assert torch.equal(drawn.x, data.x[drawn.ids])


@pytest.mark.parametrize(
    "kind",
    [
        lambda table: table.to_pandas(),
        lambda table: (table.to_pandas(), "kind"),
        lambda table: table.to_pandas().set_axis([7, 3, 9, 1]).astype({"kind": "category"}),
        lambda table: table,
        datasets.Dataset,
        lambda table: datasets.Dataset(table).with_format("torch"),
        lambda table: datasets.Dataset(table).with_format("numpy"),
        lambda table: datasets.Dataset(table).class_encode_column("kind"),
    ],
    ids=["DataFrame", "pair", "category", "pyarrow", "Dataset", "torch", "numpy", "ClassLabel"],
)
def test_a_table_in_memory_is_the_same_examples(kind):
    data = examples_of(kind(pa.table(COLUMNS)))
    assert torch.equal(data.x, torch.tensor(X))
    assert (data.y.tolist(), data.label_names) == ([2, 1, 2, 0], ("apple", "fig", "plum"))


def test_rows_that_a_data_set_selects_are_those_read():
    whole = datasets.Dataset(pa.table(COLUMNS))
    data = examples_of(whole.select([3, 0]))
    assert (data.x.tolist(), data.y.tolist()) == ([X[3].tolist(), X[0].tolist()], [0, 1])


def test_features_and_label_of_a_data_frame_may_be_handed_over_one_by_one():
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "income": [1, 0, 1, 1], "young": [True, False, True, True]})
    pair = examples_of((frame[["a", "b"]], frame["income"]))
    assert torch.equal(pair.x, torch.tensor(X))
    named = examples_of((frame, "income"))
    assert (named.shape, named.y.tolist(), named.label_names) == ((3,), [1, 0, 1, 1], None)
    with pytest.raises(BadInput, match="`label_column` must be one of a, b, income, young, got 'incme'; did you mean"):
        examples_of((frame, "incme"))


@pytest.mark.parametrize(
    ("values", "y", "names"),
    [
        ([3, 0, 1, 2], [3, 0, 1, 2], None),
        ([1.0, 0.0, 1.0, 0.0], [1, 0, 1, 0], None),
        ([True, False, True, False], [1, 0, 1, 0], None),
        (["10", "2", "0", "2"], [10, 2, 0, 2], None),  # as text 10 comes before 2
        (["01", "02", "00", "02"], [1, 2, 0, 2], ("00", "01", "02")),
        ([-1, 1, 1, -1], [0, 1, 1, 0], ("-1", "1")),
        (["no", "yes", "no", "no"], [0, 1, 0, 0], ("no", "yes")),
    ],
)
def test_labels_by_number_keep_it_and_names_are_numbered_as_sorted(values, y, names):
    data = examples_of(pa.table({"a": X[:, 0], "y": values}))
    assert (data.y.tolist(), data.label_names) == (y, names)


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"a": [1.0, 2.0], "Label": [0, 1]}, "Label"),
        ({"a": [1.0, 2.0], "target": [0, 1], "b": [3, 4]}, "target"),
        ({"a": [1.0, 2.0], "species": ["u", "v"], "b": [3, 4]}, "species"),
    ],
)
def test_the_label_is_told_by_its_name_or_by_being_no_number(columns, label):
    data = examples_of(pa.table(columns))
    assert (data.y.tolist(), data.shape) == ([0, 1], (len(columns) - 1,))


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [1.0], "b": [2]}, {}, "`label_column` was not found among the columns 'a', 'b'; .*--label-column"),
        ({"y": [1], "label": [2], "a": [1]}, {}, "`label_column` is one of y, label among the columns"),
        ({"a": [1.0], "u": ["x"], "v": ["z"]}, {}, "`label_column` was not found"),
        ({"a": [1.0, 2], "city": ["Rome", "Oslo"], "y": [0, 1]}, {}, r"'city' \(first: 'Rome' in row 0\); encode them"),
        ({"a": [1.0, None], "y": [0, 1]}, {}, r"of 2 rows of .* 'a' lacks 1 \(first: row 1\); fill them in"),
        ({"a": [1.0, np.inf], "y": [0, 1]}, {}, "'a' of .* holds infinity"),
        ({"a": [1.0, 2.0], "y": [0.5, 1]}, {}, "'y' holds 0.5 in row 0; name another"),
        ({"a": [1.0, 2.0], "y": ["u", None]}, {}, r"'y' lacks 1 of 2 \(first: row 1\)"),
        ({"a": [1.0, 2.0], "y": [-1, 2]}, {}, "'y' holds -1 in row 0; -1 often means: not labelled"),
        ({"": [0, 1], "a": [1.0, 2.0], "y": [0, 1]}, {}, r"row numbers.*to_csv\(index=False\)"),
        ({"y": [0, 1]}, {}, "a column beside the labels"),
        ({"a": [1.0], "y": [0]}, {"label_column": "x"}, "`label_column` must be one of a, y, got 'x'"),
        ({"e": [[1.0], [2.0, 3.0]], "y": [0, 1]}, {}, "lists of one length, but those of 'e' have '1', '2'"),
        ({"e": [["u"], ["v"]], "y": [0, 1]}, {}, "lists of 'e' hold string"),
    ],
)  # fmt: skip
def test_what_leaves_a_doubt_is_refused_with_its_column(columns, options, message, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(BadInput, match=message):
        load_data(tmp_path / "t.parquet", **options)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_a_column_of_arrays_keeps_shape_and_dtype(dtype):
    x = np.arange(24).reshape(2, 3, 4).astype(dtype)
    features = datasets.Features(x=datasets.Array2D((3, 4), dtype), label=datasets.ClassLabel(names=["u", "v"]))
    plain = pa.table({"x": pa.array(x.tolist(), pa.list_(pa.list_(pa.from_numpy_dtype(dtype)))), "label": [1, 0]})
    for made in (datasets.Dataset.from_dict({"x": x, "label": [1, 0]}, features=features), plain):
        data = examples_of(made)
        assert data.scale == (255 if dtype == "uint8" else 1)
        assert torch.equal(data.x * data.scale, torch.tensor(x).to(data.x.dtype))
        assert data.y.tolist() == [1, 0]


def test_a_parquet_or_arrow_file_alone_may_hold_images(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(2, 4, 6)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["u", "v"]))
    made = datasets.Dataset.from_dict({"image": list(map(Image.fromarray, pixels)), "label": [1, 0]}, features=features)
    made.to_parquet(str(tmp_path / "t.parquet"))
    feather.write_feather(pq.read_table(tmp_path / "t.parquet"), str(tmp_path / "t.arrow"))
    for path in (tmp_path / "t.parquet", tmp_path / "t.arrow"):
        data = load_data(path)
        assert torch.equal(data.x * 255, torch.tensor(pixels)[:, None].float())
        assert (data.y.tolist(), data.label_names, data.hi) == ([1, 0], ("u", "v"), 1)


def test_images_may_have_names_for_labels(tmp_path):
    raw = datasets.Image().encode_example(Image.fromarray(np.zeros((3, 3), np.uint8)))
    pq.write_table(pa.table({"img": [raw] * 3, "label": KIND[:3]}), tmp_path / "t.parquet")
    data = load_data(tmp_path / "t.parquet", first=1)
    assert (data.y.tolist(), data.label_names) == ([1], ("fig", "plum"))


def test_a_data_set_with_a_transform_gives_its_rows():
    def doubled(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"pixel_values": [2 * torch.tensor([a]) for a in rows["a"]], "label": rows["y"]}

    made = datasets.Dataset.from_dict({"a": X[:, 0], "y": [0, 1, 1, 0]})
    data = examples_of(made.with_transform(doubled))
    assert torch.allclose(data.x, 2 * torch.tensor(X[:, :1]).float())
    assert data.y.tolist() == [0, 1, 1, 0]


def test_streams_and_several_splits_are_refused_and_the_remedies_work():
    made = datasets.Dataset(pa.table(COLUMNS))
    with pytest.raises(BadInput, match=r"one split is data\['test'\]"):
        examples_of(datasets.DatasetDict(test=made))
    stream = made.to_iterable_dataset()
    with pytest.raises(BadInput, match=r"write datasets.Dataset.from_list\(list\(data.take\(1000\)\)\)"):
        examples_of(stream)
    assert examples_of(datasets.Dataset.from_list(list(stream.take(1000)))).y.tolist() == [2, 1, 2, 0]


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """A folder with the configurations left and right."""
    folder = tmp_path / "several"
    (folder / "data").mkdir(parents=True)
    for place, name in enumerate(("left", "right")):
        pq.write_table(pa.table({"a": [0.5, 1.5], "y": [place, place]}), folder / "data" / f"{name}.parquet")
    rows = [f"- config_name: {name}\n  data_files: data/{name}.parquet" for name in ("left", "right")]
    (folder / "README.md").write_text("\n".join(["---", "configs:", *rows, "---", ""]))
    return folder


def test_a_configuration_is_chosen_by_name_and_asked_for_where_there_are_several(configured):
    assert load_data(configured, split="train", config="right").y.tolist() == [1, 1]
    with pytest.raises(BadInput, match=r"`config` must name one of .*left, right; on the command line --data-config"):
        load_data(configured, split="train")
    with pytest.raises(BadInput, match="`config` must be one of left, right, got 'rigth'; did you mean 'right'"):
        load_data(configured, config="rigth")
    with pytest.raises(BadInput, match="`config` must be left out with 'digits'"):
        load_data("digits", config="left")


def test_an_arrow_file_that_claims_to_unpack_to_too_much_is_refused_before_it_does(tmp_path):
    path = tmp_path / "t.arrow"
    feather.write_feather(pa.table({"a": np.zeros(20_000_000), "y": np.zeros(20_000_000)}), str(path), "zstd")
    with pytest.raises(BadInput, match=r"at most 100 times its size, .* claim to hold \d+ MiB"):
        load_data(path)


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"nonsense" * 9, b"\xff\xff\xff\xff\x10\0\0\0" + b"\xff" * 60])
def test_a_broken_arrow_file_is_refused_in_a_sentence(content, tmp_path):
    (tmp_path / "t.arrow").write_bytes(content)
    with pytest.raises(BadInput, match=r"`data` must be a arrow table|message must be in arrow's format|one row"):
        load_data(tmp_path / "t.arrow")
