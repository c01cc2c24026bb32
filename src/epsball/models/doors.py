"""The doors: what a user can call a model, and which of them a spec is for. Text only: it can be read without torch."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path

from epsball.common.errors import BadInput
from epsball.models.door import Door
from epsball.models.model_record import RECORD, is_factory, is_folder
from epsball.models.registry import MODELS, canonical

HUB_CONFIG = "config.json"
"""What the folder of a Hugging Face model has."""
ARCHIVES = (".pt2", ".pt", ".pth", ".ts", ".torchscript", ".pkl", ".pickle", ".joblib")
"""Endings of files that may run code when they are read."""

WEIGHTS = (".safetensors", ".ckpt", ".pth.tar", ".bin")
"""Endings of files that hold weights and no network."""
OTHERS = (".keras", ".h5", ".hdf5", ".tflite")
"""Endings of models of other frameworks."""
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def _is_built_in(spec: str) -> bool:
    return canonical(spec.partition(":")[0]) in MODELS


def _is_hub(spec: str) -> bool:
    folder = Path(spec).expanduser()
    return spec.startswith("hf:") or (
        is_folder(spec) and not (folder / RECORD).exists() and (folder / HUB_CONFIG).exists()
    )


def _ends_in(spec: str, *endings: str) -> bool:
    return "://" not in spec and spec.lower().endswith(endings)


DOORS = (
    Door(
        name="built-in",
        spec="small-mlp, small-cnn, preact-resnet18:width=16, maxout",
        what="a network of epsball's own, trained on the spot unless --weights is given",
        opener="epsball.models.opening:open_built_in",
        fits=_is_built_in,
    ),
    Door(
        name="ensemble",
        spec="ensemble:A,B",
        what="several models, whose logits, or probabilities, are averaged",
        opener="epsball.models.ensemble:open_ensemble",
        fits=lambda spec: spec.startswith("ensemble"),
    ),
    Door(
        name="Hugging Face",
        spec="hf:ORG/NAME, or a FOLDER with config.json",
        what="an image classifier of transformers, from the Hub or from a folder; safetensors only",
        opener="epsball.models.hugging_face:open_hugging_face",
        fits=_is_hub,
        extra="hf",
    ),
    Door(
        name="trained folder",
        spec="FOLDER",
        what="what `epsball train --out FOLDER` wrote",
        opener="epsball.models.folder:open_folder",
        fits=is_folder,
    ),
    Door(
        name="timm",
        spec="timm:NAME",
        what="a network of timm, with its pretrained weights or those of --weights",
        opener="epsball.models.timm_model:open_timm",
        fits=lambda spec: spec.startswith("timm:"),
        extra="timm",
    ),
    Door(
        name="ONNX",
        spec="FILE.onnx",
        what="any exported classifier, imported with gradients; --black-box: run by onnxruntime, outputs alone",
        opener="epsball.models.onnx_file:open_onnx",
        fits=lambda spec: _ends_in(spec, ".onnx"),
        extra="onnx",
    ),
    Door(
        name="scikit-learn",
        spec="FILE.skops",
        what="a fitted estimator or pipeline; with gradients where it has some",
        opener="epsball.models.skops_file:open_skops",
        fits=lambda spec: _ends_in(spec, ".skops"),
    ),
    Door(
        name="HTTP",
        spec="https://HOST/v2/models/NAME",
        what="a service that speaks the Open Inference Protocol v2 (KServe, Triton, MLServer), as a black box",
        opener="epsball.models.http_service:open_http",
        fits=lambda spec: spec.startswith(("https://", "http://")),
        extra="http",
    ),
    Door(
        name="archive",
        spec="FILE.pt, FILE.pt2, FILE.pkl, FILE.joblib",
        what="TorchScript, torch.export, pickle, joblib: may run code when it is read, so only with --trust",
        opener="epsball.models.archives:open_archive",
        fits=lambda spec: _ends_in(spec, *ARCHIVES),
    ),
    Door(
        name="factory",
        spec="PACKAGE.MODULE:FUNCTION, FILE.py:FUNCTION",
        what="what your own function returns, with the weights of --weights",
        opener="epsball.models.opening:open_factory",
        fits=is_factory,
    ),
)


def door_of(spec: str) -> Door:
    """The first door that fits `spec`. Raises `BadInput` where none does."""
    for door in DOORS:
        if door.fits(spec):
            return door
    remedy = _remedy(spec)
    if remedy is not None:
        raise BadInput(f"`model` must be a spec that `epsball models` lists, got {spec!r}, which is {remedy}")
    raise BadInput(
        f"`model` must be one of {', '.join(MODELS)}, timm:NAME, module:factory, a file or a folder, as "
        f"`epsball models` lists them, got {spec!r}{_similar_name(spec)}"
    )


def _remedy(spec: str) -> str | None:
    """What a spec is that is often taken for one of a model, and what to name instead."""
    path = Path(spec).expanduser()
    if _ends_in(spec, *WEIGHTS):
        if is_folder(str(path.parent)) and any((path.parent / name).exists() for name in (RECORD, HUB_CONFIG)):
            return f"a file in the folder of a model; name the folder, {path.parent}"
        return f"a file of weights alone; name its network too, --model nets.py:make --weights {spec}"
    if _ends_in(spec, ".py"):
        return f"a file; name the function in it that returns the model, {spec}:FUNCTION"
    if _ends_in(spec, *OTHERS):
        return "a file that epsball does not read; open it in Python and hand over epsball.BlackBox(predict)"
    if HUB_NAME.fullmatch(spec) and not path.exists() and not path.parent.exists():
        return f"no file or folder; for a model of the Hugging Face Hub, name hf:{spec}"
    return None


def names_place(spec: str, within: str | Path) -> bool:
    """Whether `spec` names a file or a folder, relative to the folder `within`. A built-in's name never does."""
    return bool(spec) and not _is_built_in(spec) and (Path(within) / Path(spec).expanduser()).exists()


def needs_trust(spec: str) -> bool:
    """Whether to open what `spec` names runs code of others, or asks a machine: no file may decide that alone."""
    if spec.startswith("ensemble"):
        return True
    return any(door.name in ("factory", "archive", "HTTP") for door in DOORS if door.fits(spec))


def _similar_name(name: str) -> str:
    """The built-in or the folder of a model whose name is most like `name`, as the end of a message."""
    path = Path(name).expanduser()
    folders = [str(path.parent / entry.name) for entry in path.parent.glob("*") if (entry / RECORD).exists()]
    files = [str(path.parent / entry.name) for entry in path.parent.glob("*") if entry.suffix in (".onnx", ".skops")]
    return "".join(
        f"; did you mean {match!r}?" for match in get_close_matches(name, [*MODELS, *folders, *files], 1, 0.5)
    )
