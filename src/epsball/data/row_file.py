"""Rows of one size that lie one behind the other in a file: those that are asked for are read, and nothing else.

They are read and not mapped into memory: pages of a map count as memory of the process for as long as there is room.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile
from zlib import crc32

import numpy as np
from jaxtyping import Shaped

from epsball.common.errors import BadInput
from epsball.common.limits import MIB

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""What a zip archive has before the name of a member: a mark, at the end the lengths of its name and extra field."""


@dataclass(frozen=True)
class RowFile:
    """An array of `shape` (n, *shape) in a file from `offset` on, in C order; `begin` and `crc` are of its member."""

    path: str
    offset: int
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    crc: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def end(self) -> int:
        """Where the array ends in the file."""
        return self.offset + self.shape[0] * self.row_bytes

    def rows(self, ids: Sequence[int]) -> Shaped[np.ndarray, "m *shape"]:
        """The rows with these numbers. Raises `BadInput` where the file is cut off."""
        found = np.empty((len(ids), *self.shape[1:]), self.dtype)
        if not found.size:
            return found
        with open(self.path, "rb") as file:
            for start, stop in _runs(ids):
                file.seek(self.offset + ids[start] * self.row_bytes)
                part = found[start:stop].data.cast("B")
                if file.readinto(part) != len(part):
                    raise BadInput(f"`data` must be a whole file, but {self.path!r} was cut off; copy it again")
        return found

    def check_whole(self) -> None:
        """Raise `BadInput` where the bytes of the array are not those that were written."""
        if self.crc is None:
            return
        found, left = 0, self.end - self.begin
        with open(self.path, "rb") as file:
            file.seek(self.begin)
            while left and (part := file.read(min(MIB, left))):
                found, left = crc32(part, found), left - len(part)
        if found != self.crc:
            raise BadInput(f"`data` must be a whole file, but {self.path!r} has a bad checksum (CRC); copy it again")

    def available(self) -> bool:
        """Whether the file is there, and long enough."""
        return os.path.isfile(self.path) and os.path.getsize(self.path) >= self.end


def _runs(ids: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where consecutive numbers begin and end."""
    breaks = np.flatnonzero(np.diff(ids) != 1) + 1
    edges = [0, *breaks.tolist(), len(ids)]
    yield from pairwise(edges)


def stored_array(path: Path, name: str) -> RowFile | None:
    """An array of a `.npz` file that was looked at by `check_arrays`; None where its rows are not simply in the file.

    That is so where it is compressed, in Fortran's order, or empty.
    """
    with ZipFile(path) as archive, open(path, "rb") as file:
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type != ZIP_STORED:
            return None
        file.seek(member.header_offset)
        _, of_name, of_extra = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
        begin = member.header_offset + LOCAL_HEADER.size + of_name + of_extra
        file.seek(begin)
        shape, fortran, dtype = _header(file)
        if fortran or len(shape) < 2 or 0 in shape:
            return None
        return RowFile(str(path), file.tell(), dtype.str, shape, begin, member.CRC)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    from numpy.lib import format

    version = format.read_magic(file)
    return (format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0)(file)
