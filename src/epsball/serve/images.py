"""Images in and out: uploads, read with care, and the pictures and PNG files of the page.

An upload must keep to a size in bytes, to two formats by its content, and to a number of pixels by its header, before
anything is decoded: a small file can hold a very large image.
"""

from __future__ import annotations

import warnings
from base64 import b64decode, b64encode
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from epsball.common.errors import BadInput
from epsball.common.limits import MOST_PIXELS, check_pixels

MOST_BYTES = 4 << 20
FORMATS = ("PNG", "JPEG")


@dataclass(frozen=True, eq=False)
class Upload:
    """An image in the shape that the models take, 8 bits a value, and notes on how it was converted."""

    pixels: UInt8[np.ndarray, "*shape"]
    notes: tuple[str, ...]


def decode(data: bytes, shape: tuple[int, ...]) -> Upload:
    """The PNG or JPEG in `data` as bytes of `shape`, (H, W) or (C, H, W) with C 1 or 3.

    It is turned as its EXIF data say, laid on white where it is transparent, cut to the middle where its sides have
    another proportion, resized, and made grey or RGB. Raises `BadInput` for what is too large or no such image.
    """
    if len(data) > MOST_BYTES:
        raise BadInput(f"the image must have at most {MOST_BYTES >> 20} MB, got {len(data) / (1 << 20):.1f}; shrink it")
    height, width = shape[-2:]
    mode = "RGB" if len(shape) == 3 and shape[0] == 3 else "L"
    image = _opened(data)
    notes: list[str] = []
    if image.mode == "P" or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA", "PA"):
        if image.getchannel("A").getextrema() != (255, 255):
            notes.append("laid on white where it is transparent")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "1":
        image = image.convert("L")  # black and white alone would be resized without any grey between
    if image.size != (width, height):
        before = f"{image.width}x{image.height}"
        if image.width * height != image.height * width:
            notes.append("cut to the middle")
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
        notes.append(f"resized from {before} to {width}x{height}")
    if image.mode != mode:
        if mode == "RGB":
            grey = "its grey values used as red, green and blue"
            notes.append(grey if image.mode == "L" else f"made RGB from {image.mode}")
        elif not _is_grey(image):
            notes.append("made grey")
        image = image.convert(mode)
    pixels = np.asarray(image)
    return Upload((pixels.transpose(2, 0, 1) if pixels.ndim == 3 else pixels).reshape(shape).copy(), tuple(notes))


def _opened(data: bytes) -> Image.Image:
    """The decoded image, upright; the first one where there are several."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata, and sizes, which are checked here
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                check_pixels(*image.size)
                image.verify()
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                image.load()
                upright = ImageOps.exif_transpose(image)
    except BadInput:
        raise
    except Image.DecompressionBombError as error:  # Pillow looks at the header, too
        most = f"{MOST_PIXELS // 1_000_000} million pixels"
        raise BadInput(f"an image must have at most {most}, got far more; shrink it") from error
    except Exception as error:  # broken files raise whatever the decoder stumbles over
        raise BadInput("the file must be a PNG or JPEG image, whole and undamaged; save it again as PNG") from error
    if upright.mode.startswith(("I", "F")):
        raise BadInput("the image must have 8 bits a value, got more; save it with 8 bits")
    return upright


def _is_grey(image: Image.Image) -> bool:
    values = np.asarray(image.convert("RGB"))
    return bool((values == values[..., :1]).all())


def png(pixels: UInt8[np.ndarray, "*shape"]) -> bytes:
    """(H, W), (1, H, W) or (3, H, W) as a PNG file, to the byte the same for the same values.

    >>> decode(png(np.uint8([[0, 128], [255, 7]])), (2, 2)).pixels
    array([[  0, 128],
           [255,   7]], dtype=uint8)
    """
    if pixels.ndim == 3:
        pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    out = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def url(file: bytes) -> str:
    """A PNG as a data URL, which a page shows without another request."""
    return f"data:image/png;base64,{b64encode(file).decode()}"


def from_base64(argument: str, text: str) -> bytes:
    """The file in a base64 text. Raises `BadInput`, which names the argument, for what is none."""
    try:
        return b64decode(text, validate=True)
    except ValueError as error:
        raise BadInput(
            f"`{argument}` must be a PNG file in base64; take it from the answer of /api/upload or /api/file"
        ) from error


def looks(x: Float[np.ndarray, "*shape"], lo: float, hi: float) -> UInt8[np.ndarray, "*shape"]:
    """x in [lo, hi] as displayable bytes, rounded to 256 levels."""
    return np.rint((x.astype(np.float64) - lo) * (255 / (hi - lo))).clip(0, 255).astype(np.uint8)


def amplified(delta: Float[np.ndarray, "*shape"], lo: float, hi: float) -> tuple[UInt8[np.ndarray, "*shape"], float]:
    """A perturbation on mid-grey, lighter for more and darker for less, and how many times it was amplified.

    The factor has two digits and spans the scale: the greatest change is nearly black or white.

    >>> amplified(np.array([0.0, 0.1, -0.05]), 0.0, 1.0)
    (array([128, 255,  64], dtype=uint8), 5.0)
    """
    most = float(np.abs(delta).max(initial=0))
    if most == 0:
        return np.full(delta.shape, 128, np.uint8), 1.0
    exact = (hi - lo) / 2 / most
    unit = 10.0 ** (np.floor(np.log10(exact)) - 1)
    factor = float(np.floor(exact / unit + 1e-4) * unit)
    values = 127.5 + delta.astype(np.float64) * (255 * factor / (hi - lo))
    return np.rint(values).clip(0, 255).astype(np.uint8), factor
