"""What the library `datasets` reads: parquet files, image folders, tars, names on the Hugging Face Hub.

It maps arrow files into memory. The labels are read at once, the images when they are asked for (`lazy_images`). What
holds no images is a table (`table_examples`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.limits import check_data_folder
from epsball.data.arrow_images import ArrowImages
from epsball.data.examples import Examples
from epsball.data.known_labels import known_labels
from epsball.data.lazy_examples import digest
from epsball.data.lazy_images import LazyImages, lazy_images
from epsball.data.prepared import check_prepared
from epsball.data.sampling import Take
from epsball.models.preparation import Preparation

IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels", "y", "fine_label", "cls")
TABLES = (".csv", ".tsv", ".parquet", ".arrow")
"""The files that hold a table."""
SHOWN = 12
"""So many configurations are in an error."""


@dataclass(frozen=True)
class Source:
    """Which rows: a folder or a name on the Hub, its split, and its configuration where it has several."""

    spec: str
    split: str
    config: str | None = None


def read_split(source: Source) -> Any:
    """The `datasets.Dataset` that is a split of a folder, or of a name on the Hub."""
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
    return splits[check_one_of("split", source.split, map(str, splits))]


def read_files(kind: str, paths: Sequence[Path], name: str) -> Any:
    """The `datasets.Dataset` in files of one kind: "parquet", or "webdataset" for tars."""
    try:
        with _no_progress_bars():
            return hub_library().load_dataset(kind, data_files=[str(path) for path in paths], split="train")
    except Exception as error:  # whatever its readers raise
        why = " ".join(str(error.__cause__ or error).split())
        raise BadInput(f"`data` must be {kind} that datasets reads, but {name!r} is not: {why}") from error


def of_arrow(columns: Any, path: Path) -> Any:
    """The `datasets.Dataset` of a table in an `.arrow` file, which is mapped into memory."""
    from epsball.data.arrow_files import is_stream

    library = hub_library()
    if is_stream(path):  # what the library writes, and opens by its path in another process, too
        return library.Dataset.from_file(str(path))
    return library.Dataset(columns, fingerprint=digest(path.resolve(), path.stat().st_size))


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


def of_split(
    data: Any,
    name: str,
    take: Take,
    image_column: str | None = None,
    label_column: str | None = None,
    preparation: Preparation | None = None,
) -> Examples | LazyImages:
    """The images, or else the table, of a `datasets.Dataset`, as `load_data` describes them.

    Of images, only the labels are read, and those images that say what all of them look like.
    """
    features = data.features
    if image_column is None and not image_columns(features):
        from epsball.data.table_examples import examples_of_table

        class_names = {column: kind.names for column, kind in features.items() if _is_classes(kind)}
        found = examples_of_table(data.with_format("arrow")[:], name, take, label_column, class_names)
        if preparation is not None:
            check_prepared(found.shape, preparation)
        return found
    image = _image_column(image_column, features)
    label = _label_column(label_column, features)
    images = _encoded(data, image)
    if len(data) == 0:
        raise BadInput(f"`data` must hold at least one example, but {name!r} is empty; take another split")
    from epsball.data.columns import labels_of

    values, missing = labels_of(data.select_columns(label).with_format("arrow")[:], label)
    labels = known_labels(values, label, missing, getattr(features[label], "names", None))
    return lazy_images(ArrowImages(images, image), labels, name, take(labels.y), preparation)


def _encoded(data: Any, image: str) -> Any:
    """The column of the images alone, as their bytes."""
    datasets = hub_library()

    try:
        with _no_progress_bars():
            return data.select_columns(image).cast_column(image, datasets.Image(decode=False)).with_format("arrow")
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BadInput(
            f"`image_column` must hold images, got {image!r} of type {data.features[image]}; name another with "
            f"--image-column, of {', '.join(data.features)}"
        ) from error


def _image_column(name: str | None, features: Any) -> str:
    return _column("image_column", name, image_columns(features), IMAGE_NAMES, features)


def image_columns(features: Any) -> list[str]:
    """The columns that may hold images."""
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
