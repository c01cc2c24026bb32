"""Tensors of the Open Inference Protocol v2: what a model takes and returns, and bodies of requests and answers.

Numbers are JSON, or, where the service offers the extension for binary tensor data, raw bytes after the JSON.
https://github.com/kserve/open-inference-protocol (specification and extension)
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from epsball.common.errors import BadInput
from epsball.common.printable import printable

DTYPES = {
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "BOOL": "?",
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
}
"""numpy's names for the datatypes of the protocol that it has; BYTES, which are strings, come apart."""
TAKEN = ("FP16", "FP32", "FP64", "UINT8", "INT32", "INT64")
"""The datatypes of inputs that can be sent."""
MOST_SIDES, MOST_NUMBERS = 8, 1 << 24
"""The sides of a tensor, and the numbers of an example."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in the metadata of a model or in an answer: `shape` with the rows first, -1 where a side is free."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] | None = None

    @property
    def floating(self) -> bool:
        """Whether it holds scores, and not labels."""
        return self.datatype.startswith("FP")

    @property
    def columns(self) -> bool:
        """Whether there is one row of numbers for each example: (n, classes), also with more sides of 1."""
        return len(self.shape) >= 2 and all(side == 1 for side in self.shape[2:]) and self.shape[1] != 1

    @property
    def single(self) -> bool:
        """Whether there is one number, or label, for each example: (n,) or (n, 1)."""
        return len(self.shape) >= 1 and all(side == 1 for side in self.shape[1:])

    def __str__(self) -> str:
        return f"{self.name!r} ({self.datatype}, {list(self.shape)})"


def infos_of(found: Any, part: str) -> tuple[TensorInfo, ...]:
    """The `part`, "inputs" or "outputs", of metadata or of an answer. Raises `BadInput` where it is malformed."""
    tensors = found.get(part) or [] if isinstance(found, dict) else None
    if not isinstance(tensors, list) or len(tensors) > 1000:
        raise BadInput(f"`model` must list its {part} as the protocol v2 does, got {_short(found)}")
    return tuple(_info(one, part) for one in tensors)


def _info(one: Any, part: str) -> TensorInfo:
    if isinstance(one, dict):
        name, datatype, shape = one.get("name"), one.get("datatype"), one.get("shape")
        sides = shape if isinstance(shape, list) else []
        whole = all(type(side) is int and -1 <= side < 1 << 40 for side in sides)
        if isinstance(name, str) and isinstance(datatype, str) and whole and 1 <= len(sides) <= MOST_SIDES:
            return TensorInfo(_text(name), _text(datatype), tuple(sides), labels_of(one))
    raise BadInput(
        f"`model` must give name, datatype and shape of its {part}, as the protocol v2 does, got {_short(one)}"
    )


def labels_of(found: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes that "parameters" list under "labels", where they do."""
    parameters = found.get("parameters")
    labels = parameters.get("labels") if isinstance(parameters, dict) else None
    if not isinstance(labels, list) or not labels or len(set(map(str, labels))) < len(labels):
        return None
    return tuple(_text(label) for label in labels) if all(isinstance(label, str) for label in labels) else None


def chosen(tensors: Sequence[TensorInfo], name: str | None, *, labels: bool = False) -> TensorInfo:
    """The output of that name, or else the one that holds scores, or else labels. Raises `BadInput` unless it is
    one."""
    listed = ", ".join(map(str, tensors[:8])) or "none"
    if name is not None:
        found = [one for one in tensors if one.name == name]
        if len(found) != 1:
            raise BadInput(f"`model` option output must name one of its outputs, got {name!r}; they are {listed}")
        if not (found[0].columns or found[0].single):
            raise BadInput(f"`model` must have an output (n, classes) or (n,), got {found[0]}; put the classes last")
        return found[0]
    kinds = [
        [one for one in tensors if one.floating and one.columns],
        [one for one in tensors if one.floating and one.single],
        [one for one in tensors if not one.floating and one.single],
    ]
    found = kinds[2] if labels else next((kind for kind in kinds if kind), [])
    if len(found) != 1:
        what = "labels (n,)" if labels else "scores (n, classes) or labels (n,)"
        raise BadInput(
            f"`model` must have one output of {what}, got {listed}; choose one by its name, ?output=NAME at the end of "
            "the address"
        )
    return found[0]


def request_of(
    x: np.ndarray, info: TensorInfo, output: TensorInfo | None, number: int, *, binary: bool
) -> tuple[bytes, int | None]:
    """The body of a request about x (n, *shape), and the length of its JSON where numbers follow it, else None."""
    if info.datatype.startswith("INT"):
        x = np.rint(x)
    x = np.ascontiguousarray(x, dtype=DTYPES[info.datatype])
    tensor: dict[str, Any] = {"name": info.name, "shape": list(x.shape), "datatype": info.datatype}
    tensor |= {"parameters": {"binary_data_size": x.nbytes}} if binary else {"data": x.reshape(-1).tolist()}
    body: dict[str, Any] = {"id": str(number), "inputs": [tensor]}
    if output is not None:
        raw = {"parameters": {"binary_data": True}} if binary and output.datatype in DTYPES else {}
        body["outputs"] = [{"name": output.name} | raw]
    text = json.dumps(body).encode()
    return (text + x.tobytes(), len(text)) if binary else (text, None)


def array_of(found: Any, raw: bytes, info: TensorInfo) -> np.ndarray:
    """The numbers, or strings, of the output `info` of an answer, (n, *k). Raises `BadInput` where they do not
    fit it."""
    start = 0
    for one in found["outputs"]:
        parameters = one.get("parameters")
        size = parameters.get("binary_data_size", 0) if isinstance(parameters, dict) else 0
        if type(size) is not int or not 0 <= size <= len(raw) - start:
            raise BadInput(
                f"`model` must answer with all the numbers that it claims, got {_short(size)} bytes of {len(raw)}"
            )
        if one["name"] == info.name:
            data = raw[start : start + size] if size else one.get("data")
            return _filled(data, info)
        start += size
    raise AssertionError


def _filled(data: Any, info: TensorInfo) -> np.ndarray:
    dtype = DTYPES.get(info.datatype, "U" if info.datatype == "BYTES" else None)
    if dtype is None:
        raise BadInput(f"`model` must answer in a datatype of numpy's, got {info}")
    try:
        array = np.frombuffer(data, dtype) if isinstance(data, bytes) else np.array(data, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInput(f"`model` must answer with numbers of its datatype, got {info} and {str(error)[:100]}") from None
    if -1 in info.shape or array.size != math.prod(info.shape):
        raise BadInput(f"`model` must answer with as many numbers as its shape says, got {info} and {array.size:,}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(
            f"`model` must answer with finite numbers, got {info} with nan or inf; where it computes in FP16, it may "
            "overflow"
        )
    return array.reshape(info.shape)


def _short(value: Any) -> str:
    text = repr(value)
    return _text(text if len(text) <= 80 else f"{text[:80]}...")


def _text(text: str) -> str:
    """The start of a text from a service, without what a terminal would obey."""
    return printable(text[:200], "?")
