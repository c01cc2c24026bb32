"""The tars that a name stands for: one, a range of them as in "shards-{000..009}.tar", or those that match a "*"."""

from __future__ import annotations

import re
from glob import glob, has_magic
from pathlib import Path

from epsball.common.errors import BadInput
from epsball.common.limits import MOST_MEMBERS, check_file

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def tar_files(spec: str) -> list[Path]:
    """The files, in their order. Raises `BadInput` where one is missing, or is no file.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = [(folder / f"x-{number:02}.tar").write_bytes(b"") for number in range(12)]
    >>> [path.name for path in tar_files(f"{folder}/x-{{09..11}}.tar")]
    ['x-09.tar', 'x-10.tar', 'x-11.tar']
    """
    named = _expanded(spec)
    found = [Path(path) for one in named for path in (sorted(glob(one)) if has_magic(one) else [one])]
    missing = [path for path in found if not path.exists()]
    if missing or not found:
        raise BadInput(
            f"`data` must name tars that are there, got {spec!r}, without {missing[0] if missing else 'any'}"
        )
    for path in found:
        check_file(path)
    return found


def _expanded(spec: str) -> list[str]:
    """The names without ranges; numbers are as wide as the first one of a range is written."""
    parts = RANGE.search(spec)
    if parts is None:
        return [spec]
    first, last = map(int, parts.groups())
    if not 0 <= last - first < MOST_MEMBERS:
        raise BadInput(f"`data` must have ranges of at most {MOST_MEMBERS:,} numbers that rise, got {parts[0]}")
    width = len(parts[1])
    return [
        more for number in range(first, last + 1)
        for more in _expanded(f"{spec[: parts.start()]}{number:0{width}}{spec[parts.end() :]}")
    ]  # fmt: skip
