"""What an image goes through before the ball is laid around it: resize and crop, as the model's own processor does it.

The rest of a processor, the normalisation, is a layer of the model (`builtin.Normalize`): so eps stays in the pixels of
[0, 1] that the model is shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Resize, then crop the centre; `channels` is 3 where grey images become RGB, 1 where colours become grey.

    `resize` is (H, W), or a number for the shorter side, which keeps the ratio; None: no resize. `crop` is (H, W).
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    channels: Literal[1, 3] | None = None
