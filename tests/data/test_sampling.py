"""A limit takes a seeded sample in which every class has its share; `first` takes the rows in their order."""

from __future__ import annotations

import json
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from epsball.cli.common import limited_as_before
from epsball.common.errors import BadInput
from epsball.data.image_decoding import pixels_of
from epsball.data.load import load_data
from epsball.data.sampling import taken_rows
from epsball.data.tables import read_table


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(1, 220), st.integers(0, 9))
def test_every_class_has_its_share_to_within_one_row(classes: list[int], limit: int, seed: int):
    y = np.array(classes)
    rows = taken_rows(y, limit, seed=seed)
    assert rows is not None
    assert len(rows) == min(limit, len(y))
    assert (np.diff(rows) > 0).all()
    for label in set(classes):
        exact = len(rows) * np.mean(y == label)
        # each class is cut at the same share, which is off by what rounding takes from the others
        assert abs((y[rows] == label).sum() - exact) < 1 + len(set(classes)) * np.mean(y == label)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=100), st.integers(0, 9))
def test_a_smaller_sample_is_a_part_of_a_larger_one(classes: list[int], seed: int):
    samples = [set(taken_rows(np.array(classes), limit, seed=seed)) for limit in range(1, len(classes) + 1)]
    assert all(small < large for small, large in pairwise(samples))


def test_a_sample_is_random_within_each_class_and_another_seed_takes_another():
    y = np.repeat([0, 1], 500)
    one, other = taken_rows(y, 100), taken_rows(y, 100, seed=1)
    assert one is not None
    assert other is not None
    assert one.tolist() == taken_rows(y, 100).tolist() != other.tolist()
    assert 200 < np.mean(one[one < 500]) < 300  # not the first fifty


def test_the_examples_of_a_sample_keep_their_ids_and_so_their_noise():
    whole, part = load_data("digits"), load_data("digits", limit=40)
    assert len(part) == 40
    assert set(part.y.tolist()) == set(range(10))
    places = part.ids - whole.ids[0]
    assert torch.equal(part.x, whole.x[places])
    assert torch.equal(part.y, whole.y[places])
    assert load_data("digits", limit=10_000).ids.tolist() == whole.ids.tolist()
    assert load_data("digits", limit=40, seed=1).ids.tolist() != part.ids.tolist()


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images, one folder each, 30 and 10 files."""
    folder = tmp_path_factory.mktemp("sampling") / "pets"
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, count in (("cat", 30), ("dog", 10)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 128, (4, 4, 3)) + (127 if label == "dog" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / label / f"{i:02d}.png")
    return folder


def test_a_limited_image_folder_has_all_its_classes_and_decodes_only_what_it_takes(pets, monkeypatch):
    decoded = []
    seen = lambda source, *more: decoded.append(source) or pixels_of(source, *more)  # noqa: E731
    monkeypatch.setattr("epsball.data.lazy_images.pixels_of", seen)
    part = load_data(pets, limit=8)
    assert len(set(decoded)) == 8
    assert part.y.tolist() == [0] * 6 + [1] * 2
    whole = load_data(pets)
    assert torch.equal(whole.x[part.ids], part.x)
    assert load_data(pets, first=8).y.tolist() == [0] * 8


def test_a_broken_image_of_a_sample_is_named_by_its_file(pets, tmp_path):
    broken = Path(shutil.copytree(pets, tmp_path / "broken"))
    last = int(load_data(pets, limit=8).ids[-1])
    (broken / "test" / "dog" / f"{last - 30:02d}.png").write_bytes(b"nonsense")
    with pytest.raises(BadInput, match=rf"dog/{last - 30:02d}\.png: it is no image"):
        load_data(broken, limit=8)


def test_a_limited_table_has_a_share_of_each_class(tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n" + "".join(f"{i},{'no' if i < 75 else 'yes'}\n" for i in range(100)))
    limited = read_table(tmp_path / "t.csv", "y", limit=20)
    assert sorted(limited.y.tolist()) == ["no"] * 15 + ["yes"] * 5
    assert all((value >= 75) == (label == "yes") for (value,), label in zip(limited.x, limited.y, strict=True))
    assert read_table(tmp_path / "t.csv", "y", first=20).x[:, 0].tolist() == list(range(20))


@pytest.mark.parametrize("load", [partial(load_data, "digits"), partial(taken_rows, [0])], ids=["data", "rows"])
def test_limits_that_mean_nothing_are_refused(load):
    for name in ("limit", "first"):
        for value in (0, -3, 2.5):
            with pytest.raises(BadInput, match=f"`{name}` must be a whole number >= 1, got {value}; leave it out"):
                load(**{"limit": None, "first": None} | {name: value})
    with pytest.raises(BadInput, match="`limit` must be left out with `first`"):
        load(limit=3, first=3)


def test_every_command_takes_the_same_sample(tmp_path: Path):
    """From the ids that evaluate and attack store, and the number that the others print."""
    want = load_data("digits", limit=30).ids.tolist()
    quick = ["--limit", "30", "--epochs", "1"]
    done = run("evaluate", *quick, "--attacks", "fgsm", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    from epsball.evaluation.result import Evaluation

    assert Evaluation.load(tmp_path / "run").records["id"].to_pylist() == want
    assert run("verify", str(tmp_path / "run"), "--data", "digits").returncode == 0
    done = run("attack", *quick, "--rows", "0", "--out", str(tmp_path / "set"))
    assert done.returncode == 0, done.stderr
    import pyarrow.parquet as pq

    assert pq.read_table(tmp_path / "set" / "adversarial.parquet")["id"].to_pylist() == want


def test_a_run_of_the_time_when_limit_took_the_first_rows_resumes_and_verifies(tmp_path: Path):
    out = tmp_path / "run"
    common = ["--epochs", "1", "--attacks", "fgsm", "--out", str(out)]
    assert run("evaluate", "--first", "30", *common).returncode == 0
    command = json.loads((out / "command.json").read_text())
    assert (command["subject"]["limit"], command["subject"]["first"]) == (None, 30)
    command["subject"]["limit"] = command["subject"].pop("first")  # as it was written then
    command.pop("checksum")  # it was edited
    (out / "command.json").write_text(json.dumps(command))
    assert run("verify", str(out), "--data", "digits").returncode == 0
    done = run("evaluate", "--limit", "30", *common)
    assert done.returncode == 0, done.stderr
    done = run("evaluate", "--limit", "31", *common)
    assert done.returncode == 2
    assert limited_as_before({"limit": 3}) == {"limit": None, "first": 3}
    assert limited_as_before({"limit": 3, "first": None}) == {"limit": 3, "first": None}
