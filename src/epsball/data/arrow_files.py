"""Tables in arrow's own format: a stream of messages, or a file, which is such a stream between two marks.

A message says which of its buffers are compressed, and to how much each unpacks; that is looked at before anything is
unpacked. Source: https://arrow.apache.org/docs/format/Columnar.html (IPC), `Message.fbs`, and flatbuffers' layout of
tables: a table begins with the distance back to its vtable, which has the place of each field, 0 where it is absent.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from epsball.common.errors import BadInput
from epsball.common.limits import check_file, check_unpacked

MARK = b"ARROW1\0\0"
"""What a file begins with, and a stream does not."""
DICTIONARY, ROWS = 2, 3
"""The kinds of messages that hold buffers."""


def read_arrow(path: Path) -> pa.Table:
    """The table in an `.arrow` file, or stream, mapped into memory. Raises `BadInput` where it unpacks to too much."""
    size = check_file(path)
    with pa.memory_map(str(path)) as file:
        begin = 0 if is_stream(path) else len(MARK)
        file.seek(begin)
        check_unpacked(path, sum(_claims(file)), size)
        file.seek(begin)
        with pyarrow.ipc.open_stream(file) as stream:
            return stream.read_all()


def is_stream(path: Path) -> bool:
    """Whether it is a stream, and not a file."""
    with open(path, "rb") as file:
        return file.read(len(MARK)) != MARK


def _claims(file: pa.NativeFile) -> Iterator[int]:
    """To how many bytes the compressed buffers of each message unpack, as it says."""
    reader = pyarrow.ipc.MessageReader.open_stream(file)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        try:
            yield _claim(memoryview(message.metadata), memoryview(message.body or b""))
        except (struct.error, IndexError) as error:
            raise BadInput(f"a message must be in arrow's format, but it is not: {error}") from error


def _claim(metadata: memoryview, body: memoryview) -> int:
    (root,) = struct.unpack_from("<I", metadata)
    kind = _field(metadata, root, 1)
    header = _field(metadata, root, 2)
    if not kind or not header or metadata[kind] not in (DICTIONARY, ROWS):
        return 0
    batch = _target(metadata, header)
    if metadata[kind] == DICTIONARY:
        data = _field(metadata, batch, 1)
        if not data:
            return 0
        batch = _target(metadata, data)
    buffers = _field(metadata, batch, 2)
    if not buffers or not _field(metadata, batch, 3):
        return 0
    vector = _target(metadata, buffers)
    (count,) = struct.unpack_from("<I", metadata, vector)
    claimed = 0
    for place in range(count):
        start, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * place)
        if length > 0:
            (unpacked,) = struct.unpack_from("<q", body, start)
            claimed += max(unpacked, 0)  # -1: it is not compressed
    return claimed


def _field(metadata: memoryview, table: int, number: int) -> int:
    """Where a field of a table is, or 0 where it has none."""
    (back,) = struct.unpack_from("<i", metadata, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", metadata, vtable)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)
    return table + offset if offset else 0


def _target(metadata: memoryview, place: int) -> int:
    """What the reference at a place points to."""
    return place + struct.unpack_from("<I", metadata, place)[0]
