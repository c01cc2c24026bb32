"""What is read of a file: regular files, up to sizes, depths and pixels that are checked before anything is unpacked.

A file may come from somebody else. A pipe in its place waits for ever, a device has no end, and a few kilobytes can
claim to hold gigabytes. Every reader asks here first, and every refusal is a `BadInput` of one sentence.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterable
from json import loads
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from epsball.common.errors import BadInput

MIB = 1 << 20
MOST_TEXT = 16 * MIB
"""Bytes of a JSON file."""
MOST_CONFIG = MIB
"""Bytes of a TOML file."""
MOST_DEPTH = 64
"""Levels of JSON, and parts of a dotted key of TOML."""
MOST_PARTS = 1_000_000
"""Lists and objects in a JSON text."""
MOST_PIXELS = 16_000_000
"""Pixels of an image."""
FREE = 64 * MIB
"""An archive may unpack to so many bytes, however small it is."""
RATIO = 100
"""Beyond `FREE`, an archive may unpack to so many times its own size."""
MOST_MEMBERS = 100_000
"""Files in an archive, and entries that are looked at in a folder of data."""
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def check_file(path: str | Path, most: int | None = None, *, remedy: str = "name a file on disk") -> int:
    """The size in bytes of a regular file. Raises `BadInput` for a pipe, a device, a folder, and for more than `most`.

    Where there is nothing it raises `FileNotFoundError`, whose remedy the caller knows.

    >>> check_file("/dev/zero")
    Traceback (most recent call last):
    epsball.common.errors.BadInput: /dev/zero must be a regular file, got a device; name a file on disk
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise BadInput(f"{path} must be a regular file, got {kind}; {remedy}")
    if most is not None and found.st_size > most:
        raise BadInput(f"{path} must have at most {_mib(most)}, got {_mib(found.st_size)}; {remedy}")
    return found.st_size


def read_bytes(path: str | Path, most: int = MOST_TEXT, *, remedy: str = "name a file on disk") -> bytes:
    """The whole of a regular file of at most `most` bytes."""
    check_file(path, most, remedy=remedy)
    with open(path, "rb") as file:
        found = file.read(most + 1)
    if len(found) > most:  # such as a file under /proc, whose size is said to be 0
        raise BadInput(f"{path} must have at most {_mib(most)}, got more; {remedy}")
    return found


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says. Raises `ValueError` for what is none, too deep, or of too many parts.

    >>> parse_json("[" * 1000 + "]" * 1000)
    Traceback (most recent call last):
    epsball.common.errors.BadInput: JSON must be at most 64 levels deep, got more
    """
    parts = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if parts > MOST_PARTS:
        raise BadInput(f"JSON must have at most {MOST_PARTS:,} lists and objects, got more")
    deep = BadInput(f"JSON must be at most {MOST_DEPTH} levels deep, got more")
    try:
        found = loads(text)
    except RecursionError:
        raise deep from None
    level, depth = [found], 0
    while level:
        depth += 1
        level = [
            part
            for whole in level
            for part in (whole.values() if isinstance(whole, dict) else whole if isinstance(whole, list) else ())
            if isinstance(part, dict | list)
        ]
        if depth > MOST_DEPTH:
            raise deep
    return found


STRING = r"'''.*?'''|\"\"\".*?\"\"\"|\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'"
DOTTED = re.compile(rf"(?<![\w-])[\w-]++(?:[ \t]*+\.[ \t]*+[\w-]++){{{MOST_DEPTH},}}")


def check_toml(text: str) -> None:
    """Raise `BadInput` where a key of a TOML text has too many parts: their cost grows with the square.

    >>> check_toml("a." * 100 + "a = 1")
    Traceback (most recent call last):
    epsball.common.errors.BadInput: TOML must have keys of at most 64 parts, got more
    """
    if DOTTED.search(re.sub(STRING, "text", text, flags=re.DOTALL)):
        raise BadInput(f"TOML must have keys of at most {MOST_DEPTH} parts, got more")


def check_archive(path: str | Path, file: ZipFile | None = None) -> list[ZipInfo]:
    """The members of a zip archive. Raises `BadInput` where they claim to unpack to far more than the archive has.

    Raises `BadZipFile` where it is no archive.
    """
    size = check_file(path)
    if file is None:
        with ZipFile(path) as file:
            return check_archive(path, file)
    members = file.infolist()
    if len(members) > MOST_MEMBERS:
        raise BadInput(f"{path} must hold at most {MOST_MEMBERS:,} files, got {len(members):,}; split it")
    for member in members:
        if member.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or member.flag_bits & 1:
            raise BadInput(f"{path} must be an archive without encryption, stored or deflated; write it again")
    check_unpacked(path, sum(member.file_size for member in members), size)
    return members


def check_unpacked(path: str | Path, claimed: int, size: int) -> None:
    """Raise `BadInput` where a file of `size` bytes claims to unpack to far more."""
    if claimed > max(FREE, RATIO * size):
        raise BadInput(
            f"{path} must unpack to at most {RATIO} times its size, got {_mib(size)} that claim to hold "
            f"{_mib(claimed)}; write it without compression"
        )


def check_arrays(path: str | Path, file: ZipFile | None = None) -> list[ZipInfo]:
    """The members of an archive (`.npz`, `.skops`). Raises `BadInput` unless its arrays are plain, and whole."""
    if file is None:
        check_file(path)
        with ZipFile(path) as file:
            return check_arrays(path, file)
    members = check_archive(path, file)
    for member in members:
        if member.filename.endswith(".npy"):
            try:
                with file.open(member) as stream:
                    claimed = _header(stream)
            except (ValueError, EOFError, OSError, struct.error) as error:
                raise BadInput(f"{path} must hold plain arrays, but {member.filename}: {error}") from error
            if claimed != member.file_size:
                raise BadInput(
                    f"{path} must hold whole arrays, but {member.filename} has {member.file_size:,} bytes of "
                    f"{claimed:,}; write it again"
                )
    return members


def _header(stream: IO[bytes]) -> int:
    """The bytes that an array in numpy's format has, by its header."""
    from numpy.lib import format

    version = format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise BadInput(f"its format is {version}")
    read = format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise BadInput("it holds objects, which only a pickle can")
    count = 1
    for side in shape:
        if side < 0:
            raise BadInput(f"its shape is {shape}")
        count *= side
    return stream.tell() + count * dtype.itemsize


def check_pixels(width: int, height: int) -> None:
    """Raise `BadInput` for an image of too many pixels, by its header.

    >>> check_pixels(13000, 13000)
    Traceback (most recent call last):
    epsball.common.errors.BadInput: an image must have at most 16 million pixels, got 13000x13000; shrink it
    """
    if width * height > MOST_PIXELS:
        raise BadInput(
            f"an image must have at most {MOST_PIXELS // 1_000_000} million pixels, got {width}x{height}; shrink it"
        )


def check_data_folder(path: str | Path) -> None:
    """Raise `BadInput` where a folder of data holds a pipe or a device, also in its subfolders."""
    for folder, _, names in os.walk(path):
        for entry in (Path(folder, name) for name in names):
            if entry.exists():  # else a link to nowhere, which is not followed
                check_file(entry, remedy="leave it out")


def check_columns(path: str | Path, metadata: Any) -> None:
    """Raise `BadInput` where the metadata of a parquet file claim to unpack to far more than the file has."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns: Iterable[Any] = (group.column(place) for group in groups for place in range(group.num_columns))
    claimed = 0
    for column in columns:
        width = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT96": 12}.get(column.physical_type, 8)
        claimed += max(column.total_uncompressed_size, column.num_values * width)
    check_unpacked(path, claimed, check_file(path))


def _mib(size: int) -> str:
    return f"{size:,} bytes" if size < MIB else f"{size / MIB:,.0f} MiB"
