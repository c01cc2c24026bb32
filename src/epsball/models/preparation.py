"""What an image goes through before the ball is laid around it: resize and crop, as the model's own processor does it.

The rest of a processor, the normalisation, is a layer of the model (`builtin.Normalize`): so eps stays in the pixels of
[0, 1] that the model is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from epsball.common.checks import check_one_of
from epsball.common.errors import BadInput
from epsball.common.limits import check_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

PREPARATION = "preparation"
"""The attribute of a model that says what images go through before they are shown to it."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
Centre = Literal["floor", "even"]
MOST_SIDE = 2048
"""The most pixels of a side that images are resized or cropped to. Models take 1,024 at most, as far as is known."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Resize, then crop the centre; `channels` is 3 where grey images become RGB, 1 where colours become grey.

    `resize` is (H, W), or a number for the shorter side, which keeps the ratio; None: no resize. `crop` is (H, W);
    where an image is smaller, it is padded with zeros. A centre that lies half a pixel off is cut from the lower pixel
    ("floor", as transformers does it), or from the even one ("even", as torchvision and timm do it).

    Raises `BadInput` for sizes that are not whole numbers from 1 to `MOST_SIDE`.

    >>> print(Preparation(resize=256, crop=(224, 224), interpolation="bicubic", channels=3))
    RGB, the shorter side resized to 256 (bicubic), the centre of 224x224
    >>> Preparation(resize=256, crop=(224, 224), channels=3).shape
    (3, 224, 224)
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    channels: Literal[1, 3] | None = None
    centre: Centre = "floor"

    def __post_init__(self) -> None:
        _check_size("resize", (self.resize, self.resize) if isinstance(self.resize, int) else self.resize)
        _check_size("crop", self.crop)
        check_one_of("interpolation", self.interpolation, get_args(Interpolation))
        check_one_of("centre", self.centre, get_args(Centre))
        if self.channels not in (None, 1, 3):
            raise BadInput(f"`channels` must be 1, 3 or None, got {self.channels!r}; None leaves them as they are")

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of every image afterwards; None where that depends on the image."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """(C, H, W) of every image afterwards; None where that depends on the image."""
        return None if self.size is None or self.channels is None else (self.channels, *self.size)

    def applied(self, image: Image) -> Image:
        """An image of mode L or RGB, resized and cropped in 8 bits; itself where there is nothing to do.

        Raises `BadInput` where the resized image would have too many pixels.
        """
        from PIL.Image import Resampling

        mode = {None: image.mode, 1: "L", 3: "RGB"}[self.channels]
        image = image if image.mode == mode else image.convert(mode)
        height, width = self._resized(image.size[1], image.size[0])
        if (width, height) != image.size:
            check_pixels(width, height)
            image = image.resize((width, height), Resampling[self.interpolation.upper()])
        if self.crop is None or self.crop == (height, width):
            return image
        top, left = self._start(height, self.crop[0]), self._start(width, self.crop[1])
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))  # outside of the image is 0

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width after the resize. The longer side is rounded down."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        if width <= height:
            return int(self.resize * height / width), self.resize
        return self.resize, int(self.resize * width / height)

    def _start(self, side: int, crop: int) -> int:
        """Where the centre of a side begins; below 0 where the side is shorter, and padded."""
        if self.centre == "floor":
            return (side - crop) // 2
        return -((crop - side) // 2) if crop > side else round((side - crop) / 2)

    def __str__(self) -> str:
        parts = [] if self.channels is None else ["grey" if self.channels == 1 else "RGB"]
        if isinstance(self.resize, tuple):
            parts.append(f"resized to {self.resize[0]}x{self.resize[1]} ({self.interpolation})")
        elif self.resize is not None:
            parts.append(f"the shorter side resized to {self.resize} ({self.interpolation})")
        if self.crop is not None:
            parts.append(f"the centre of {self.crop[0]}x{self.crop[1]}")
        return ", ".join(parts) or "as they are"


def _check_size(name: str, size: Any) -> None:
    if size is None:
        return
    sides = size if isinstance(size, tuple) and len(size) == 2 else (None,)
    if not all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= MOST_SIDE for side in sides):
        raise BadInput(
            f"`{name}` must be (H, W), two whole numbers from 1 to {MOST_SIDE:,}, got {size!r}; None leaves it out"
        )
