"""Encoded images in a column of a `datasets.Dataset`: its arrow files are mapped into memory, so nothing is read."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from epsball.data.lazy_examples import digest

LOOKED_AT = 32
"""So many images, from the whole range, say whether the files are there."""


class ArrowImages:
    """The images in a column of {bytes, path}; the data set is opened anew where this is unpickled and first read."""

    def __init__(self, data: Any, column: str):
        self.column = column
        self.fingerprint = data._fingerprint
        self._pickled: bytes | None = None
        self.data = data  # in the place of the property's value

    @cached_property
    def data(self) -> Any:
        """The data set, in arrow's format."""
        assert self._pickled is not None
        return pickle.loads(self._pickled)

    def __getstate__(self) -> dict[str, Any]:
        pickled = self._pickled or pickle.dumps(self.data)
        return {"column": self.column, "fingerprint": self.fingerprint, "_pickled": pickled}

    def sources(self, ids: Sequence[int]) -> list[Any | None]:
        """The bytes of each image, else its path, else None."""
        found: list[Any | None] = []
        if not len(ids):
            return found
        for chunk in self.data[list(ids)][self.column].chunks:
            parts = dict(zip((field.name for field in chunk.type), chunk.flatten(), strict=True))
            for raw, path in zip(parts["bytes"], parts["path"], strict=True):
                found.append(raw.as_buffer() if raw.is_valid else path.as_py())
        return found

    def name_of(self, id: int) -> str | None:
        """The path of an image that is a file of its own."""
        (source,) = self.sources([id])
        return source if isinstance(source, str) else None

    def identity(self, ids: Int64[Tensor, " n"]) -> str:
        """What `datasets` knows the data set by."""
        return digest(self.fingerprint, self.column)

    def available(self) -> bool:
        """Whether the arrow files are there, and some of the images that are files of their own."""
        try:
            sources = self.sources(np.unique(np.linspace(0, len(self.data) - 1, LOOKED_AT).astype(int)).tolist())
        except Exception:  # whatever the reader raises where a file is not there
            return False
        paths = [source for source in sources if isinstance(source, str)]
        return len(sources) > 0 and (len(paths) < len(sources) or any(map(os.path.exists, paths)))
