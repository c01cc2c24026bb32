"""A certificate on disk: what another computation needs to prove the same again, and nothing that it must believe.

Bounds are not stored, only choices: which method, and the slopes and splits that it found. Any slope is sound, so a
certificate that was tampered with proves less, or nothing; it cannot prove what is false.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from epsball.common.errors import BadInput

Method = Literal["exact", "ibp", "crown-ibp", "crown", "alpha-crown", "branch-and-bound"]
MOST = 1 << 29
"""Bytes of the arrays of one certificate."""
KINDS = {"<f2", "<f4", "<f8", "<i4", "<i8", "|i1", "|u1"}


@dataclass(frozen=True, eq=False)
class Certificate:
    """How an example was proved: the method, and named arrays of slopes (float16), splits and neurons.

    "final/R/N": slopes of the row of rival R at activation N; "tight/M/neuron" and "tight/M/N": neurons of node M and
    the slopes of their least and greatest values there; "leaf/R/...": the leaves of the tree of rival R (`leaves.py`).
    """

    method: Method
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """A line of JSON, then the arrays, compressed."""
        parts = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        head = {
            "method": self.method,
            "arrays": [[name, part.dtype.str, list(part.shape)] for name, part in parts.items()],
        }
        body = b"".join(part.tobytes() for part in parts.values())
        return json.dumps(head, separators=(",", ":")).encode() + b"\n" + (zlib.compress(body, 1) if body else b"")

    @classmethod
    def from_bytes(cls, stored: bytes) -> Certificate:
        """The certificate again. Raises `BadInput` for bytes that are none."""
        line, _, packed = stored.partition(b"\n")
        try:
            head = json.loads(line)
            shapes = [(str(name), str(kind), tuple(map(int, shape))) for name, kind, shape in head["arrays"]]
            if any(kind not in KINDS or min(shape, default=1) < 0 for _, kind, shape in shapes):
                raise ValueError("an array that is no array of numbers")
            sizes = [np.dtype(kind).itemsize * int(np.prod(shape, dtype=object)) for _, kind, shape in shapes]
            if sum(sizes) > MOST:
                raise ValueError("arrays that are too large")
            unpacker = zlib.decompressobj()
            body = unpacker.decompress(packed, sum(sizes) + 1) if sum(sizes) else b""
            if len(body) != sum(sizes):
                raise ValueError("arrays of other sizes")
            arrays, place = {}, 0
            for (name, kind, shape), size in zip(shapes, sizes, strict=True):
                arrays[name] = np.frombuffer(body[place : place + size], dtype=kind).reshape(shape)
                place += size
            return cls(head["method"], arrays)
        except (ValueError, KeyError, TypeError, OverflowError, zlib.error) as error:
            raise BadInput(
                f"`certificate` must be bytes that epsball stored, got {len(stored)} bytes that are none ({error}); "
                "run the evaluation again in a new directory"
            ) from error
