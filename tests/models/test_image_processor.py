"""What processors of transformers do is split as it is: pixel by pixel the same, or refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hub_models import MODES, PROCESSORS, SIZES, picture

from epsball.common.errors import BadInput
from epsball.models.image_processor import split

transformers = pytest.importorskip("transformers")

PROCESSED: dict[str, dict[str, Any]] = {
    **{PROCESSORS[kind]["image_processor_type"] + kind: PROCESSORS[kind] for kind in PROCESSORS},
    "LeViT": {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 21}}
    | {"crop_size": {"height": 21, "width": 20}},
    "PoolFormer": {"image_processor_type": "PoolFormerImageProcessor", "size": {"shortest_edge": 20}}
    | {"crop_size": {"height": 20, "width": 20}, "crop_pct": 0.95},
    "EfficientNet": {"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 21, "width": 17}}
    | {"rescale_factor": 1 / 127.5, "rescale_offset": True, "resample": 0},
    "an old one": {"feature_extractor_type": "ViTFeatureExtractor", "size": 18, "resample": 3},
    "CLIP": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 18}}
    | {"crop_size": {"height": 18, "width": 18}, "resample": 1},
    "padded": {"image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 16}}
    | {"crop_size": {"height": 21, "width": 22}, "resample": 4},
    "nothing": {"image_processor_type": "ViTImageProcessor", "do_resize": False, "do_normalize": False},
    "pixels": {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False, "resample": 5}
    | {"size": {"height": 19, "width": 16}},
    "fast": {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 16, "width": 18}},
}


@pytest.mark.parametrize("name", PROCESSED)
def test_prepared_pixels_are_those_of_the_processor(name, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSED[name]))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    preparation, layers = split(processor, 3)
    for number, (mode, size) in enumerate((mode, size) for mode in MODES for size in SIZES):
        image = picture(size, mode, seed=number).convert("RGB")  # as transformers' pipeline does it
        ready = np.array(preparation.applied(image))
        plain: dict[str, Any] = {"do_rescale": False, "do_normalize": False, "include_top": False}
        flipped: dict[str, Any] = {} if "bgr" not in name else {"do_flip_channel_order": False}
        named = {key: value for key, value in plain.items() if hasattr(processor, key)} | flipped
        pixels = processor(images=image, **named)["pixel_values"][0]
        assert pixels.dtype == np.uint8
        assert np.array_equal(ready, pixels.transpose(1, 2, 0))
        x = torch.from_numpy(ready).permute(2, 0, 1)[None].float() / 255
        values = torch.from_numpy(np.array(processor(images=image)["pixel_values"][0], dtype=np.float32))
        torch.testing.assert_close(layers(x)[0], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"size": {"shortest_edge": 16, "longest_edge": 32}}, "does not say a height and a width"),
        ({"size": {"height": 5000, "width": 16}}, "1 to 2,048"),
        ({"size": {"height": 0, "width": 16}}, "does not do that alone"),
        ({"resample": 9}, "its resample is 9"),
        ({"image_std": [0, 1, 1]}, "does not do that alone"),
        ({"image_std": [-1, 1, 1]}, "inverts the colours"),
        ({"image_mean": [0.5, 0.5]}, "does not do that alone"),
        ({"do_pad": True, "pad_size": {"height": 20, "width": 20}}, "comes out otherwise"),
    ],
)
def test_what_a_processor_does_beside_is_refused(change, why, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["vit"] | change))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    with pytest.raises(BadInput, match=why):
        split(processor, 3)


def test_a_processor_that_crops_first_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "PerceiverImageProcessor", "size": {"height": 20, "width": 20}})
    )
    with pytest.raises(BadInput, match="does not do that alone"):
        split(transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil"), 3)
