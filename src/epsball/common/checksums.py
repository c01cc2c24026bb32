"""A file that carries its own checksum: the SHA-256 of all its bytes, with zeros in the place of the 64 digits.

So a flipped bit is seen by whoever reads the file, with no second file beside it. It protects from accidents, and not
from people, who can compute a checksum too. A file without one was not written here, or by an earlier version.
"""

from __future__ import annotations

import hashlib
import re
from mmap import ACCESS_READ, mmap
from pathlib import Path

from epsball.common.errors import BadInput

MARK = b"file-sha256:"
UNSIGNED = f"{MARK.decode()}{'0' * 64}"
"""What a writer puts into the file, once, for `sign` to fill in."""
SIGNED = re.compile(re.escape(MARK) + rb"[0-9a-f]{64}")
TOUCHED = re.compile(rb"file-sha256:|file-.{7}[0-9a-f]{64}|sha256:[0-9a-f]{64}", re.DOTALL)
"""What one flipped bit leaves of `SIGNED`."""
WINDOW = 1 << 20
"""The checksum is in the first or the last bytes of a file."""


def sign(path: Path) -> None:
    """Put the checksum of a file in the place of `UNSIGNED` in it."""
    digest, place = _digest(path)
    if place < 0:
        raise ValueError(f"{path} has no place for a checksum")
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(digest)


def check_signed(path: Path) -> None:
    """Raise `BadInput` where a regular file has a checksum that is not its own."""
    digest, place = _digest(path)
    if place < 0:
        return
    with open(path, "rb") as file:
        file.seek(place)
        if file.read(64) != digest:
            raise BadInput("its checksum is not that of its bytes")


def _digest(path: Path) -> tuple[bytes, int]:
    """The checksum, and where its digits are in the file: -1 where there are none; `BadInput` for a part of it."""
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            return b"", -1
        with mmap(file.fileno(), 0, access=ACCESS_READ) as whole:
            start = max(0, len(whole) - WINDOW)
            first, last = whole[:WINDOW], whole[start:]
            found = [start + match.end() - 64 for match in SIGNED.finditer(last)]
            found = found or [match.end() - 64 for match in SIGNED.finditer(first)]
            if not found:
                if TOUCHED.search(last) or TOUCHED.search(first):
                    raise BadInput("its checksum is damaged")
                return b"", -1
            place = found[-1]
            digest = hashlib.sha256()
            with memoryview(whole) as view:
                for part in (view[:place], b"0" * 64, view[place + 64 :]):
                    digest.update(part)
                    if isinstance(part, memoryview):
                        part.release()
            return digest.hexdigest().encode(), place
