"""Folders of images, a sub-folder for each class, listed as they are: no file is opened, and no cache is built.

Rows, splits and the numbers of classes are those of `datasets`' image folders. It is asked for all that is not of this
simple form: a `metadata.csv`, other files among the images, classes in different depths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from epsball.common.checks import check_one_of
from epsball.common.limits import check_file
from epsball.data.known_labels import KnownLabels
from epsball.data.lazy_examples import digest

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
"""Endings of the files that are listed here, in small letters or capitals."""
NAMES = re.compile(rf"(?:[^./]+(?:{'|'.join(re.escape(one) for end in IMAGES for one in (end, end.upper()))})/)*+")
"""Names of images with one dot, each with a "/" behind it: matched all at once, a million takes a second otherwise."""
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The splits, and the words that name one in a folder or a file, beside its other words."""
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}
BETWEEN = "[-._ 0-9]"
"""What parts words."""
WORD = re.compile(rf"(?:^|(?<={BETWEEN}))({'|'.join(SPLIT_OF)})(?={BETWEEN}|$)")


@dataclass(frozen=True, eq=False)
class FolderImages:
    """The images in sub-folders of `root`: the rows from `starts[k]` on are in `folders[k]`, with these `names`."""

    root: str
    folders: tuple[str, ...]
    starts: Int64[np.ndarray, " folders"]
    names: Any  # a pyarrow.Array of texts: a million Python strings take ten times the memory

    def path(self, id: int) -> str:
        """Where an image is."""
        folder = self.folders[int(np.searchsorted(self.starts, id, side="right")) - 1]
        return f"{self.root}/{folder}/{self.names[id].as_py()}"

    def sources(self, ids: Sequence[int]) -> list[str]:
        """The paths of the images."""
        return [self.path(id) for id in ids]

    def name_of(self, id: int) -> str:
        """The path of an image."""
        return self.path(id)

    def identity(self, ids: Int64[Tensor, " n"]) -> str:
        """A digest of the paths below the root: a run keeps checksums of what it has read."""
        return digest("\n".join(self.path(id)[len(self.root) :] for id in ids.tolist()))

    def available(self) -> bool:
        """Whether one of the first, the middle and the last file is there."""
        n = len(self.names)
        return any(os.path.isfile(self.path(id)) for id in (0, n // 2, n - 1))


def listed_folder(root: str | Path, split: str) -> tuple[FolderImages, KnownLabels] | None:
    """The images of a split of a folder, and their classes; None where the folder is not of the simple form.

    Raises `BadInput` for a split that is not there, and for pipes and devices among the images.
    """
    root = str(root)
    found = _classes(root)
    if found is None:
        return None
    splits = _splits(found)
    if splits is None:
        return None
    everything = sorted({_class(folder) for folders in splits.values() for folder in folders})
    if len(everything) < 2 or any(len(set(map(_class, folders))) < 2 for folders in splits.values()):
        return None
    import pyarrow as pa

    folders = splits[check_one_of("split", split, splits)]
    try:
        names = pa.concat_arrays([pa.array(files, pa.string()) for files in folders.values()])
    except (UnicodeEncodeError, pa.ArrowException):  # a name that is no text, or too many for one array
        return None
    counts = [len(files) for files in folders.values()]
    starts = np.array(list(accumulate(counts[:-1], initial=0)))
    labels = np.repeat([everything.index(_class(folder)) for folder in folders], counts)
    return FolderImages(root, tuple(folders), starts, names), KnownLabels(labels, tuple(everything))


Folders = dict[str, list[str]]
"""Files by their folder, a path below the root; in the order of the rows."""


def _class(folder: str) -> str:
    return folder.rpartition("/")[2]


def _classes(root: str) -> Folders | None:
    """The folders of classes, all at depth 1 or all at depth 2; None where there is anything else."""
    outer = _entries(root)
    if outer is None or outer[1] or "data" in outer[0] or (Path(root) / ".huggingface.yaml").exists():
        return None
    found: Folders = {}
    depths = set()
    for name in outer[0]:
        entries = _entries(f"{root}/{name}")
        if entries is None or (entries[0] and entries[1]):
            return None
        inner = (
            {name: entries} if entries[1] else {f"{name}/{sub}": _entries(f"{root}/{name}/{sub}") for sub in entries[0]}
        )
        for folder, inside in inner.items():
            if inside is None or inside[0] or not NAMES.fullmatch("/".join([*inside[1], ""])):
                return None
            if inside[1]:
                found[folder] = sorted(inside[1])
                depths.add(folder.count("/"))
    if len(depths) != 1:
        return None
    return {folder: found[folder] for folder in sorted(found, key=lambda folder: f"{folder}/")}


def _entries(folder: str) -> tuple[list[str], list[str]] | None:
    """The folders and files in a folder, without hidden ones; None where it cannot be read as simply as that."""
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if entry.is_file(follow_symlinks=False):
                    if name[0] != ".":
                        files.append(name)
                elif entry.is_dir(follow_symlinks=False):
                    if name[0] != "." and name[:2] != "__":
                        folders.append(name)
                elif entry.is_symlink():
                    return None
                else:
                    check_file(entry.path, remedy="leave it out")
    except OSError:
        return None
    return folders, files


def _splits(found: Folders) -> dict[str, Folders] | None:
    """The folders of each split; None where a name says more than one thing, or that of a class is a split's."""
    if any(WORD.search(_class(folder)) for folder in found):
        return None
    chosen: dict[str, Folders] = {split: {} for split in SPLITS}
    named = {folder: WORD.findall(folder.partition("/")[0]) for folder in found}
    for folder, files in found.items():
        of_files = [(file, WORD.findall(file)) for file in files] if not any(named.values()) else []
        if len(named[folder]) > 1 or any(len(words) > 1 for _, words in of_files):
            return None
        for word in named[folder]:
            chosen[SPLIT_OF[word]][folder] = files
        for file, (word,) in ((file, words) for file, words in of_files if words):
            chosen[SPLIT_OF[word]].setdefault(folder, []).append(file)
    if not any(chosen.values()):
        chosen["train"] = found
    return {split: folders for split, folders in chosen.items() if folders}
