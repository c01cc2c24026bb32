"""An image processor of transformers, split: resize and crop are done to images, the normalisation is a layer.

How it resizes and crops is read from its options. How it normalises is measured: wherever it can be split it is an
affine map of pixels, which follows from its answers to images of one colour. Then both together are compared with the
processor itself on images of several sizes, so that whatever it does beside is found, and refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.models.builtin import Normalize
from epsball.models.preparation import Interpolation, Preparation

if TYPE_CHECKING:
    from PIL.Image import Image

RESAMPLE: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""The interpolations by Pillow's numbers."""
CLOSE = 1e-5
"""How far the split may be from the processor, as a share of the range of what the model is shown: rounding."""
SOME_SIZE = (32, 32)
"""The size of the images of one colour where a processor leaves images of any size as they are."""
IMAGES = ((1.0, 1.0), (1.31, 0.77), (0.58, 1.46), (2.3, 1.9))
"""The heights and widths on which the split is compared, as shares of the prepared ones."""


class ReverseChannels(nn.Module):
    """RGB to BGR and back."""

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        return x.flip(1)


def split(processor: Any, channels: int) -> tuple[Preparation, nn.Sequential]:
    """What a processor does, in two parts: the preparation, and the layers from pixels in [0, 1] to a model's inputs.

    `processor` is one of transformers, the model takes images of `channels`, 1 or 3.

    Raises `BadInput` where it does anything beside resize, crop and normalise.
    """
    name = type(processor).__name__
    if channels not in (1, 3):
        raise BadInput(f"`model` must take grey or RGB images, got one for {channels} channels; hand over the module")
    try:
        preparation = _preparation(name, processor, channels)
        size = preparation.size or SOME_SIZE
        with np.errstate(all="ignore"):
            layers = _layers(processor, size, channels)
            for height, width in IMAGES:
                _compare(processor, preparation, layers, (round(height * size[0]), round(width * size[1])))
    except Exception as error:  # whatever a processor raises for options that do not fit
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(
            f"`model` must have an image processor that resizes, crops and normalises, but {name} does not do that "
            f"alone: {reason}; prepare the images as it does, and hand over the model without it, a module"
        ) from error
    return preparation, layers


def _preparation(name: str, processor: Any, channels: int) -> Preparation:
    """The resize and crop that the options say."""
    resize, crop = None, None
    if getattr(processor, "do_resize", False):
        resize, crop = _resize(name, processor)
    if getattr(processor, "do_center_crop", False):
        crop = _pair(_sides(processor.crop_size), "crop_size")
    resample = getattr(processor, "resample", None)
    number = 2 if resample is None else int(resample)
    if not 0 <= number < len(RESAMPLE):
        raise BadInput(f"its resample is {resample!r}")
    return Preparation(
        resize=resize, crop=crop, interpolation=RESAMPLE[number], channels=3 if channels == 3 else 1, centre="floor"
    )


def _resize(name: str, processor: Any) -> tuple[int | tuple[int, int], tuple[int, int] | None]:
    """The size of the resize, and of a crop that belongs to it."""
    sides = _sides(processor.size)
    shorter, share = sides.get("shortest_edge"), getattr(processor, "crop_pct", None)
    square = "height" in sides and sides["height"] == sides.get("width")
    if name.startswith("ConvNext") and shorter and share:
        return (int(shorter / share), (shorter, shorter)) if shorter < 384 else ((shorter, shorter), None)
    if name.startswith("Levit") and shorter:
        return int(256 / 224 * shorter), None
    if name.startswith("PoolFormer") and share:
        if shorter or square:
            return int((shorter or sides["height"]) / share), None
        height, width = _pair(sides, "size")
        return (int(height / share), int(width / share)), None
    return (sides["shortest_edge"] if set(sides) == {"shortest_edge"} else _pair(sides, "size")), None


def _sides(size: Any) -> dict[str, int]:
    return {key: int(value) for key, value in dict(size or {}).items() if value is not None}


def _pair(sides: Mapping[str, int], name: str) -> tuple[int, int]:
    if set(sides) != {"height", "width"}:
        raise BadInput(f"its {name} is {dict(sides)}, which does not say a height and a width")
    return sides["height"], sides["width"]


def _layers(processor: Any, size: tuple[int, int], channels: int) -> nn.Sequential:
    """The affine map of pixels in [0, 1], by its values where all are 0, and where one channel is 1."""
    colours = np.zeros((channels + 1, *size, channels), np.uint8)
    for channel in range(channels):
        colours[channel + 1, :, :, channel] = 255
    values = [_answer(processor, _image(one)).double() for one in colours]
    offset, *lit = (one[:, one.shape[1] // 2, one.shape[2] // 2] for one in values)  # the borders may be padding
    gains = torch.stack(lit, 1) - offset[:, None]
    order = gains.abs().argmax(1)
    reverse, same = order.tolist() == [2, 1, 0], order.tolist() == list(range(channels))
    gain = gains[range(channels), order]
    if not (reverse or same) or bool(((gains != 0).sum(1) != 1).any()) or bool((gain <= 0).any()):
        raise BadInput("it mixes the channels, or inverts the colours")
    layers: list[nn.Module] = [ReverseChannels()] if reverse else []
    if bool((offset != 0).any()) or bool((gain != 1).any()):
        layers.append(Normalize((-offset / gain).tolist(), (1 / gain).tolist()))
    return nn.Sequential(*layers)


def _compare(processor: Any, preparation: Preparation, layers: nn.Module, size: tuple[int, int]) -> None:
    """Raise `BadInput` unless both parts do to an image of noise of that size what the processor does."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, preparation.channels or 3), np.uint8)
    image = _image(pixels)
    expected = _answer(processor, image)
    ready = torch.from_numpy(np.array(preparation.applied(image)))
    found = layers((ready.permute(2, 0, 1) if ready.ndim == 3 else ready[None])[None].float() / 255)[0]
    scale = float(expected.max() - expected.min())
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=CLOSE * scale):
        raise BadInput(f"an image of {size[0]}x{size[1]} comes out otherwise than by {preparation}")


def _answer(processor: Any, image: Image) -> Float[Tensor, "c h w"]:
    """What the processor makes of an image."""
    values = torch.from_numpy(np.array(processor(images=[image])["pixel_values"][0], dtype=np.float32))
    if values.ndim != 3:
        raise BadInput(f"it makes {tuple(values.shape)} of an image")
    return values


def _image(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
