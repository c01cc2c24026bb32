"""Tables: numbers are read exactly, and columns that are not numeric are refused by name."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epsball.common.errors import BadInput
from epsball.data.tables import read_table, write_table


def csv(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "t.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_keeps_every_column_and_digit(mark: str, tmp_path: Path):
    text = "width,length,ripe,fruit\n0.1,3,true,apple\r\n-1e-3,4,false,plum\n".replace(",", mark)
    table = read_table(csv(tmp_path, "\ufeff" + text), "fruit")
    assert table.features == ("width", "length", "ripe")
    np.testing.assert_array_equal(table.x, [[0.1, 3, 1], [-1e-3, 4, 0]])
    assert table.x.dtype == np.float64
    assert table.y.tolist() == ["apple", "plum"]


def test_a_fraction_after_a_megabyte_of_whole_numbers_is_read(tmp_path: Path):
    rows = ["1,0"] * 500_000 + ["0.5,1"]
    table = read_table(csv(tmp_path, "a,y\n" + "\n".join(rows)), "y")
    assert len(table) == 500_001
    assert table.x[-1, 0] == 0.5


def test_names_with_dots_spaces_and_quotes_are_read_unchanged(tmp_path: Path):
    text = '"petal, width",a.b,"the ""y""",y\n1,2,3,0\n4,5,6,1\n'
    table = read_table(csv(tmp_path, text), 'the "y"', drop=["y"])
    assert table.features == ("petal, width", "a.b")
    assert table.y.tolist() == [3, 6]
    path = parquet(tmp_path, **{"a.b": [1.0, 2.0], "a": [3, 4], "y": [0, 1]})
    np.testing.assert_array_equal(read_table(path, "y", features=["a", "a.b"]).x, [[3, 1], [4, 2]])


def test_every_parquet_type_of_numbers_is_read_exactly(tmp_path: Path):
    path = parquet(
        tmp_path,
        small=pa.array([1, -2], pa.int8()),
        half=pa.array(np.array([0.5, 1.5], np.float16)),
        money=pa.array([Decimal("1.25"), Decimal("-7.50")]),
        flag=[True, False],
        size=pa.array([10, 30]).dictionary_encode(),
        vast=pa.array([2**53, -(2**53)]),
        y=pa.array(["b", "a"]).dictionary_encode(),
    )
    table = read_table(path, "y")
    expected = [[1, 0.5, 1.25, 1, 10, 2.0**53], [-2, 1.5, -7.5, 0, 30, -(2.0**53)]]
    np.testing.assert_array_equal(table.x, expected)
    assert table.y.tolist() == ["b", "a"]


def test_an_npz_is_read_as_load_data_reads_it(tmp_path: Path):
    path = tmp_path / "t.npz"
    np.savez(path, x=np.array([[[0, 255]], [[51, 0]]], dtype=np.uint8), y=np.array([3, 4]), other=np.array([0.5, 1.5]))
    table = read_table(path)
    np.testing.assert_array_equal(table.x, [[0, 1], [0.2, 0]])
    assert (table.features, table.target, table.y.tolist()) == (("x0", "x1"), "y", [3, 4])
    assert read_table(path, "other").y.tolist() == [0.5, 1.5]
    with pytest.raises(BadInput, match="did you mean 'other'"):
        read_table(path, "othr")


@pytest.mark.parametrize(
    ("target", "kind", "values"),
    [
        ("0\n1", "i", [0, 1]),
        ("true\nfalse", "b", [True, False]),
        ("0.5\n1", "f", [0.5, 1]),
        ("no\n1", "U", ["no", "1"]),
    ],
)
def test_labels_keep_their_kind(target: str, kind: str, values: list[Any], tmp_path: Path):
    one, other = target.split("\n")
    table = read_table(csv(tmp_path, f"a,y\n1,{one}\n2,{other}\n"), "y")
    assert table.y.dtype.kind == kind
    assert table.y.tolist() == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,y\n1,2,0\n3,?,1\n", r"'b' \(first: '\?' in row 1\).*--drop b"),
        ("a,b c,y\n1,x,0\n3,z,1\n", r"'b c' \(first: 'x' in row 0\).*--drop \"b c\""),
        ("a,b,y\n1,2020-01-02,0\n3,2021-01-02,1\n", r"'b' \(first: 2020-01-02 in row 0\)"),
        ("a,b,y\n1,x,0\n3,w,1\n", "numeric"),
        (
            "a,b,y\n,1,0\n3,NaN,1\n4,,1\n",
            r"of 3 rows of .* 'a' lacks 1 \(first: row 0\), 'b' lacks 2 \(first: row 1\);",
        ),
        ("a,b,y\n,1,0\n,2,1\n", "'a' lacks 2"),
        ("a,b,y\n1,1,0\ninf,2,1\n", "'a' of .* holds infinity"),
        ("a,b,y\n9007199254740993,1,0\n1,2,1\n", r"'a' of .* beyond 2\^53"),
        ("a,b,y\n-9223372036854775808,1,0\n1,2,1\n", r"'a' of .* beyond 2\^53"),
        ("a,a,y\n1,2,0\n", "several 'a'"),
        (",a,y\n0,2,0\n1,3,1\n", "row numbers.*--drop ''"),
        ("y\n1\n", "a column beside"),
        ("a,y\n", "at least one row"),
        ("", "cannot be read"),
        ("a,y\n1,2,3\n", "cannot be read"),
        ("a,y\n1,0\n2,\n", r"`target` must have every value, but 'y' lacks 1 of 2 \(first: row 1\)"),
        ("a,y\n1,0.5\n2,inf\n", "'y' holds infinity"),
        ("a,y\n1,2020-01-01\n2,2021-01-01\n", "'y' is date32"),
    ],
)
def test_columns_that_are_not_numeric_are_refused_by_name(text: str, message: str, tmp_path: Path):
    with pytest.raises(BadInput, match=message):
        read_table(csv(tmp_path, text), "y")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,y\n1,\xe4\n2,b\n")
    with pytest.raises(BadInput):
        read_table(path, "y")
    broken = tmp_path / "t.parquet"
    broken.write_bytes(b"PAR1 and no more")
    with pytest.raises(BadInput, match="cannot be read"):
        read_table(broken, "y")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "spceies"}, "lacks 'spceies'; did you mean 'species'"),
        ({}, "`target` must name the column to predict; .* has 'width', 'height', 'species'"),
        ({"target": "species", "drop": ["widht"]}, "`drop` .* lacks 'widht'; did you mean 'width'"),
        ({"target": "species", "features": ["height", "depth"]}, "columns of the model, but .* lacks 'depth'"),
        ({"target": "species", "limit": 0}, "`limit` must be a whole number >= 1"),
    ],
)
def test_a_typo_is_refused_with_the_most_similar_name(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(BadInput, match=message):
        read_table(csv(tmp_path, "width,height,species\n1,2,a\n3,4,b\n"), **options)


def test_the_error_of_a_wide_table_lists_only_some_columns(tmp_path: Path):
    names = [f"c{place}" for place in range(500)]
    path = csv(tmp_path, ",".join(names) + "\n" + ",".join(["x"] * 500) + "\n")
    with pytest.raises(BadInput) as caught:
        read_table(path, "c0")
    assert "499 in all" in str(caught.value)
    assert len(str(caught.value)) < 900


def test_columns_that_a_model_does_not_use_are_ignored(tmp_path: Path):
    path = csv(tmp_path, "city,b,when,a,y\nRome,2,2020-01-01,1,0\nOslo,4,,3,1\n")
    np.testing.assert_array_equal(read_table(path, "y", features=["a", "b"]).x, [[1, 2], [3, 4]])


@pytest.mark.parametrize(("name", "message"), [("t.txt", "did you mean"), ("u.csv", "did you mean 't.csv'")])
def test_a_missing_file_is_refused_with_the_most_similar_name(name: str, message: str, tmp_path: Path):
    csv(tmp_path, "a,y\n1,0\n")
    csv(tmp_path, "a", "t.tsv")
    with pytest.raises(BadInput, match=message if name == "u.csv" else "`data` must be one of .csv"):
        read_table(tmp_path / name, "y")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_numbers_survive_a_file_bit_for_bit(name: str, tmp_path: Path):
    x = np.random.default_rng(0).standard_normal((50, 3)) * 10.0 ** np.arange(-8, 16, 8)
    columns = {"a": x[:, 0], "b, c": x[:, 1], "d": x[:, 2], "y": np.array(["no", "yes"])[(x[:, 0] > 0).astype(int)]}
    write_table(tmp_path / name, columns)
    table = read_table(tmp_path / name, "y")
    np.testing.assert_array_equal(table.x, x)
    assert table.y.tolist() == columns["y"].tolist()
    assert [file.name for file in tmp_path.iterdir()] == [name]
    limited = read_table(tmp_path / name, "y", first=7)
    np.testing.assert_array_equal(limited.x, x[:7])
    assert len(limited.y) == 7


def test_only_csv_and_parquet_are_written(tmp_path: Path):
    with pytest.raises(BadInput, match=r"`out` must be one of \.csv, \.parquet"):
        write_table(tmp_path / "t.xlsx", {"a": [1.0]})
    with pytest.raises(pa.ArrowInvalid):
        write_table(tmp_path / "t.csv", {"a": [1.0], "b": [1.0, 2.0]})
    assert not list(tmp_path.iterdir())
