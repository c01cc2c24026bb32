"""`open_data` and `load_data`: the examples that a user names, read when they are asked for, or at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from epsball.common.errors import BadInput
from epsball.data.digits import read_digits
from epsball.data.examples import Examples
from epsball.data.image_datasets import TABLES, Source, of_arrow, of_split, read_files, read_split
from epsball.data.image_folders import listed_folder
from epsball.data.lazy_arrays import open_npz
from epsball.data.lazy_examples import LazyExamples
from epsball.data.lazy_images import lazy_images
from epsball.data.prepared import check_prepared
from epsball.data.sampling import Take, check_limits, taken_rows
from epsball.data.tar_files import tar_files
from epsball.models.preparation import Preparation


def load_data(
    spec: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    first: int | None = None,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    preparation: Preparation | None = None,
    config: str | None = None,
) -> Examples:
    """The examples that `spec` names, in memory: all that `open_data` does, and every row is read.

    Raises `BadInput` that names the rows that cannot be used, and for all that `open_data` refuses.
    """
    return open_data(
        spec, split=split, limit=limit, first=first, seed=seed, image_column=image_column, label_column=label_column,
        preparation=preparation, config=config,
    ).whole()  # fmt: skip


def open_data(
    spec: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    first: int | None = None,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    preparation: Preparation | None = None,
    config: str | None = None,
) -> Examples | LazyExamples:
    """The examples that `spec` names, in their order: images and arrays in files are read when they are asked for.

    `limit` >= 1 takes a sample of so many rows, in which each class has its share: the same rows for the same `seed`,
    and a part of them for a smaller limit. `first` >= 1 takes the first rows instead. Examples keep their ids.

    - "digits": scikit-learn's 8x8 digits, (1, 8, 8), scaled by 1/16 to [0, 1]. "test" is the last 20 % of its rows,
      "train" the rest; ids are row numbers of `load_digits`.
    - a `.npz` file with arrays `x` and `y`, as `from_arrays` takes them. It has no splits: `split` is ignored.
    - a `.csv`, `.tsv`, `.parquet` or `.arrow` file with a table, which has no splits either: float64 `x` (n, d) of its
      numeric columns, in no box. The labels are in `label_column`, or in the only column that has a usual name (label,
      y, target, class) or else is not numeric. Parquet and arrow may hold images as well.
    - a folder of parquet files or of images, or the name of a data set on the Hugging Face Hub, as
      `datasets.load_dataset` reads them: float32 images (C, H, W) in [0, 1], C = 1 where all are grey, else 3; alpha
      is dropped. `image_column` and `label_column` name the columns where the features do not. Where no column holds
      images, it is a table. `config` is the configuration, where there are several.
    - a folder of WebDataset's tars, one such `.tar`, or several, as in "shards-{000..009}.tar"; labels are in "cls".

    Labels are whole numbers >= 0, or names, which are numbered as they are sorted.

    `preparation` is what a model wants done to images: those in files and data sets are resized and cropped, so that
    they may be of mixed sizes, and the name of the examples says so. Arrays and tables must be of that shape already.

    A single image, array or label that cannot be used is a bad row of lazy examples (`LazyExamples.read`). Raises
    `BadInput` for data that are not found, splits and columns that are not there, and features of tables that are not
    numeric, missing or infinite.
    """
    check_limits(limit, first)
    take = partial(taken_rows, limit=limit, first=first, seed=seed)
    path = Path(spec).expanduser()
    if config is not None and (str(spec) == "digits" or path.is_file() or path.suffix == ".tar"):
        raise BadInput(f"`config` must be left out with {str(spec)!r}: it has no configurations")
    if str(spec) == "digits":
        return _part(read_digits(split), take, preparation)
    if path.suffix == ".npz" and path.exists():
        return open_npz(path, take, preparation)
    how = image_column, label_column, preparation
    if path.suffix in TABLES and path.is_file():
        return _of_file(path, take, *how)
    if path.suffix == ".tar":
        return of_split(read_files("webdataset", tar_files(str(path)), str(path)), str(path), take, *how)
    if config is None and image_column is None and label_column is None and path.is_dir():
        simple = listed_folder(path, split)
        if simple is not None:
            stored, labels = simple
            return lazy_images(stored, labels, str(path), take(labels.y), preparation)
    source = Source(str(path if path.exists() else spec), split, config)
    return of_split(read_split(source), source.spec, take, *how)


def _part(examples: Examples, take: Take, preparation: Preparation | None) -> Examples:
    if preparation is not None:
        check_prepared(examples.shape, preparation)
    rows = take(examples.y.cpu().numpy())
    return examples if rows is None else examples.rows(torch.from_numpy(rows).to(examples.x.device))


def _of_file(
    path: Path, take: Take, image_column: str | None, label_column: str | None, preparation: Preparation | None
) -> Examples | LazyExamples:
    """The rows of a file: a table, or images with labels in parquet or arrow."""
    from epsball.data.table_examples import examples_of_table, holds_bytes
    from epsball.data.tables import parquet_schema, read_columns

    if path.suffix == ".parquet" and (image_column is not None or holds_bytes(parquet_schema(path))):
        data = read_files("parquet", [path], str(path))
        return of_split(data, str(path), take, image_column, label_column, preparation)
    columns = read_columns(path)
    if image_column is not None or holds_bytes(columns.schema):
        return of_split(of_arrow(columns, path), str(path), take, image_column, label_column, preparation)
    found = examples_of_table(columns, str(path), take, label_column)
    if preparation is not None:
        check_prepared(found.shape, preparation)
    return found
