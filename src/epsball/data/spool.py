"""What can only be iterated over is written into a folder once, and read from there as often as it is asked for.

Rows of `datasets` are kept in an arrow file, images by their encoded bytes; those of torch as the bytes of their
numbers, one row behind the other. `spool.json` is written last: without it, what is there was cut off, and is written
again.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from epsball.common.errors import BadInput
from epsball.common.json_files import read_json, write_json
from epsball.data.arrays import inputs_of
from epsball.data.examples import Examples
from epsball.data.image_datasets import hub_library, image_columns, of_arrow, of_split
from epsball.data.known_labels import KnownLabels
from epsball.data.lazy_arrays import lazy_arrays
from epsball.data.lazy_examples import LazyExamples, digest, label_reason
from epsball.data.pairs import class_names, input_and_label, is_batch, pair_of
from epsball.data.row_file import RowFile
from epsball.models.preparation import Preparation

log = logging.getLogger(__name__)

FOLDER = "spool"
"""Where the rows are, in the folder that the caller names."""
CARD, ARROW, INPUTS, CLASSES = "spool.json", "rows.arrow", "inputs.bin", "labels.bin"
"""The files in it: what is there, and the rows."""
AGAIN = "choose a new directory"


def is_stream(data: Any) -> bool:
    """Whether it can only be iterated over: it has no length, and no rows by number."""
    dataset = data.dataset if isinstance(data, DataLoader) else data
    return of_hub(data) or isinstance(dataset, IterableDataset) or (
        isinstance(dataset, Dataset) and not hasattr(dataset, "__len__")
    )  # fmt: skip


def of_hub(data: Any) -> bool:
    """Whether it is an `IterableDataset` of the library `datasets`."""
    library = sys.modules.get("datasets")
    return library is not None and isinstance(data, getattr(library, "IterableDataset", ()))


def spooled(data: Any, directory: Path, preparation: Preparation | None = None) -> Examples | LazyExamples:
    """The rows of a stream, from a folder in `directory`, where they are written unless they are there.

    They take the disk space of the rows, and must come to an end; a table is read into memory. Raises `BadInput` where
    the folder holds the rows of another stream: its kind, or its first row, is another one.
    """
    folder = Path(directory) / FOLDER
    name = type(data.dataset if isinstance(data, DataLoader) else data).__name__
    rows = _hub_rows(data) if of_hub(data) else _rows(data)
    first = digest(*_parts(next(iter(rows), None)))
    card = read_json(folder / CARD, AGAIN) if (folder / CARD).exists() else None
    if card is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log.info("the rows of %s are written to %s, once", name, folder)
        card = _write_arrow(data, folder) if of_hub(data) else _write_arrays(data, folder)
        card |= {"name": name, "first": first}
        write_json(folder / CARD, card)
    elif (card.get("name"), card.get("first")) != (name, first):
        raise BadInput(
            f"`data` must be the stream whose rows are in {folder}, but it begins with another row, or is of another "
            f"kind; {AGAIN}, and take a stream that has the same order each time"
        )
    if of_hub(data):
        from epsball.data.tables import read_columns

        path = folder / ARROW
        return of_split(of_arrow(read_columns(path), path), name, lambda y: None, preparation=preparation)
    return _read_arrays(folder, card, name, class_names(data.dataset if isinstance(data, DataLoader) else data))


def _parts(row: Any) -> Iterator[Any]:
    """What tells a first row from another one."""
    if isinstance(row, dict):
        yield from (part for name, value in sorted(row.items()) for part in (name, value))
        return
    try:
        yield from input_and_label(row, "a row")
    except BadInput as error:
        yield error


# Rows of `datasets`


def _hub_rows(data: Any) -> Iterator[dict[str, Any]]:
    """The rows, images by their bytes."""
    library = hub_library()
    for column in image_columns(_features(data)):
        if data.features is not None:
            data = data.cast_column(column, library.Image(decode=False))
    try:
        yield from data
    except Exception as error:  # whatever a stream raises
        raise BadInput(f"`data` must give its rows, but it raises {type(error).__name__}: {error}") from error


def _features(data: Any) -> Any:
    return data.features or hub_library().Dataset.from_list(list(islice(data, 8))).features


def _write_arrow(data: Any, folder: Path) -> dict[str, Any]:
    from datasets.arrow_writer import ArrowWriter

    count = 0
    with ArrowWriter(features=_features(data), path=str(folder / ARROW)) as writer:
        for row in _hub_rows(data):
            writer.write(row)
            count += 1
        _check_some(count)
        writer.finalize()
    return {"rows": count}


def _check_some(count: int) -> None:
    if not count:
        raise BadInput("`data` must hold at least one example, got an empty stream; look at its source")


# Rows of torch


def _rows(data: Any) -> Iterator[Any]:
    """The rows, also of a loader that puts them together."""
    count = 0
    try:
        with torch.random.fork_rng(devices=[]):
            iterator = iter(data)  # a loader draws a seed for its workers
        for one in iterator:
            if isinstance(data, DataLoader) and (data.batch_size is not None or is_batch(one)):
                x, y = pair_of(one, "a batch of the DataLoader")
                yield from zip(x, y, strict=True)
            else:
                yield one
            count += 1
    except BadInput:
        raise
    except Exception as error:  # whatever a stream raises
        what = "batches" if isinstance(data, DataLoader) else "rows"
        raise BadInput(
            f"`data` must give its rows, but after {count} {what} it raises {type(error).__name__}: {error}"
        ) from error


def _write_arrays(data: Any, folder: Path) -> dict[str, Any]:
    """The inputs and labels as their bytes. Rows that cannot be used are zeros, with the label -1 and the reason."""
    form: tuple[tuple[int, ...], str] | None = None
    empty, y, bad, crc = b"", [], {}, 0
    with open(folder / INPUTS, "wb") as file:
        for number, row in enumerate(_rows(data)):
            raw = empty
            try:
                x, label = _checked(row)
                if form is None:
                    form, empty = (x.shape, x.dtype.str), bytes(x.nbytes)
                    crc = crc32(empty * number)
                    file.write(empty * number)
                if (x.shape, x.dtype.str) != form:
                    wanted = f"{np.dtype(form[1])} {form[0]}"
                    raise BadInput(f"it is {x.dtype} {x.shape}, and not {wanted} as the others")
                raw = x.tobytes()
            except BadInput as error:
                label, bad[str(number)] = -1, str(error)
            if label < 0:
                bad.setdefault(str(number), label_reason(label, 0))
            y.append(max(label, -1))
            crc = crc32(raw, crc)
            file.write(raw)
    _check_some(len(y))
    if form is None:
        raise BadInput(f"`data` must hold rows that can be used, but none could; row 0: {bad['0']}")
    np.asarray(y, "<i8").tofile(folder / CLASSES)
    return {"rows": len(y), "shape": form[0], "dtype": form[1], "crc": crc, "bad": bad}


def _checked(row: Any) -> tuple[np.ndarray, int]:
    x, label = input_and_label(row, "a row")
    inputs_of(x[None])
    x = x.float() if x.dtype == torch.bfloat16 else x  # which numpy has not
    return x.cpu().numpy(), label


def _read_arrays(folder: Path, card: dict[str, Any], name: str, names: tuple[str, ...] | None) -> LazyExamples:
    try:
        shape = tuple(int(side) for side in (card["rows"], *card["shape"]))
        file = RowFile(str(folder / INPUTS), 0, np.dtype(str(card["dtype"])).str, shape, 0, int(card["crc"]))
        y = np.fromfile(folder / CLASSES, "<i8")
        bad = {int(row): str(reason) for row, reason in card["bad"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise BadInput(f"{folder} is not a whole spool ({error}); {AGAIN}") from error
    if min(shape) < 1 or not file.available() or len(y) != shape[0] or bool((y < 0).sum() > len(bad)):
        raise BadInput(f"{folder} is not a whole spool; {AGAIN}")
    names = names if names is not None and y.max() < len(names) else None
    return lazy_arrays(file, KnownLabels(y, names, bad), name)
