"""The folder of a Hugging Face model: fetched where it is a name on the Hub, and looked at before a library reads it.

Only JSON and safetensors are read. What would run code (pickles, `auto_map`), or read other files than those of the
folder, is refused, and so are sizes that no weights of the folder could have.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from epsball.common.errors import BadInput
from epsball.common.limits import MOST_TEXT, check_file, parse_json, read_bytes
from epsball.models.door import missing_library

CONFIG, PROCESSOR, PROCESSORS = "config.json", "preprocessor_config.json", "processor_config.json"
WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
FETCHED = (CONFIG, PROCESSOR, PROCESSORS, INDEX, ADAPTER, "model*.safetensors")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")
MOST_WHOLE = 1 << 20
"""The greatest whole number in a configuration, and sum of a list of them: sizes and counts, before they are used."""
REFUSED = {
    "auto_map": "it names code of its own, which is never run: load it yourself where you trust it, and hand over the "
    "module in Python",
    "quantization_config": "its weights are quantized, which leaves no exact gradients: save it in floating point",
    "transformers_weights": "it names a file of weights, which is not looked for: call it model.safetensors",
}
"""Entries of a configuration, and what they mean."""


@dataclass(frozen=True)
class HubFolder:
    """A folder that was looked at: `config` and `processor` (None: it has none) are what its JSON files say.

    `tensors` is the number of tensors in its weights, `size` that of their bytes.
    """

    path: Path
    config: dict[str, Any]
    processor: dict[str, Any] | None
    tensors: int
    size: int


def hub_folder(name: str) -> HubFolder:
    """The folder `name`, or that of the model org/name on the Hub, which is fetched, or taken from the cache.

    Raises `BadInput` for what is not found, holds anything but a model in JSON and safetensors, or would run code.
    """
    path = _local(name) or _fetched(name)
    config = _json(path / CONFIG, "copy the folder again")
    if "model_type" not in config and "architecture" in config:
        raise BadInput(
            f"`model` {name} is a model of timm's; name it timm:{config['architecture']}, with --weights "
            f"{path / WEIGHTS}"
        )
    if (path / ADAPTER).exists():
        raise BadInput(
            f"`model` must be a whole model, but {path} has an adapter of another one ({ADAPTER}); merge it, and save "
            "the merged model: model.merge_and_unload().save_pretrained(folder)"
        )
    tensors, size = _weights(path)
    return HubFolder(path, config, _processor(path), tensors, size)


def _local(name: str) -> Path | None:
    """The folder of that name here; None where it can only be a name on the Hub."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        if not (path / CONFIG).exists():
            raise BadInput(f"`model` must be a folder of a Hugging Face model, got {name}, which has no {CONFIG}")
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        similar = get_close_matches(path.name, [one.name for one in path.parent.glob("*") if one.is_dir()], n=1)
        hint = f"; did you mean {str(path.parent / similar[0])!r}?" if similar else ""
        raise BadInput(f"`model` must be a folder, or org/name on the Hugging Face Hub, got {name!r}{hint}")
    return None


def _fetched(name: str) -> Path:
    """The folder in the cache of the Hub's client."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise missing_library("huggingface_hub", "hf", error) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(FETCHED)))
    except Exception as error:  # whatever the client, the network and the disk raise
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BadInput(
            f"`model` hf:{name} could not be fetched from the Hugging Face Hub ({reason}); where the Hub can be "
            f"reached, run `hf download {name} --local-dir FOLDER`, and name that folder"
        ) from error


def _json(path: Path, remedy: str) -> dict[str, Any]:
    """What a configuration says, with numbers that may be sizes, and nothing that would run code."""
    try:
        found = parse_json(read_bytes(path))
        if not isinstance(found, dict):
            raise BadInput(f"it holds {type(found).__name__} and not named values")
        _check_numbers(found)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is missing or damaged ({error}); {remedy}") from error
    for part in _parts(found):
        for key, why in REFUSED.items():
            if isinstance(part, dict) and part.get(key):
                raise BadInput(f"`model` must be one that needs no more than its weights, but {path} has {key}: {why}")
    return found


def _check_numbers(found: dict[str, Any]) -> None:
    for part in _parts(found):
        pairs = part.items() if isinstance(part, dict) else enumerate(part)
        numbers = {key: value for key, value in pairs if isinstance(value, int | float)}
        large = [key for key, value in numbers.items() if not abs(value) <= MOST_WHOLE]
        if large or (isinstance(part, list) and sum(map(abs, numbers.values())) > MOST_WHOLE):
            where = f"{large[0]!r}" if large and isinstance(part, dict) else "a list"
            raise BadInput(f"{where} must have numbers up to {MOST_WHOLE:,}")


def _parts(whole: Any) -> Iterator[dict[str, Any] | list[Any]]:
    """All objects and lists in what a JSON file says; it is not deep."""
    if isinstance(whole, dict | list):
        yield whole
        for part in whole.values() if isinstance(whole, dict) else whole:
            yield from _parts(part)


def _processor(path: Path) -> dict[str, Any] | None:
    """What the folder says of the preparation of images, which may be a part of another file."""
    remedy = "save it again: AutoImageProcessor.from_pretrained(...).save_pretrained(folder)"
    if (path / PROCESSORS).exists():
        several = _json(path / PROCESSORS, remedy)
        if isinstance(several.get("image_processor"), dict):
            return several["image_processor"]
    return _json(path / PROCESSOR, remedy) if (path / PROCESSOR).exists() else None


def _weights(path: Path) -> tuple[int, int]:
    """The number of tensors, and of bytes, in the weights of a folder."""
    if (path / WEIGHTS).exists():
        files = [path / WEIGHTS]
    elif (path / INDEX).exists():
        places = _json(path / INDEX, "copy the folder again").get("weight_map")
        names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise BadInput(f"{path / INDEX} must name safetensors files of its own folder, got {names[:3]}")
        files = [path / name for name in names]
    else:
        raise BadInput(_without_weights(path))
    counted = [_header(file) for file in files]
    return sum(counted), sum(file.stat().st_size for file in files)


def _header(file: Path) -> int:
    """The number of tensors of a safetensors file, by its header."""
    from safetensors import SafetensorError, safe_open

    try:
        check_file(file)
        with open(file, "rb") as stream:
            start = stream.read(8)
        if len(start) < 8 or not 2 <= struct.unpack("<Q", start)[0] <= MOST_TEXT:
            raise BadInput(f"it must begin with the length of its header, at most {MOST_TEXT >> 20} MiB")
        with safe_open(file, "pt") as tensors:
            return len(tensors.keys())
    except (OSError, ValueError, MemoryError, SafetensorError) as error:
        raise BadInput(f"{file} is missing or no safetensors file ({error}); copy the folder again") from error


def _without_weights(path: Path) -> str:
    pickles = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
    if not pickles:
        return f"`model` must be a folder with {WEIGHTS}, got {path}, which has no weights; copy the folder again"
    return (
        f"`model` must have its weights as safetensors, got {path} with {pickles[0]}: such files may run code when "
        "they are read; where it can be trusted, convert it once: "
        f"`AutoModelForImageClassification.from_pretrained({str(path)!r}).save_pretrained({str(path)!r})`"
    )
