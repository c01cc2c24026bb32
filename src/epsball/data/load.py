"""`load_data`: the examples that a user names."""

from __future__ import annotations

from pathlib import Path

from epsball.common.errors import BadInput
from epsball.data.arrays import read_npz
from epsball.data.digits import read_digits
from epsball.data.examples import Examples
from epsball.data.image_datasets import read_images


def load_data(
    spec: str | Path,
    *,
    split: str = "test",
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Examples:
    """The examples that `spec` names, in their order; `limit` >= 1 takes the first rows only.

    - "digits": scikit-learn's 8x8 digits, (1, 8, 8), scaled by 1/16 to [0, 1]. "test" is the last 20 % of its rows,
      "train" the rest; ids are row numbers of `load_digits`.
    - a `.npz` file with arrays `x` and `y`, as `from_arrays` takes them. It has no splits: `split` is ignored.
    - a folder of parquet files or of images, or the name of a data set on the Hugging Face Hub, as
      `datasets.load_dataset` reads them: float32 images (C, H, W) in [0, 1], C = 1 where all are grey, else 3; alpha
      is dropped. `image_column` and `label_column` name the columns where the features do not.

    Raises `BadInput` for data that are not found, splits and columns that are not there, and images that are broken or
    of mixed sizes.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"`limit` must be >= 1, got {limit}; leave it out for all rows")
    path = Path(spec).expanduser()
    if str(spec) == "digits":
        return read_digits(split).rows(slice(limit))
    if path.suffix == ".npz" and path.exists():
        return read_npz(path).rows(slice(limit))
    return read_images(str(path if path.exists() else spec), split, limit, image_column, label_column)
