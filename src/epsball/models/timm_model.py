"""The door for timm's image classifiers by name: `timm:NAME`, with pretrained weights, or those of `--weights FILE`.

Its transform for evaluation is resize, centre crop and normalisation. The first two are done to images, and the last
is a layer of the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from epsball.common.errors import BadInput
from epsball.common.limits import check_file
from epsball.models.builtin import Normalize
from epsball.models.door import Asked, Loaded, missing_library
from epsball.models.preparation import Preparation
from epsball.models.weights import load_weights

PREFIX = "timm:"


def open_timm(asked: Asked) -> Loaded:
    """The classifier of timm's that `timm:NAME` names, in eval mode; it takes pixels in [0, 1].

    Its weights are those of `asked.weights`, or timm's pretrained ones, which are fetched from the Hugging Face Hub.
    With a file, the number of classes is `asked.classes`, or what a safetensors file says, or the pretrained model's.
    Names of classes are those that timm knows for its pretrained weights: for ImageNet, the numbers of its synsets.

    Raises `BadInput` for a name that timm lacks, weights that are not there or do not fit, and a model that classifies
    nothing, or whose images are prepared by more than resize and crop.
    """
    try:
        import timm  # pyright: ignore[reportMissingImports] - the extras of `dev` do not bring it
        from timm.data.config import resolve_model_data_config  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_library("timm and torchvision", "timm", error) from error
    except RuntimeError as error:  # of a torchvision that was built for another torch
        raise BadInput(
            f"`model` needs timm, which needs a torchvision that goes with torch {torch.__version__} ({error}); "
            "install both from one index, as https://pytorch.org/get-started says"
        ) from error
    name = asked.spec.removeprefix(PREFIX)
    told = _pretrained_config(timm, name)
    if asked.weights is None:
        model = _pretrained(timm, name, told)
    else:
        path = Path(asked.weights).expanduser()
        classes = asked.classes or _told_classes(path, told.classifier) or told.num_classes
        model = timm.create_model(name, pretrained=False, num_classes=classes)
        load_weights(model, path)
    data = resolve_model_data_config(model)
    preparation = _preparation(name, data)
    mean, std = (", ".join(f"{value:.4g}" for value in data[part]) for part in ("mean", "std"))
    return Loaded(
        model=nn.Sequential(Normalize(list(data["mean"]), list(data["std"])), model).eval(),
        notes=(
            f"{name} of timm with {model.num_classes} classes, and {asked.weights or 'its pretrained weights'}",
            f"images are prepared before the ball is laid around them: {preparation}; the normalisation, "
            f"(x - ({mean})) / ({std}), is a layer of the model, so that eps is in pixels of [0, 1]",
        ),
        label_names=_label_names(timm, model) if asked.weights is None else None,
        shape=preparation.shape,
        preparation=preparation,
    )


def _pretrained_config(timm: Any, name: str) -> Any:
    """What timm knows of a model and its pretrained weights."""
    if not timm.is_model(name):
        similar = get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean timm:{similar[0]}?" if similar else "timm.list_models() has them all"
        raise BadInput(f"`model` must be timm:NAME with a name of timm's, got {name!r}; {hint}")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag that it lacks
        architecture, _, tag = name.partition(".")
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{architecture}.*")]
        raise BadInput(f"`model` {name} must have a tag of timm's, one of {', '.join(tags)}, got {tag!r}") from error


def _pretrained(timm: Any, name: str, told: Any) -> Any:
    """The model with timm's own weights."""
    if not told.num_classes:
        raise BadInput(
            f"`model` must be a classifier, but the pretrained {name} of timm has no classes; for one with a last "
            "layer of yours, name the file of its weights with --weights"
        )
    if not told.has_weights:
        raise BadInput(f"`weights` must be given, since timm has none for {name}; name a file of them with --weights")
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the Hub's client, the network and the reader of the weights raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"`weights` of timm:{name} could not be fetched from {told.hf_hub_id or told.url} ({reason}); where "
            "they are in a file, name it with --weights"
        ) from error


def _told_classes(path: Path, classifier: str | tuple[str, ...] | None) -> int | None:
    """The number of classes by the last layer in a safetensors file."""
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() != ".safetensors" or not path.is_file() or classifier is None:
        return None
    last = classifier if isinstance(classifier, str) else classifier[0]
    try:
        check_file(path)
        with safe_open(path, "pt") as tensors:
            shape = tensors.get_slice(f"{last}.weight").get_shape()
    except (OSError, SafetensorError):  # the reader of the weights says what is wrong
        return None
    return int(shape[0]) if shape else None


def _preparation(name: str, data: Mapping[str, Any]) -> Preparation:
    """What timm's transform for evaluation does to an image before it normalises (`timm.data.transforms_factory`)."""
    channels, height, width = data["input_size"]
    mode, share = data["crop_mode"] or "center", data["crop_pct"]
    if mode not in ("center", "squash") or height != width or channels not in (1, 3) or len(data["mean"]) != channels:
        raise BadInput(
            f"`model` must take square images, grey or RGB, cropped at their centre, but {name} of timm takes "
            f"{channels}x{height}x{width}, {mode!r}; prepare the images, and hand over the model, in Python"
        )
    side = math.floor(height / share)
    return Preparation(
        resize=(side, side) if mode == "squash" else side,
        crop=(height, width),
        interpolation=data["interpolation"],
        channels=channels,
        centre="even",
    )


def _label_names(timm: Any, model: Any) -> tuple[str, ...] | None:
    """The names of the classes of pretrained weights: those told with them, else ImageNet's by their number."""
    names = model.pretrained_cfg.get("label_names")
    if names is None and (subset := timm.data.infer_imagenet_subset(model)) is not None:
        names = timm.data.ImageNetInfo(subset).label_names()
    names = None if names is None else tuple(map(str, names))
    return names if names is not None and len(names) == len(set(names)) == model.num_classes else None
