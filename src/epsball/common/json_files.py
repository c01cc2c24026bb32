"""JSON files of a run or a model, and the error that names the file and the remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from epsball.common.errors import BadInput


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """What a JSON file of a run holds. Raises `BadInput` with the file and the remedy where it is no such file."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is missing or damaged ({error}); {remedy}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} is damaged: it holds {type(found).__name__} and not named values; {remedy}")
    return found
