"""Images in a table: a column of PNG files, which `datasets` shows as images.

The pixels are not deflated inside the PNG: the table is compressed as a whole (zstd), which is faster, and smaller.
Only files of exactly one shape are read back: 8 bits a value, grey or RGB, looked at before a pixel is decoded.
"""

from __future__ import annotations

import json
import math
from io import BytesIO

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, UInt8

from epsball.common.errors import BadInput
from epsball.common.limits import MOST_PIXELS, check_pixels

FILES = pa.struct({"bytes": pa.binary(), "path": pa.string()})
"""How `datasets` keeps images in a table."""
MODES = {1: "L", 3: "RGB"}
"""Pillow's name of an image, by its channels."""


def is_image(points: np.ndarray) -> bool:
    """Whether points (m, *shape) can be PNG files: bytes, grey or RGB, not more pixels than are read back.

    >>> is_image(np.zeros((5, 3, 32, 32), np.uint8)), is_image(np.zeros((5, 4, 32, 32), np.uint8))
    (True, False)
    """
    shape = points.shape[1:]
    whole = points.dtype == np.uint8 and len(shape) == 3 and shape[0] in MODES
    return whole and 0 < math.prod(shape[1:]) <= MOST_PIXELS


def image_column(points: UInt8[np.ndarray, "m c h w"], valid: Bool[np.ndarray, " n"]) -> pa.Array:
    """Images as a column of PNG files, in the m places that are `valid`, null in the others."""
    files = iter(map(_encoded, points))
    column = pa.array([next(files) if there else None for there in valid.tolist()], pa.binary())
    paths = pa.nulls(len(column), pa.string())
    return pa.StructArray.from_arrays([column, paths], fields=list(FILES), mask=pa.array(~valid))


def images(column: pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    """The images of a column of PNG files without nulls, uint8 (m, *shape).

    Raises `BadInput` for a file that is damaged, no PNG, or of another shape.
    """
    found = np.empty((len(column), *shape), np.uint8)
    for row, file in enumerate(column.field("bytes")):
        found[row] = _decoded(file.as_py(), shape)
    return found


def image_features(names: list[str]) -> dict[bytes, bytes]:
    """The metadata of a table by which `datasets` shows these columns as images; empty without names."""
    features = {name: {"_type": "Image"} for name in names}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else {}


def _encoded(pixels: UInt8[np.ndarray, "c h w"]) -> bytes:
    from PIL import Image

    out = BytesIO()
    grey_or_rgb = pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    Image.fromarray(grey_or_rgb).save(out, format="PNG", compress_level=0)
    return out.getvalue()


def _decoded(file: bytes | None, shape: tuple[int, ...]) -> np.ndarray:
    from PIL import Image

    if file is None:
        raise BadInput("a point must be a whole PNG file in its row, got a path or nothing; restore the run's files")
    try:
        with Image.open(BytesIO(file), formats=("PNG",)) as image:
            check_pixels(*image.size)
            size, mode = image.size, image.mode
            pixels = np.asarray(image) if (size, mode) == _header(shape) else None
    except BadInput:
        raise
    except Exception as error:  # broken files raise whatever the decoder stumbles over
        raise BadInput(f"a point must be a whole PNG file, but {error}; restore the run's files") from error
    if pixels is None:
        raise BadInput(
            f"a point must be a PNG file of shape {shape}, got {size[0]}x{size[1]} pixels of mode {mode}; restore the "
            "run's files"
        )
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _header(shape: tuple[int, ...]) -> tuple[tuple[int, int], str] | None:
    """Size and mode of an image of this shape (C, H, W); None where it is none."""
    if len(shape) != 3 or shape[0] not in MODES:
        return None
    return (shape[2], shape[1]), MODES[shape[0]]
