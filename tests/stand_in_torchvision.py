"""As much of torchvision as timm needs to be imported and to prepare images, in `sys.modules` of this process.

On the usual index no torchvision goes with torch's CPU build. `install()` is called in processes of their own only:
transformers decides by `find_spec("torchvision")` how it prepares images, and must never see this.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def dimensions(image: Image.Image) -> list[int]:
    return [len(image.getbands()), image.height, image.width]


def resize(image: Image.Image, size: Any, interpolation: Any = InterpolationMode.BILINEAR, *_: Any) -> Image.Image:
    """(H, W), or one number: the shorter side."""
    if isinstance(size, int) or len(size) == 1:
        short = size if isinstance(size, int) else size[0]
        longer = int(short * max(image.size) / min(image.size))
        size = (longer, short) if image.width <= image.height else (short, longer)
    return image.resize((size[1], size[0]), Image.Resampling[InterpolationMode(interpolation).name])


def pil_to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1).permute(2, 0, 1)


def to_tensor(image: Image.Image) -> Tensor:
    return pil_to_tensor(image) / 255


def pad(image: Image.Image, border: Sequence[int], fill: Any = 0, *_: Any, **__: Any) -> Image.Image:
    return ImageOps.expand(image, tuple(border), fill=tuple(fill) if isinstance(fill, list) else fill)


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    return image.crop((left, top, left + width, top + height))


def center_crop(image: Image.Image, size: Any) -> Image.Image:
    height, width = (size, size) if isinstance(size, int) else size
    missing = [max(width - image.width, 0), max(height - image.height, 0)]
    if any(missing):
        image = pad(image, [side // 2 for side in missing] + [(side + 1) // 2 for side in missing])
    top, left = (round((there - wanted) / 2) for there, wanted in ((image.height, height), (image.width, width)))
    return crop(image, top, left, height, width)


class Step:
    """A transform that calls a function with its own arguments."""

    function: Callable[..., Any]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments, self.named = arguments, named

    def __call__(self, image: Any) -> Any:
        return type(self).function(image, *self.arguments, **self.named)


class Resize(Step):
    function = staticmethod(resize)


class CenterCrop(Step):
    function = staticmethod(center_crop)


class Normalize(Step):
    function = staticmethod(lambda x, mean, std: (x - mean[:, None, None]) / std[:, None, None])


class ToTensor(Step):
    function = staticmethod(to_tensor)


class Compose:
    def __init__(self, transforms: Sequence[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class FrozenBatchNorm2d(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Anything(ModuleType):
    """A module with whatever is asked for: classes that no test uses."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def install() -> None:
    """Put the stand-in in the place of torchvision, until this process ends."""
    functional = Anything("torchvision.transforms.functional")
    for function in (resize, pil_to_tensor, to_tensor, pad, crop, center_crop):
        setattr(functional, function.__name__, function)
    functional.get_dimensions, functional.InterpolationMode = dimensions, InterpolationMode
    transforms = Anything("torchvision.transforms")
    for one in (Resize, CenterCrop, Normalize, ToTensor, Compose, InterpolationMode):
        setattr(transforms, one.__name__, one)
    transforms.functional = functional
    misc = Anything("torchvision.ops.misc")
    misc.FrozenBatchNorm2d = FrozenBatchNorm2d
    names = ("torchvision", "torchvision.ops", "torchvision.datasets", "torchvision.models")
    found = [*map(Anything, (*names, "torchvision.models.feature_extraction")), functional, transforms, misc]
    for module in found:
        module.__path__ = []
        sys.modules[module.__name__] = module
    sys.modules["torchvision"].transforms = transforms
