"""The run directory: what is finished is on disk, whole, and a later process resumes the run.

`config.json` says what the run is made of, `ball.safetensors` holds the ball's tensors where it has any;
`stages/SHARD-STAGE.parquet` holds one attack at one radius on one shard, with the adversarial examples and the examples
they came from; `records/SHARD.parquet` one row per example, written after the shard's last stage. So every result can
be recomputed from the files alone. Every file is written beside its place, synced, and renamed, and has a checksum. The
adversarial examples load with `datasets`, as images where they are 8-bit images (`image_columns.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from epsball.common.atomic_files import write_whole
from epsball.common.checksums import UNSIGNED, check_signed, sign
from epsball.common.errors import BadInput
from epsball.common.json_files import read_json, write_json
from epsball.common.limits import check_columns, check_file, parse_json
from epsball.evaluation.image_columns import FILES, image_column, image_features, images, is_image
from epsball.evaluation.run_lock import RunLock
from epsball.evaluation.run_tables import check_config

FREE = {
    "batch_size", "batch_size_found", "on_bad", "workers", "gpus_per_worker", "ray", "machine", "binarization_test",
    "diagnose", "convergence", "accelerate", "compile",
}  # fmt: skip
"""Parts of the configuration that may differ in a resumed run: they change no record ("acceleration" does)."""


class RunDir:
    """A directory locked by this process until it is closed; `config` is what the run was started with.

    Raises `BadInput` where it holds another run (naming the field that differs), something else than a run, or is in
    use by another process (naming it).
    """

    def __init__(self, path: str | Path, config: dict[str, Any]) -> None:
        self.path = Path(path)
        self.config = config
        known = self.path / "config.json"
        if not known.exists() and self.path.exists() and any(self.path.glob("*.parquet")):
            raise BadInput(f"`run_dir` must be a run's directory or a new one, got {self.path}; choose another name")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = RunLock(self.path)
        try:
            if known.exists():
                self.config = read_config(self.path)
                self._check_same(config)
            else:
                write_json(known, _texts(config))
        except BaseException:
            self.close()
            raise

    def _check_same(self, config: dict[str, Any]) -> None:
        before = self.config
        for name in sorted((set(before) | set(config)) - FREE):
            if before.get(name) != config.get(name):
                where, there, here = _differs(name, before.get(name), config.get(name))
                raise BadInput(
                    f"`run_dir` {self.path} holds a run with another `{name}`: {where} is {_short(there)} there, "
                    f"{_short(here)} here; resume with the same arguments, or choose a new directory"
                )

    def close(self) -> None:
        """Let other processes have the directory."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    @property
    def ball(self) -> Path:
        """The file of the ball's tensors."""
        return self.path / "ball.safetensors"


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in a directory. In the file infinity is text; radii are numbers here."""
    config = read_json(path / "config.json", "restore it, or make the run again in a new directory")
    try:
        config["radii"] = [_radius(radius) for radius in config["radii"]]
        config["stages"] = [stage | {"eps": _radius(stage["eps"])} for stage in config["stages"]]
        check_config(config)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInput(
            f"`run_dir` {path} holds a config.json that is not a run's ({error}); choose a new directory"
        ) from error
    return config


def _radius(value: Any) -> float | None:
    return None if value is None else float(value)


def _texts(value: Any) -> Any:
    """As JSON can hold it: numbers that are not finite as text."""
    if isinstance(value, dict):
        return {name: _texts(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_texts(part) for part in value]
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def save(path: Path, table: pa.Table) -> None:
    """Write a table whole, with a checksum of the file."""

    def write(draft: Path) -> None:
        with pq.ParquetWriter(draft, table.schema, compression="zstd") as file:
            file.write_table(table)
            file.add_key_value_metadata({"checksum": UNSIGNED})
        sign(draft)

    write_whole(path, write)


def load(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, with the notes in its metadata, as plain lists also where `datasets` has registered its types.

    With `columns` those of them that it has are read, and the others stay on disk.

    Raises `BadInput` for a file that is missing, no table, or damaged.
    """
    try:
        check_file(path)
        check_signed(path)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            check_columns(path, file.metadata)
            known = file.schema_arrow.names
            table = file.read(None if columns is None else [name for name in columns if name in known])
        notes(table)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return plain(table)


def plain(table: pa.Table) -> pa.Table:
    """The table with plain lists where `datasets`, once it is imported, makes types of its own of what it reads."""
    for place, column in enumerate(table.columns):
        if isinstance(column.type, pa.BaseExtensionType):
            storage = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
            table = table.set_column(place, table.column_names[place], storage)
    return table


def with_notes(table: pa.Table, notes: dict[str, Any]) -> pa.Table:
    """The table with `notes` in its metadata."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), b"epsball": json.dumps(notes).encode()})


def notes(table: pa.Table | pa.Schema) -> dict[str, Any]:
    """The notes in the metadata of a table, or of its schema. Raises `ValueError` for what are none."""
    schema = table.schema if isinstance(table, pa.Table) else table
    found = parse_json((schema.metadata or {}).get(b"epsball", b"{}"))
    if not isinstance(found, dict):
        raise BadInput(f"its notes are {type(found).__name__} and not named values")
    return found


def stored(points: np.ndarray, valid: np.ndarray) -> pa.Array:
    """Points (m, *shape) as a column, null where there is none: images in 8 bits as PNG files, else nested lists."""
    return image_column(points, valid) if is_image(points) else nested(points, valid)


def read_notes(path: Path) -> dict[str, Any]:
    """The notes in a table's file, by its end alone: the columns are not read, nor is the checksum looked at.

    Raises `BadInput` for a file that is missing, or no table.
    """
    try:
        check_file(path)
        return notes(pq.read_schema(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> BadInput:
    why = str(error).partition("\n")[0]
    return BadInput(
        f"{path} is missing or damaged ({why}); delete it and start the run again: only what it held is repeated"
    )


def nested(points: np.ndarray, valid: np.ndarray) -> pa.Array:
    """Rows (m, *shape) as a column of nested lists, in the m places that are `valid` (n,), null in the others."""
    shape = points.shape[1:]
    column: pa.Array = pa.array(np.ascontiguousarray(points).reshape(-1))
    for size in reversed(shape[1:]):
        column = pa.ListArray.from_arrays(pa.array(np.arange(0, len(column) + 1, size, dtype=np.int32)), column)
    if not shape:
        return column.take(pa.array(np.cumsum(valid) - 1, mask=~valid))
    ends = np.concatenate([[0], np.cumsum(valid) * shape[0]]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends, mask=np.concatenate([~valid, [False]])), column)


def points(column: pa.ChunkedArray | pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    """The valid rows of a column as an array (m, *shape). Raises `BadInput` for rows of another shape."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    column = column.drop_null()
    rows = len(column)
    if column.type == FILES:
        return images(column, shape)
    while pa.types.is_list(column.type):
        column = column.flatten()
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise BadInput(f"a run must hold points of numbers, or as PNG files, got {column.type}; restore its files")
    numbers = column.to_numpy(zero_copy_only=False)
    if not rows:
        return numbers.reshape(0, *(max(side, 0) for side in shape))
    try:
        return numbers.reshape(rows, *shape)
    except ValueError as error:
        raise BadInput(f"a run must hold points of shape {shape}, got {numbers.size} numbers in {rows}") from error


def table(columns: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None) -> pa.Table:
    """A table; to `datasets` a column of PNG files is images, one of nested lists an array of its shape in `shapes`."""
    built = pa.table(columns)
    built = built.replace_schema_metadata(image_features([field.name for field in built.schema if field.type == FILES]))
    for name, shape in (shapes or {}).items():
        if len(shape) < 2 or built[name].type == FILES:
            continue
        place = built.column_names.index(name)
        inner = built.schema.field(place).type
        while pa.types.is_list(inner):
            inner = inner.value_type
        kind = {"float": "float32", "double": "float64", "uint8": "uint8"}[str(inner)]
        known = {
            b"ARROW:extension:name": f"datasets.features.features.Array{len(shape)}DExtensionType".encode(),
            b"ARROW:extension:metadata": json.dumps([list(shape), kind]).encode(),
        }
        built = built.set_column(place, pa.field(name, built.schema.field(place).type, metadata=known), built[name])
    return built


def _differs(where: str, there: Any, here: Any) -> tuple[str, Any, Any]:
    """The first leaf at which two configurations differ: its place and both values."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = [(f"{where}.{key}", there.get(key), here.get(key)) for key in {**there, **here}]
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [(f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(there, here, strict=True))]
    else:
        return where, there, here
    return next((_differs(*pair) for pair in pairs if pair[1] != pair[2]), (where, there, here))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
