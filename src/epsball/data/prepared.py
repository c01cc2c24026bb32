"""Images in arrays, and the preparation that a model wants: carried out where they are 8-bit, else looked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from epsball.common.errors import BadInput
from epsball.common.limits import check_pixels
from epsball.models.preparation import Preparation


def prepared_pixels(images: Any, preparation: Preparation) -> np.ndarray:
    """8-bit images, resized and cropped: uint8 (n, C, H, W), from n images of shapes (C, H, W), C = 1 or 3.

    Raises `BadInput` for other dtypes and shapes, and where the images come out in different sizes.

    >>> prepared_pixels(np.zeros((2, 1, 28, 28), np.uint8), Preparation(resize=(32, 32), channels=3)).shape
    (2, 3, 32, 32)
    """
    from PIL import Image

    found = []
    for image in images:
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) not in (1, 3):
            raise BadInput(
                f"`images` must be uint8 of shape (n, C, H, W), C = 1 or 3, got {pixels.dtype} {pixels.shape} for one; "
                "images are resized in 8 bits, as the model's library does it"
            )
        check_pixels(pixels.shape[2], pixels.shape[1])
        one = preparation.applied(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))
        found.append(np.asarray(one)[None] if one.mode == "L" else np.asarray(one).transpose(2, 0, 1))
    shapes = {one.shape for one in found}
    if len(shapes) != 1:
        raise BadInput(f"`images` must come out in one size, got {sorted(shapes)[:3]}; hand over images of one size")
    return np.stack(found)


def check_prepared(shape: Sequence[int], preparation: Preparation) -> None:
    """Raise `BadInput` unless examples of `shape` look as the preparation leaves them: arrays are taken as they are."""
    size, channels = preparation.size, preparation.channels
    if (size is None or tuple(shape[-2:]) == size) and (channels is None or tuple(shape[-3:-2]) == (channels,)):
        return
    wanted = (channels or "C", *(size or ("H", "W")))
    raise BadInput(
        f"`data` must have examples of shape ({', '.join(map(str, wanted))}) for the model, got "
        f"{tuple(shape)}: only images in files are prepared ({preparation}); of 8-bit images x (n, C, H, W) "
        "write epsball.data.prepared.prepared_pixels(x, preparation)"
    )
