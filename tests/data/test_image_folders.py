"""Folders of images are listed as `datasets` lists them, without a cache; what is not simple is left to it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from PIL import Image

from epsball.common.errors import BadInput
from epsball.data.image_folders import IMAGES, listed_folder
from epsball.data.load import load_data, open_data


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """The caches of `datasets` stay out of the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


def folder(root: Path, files: Iterable[str]) -> Path:
    """A folder with so many images; the n-th is grey level n."""
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.full((2, 3), number % 256, np.uint8))
        image.save(path, "PNG" if path.suffix.lower() == ".png" else "JPEG")
    return root


SIMPLE = {
    "splits": ["train/cat/0.png", "train/dog/1.png", "test/dog/7.png", "test/cat/10.png", "test/cat/9.png"],
    "one split": ["val/b/0.png", "val/a/0.png", "val/c/0.png"],
    "no splits": ["dog/1.png", "cat/2.png", "dog/0.png"],
    "splits in other words": ["my-eval-2/b/0.png", "my-eval-2/a/0.png", "training/a/1.png", "training/c/2.png"],
    "two folders of a split": ["valid/a/1.png", "valid/b/0.png", "test/a/0.png", "test/b/0.png"],
    "splits in the names of files": ["a/val_1.png", "b/x_val_0.png", "a/test-2.png", "b/test.png", "b/rest.png"],
    "one split in the names of files": ["n1/ILSVRC2012_val_2.JPEG", "n2/ILSVRC2012_val_1.JPEG", "n1/x_val_1.JPEG"],
    "another order than by folder": ["a-b/0.png", "a/1.png", "a b/1.png", "a.b/2.png", "A/1.png", "é/0.png"],
    "capitals": ["a/0.PNG", "a/0.png", "b/1.JPG", "b/0.jpeg"],
    "hidden files": ["a/0.png", "b/0.png", "a/.c.png", ".d/0.png", "__e/0.png", "b/1.png"],
    "a class that another split lacks": ["train/a/0.png", "train/b/0.png", "test/b/0.png", "test/c/0.png"],
    "a folder beside the splits": ["test/a/0.png", "test/b/0.png", "more/c/0.png", "more/d/0.png"],
}


@pytest.mark.parametrize("files", SIMPLE.values(), ids=list(SIMPLE))
def test_rows_splits_and_classes_are_those_of_datasets(tmp_path: Path, files: list[str]):
    folder(tmp_path, files)
    wanted = datasets.load_dataset(str(tmp_path))
    for split, rows in wanted.items():
        found = listed_folder(tmp_path, split)
        assert found is not None
        stored, labels = found
        encoded = rows.cast_column("image", datasets.Image(decode=False))
        assert stored.sources(range(len(labels.y))) == [row["path"] for row in encoded["image"]]
        assert labels.y.tolist() == rows["label"]
        assert list(labels.names or ()) == rows.features["label"].names
        assert labels.bad == {}
        data = load_data(tmp_path, split=split)
        assert data.ids.tolist() == list(range(len(rows)))
        for x, image in zip(data.x, rows["image"], strict=True):
            assert torch.equal(x, torch.tensor(np.asarray(image))[None] / 255)
    with pytest.raises(BadInput, match=f"`split` must be one of {', '.join(wanted)}, got 'tset'"):
        load_data(tmp_path, split="tset")


NOT_SIMPLE = {
    "metadata": ["a/0.png", "b/0.png", "a/metadata.csv"],
    "a file beside the classes": ["a/0.png", "b/0.png", "README.md"],
    "another file among the images": ["a/0.png", "b/0.png", "b/notes.txt"],
    "one class": ["test/a/0.png", "test/a/1.png"],
    "classes in different depths": ["test/a/0.png", "b/1.png"],
    "deeper classes": ["x/test/a/0.png", "x/test/b/0.png"],
    "a class that is called as a split": ["a/0.png", "test tubes/1.png"],
    "a split of two names": ["train-test/a/0.png", "train-test/b/1.png"],
    "files in two splits": ["a/train_test_0.png", "b/train_1.png"],
    "images with two dots": ["a/0.1.png", "b/0.1.png"],
    "shards": ["data/train-00000-of-00001.png", "b/1.png"],
    "nothing": [],
}


@pytest.mark.parametrize("files", NOT_SIMPLE.values(), ids=list(NOT_SIMPLE))
def test_what_is_not_simple_is_left_to_datasets(tmp_path: Path, files: list[str]):
    folder(tmp_path, [file for file in files if file.endswith(".png")])
    for file in files:
        (tmp_path / file).touch()
    assert listed_folder(tmp_path, "test") is None


def test_folders_with_links_to_folders_are_left_to_datasets_and_pipes_are_refused(tmp_path: Path):
    folder(tmp_path / "images", ["test/a/0.png", "test/b/0.png"])
    (tmp_path / "images" / "test" / "c").symlink_to(tmp_path / "images" / "test" / "b")
    assert listed_folder(tmp_path / "images", "test") is None
    folder(tmp_path / "more", ["test/a/0.png", "test/b/0.png"])
    os.mkfifo(tmp_path / "more" / "test" / "b" / "1.png")
    with pytest.raises(BadInput, match="must be a regular file, got a named pipe; leave it out"):
        load_data(tmp_path / "more")


def test_every_ending_that_is_listed_is_one_of_datasets():
    assert set(IMAGES) <= set(ImageFolder.EXTENSIONS)


def test_a_folder_is_listed_without_a_cache_or_a_file_being_opened(tmp_path: Path, monkeypatch):
    root = folder(tmp_path / "images", [f"test/{name}/{n}.png" for name in "ab" for n in range(40)])
    monkeypatch.setattr(datasets, "load_dataset", None)
    opened = []
    opens = Image.open
    monkeypatch.setattr(Image, "open", lambda path, **more: opened.append(path) or opens(path, **more))
    data = open_data(root)
    assert len(data) == 80
    assert len(opened) <= 32
    identity = data.identity()
    assert identity == open_data(root).identity()
    assert data.available()
    (root / "test" / "b" / "7.png").write_bytes(b"mended")  # what a run has read of it, the run knows by its checksum
    assert open_data(root).identity() == identity
    (root / "test" / "b" / "7.png").unlink()
    assert open_data(root).identity() != identity
    assert data.available()
    shutil.rmtree(root)
    assert not data.available()
