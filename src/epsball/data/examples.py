"""What a user hands over becomes examples with ids: arrays, .npz files, image folders, parquet, Hub names, digits.

An example's id is its row number in the unshuffled, unfiltered data; it keys the random numbers. Images are read as
bytes and decoded with Pillow into one uint8 array, then scaled by 1/255 to float32 in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.data.labels import labels

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "y", "fine_label")


@dataclass(frozen=True, eq=False)
class Examples:
    """Labelled examples: `x` (n, *shape) in the box [lo, hi], `y` (n,) in 0..classes-1, `ids` (n,) row numbers.

    The ends of the box are infinite where it is not known. `label_names` has `classes` entries, or is None.
    """

    x: Float[Tensor, "n *shape"]
    y: Int64[Tensor, " n"]
    ids: Int64[Tensor, " n"]
    lo: float
    hi: float
    classes: int
    name: str
    label_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.x.shape[1:])

    def rows(self, index: Tensor | slice) -> Examples:
        """Some of the examples; they keep their ids."""
        return replace(self, x=self.x[index], y=self.y[index], ids=self.ids[index])


def from_arrays(
    x: Any,
    y: Any,
    *,
    ids: Any = None,
    lo: float = -math.inf,
    hi: float = math.inf,
    classes: int | None = None,
    name: str = "arrays",
) -> Examples:
    """Examples from torch tensors, numpy arrays or lists: `x` (n, *shape), `y` (n,) whole numbers >= 0.

    Floating point `x` keeps its dtype and, where possible, its memory; uint8 becomes float32 / 255 in the box [0, 1].
    `ids` (n,) default to 0..n-1, `classes` to the greatest label + 1.

    Raises `BadInput` for other dtypes, lengths that differ, and values outside the box or not numbers.

    >>> data = from_arrays(np.array([[0, 255]], dtype=np.uint8), [3])
    >>> data.x, data.hi, data.classes
    (tensor([[0., 1.]]), 1.0, 4)
    """
    x = _tensor("x", x)
    if x.ndim == 0:
        raise BadInput("`x` must have a first dimension of examples, got a scalar; write x[None]")
    if x.dtype == torch.uint8:
        x, lo, hi = x.float().div_(255), max(lo, 0.0), min(hi, 1.0)
    if not x.is_floating_point():
        raise BadInput(f"`x` must be floating point, or uint8 images, got {x.dtype}; write x.astype('float32')")
    if x.numel():
        least, most = x.amin().item(), x.amax().item()
        low, high = torch.tensor([lo, hi], dtype=x.dtype).tolist()  # the box as x's dtype sees it
        if not (low <= least and most <= high):
            raise BadInput(
                f"`x` must be numbers in the box [{lo:g}, {hi:g}], got values from {least:g} to {most:g}; "
                "drop NaN, rescale x, or widen `lo` and `hi`"
            )
    y = labels("y", _tensor("y", y), x)
    rows = torch.arange(len(x), device=x.device) if ids is None else labels("ids", _tensor("ids", ids), x)
    found = int(y.max()) + 1 if len(y) else 0
    if classes is not None and classes < found:
        raise BadInput(f"`y` must be below the {classes} classes, got {found - 1}; number the classes from 0")
    return Examples(x=x, y=y, ids=rows, lo=float(lo), hi=float(hi), classes=classes or found, name=name)


def _tensor(name: str, value: Any) -> Tensor:
    try:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.require(value, requirements=["C", "W"]))
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"`{name}` must be a tensor, an array or a list of numbers of one length, got {type(value).__name__}: "
            f"{error}"
        ) from error


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
    - a `.npz` file with arrays `x` and `y`, as `from_arrays` takes them. It has no splits: `split` is not looked at.
    - a folder of parquet files or of images, or the name of a data set on the Hugging Face Hub, as
      `datasets.load_dataset` reads them: float32 images (C, H, W) in [0, 1], C = 1 where all are grey, else 3; alpha
      is dropped. `image_column` and `label_column` say where to look if the features do not.

    Raises `BadInput` for data that are not found, splits and columns that are not there, and images that are broken or
    of mixed sizes.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"`limit` must be >= 1, got {limit}; leave it out for all rows")
    path = Path(spec).expanduser()
    if str(spec) == "digits":
        data = _digits(split)
    elif path.suffix == ".npz" and path.is_file():
        data = _npz(path)
    else:
        return _from_hub(str(path if path.exists() else spec), split, limit, image_column, label_column)
    return data.rows(slice(limit))


def _digits(split: str) -> Examples:
    from sklearn.datasets import load_digits

    check_one_of("split", split, ("train", "test"))
    pixels, y = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels).float().div_(16).reshape(-1, 1, 8, 8)
    cut = len(x) * 4 // 5
    names = tuple(map(str, range(10)))
    every = replace(from_arrays(x, y, lo=0, hi=1, classes=10, name="digits"), label_names=names)
    return every.rows(slice(cut, None) if split == "test" else slice(cut))


def _npz(path: Path) -> Examples:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise BadInput(
            f"`data` must hold plain arrays `x` and `y`, but {str(path)!r} does not: {error}; write "
            "`numpy.savez(path, x=x, y=y)`"
        ) from error
    return from_arrays(x, y, name=str(path))


def _from_hub(spec: str, split: str, limit: int | None, image_column: str | None, label_column: str | None) -> Examples:
    import datasets

    _refuse_typo(spec)
    try:
        with _quiet():
            splits = datasets.load_dataset(spec)
    except Exception as error:  # whatever its readers, the Hub's client and the file system raise
        raise BadInput(f"{_expected(spec)}: {error}") from error
    data: Any = splits[check_one_of("split", split, map(str, splits))]
    features = data.features
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    images = images or [
        name for name, kind in features.items() if name in IMAGE_NAMES or (isinstance(kind, dict) and "bytes" in kind)
    ]
    image = _column("image_column", image_column, images, IMAGE_NAMES, features)
    named = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    named = named or [name for name in LABEL_NAMES if "int" in str(getattr(features.get(name), "dtype", ""))]
    label = _column("label_column", label_column, named, LABEL_NAMES, features)
    try:
        with _quiet():
            sources = data.select_columns(image).cast_column(image, datasets.Image(decode=False))
            sources = sources.with_format("arrow")[:limit][image]
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BadInput(
            f"`image_column` must hold images, got {image!r} of type {features[image]}; name another with "
            f"--image-column, of {', '.join(features)}"
        ) from error
    if len(sources) == 0:
        raise BadInput(f"`data` must hold at least one example, but split {split!r} of {spec!r} is empty")
    y = data.select_columns(label).with_format("arrow")[:limit][label].to_numpy()
    if y.dtype.kind not in "iu" or y.min() < 0:
        raise BadInput(
            f"`label_column` must hold a whole number >= 0 in every row, but {label!r} does not (-1 or nothing often "
            "means: not labelled); take another split, or name another with --label-column"
        )
    names = getattr(features[label], "names", None)
    x = torch.from_numpy(_decode(_sources(sources), len(sources), spec)).permute(0, 3, 1, 2)
    x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    data = from_arrays(x, y, lo=0, hi=1, classes=len(names) if names else None, name=spec)
    return replace(data, label_names=tuple(names) if names else None)


def _column(
    argument: str, asked: str | None, found: Sequence[str], usual: Sequence[str], features: Iterable[str]
) -> str:
    """The column that the user asked for, or the only one found, or the only one with a usual name."""
    if asked is not None:
        return check_one_of(argument, asked, features)
    for names in (found, [name for name in found if name in usual]):
        if len(names) == 1:
            return names[0]
    what = f"is one of {', '.join(found)}" if found else "was not found"
    raise BadInput(
        f"`{argument}` {what} among the columns {', '.join(features)}; name it with --{argument.replace('_', '-')}"
    )


def _sources(column: Any) -> Iterator[Any]:
    """What Pillow can open, per row of an arrow column of {bytes, path}."""
    for chunk in column.chunks:
        for raw, path in zip(chunk.field("bytes"), chunk.field("path"), strict=True):
            yield BytesIO(raw.as_buffer()) if raw.is_valid else path.as_py()


def _decode(sources: Iterable[Any], count: int, spec: str) -> np.ndarray:
    """The images as one uint8 array (count, H, W, C)."""
    from PIL import Image, ImageOps

    out: Any = None
    for row, source in enumerate(sources):
        try:
            with Image.open(source) as image:
                ImageOps.exif_transpose(image, in_place=True)
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"its pixels are {image.mode}, not 8 bits; save it as 8 bits")
                if image.mode == "P":
                    image = image.convert("RGBA")
                mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
                pixels: Any = np.asarray(image if image.mode == mode else image.convert(mode))
        except Exception as error:  # broken files raise whatever the decoder stumbles over
            raise BadInput(f"`data` must hold images that Pillow reads, but row {row} of {spec!r}: {error}") from error
        if row == 0:
            out = np.empty((count, *pixels.shape[:2], 1 if pixels.ndim == 2 else 3), np.uint8)
        if pixels.shape[:2] != out.shape[1:3]:
            raise BadInput(
                f"`data` must hold images of one size, but of {spec!r} row 0 is {out.shape[1]}x{out.shape[2]} and row "
                f"{row} {pixels.shape[0]}x{pixels.shape[1]} (HxW); resize them first"
            )
        if pixels.ndim == 3 and out.shape[3] == 1:
            out = np.repeat(out, 3, axis=3)  # grey ones came first
        out[row] = pixels if pixels.ndim == 3 else pixels[:, :, None]
    return out


def _refuse_typo(spec: str) -> None:
    """Refuse at once what can be no name on the Hub: without a network, asking it takes half a minute."""
    path = Path(spec)
    local = spec.startswith((".", "/", "~")) or spec.count("/") > 1 or path.suffix in (".npz", ".parquet", ".csv")
    if path.is_file() or (not path.exists() and (local or _near(spec) == ["digits"])):
        raise BadInput(_expected(spec))


def _near(spec: str) -> list[str]:
    path = Path(spec)
    beside = [str(path.parent / entry.name) for entry in path.parent.glob("*")]
    return get_close_matches(spec, ["digits", *beside], n=1, cutoff=0.75)


def _expected(spec: str) -> str:
    exists = Path(spec).exists()
    near, missing = [] if exists else _near(spec), "" if exists or not Path(spec).suffix else ", which is not there"
    return (
        "`data` must be digits, a .npz file, a folder of parquet files or images, or a name on the Hugging Face Hub, "
        f"got {spec!r}{missing}" + (f"; did you mean {near[0]!r}?" if near else "")
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of `datasets`; on leaving they are as they were."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
