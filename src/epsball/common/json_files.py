"""JSON files of a run or a model, with their own checksum, and the error that names the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from epsball.common.atomic_files import write_whole
from epsball.common.checksums import UNSIGNED, check_signed, sign
from epsball.common.errors import BadInput
from epsball.common.limits import parse_json, read_bytes

CHECKSUM = "checksum"
"""The entry with the checksum; whoever changes a file on purpose leaves it out."""


def write_json(path: Path, values: dict[str, Any], *, default: Any = None, allow_nan: bool = False) -> None:
    """Write named values with a checksum, the whole file or none."""
    text = json.dumps(values | {CHECKSUM: UNSIGNED}, indent=1, allow_nan=allow_nan, default=default)

    def write(draft: Path) -> None:
        draft.write_text(text)
        sign(draft)

    write_whole(path, write)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """What a JSON file of a run holds. Raises `BadInput` with the file and the remedy where it is no such file."""
    try:
        return read_values(path)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is missing or damaged ({error}); {remedy}") from error


def read_values(path: str | Path) -> dict[str, Any]:
    """The named values of a JSON file. Raises `OSError` or `ValueError` where it is no such file."""
    found = parse_json(read_bytes(path))
    check_signed(Path(path))
    if not isinstance(found, dict):
        raise BadInput(f"it holds {type(found).__name__} and not named values")
    found.pop(CHECKSUM, None)
    return found
