"""Tiny image classifiers of transformers, with their image processors, saved by the library itself; and images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

NAMES = ("cat", "dog", "emu")
MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "CMYK")
SIZES = ((40, 31), (17, 53), (16, 16), (9, 12), (35, 35), (64, 48))
"""(H, W) of images: larger and smaller than what models take, odd and even."""


def config_of(kind: str, **more: Any) -> Any:
    """The configuration of a tiny model of a type, with three named classes."""
    import transformers

    sizes: dict[str, dict[str, Any]] = {
        "vit": {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 32}
        | {"num_hidden_layers": 2, "num_attention_heads": 2},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "mobilenet_v2": {"depth_multiplier": 0.1, "min_depth": 4, "expand_ratio": 2},
    }
    named = {"id2label": dict(enumerate(NAMES)), "label2id": {name: place for place, name in enumerate(NAMES)}}
    return transformers.AutoConfig.for_model(kind, **sizes[kind] | named | more)


def model_of(kind: str, **more: Any) -> Any:
    """Such a model, whose logits differ between images: batch norms have statistics, and weights are not tiny."""
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForImageClassification.from_config(config_of(kind, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
        if kind in ("resnet", "mobilenet_v2"):
            model.train()(pixel_values=torch.rand(32, 3, 32, 32))
    return model.eval()


PROCESSORS: dict[str, dict[str, Any]] = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}},
    "resnet": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 24}, "crop_pct": 0.875},
    "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    "mobilenet_v2": {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "size": {"shortest_edge": 37},
        "crop_size": {"height": 32, "width": 32},
    },
    "bgr": {
        "image_processor_type": "MobileViTImageProcessor",
        "size": {"shortest_edge": 36},
        "crop_size": {"height": 32, "width": 32},
    },
}
"""What the processor of each says, beside the defaults of its class; "bgr" is that of MobileViT, for a ResNet."""


def saved(folder: Path, kind: str = "vit", processor: dict[str, Any] | None = None, **more: Any) -> Path:
    """A folder with such a model, as transformers writes it."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model_of("resnet" if kind == "bgr" else kind, **more).save_pretrained(folder)
    finally:
        logging.enable_progress_bar()
    (folder / "preprocessor_config.json").write_text(json.dumps(processor or PROCESSORS[kind]))
    return folder


def changed(folder: Path, name: str, **values: Any) -> Path:
    """The folder, with other entries in one of its JSON files."""
    file = folder / name
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return folder


def picture(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    """An image of noise over a gradient, (H, W)."""
    height, width = size
    noise = np.random.default_rng(seed).integers(0, 128, (height, width, 3))
    slope = np.linspace(0, 127, height)[:, None, None] * np.ones((1, width, 3))
    return Image.fromarray((noise + slope).astype(np.uint8)).convert(mode)


def pictures(folder: Path, classes: tuple[str, ...] = NAMES, each: Callable[[int], str] = MODES.__getitem__) -> Path:
    """An image folder: in each class as many images as there are `SIZES`, of different sizes and modes."""
    for place, name in enumerate(classes):
        (folder / "test" / name).mkdir(parents=True)
        for number, size in enumerate(SIZES):
            image = picture(size, each(number), seed=10 * place + number)
            image.save(folder / "test" / name / f"{number}.{'tif' if image.mode == 'CMYK' else 'png'}")
    return folder
