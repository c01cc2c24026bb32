"""The door for image classifiers of Hugging Face's transformers: a folder with `config.json`, or a name on the Hub.

The network is transformers' own class with the weights of safetensors files. No code of a folder is run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from epsball.common.errors import BadInput
from epsball.models.door import Asked, Loaded, missing_library
from epsball.models.factory import UNASKED
from epsball.models.given import WithLogits
from epsball.models.hub_folder import CONFIG, PROCESSOR, HubFolder, hub_folder
from epsball.models.image_processor import split
from epsball.models.preparation import Preparation

PREFIX = "hf:"
SPARE_TENSORS = 64
"""So many tensors more than its weights, and four times as many, a network may have: some are renamed or split."""
MOST_CLASSES = 100_000
"""The most classes of a model; those of ImageNet-21k are 21,843."""
PROCESSOR_NAME = re.compile(r"(\w+?)(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)")
"""What the classes of image processors are called, in every version of transformers."""
SHOWN = 5
"""How many names of tensors an error lists."""


def open_hugging_face(asked: Asked) -> Loaded:
    """The image classifier that `hf:org/name`, or a folder with `config.json`, names, in float32 and eval mode.

    What its image processor does splits: resize and crop are `Loaded.preparation`, the normalisation is a layer in
    front of the model, which takes pixels in [0, 1]. The names of the classes are the configuration's.

    Raises `BadInput` for what is not found, no image classifier of one class per image, weights that do not fit, or are
    not safetensors, a folder that names code of its own, and a processor that does more than can be split.
    """
    try:
        import transformers
    except ImportError as error:
        raise missing_library("transformers", "hf", error) from error
    name = asked.spec.removeprefix(PREFIX)
    if asked.weights is not None:
        raise BadInput(f"`weights` must be left out with {asked.spec}, which has its own, got {asked.weights}")
    folder = hub_folder(name)
    with _quiet(transformers):
        config = _config(transformers, folder)
        processor = _processor(transformers, folder, config)
        preparation, layers = split(processor, getattr(config, "num_channels", 3))
        network, notes = _network(transformers, folder, config)
    names, clash = _label_names(config)
    return Loaded(
        model=nn.Sequential(*layers, WithLogits(network)).eval(),
        notes=(
            f"{type(network).__name__} of transformers with {config.num_labels} classes, from {folder.path}",
            _said(preparation, layers),
            *notes,
            *clash,
        ),
        label_names=names,
        shape=preparation.shape,
        preparation=preparation,
    )


def _said(preparation: Preparation, layers: nn.Sequential) -> str:
    """What was done with a processor, in one sentence."""
    done = f"images are prepared before the ball is laid around them: {preparation}"
    if not len(layers):
        return f"{done}; the model takes pixels in [0, 1] as they are"
    parts = [
        f"(x - {_numbers(layer.mean)}) / {_numbers(layer.std)}" if hasattr(layer, "mean") else "BGR" for layer in layers
    ]
    return f"{done}; the normalisation, {', '.join(parts)}, is a layer of the model, so that eps is in pixels of [0, 1]"


def _numbers(values: Any) -> str:
    found = [f"{value:.4g}" for value in values.tolist()]
    return found[0] if len(set(found)) == 1 else f"({', '.join(found)})"


def _config(transformers: Any, folder: HubFolder) -> Any:
    """The configuration as transformers reads it, of a model that gives each image one class."""
    kind = folder.config.get("model_type")
    known = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if not isinstance(kind, str) or kind not in known or kind == "timm_wrapper":
        what = "a model of timm's in transformers' wrapping" if kind == "timm_wrapper" else f"of the type {kind!r}"
        raise BadInput(
            f"`model` must be an image classifier of transformers, but {folder.path} is {what}; such are: "
            f"{', '.join(sorted(set(known) - {'timm_wrapper'}))}"
        )
    try:
        if max(folder.config.get("num_labels") or 0, len(folder.config.get("id2label") or ())) > MOST_CLASSES:
            raise BadInput(f"it must have at most {MOST_CLASSES:,} classes, got more")
        config = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind].from_dict(folder.config)
        count, problem = int(config.num_labels), config.problem_type
    except Exception as error:  # whatever a configuration's own checks raise
        raise BadInput(
            f"{folder.path / CONFIG} is none of a {kind} ({_reason(error)}); copy the folder again"
        ) from error
    if problem == "multi_label_classification":
        raise BadInput(
            f"`model` must give each image one class, but {folder.path} is a multi-label model, which gives it "
            "several; wrap the one that matters: a module whose only output is that logit"
        )
    if problem == "regression" or count < 2:
        raise BadInput(f"`model` must be a classifier of 2 classes or more, but {folder.path} is a regression")
    return config


def _processor(transformers: Any, folder: HubFolder, config: Any) -> Any:
    if folder.processor is None:
        raise BadInput(
            f"`model` must say how images are prepared, but {folder.path} has no {PROCESSOR}; save it into the folder: "
            "AutoImageProcessor.from_pretrained(...).save_pretrained(folder)"
        )
    named = folder.processor.get("image_processor_type") or folder.processor.get("feature_extractor_type")
    kind = None if named is None else PROCESSOR_NAME.fullmatch(str(named))
    try:
        if named is not None and kind is None:
            raise BadInput(f"{named} is none")
        found = transformers.AutoImageProcessor.from_pretrained(
            folder.path, backend="pil", config=config, trust_remote_code=False, local_files_only=True
        )
        if kind is not None and not type(found).__name__.startswith(f"{kind[1]}ImageProcessor"):
            raise BadInput(f"{named} is not known to transformers {transformers.__version__}")
    except Exception as error:  # whatever a processor's own checks raise
        raise BadInput(
            f"{folder.path / PROCESSOR} is no image processor that works without torchvision ({_reason(error)}); "
            "copy the folder again, or install a newer transformers"
        ) from error
    return found


def _network(transformers: Any, folder: HubFolder, config: Any) -> tuple[nn.Module, list[str]]:
    """The network with its weights, and what there is to say of them."""
    auto = transformers.AutoModelForImageClassification
    try:
        with torch.device("meta"), _at_most(folder):
            sketch = auto.from_config(config, trust_remote_code=False, attn_implementation="eager")
        attention = "sdpa" if getattr(sketch, "_supports_sdpa", False) else "eager"
        network, info = auto.from_pretrained(
            folder.path,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            dtype=torch.float32,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except BadInput:
        raise
    except Exception as error:  # whatever a network's constructor and the reader of its weights raise
        raise BadInput(
            f"`model` must fit its weights, but {folder.path} does not: {_reason(error)}; is {CONFIG} that of these "
            "weights?"
        ) from error
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        raise BadInput(
            f"`model` must have all of its weights, but {folder.path} lacks {shown}, which transformers would draw at "
            f"random; is it a model that was trained as {type(network).__name__}?"
        )
    notes = []
    if unexpected := sorted(info["unexpected_keys"]):
        notes.append(f"{len(unexpected)} tensors of its weights are not used by it, such as {unexpected[0]}")
    stored = folder.config.get("dtype") or folder.config.get("torch_dtype")
    if stored not in (None, "float32"):
        notes.append(f"its weights are stored in {stored}, and used in float32")
    return network, notes


@contextmanager
def _at_most(folder: HubFolder) -> Iterator[None]:
    """Raise `BadInput` as soon as a network that is built has far more numbers, or tensors, than its weights."""
    most, most_tensors = max(UNASKED, folder.size), SPARE_TENSORS + 4 * folder.tensors
    numbers = tensors = 0

    def count(module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal numbers, tensors
        numbers, tensors = numbers + (0 if parameter is None else parameter.numel()), tensors + 1
        if numbers > most or tensors > most_tensors:
            raise BadInput(
                f"`model` must fit its weights, but by {folder.path / CONFIG} it is far larger: more than {numbers:,} "
                f"numbers in {tensors:,} tensors, with weights of {folder.size:,} bytes in {folder.tensors:,}; is it "
                "the configuration of these weights?"
            )

    handle = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _label_names(config: Any) -> tuple[tuple[str, ...] | None, list[str]]:
    """The names of the classes, where they have some, and what there is to say of them."""
    names = [str(config.id2label.get(number, "")) for number in range(config.num_labels)]
    if any(not name or re.fullmatch(r"LABEL_\d+", name) for name in names):
        return None, []
    twice = [name for name, times in Counter(names).items() if times > 1]
    if not twice:
        return tuple(names), []
    numbered = tuple(f"{name} ({number})" if name in twice else name for number, name in enumerate(names))
    return numbered, [f"classes of the same name have their number added: {', '.join(twice[:SHOWN])}"]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the progress bars and warnings of transformers; on leaving they are as they were."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
