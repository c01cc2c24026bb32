"""What the library `datasets` reads: parquet files, image folders, names on the Hugging Face Hub.

Images are read as bytes, decoded with Pillow into one uint8 array, and scaled by 1/255 to float32 in [0, 1]. What
a model wants done to them, its preparation, comes before that, image by image: they may be of mixed sizes then. What
holds no images is a table (`table_examples`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.limits import check_data_folder, check_file, check_pixels
from epsball.data.arrays import PIXEL, from_arrays
from epsball.data.examples import Examples
from epsball.data.labels import class_indices
from epsball.data.prepared import check_prepared
from epsball.data.sampling import Take
from epsball.models.preparation import Preparation

log = logging.getLogger(__name__)

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "y", "fine_label")
TABLES = (".csv", ".tsv", ".parquet", ".arrow")
"""The files that hold a table."""
SHOWN = 12
"""So many configurations are in an error."""
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "MPO")
"""The formats of images that are opened. Pillow knows others that start a program (EPS), or are rarely read safely."""


@dataclass(frozen=True)
class Source:
    """Which rows: a folder or a name on the Hub, its split, and its configuration where it has several."""

    spec: str
    split: str
    config: str | None = None


def read_images(
    source: Source,
    take: Take,
    image_column: str | None,
    label_column: str | None,
    preparation: Preparation | None = None,
) -> Examples:
    """The images of a split, as `load_data` describes them; only the rows that `take` takes are read."""
    datasets = hub_library()

    spec = source.spec
    _refuse_typo(spec)
    if Path(spec).is_dir():
        check_data_folder(spec)
    try:
        with _no_progress_bars():
            splits = datasets.load_dataset(spec, source.config)
    except Exception as error:  # whatever its readers, the Hub's client and the file system raise
        if isinstance(error, ValueError):
            _check_config(source)
        raise BadInput(f"{_expected(spec)}: {error}") from error
    data: Any = splits[check_one_of("split", source.split, map(str, splits))]
    return examples_of_split(data, spec, take, image_column, label_column, preparation)


def hub_library() -> Any:
    """The library `datasets`. Raises `BadInput` where a file of the user's, which Python finds first, hides it."""
    import datasets

    if not hasattr(datasets, "load_dataset"):
        raise BadInput(
            f"`data` needs the library datasets, which your own {getattr(datasets, '__file__', None) or 'datasets'} "
            "hides; rename it"
        )
    return datasets


def _check_config(source: Source) -> None:
    """Raise `BadInput` where a data set has several configurations, and `source` names none or another one."""
    datasets = hub_library()

    try:
        known = datasets.get_dataset_config_names(source.spec)
    except Exception:  # it cannot be read at all, which the caller says
        return
    if source.config is not None:
        check_one_of("config", source.config, known)
    elif len(known) > 1:
        raise BadInput(
            f"`config` must name one of the configurations of {source.spec!r}, {', '.join(known[:SHOWN])}"
            f"{', ...' if len(known) > SHOWN else ''}; on the command line --data-config {known[0]}"
        )


def examples_of_split(
    data: Any,
    name: str,
    take: Take,
    image_column: str | None = None,
    label_column: str | None = None,
    preparation: Preparation | None = None,
) -> Examples:
    """The images, or else the table, of a `datasets.Dataset`, as `load_data` describes them."""
    datasets = hub_library()

    features = data.features
    if image_column is None and not _image_columns(features):
        from epsball.data.table_examples import examples_of_table

        class_names = {column: kind.names for column, kind in features.items() if _is_classes(kind)}
        found = examples_of_table(data.with_format("arrow")[:], name, take, label_column, class_names)
        if preparation is not None:
            check_prepared(found.shape, preparation)
        return found
    image = _image_column(image_column, features)
    label = _label_column(label_column, features)
    try:
        with _no_progress_bars():
            images = data.select_columns(image).cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BadInput(
            f"`image_column` must hold images, got {image!r} of type {features[image]}; name another with "
            f"--image-column, of {', '.join(features)}"
        ) from error
    if len(data) == 0:
        raise BadInput(f"`data` must hold at least one example, but {name!r} is empty; take another split")
    from epsball.data.columns import targets

    column = data.select_columns(label).with_format("arrow")[:]
    y, names = class_indices(targets(column, label, "label_column"), label)
    names = getattr(features[label], "names", names)
    rows = take(y)
    if rows is not None:
        images, y = images.select(rows), y[rows]
    encoded = images.with_format("arrow")[:][image]
    pixels, changed = _decode(_sources(encoded), range(len(y)) if rows is None else rows, name, preparation)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    x = x.to(torch.float32, memory_format=torch.contiguous_format).div_(PIXEL)
    if changed:
        log.info("%d of %d images of %s were prepared for the model: %s", changed, len(x), name, preparation)
        name = f"{name} ({preparation})"
    examples = from_arrays(x, y, ids=rows, lo=0, hi=1, name=name, label_names=names)
    return replace(examples, scale=PIXEL)


def _image_column(name: str | None, features: Any) -> str:
    return _column("image_column", name, _image_columns(features), IMAGE_NAMES, features)


def _image_columns(features: Any) -> list[str]:
    datasets = hub_library()

    found = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    return found or [
        column for column, kind in features.items()
        if (isinstance(kind, dict) and "bytes" in kind) or (column in IMAGE_NAMES and _may_be_image(kind))
    ]  # fmt: skip


def _may_be_image(kind: Any) -> bool:
    """Whether a column of a usual name may hold images: bytes or paths, but not numbers or arrays."""
    return getattr(kind, "dtype", None) in ("binary", "large_binary", "string", "large_string")


def _is_classes(kind: Any) -> bool:
    datasets = hub_library()

    return isinstance(kind, datasets.ClassLabel)


def _label_column(name: str | None, features: Any) -> str:
    found = [column for column, kind in features.items() if _is_classes(kind)]
    usual = [(column, str(getattr(features.get(column), "dtype", ""))) for column in LABEL_NAMES]
    found = found or [column for column, kind in usual if "int" in kind or "string" in kind]
    return _column("label_column", name, found, LABEL_NAMES, features)


def _column(
    argument: str, name: str | None, found: Sequence[str], usual: Sequence[str], features: Iterable[str]
) -> str:
    """The column that the user named, or the only one found, or the only one with a usual name."""
    if name is not None:
        return check_one_of(argument, name, features)
    for columns in (found, [column for column in found if column in usual]):
        if len(columns) == 1:
            return columns[0]
    what = f"is one of {', '.join(found)}" if found else "was not found"
    raise BadInput(
        f"`{argument}` {what} among the columns {', '.join(features)}; name it with --{argument.replace('_', '-')}"
    )


def _sources(column: Any) -> Iterator[Any]:
    """What Pillow can open, per row of an arrow column of {bytes, path}."""
    for chunk in column.chunks:
        for raw, path in zip(chunk.field("bytes"), chunk.field("path"), strict=True):
            yield BytesIO(raw.as_buffer()) if raw.is_valid else path.as_py()


def _decode(
    sources: Iterable[Any], rows: Sequence[int] | np.ndarray, spec: str, preparation: Preparation | None
) -> tuple[np.ndarray, int]:
    """The images of the rows of that number as one uint8 array (n, H, W, C), and how many the preparation changed."""
    images: Any = None
    changed = 0
    for place, (row, source) in enumerate(zip(rows, sources, strict=True)):
        try:
            pixels, differs = _pixels(source, preparation)
        except Exception as error:  # broken files raise whatever the decoder stumbles over
            raise BadInput(f"`data` must hold images that Pillow reads, but row {row} of {spec!r}: {error}") from error
        changed += differs
        if place == 0:
            images = _empty(len(rows), pixels.shape)
        if pixels.shape[:2] != images.shape[1:3]:
            raise BadInput(
                f"`data` must hold images of one size, but of {spec!r} row {rows[0]} is "
                f"{images.shape[1]}x{images.shape[2]} and row {row} {pixels.shape[0]}x{pixels.shape[1]} (HxW); resize "
                "them first"
            )
        if pixels.shape[2] > images.shape[3]:
            images = np.repeat(images, 3, axis=3)  # the rows before were all grey
        images[place] = pixels
    return images, changed


def _empty(count: int, shape: tuple[int, ...]) -> np.ndarray:
    try:
        return np.empty((count, *shape), np.uint8)
    except (MemoryError, ValueError) as error:
        raise BadInput(
            f"`data` must fit into memory, but {count:,} images of {shape[0]}x{shape[1]} do not; take fewer, or resize"
        ) from error


def _pixels(source: Any, preparation: Preparation | None) -> tuple[np.ndarray, bool]:
    """One image, prepared, as uint8 (H, W, C), C = 1 for a grey one, else 3; and whether the preparation changed it."""
    from PIL import Image, ImageOps

    if isinstance(source, str):
        check_file(source)
    with Image.open(source, formats=FORMATS) as image:
        check_pixels(*image.size)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"its pixels are {image.mode}, not 8 bits; save it as 8 bits")
        if image.mode == "P":
            image = image.convert("RGBA")
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        ready = image if preparation is None else preparation.applied(image)
        pixels = np.asarray(ready)
    return (pixels if pixels.ndim == 3 else pixels[:, :, None]), ready is not image


def _refuse_typo(spec: str) -> None:
    """Refuse at once what cannot be a name on the Hub: without a network, asking the Hub takes half a minute."""
    path = Path(spec)
    local = spec.startswith((".", "/", "~")) or spec.count("/") > 1 or path.suffix in (".npz", *TABLES)
    if (path.exists() and not path.is_dir()) or (not path.exists() and (local or _similar_names(spec) == ["digits"])):
        raise BadInput(_expected(spec))


def _similar_names(spec: str) -> list[str]:
    path = Path(spec)
    siblings = [str(path.parent / entry.name) for entry in path.parent.glob("*")]
    return get_close_matches(spec, ["digits", *siblings], n=1, cutoff=0.75)


def _expected(spec: str) -> str:
    message = (
        f"`data` must be digits, a .npz, {', '.join(TABLES[:-1])} or {TABLES[-1]} file, a folder of parquet files or "
        f"images, or a name on the Hugging Face Hub, got {spec!r}"
    )
    if Path(spec).exists():
        return message
    missing = ", which is not there" if Path(spec).suffix else ""
    return message + missing + "".join(f"; did you mean {name!r}?" for name in _similar_names(spec))


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without the progress bars of `datasets`; on leaving they are as they were."""
    datasets = hub_library()

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
