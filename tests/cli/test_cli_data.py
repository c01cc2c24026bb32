"""The data of a stranger on the command line: tables, dtypes, units, labels and names of classes, from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from commands import run
from PIL import Image
from sklearn.linear_model import LogisticRegression

from epsball.cli.common import Material
from epsball.cli.main import app
from epsball.cli.main import run as run_here
from epsball.data.class_names import numbered_like
from epsball.data.lazy_examples import LazyExamples
from epsball.data.load import load_data

RNG = np.random.default_rng(0)
Y = np.arange(40) % 4
X = np.eye(4)[Y] + 0.1 * RNG.random((40, 4))
"""Four classes, each with a large feature of its own: the identity classifies them correctly."""
NET = """
import torch

def make():
    net = torch.nn.Linear(4, 4, bias=False)
    net.weight.data = torch.eye(4)
    return net
"""
ANIMALS = ["ant", "bee", "cow", "dog"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def evaluated(folder: Path, data: str, *more: str, model: str = "net.py:make", ball: str = "linf:0.01") -> Any:
    """The result in JSON of an evaluation, or the message that it ends in."""
    (folder / "net.py").write_text(NET)
    arguments = ("--data", data, "--ball", ball, "--attacks", "fgsm", "--json")
    done = run("evaluate", "--model", model, *arguments, *more, cwd=folder)
    return json.loads(done.stdout) if done.returncode == 0 else " ".join(done.stderr.split())


@pytest.mark.parametrize("labels", ["numbers", "names"])
def test_a_table_is_evaluated_on_a_network_in_single_precision(labels, tmp_path):
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame["label"] = Y if labels == "numbers" else np.array(ANIMALS)[Y]
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = evaluated(tmp_path, "t.csv")
    assert found["clean_accuracy"] == 1
    few = evaluated(tmp_path, "t.csv", "--limit", "8", "--label-column", "label")
    assert (few["n"], few["clean_accuracy"]) == (8, 1)


def test_a_model_that_is_trained_on_the_spot_needs_a_split_which_a_file_has_not(tmp_path):
    pd.DataFrame({"a": X[:, 0], "y": Y}).to_csv(tmp_path / "t.csv", index=False)
    said = evaluated(tmp_path, "t.csv", model="small-mlp")
    assert "`--weights` must be given with t.csv: it has no other rows" in said


PIXELS = (X / X.max() * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("x", "ball", "more"),
    [
        (PIXELS, "linf:1/255", ()),
        (PIXELS.astype(np.float32), "linf:1", ("--lo", "0", "--hi", "255")),
        (PIXELS / 255, "linf:0.004", ("--lo", "0", "--hi", "1")),
        ((PIXELS / 255).astype(np.float16), "linf:0.3", ("--lo", "0", "--hi", "1")),
    ],
    ids=["uint8", "float32 of 255", "float64", "float16"],
)
def test_data_of_any_dtype_in_units_of_their_own_are_evaluated(x, ball, more, tmp_path):
    np.savez(tmp_path / "d.npz", x=x, y=Y)
    assert evaluated(tmp_path, "d.npz", *more, ball=ball)["clean_accuracy"] == 1


@pytest.mark.parametrize(
    ("x", "ball", "more", "message"),
    [
        (PIXELS, "linf:8", (), "divided by 255, got 8, .* write 8/255"),
        (PIXELS, "linf:0.03", ("--lo", "0", "--hi", "255"), "`--ball` must be in the units of x, .* got hi=255"),
        (PIXELS.astype(np.float32), "linf:8/255", ("--lo", "0", "--hi", "1"), r"box \[0, 1\], got values from 0"),
        (PIXELS.astype(np.int64), "linf:8", (), r"uint8 images, got torch.int64; write x.astype\('float32'\)"),
        (PIXELS > 100, "linf:0.1", (), "uint8 images, got torch.bool"),
    ],
    ids=["8 for 8/255", "box of 255", "box of 1", "int64", "bool"],
)  # fmt: skip
def test_a_mixture_of_units_is_refused(x, ball, more, message, tmp_path):
    np.savez(tmp_path / "d.npz", x=x, y=Y)
    said = evaluated(tmp_path, "d.npz", *more, ball=ball)
    assert isinstance(said, str)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)


def test_the_line_of_the_data_says_what_was_done_to_their_units(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    np.savez(tmp_path / "d.npz", x=PIXELS, y=Y)
    done = run("evaluate", "--model", "net.py:make", "--data", "d.npz", "--attacks", "fgsm", cwd=tmp_path)
    assert "d.npz: 40 examples, 4, in [0, 1] (values / 255)" in done.stdout


@pytest.mark.parametrize(
    "y", [Y[:, None], Y.astype(float), Y.astype(str), np.array(ANIMALS)[Y], np.eye(4)[Y]],
    ids=["column", "floats", "digits", "names", "one-hot"],
)  # fmt: skip
def test_labels_of_any_sane_form_in_a_file_are_taken(y, tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=y)
    assert evaluated(tmp_path, "d.npz")["clean_accuracy"] == 1


@pytest.mark.parametrize("suffix", ["npz", "csv"])
@pytest.mark.parametrize("labels", [(-1, 1), (1, 2), ("no", "yes")])
def test_labels_in_a_file_are_those_that_an_estimator_was_fitted_to(labels, suffix, tmp_path):
    y = np.array(labels)[Y % 2]
    skops.io.dump(LogisticRegression(C=1e4).fit(X, y), tmp_path / "model.skops")
    if suffix == "npz":
        np.savez(tmp_path / "d.npz", x=X, y=y)
    else:
        pd.DataFrame(X, columns=list("abcd")).assign(label=y).to_csv(tmp_path / "d.csv", index=False)
    assert evaluated(tmp_path, f"d.{suffix}", model="model.skops", ball="linf:0.001")["clean_accuracy"] == 1


def test_labels_from_1_are_refused_and_the_remedy_is_right(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=Y + 1)
    assert "below the 4 classes of the model, got 4; of labels from 1 write y - 1" in evaluated(tmp_path, "d.npz")
    np.savez(tmp_path / "d.npz", x=X, y=(Y + 1) - 1)
    assert evaluated(tmp_path, "d.npz")["clean_accuracy"] == 1


def images(folder: Path, names: list[str | None]) -> Path:
    """A folder of images (1, 2, 2), in which each class has one bright pixel; None: that class has no folder."""
    for row, label in enumerate(Y):
        for split in ("train", "test"):
            if (name := names[label]) is not None:
                (folder / split / name).mkdir(parents=True, exist_ok=True)
                pixels = (X[row] * 200).astype(np.uint8).reshape(2, 2)
                Image.fromarray(pixels).save(folder / split / name / f"{row}.png")
    return folder


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder of a trained network, which knows its classes by name."""
    images(tmp_path / "animals", ANIMALS)
    arguments = ("--model", "small-mlp", "--data", "animals", "--ball", "linf:0.01", "--epochs", "40")
    done = run("train", *arguments, "--out", "kept", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "kept"


@pytest.mark.parametrize(
    "names",
    [
        ["ant", "bee", "cow", "dog"],
        ["ant", None, "cow", "dog"],
        ["Ant", "BEE", "cow", "Dog"],
        ["Ant", None, "Cow", None],
    ],
)
def test_a_class_folder_that_is_missing_or_spelled_otherwise_shifts_no_label(names, tmp_path):
    data = numbered_like(load_data(images(tmp_path / "images", names)), ANIMALS)
    assert data.label_names == tuple(ANIMALS)
    assert torch.equal(data.x.flatten(1).argmax(1), data.y)
    assert set(data.y.tolist()) == {label for label, name in enumerate(names) if name is not None}


def test_names_that_cannot_be_matched_are_said_in_the_line_of_the_data(kept, tmp_path):
    images(tmp_path / "images", ["n01", "n02", "n03", "n04"])
    images(tmp_path / "known", ["Ant", None, "Cow", "Dog"])
    said = {}
    for data in ("images", "known"):
        arguments = ("--model", kept.name, "--data", data, "--attacks", "fgsm")
        said[data] = run("evaluate", *arguments, cwd=tmp_path).stdout
    assert "labels by number: the model has other names of classes" in said["images"]
    assert "labels by number" not in said["known"]


def test_a_sample_is_a_limit_by_another_name_and_its_seed_says_which() -> None:
    asked = {}
    for seed, arguments in ((0, ["--sample", "12"]), (3, ["--limit", "12", "--sample-seed", "3"])):
        _, bound, _ = app.parse_args(["evaluate", *arguments], exit_on_error=False, print_error=False)
        flags = next(value for value in bound.arguments.values() if isinstance(value, Material))
        assert torch.equal(flags.examples().ids, load_data("digits", limit=12, seed=seed).ids)
        asked[seed] = flags.examples().ids.tolist()
    assert asked[0] != asked[3]


@pytest.mark.parametrize("flag", ["--sample", "--limit"])
def test_an_error_names_the_flag_that_was_given(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(["evaluate", flag, "0"]) == 2
    assert f"`{flag}` must be a whole number >= 1, got 0" in capsys.readouterr().err
    assert run_here(["evaluate", flag, "3", "--first", "3"]) == 2
    assert f"`{flag}` must be left out with `--first`" in capsys.readouterr().err


def test_lazy_examples_of_a_command_are_those_in_memory_row_by_row(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=np.array(ANIMALS)[Y])
    material = Material(data=str(tmp_path / "a.npz"), limit=9)
    lazy, whole = material.lazy_examples(), material.examples()
    assert isinstance(lazy, LazyExamples)
    assert torch.equal(lazy.rows(torch.tensor([3, 1])).x, whole.x[[3, 1]])
    assert lazy.label_names == whole.label_names == tuple(ANIMALS)
