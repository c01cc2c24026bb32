"""One encoded image becomes pixels, prepared as a model wants them; or it cannot be used, and a few words say why."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import UInt8

from epsball.common.errors import BadInput
from epsball.common.limits import check_file, check_pixels
from epsball.models.preparation import Preparation

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""The formats of images that are opened, and MPO (several JPEGs) with JPEG. Pillow knows others that start a program
(EPS), or are rarely read safely."""


class NotNow(BadInput):
    """A file could not be read, for a reason that is not the file's: a disk, a network, too many open files."""


def pixels_of(
    source: str | Any | None, preparation: Preparation | None = None
) -> tuple[UInt8[np.ndarray, "H W C"], bool]:
    """An image as uint8 (H, W, C), C = 1 for a grey one, else 3; and whether the preparation changed it.

    `source` is a path, or the bytes of a file; None where there is nothing. An image is turned as its EXIF says, and
    alpha is dropped. Raises `BadInput` for what cannot be used, in words that go behind the name of the file, and
    `NotNow` where the system could not read it.
    """
    from PIL import Image

    try:
        return _pixels(source, preparation)
    except BadInput:
        raise
    except Image.DecompressionBombError as error:
        raise BadInput("it has too many pixels; shrink it") from error
    except FileNotFoundError as error:
        raise BadInput("it is not there") from error
    except Image.UnidentifiedImageError as error:
        raise BadInput(f"it is no image in a format that is read ({', '.join(FORMATS)})") from error
    except OSError as error:
        if error.errno is None:  # Pillow's own, of a broken file
            raise BadInput(f"Pillow cannot read it: {' '.join(str(error).split())}") from error
        raise NotNow(
            f"`data` could not be read: {error.strerror or error} ({error.filename or source!r}); see to the disk or "
            "the network, and start again with the same arguments to go on"
        ) from error
    except Exception as error:  # broken files raise whatever the decoder stumbles over
        raise BadInput(f"Pillow cannot read it: {' '.join(str(error).split()) or type(error).__name__}") from error


def _pixels(source: str | Any | None, preparation: Preparation | None) -> tuple[np.ndarray, bool]:
    from PIL import Image, ImageOps

    if source is None:
        raise BadInput("it has no image")
    if not (check_file(source) if isinstance(source, str) else len(source)):
        raise BadInput("it is empty, 0 bytes")
    with Image.open(source if isinstance(source, str) else BytesIO(source), formats=FORMATS) as image:
        check_pixels(*image.size)
        raw = str(image.tile[0].args) if image.tile else ""  # such as RGB;16B, which Pillow reads as 8 bits
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith(("I", "F")) or ";16" in raw:
            raise BadInput(f"its pixels are {_kind(image.mode, raw)}, not 8 bits; save it as 8 bits")
        if image.mode == "CMYK":
            raise BadInput("its colours are CMYK, inks without a stated profile; save it as RGB")
        if image.mode == "P":
            image = image.convert("RGBA")
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
        image = image if image.mode == mode else image.convert(mode)
        ready = image if preparation is None else preparation.applied(image)
        pixels = np.asarray(ready)
    return (pixels if pixels.ndim == 3 else pixels[:, :, None]), ready is not image


def _kind(mode: str, raw: str) -> str:
    """In words what pixels of more than 8 bits are, by Pillow's mode of the image and of its file."""
    if ";16" in mode or ";16" in raw:
        return "16 bits grey" if mode.startswith("I") else f"{mode} of 16 bits"
    return "32-bit floating point" if mode.startswith("F") else "32-bit integers"
