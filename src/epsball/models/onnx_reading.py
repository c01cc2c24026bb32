"""An ONNX file as its own protocol buffer: counted before it is parsed, with external data read from beside it alone.

A protocol buffer takes up to a hundred times the room of its bytes, and a field may claim what it does not hold. So
the parts are counted on the wire first, by the format's own description, and a tensor must have the bytes of its shape.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from epsball.common.errors import BadInput
from epsball.common.limits import MIB, check_file
from epsball.models.onnx_shapes import DTYPES

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

MOST_BYTES = (2 << 30) - MIB
"""Of a model with its external data: what a protocol buffer can hold."""
MOST_PARTS = 400_000
"""Messages, texts and numbers outside of arrays."""
MOST_PACKED = 64 * MIB
"""Bytes of arrays that are written number by number, which take up to eight times the room when they are read."""
MOST_DEPTH = 40
"""Levels of messages; a graph in a graph is three more."""


def read_onnx(path: Path) -> ModelProto:
    """The model in a file, all its numbers with it. Raises `BadInput` where it is damaged, too large or points away."""
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    size = check_file(path, MOST_BYTES, remedy="export a smaller model")
    if not size:
        raise BadInput("it is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _count_parts(data, ModelProto.DESCRIPTOR)
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, RecursionError) as error:
        raise BadInput("it is no whole protocol buffer") from error
    _read_external(model, path.parent, MOST_BYTES - size)
    return model


def _count_parts(data: mmap.mmap, descriptor: Any) -> None:
    """Raise `BadInput` where there are more parts, or levels of them, than a model has."""
    fields: dict[Any, dict[int, Any]] = {}
    parts = packed = 0
    stack = [(descriptor, 0, len(data), 1)]
    while stack:
        kind, place, end, depth = stack.pop()
        if depth > MOST_DEPTH:
            raise BadInput(f"it must be at most {MOST_DEPTH} levels deep, got more")
        known = fields.setdefault(kind, kind.fields_by_number)
        while place < end:
            parts += 1
            if parts > MOST_PARTS:
                raise BadInput(f"it must have at most {MOST_PARTS:,} parts, got more")
            tag, place = _varint(data, place, end)
            wire = tag & 7
            if wire == 0:
                place = _varint(data, place, end)[1]
            elif wire in (1, 5):
                place += 8 if wire == 1 else 4
            elif wire == 2:
                length, place = _varint(data, place, end)
                field = known.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    stack.append((field.message_type, place, place + length, depth + 1))
                elif field is not None and field.type not in (field.TYPE_BYTES, field.TYPE_STRING):
                    packed += length
                place += length
            else:
                raise BadInput("it is no protocol buffer")
            if place > end:
                raise BadInput("it is cut off")
        if packed > MOST_PACKED:
            raise BadInput(f"it must hold its arrays as bytes, got more than {MOST_PACKED:,} bytes of single numbers")


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7
    raise BadInput("it is cut off")


# External data


def _read_external(model: ModelProto, folder: Path, room: int) -> None:
    """Put external data into the tensors that name them: read from the model's folder, never from elsewhere."""
    from onnx import TensorProto

    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    constants = [attribute.t for node in nodes for attribute in node.attribute if attribute.HasField("t")]
    for tensor in [*model.graph.initializer, *constants]:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        path = _beside(folder, said.get("location", ""))
        wanted = size_of(tensor)
        try:
            offset, length = int(said.get("offset", "0")), int(said.get("length", wanted))
        except ValueError as error:
            raise BadInput(f"the external data of {tensor.name!r} must begin at a whole number of bytes") from error
        room -= wanted
        if room < 0:
            raise BadInput(f"it must have at most {MOST_BYTES:,} bytes with its external data, got more")
        if length != wanted or offset < 0 or offset + length > check_file(path):
            raise BadInput(f"the external data of {tensor.name[:80]!r} must have {wanted:,} bytes, got others")
        with open(path, "rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(wanted)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")


def _beside(folder: Path, location: str) -> Path:
    """The file of external data that a model names; only what lies in the model's own folder counts."""
    parts = PurePosixPath(location).parts
    if not parts or location.startswith(("/", "\\")) or ".." in parts or "\\" in location or "\0" in location:
        raise BadInput(f"external data must lie beside the model, got {location[:80]!r}")
    path = folder / location
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise BadInput(f"external data must lie beside the model, got {location[:80]!r}, a link to elsewhere")
    except (OSError, RuntimeError) as error:
        raise BadInput(f"its external data {location[:80]!r} must lie beside it, and do not; copy both") from error
    return path


# Tensors


def size_of(tensor: TensorProto) -> int:
    """The bytes that a tensor's shape and type say it has."""
    if tensor.data_type not in DTYPES:
        raise BadInput(f"the tensor {tensor.name[:80]!r} must have a type of torch's, got {tensor.data_type}")
    if any(side < 0 for side in tensor.dims):
        raise BadInput(f"the tensor {tensor.name[:80]!r} must have sides >= 0, got {list(tensor.dims)[:8]}")
    return math.prod(tensor.dims) * DTYPES[tensor.data_type].itemsize


def tensor_of(tensor: TensorProto) -> Tensor:
    """A tensor of a file as torch's. Raises `BadInput` where its numbers are not as many as its shape says."""
    from onnx import numpy_helper

    size, dtype = size_of(tensor), DTYPES[tensor.data_type]
    typed = max(len(tensor.float_data), len(tensor.double_data), len(tensor.int32_data), len(tensor.int64_data))
    held = typed * dtype.itemsize if not tensor.HasField("raw_data") else len(tensor.raw_data)
    if held != size:
        raise BadInput(
            f"the tensor {tensor.name[:80]!r} must hold {size:,} bytes for its shape {list(tensor.dims)[:8]}, "
            f"got {held:,}"
        )
    array = numpy_helper.to_array(tensor)
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy()).reshape(tuple(tensor.dims))
