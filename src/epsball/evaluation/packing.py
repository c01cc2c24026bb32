"""The plan of a run as bytes, which a worker process on this or another machine unpacks.

What a user defines in a notebook, a script or a file that is named by its path travels with the plan (cloudpickle).
TorchScript is saved as an archive, an archive of torch.export is opened anew by its path, with the weights of now. A
tensor on a GPU goes to the worker's, or to its CPU where it has none. Examples stay behind, and so does an accelerated
network, which a worker makes anew by its record.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from epsball.common.errors import BadInput
from epsball.common.version import __version__
from epsball.evaluation.plan import EvaluationPlan
from epsball.models.door import Asked
from epsball.models.factory import read_modules
from epsball.models.frozen import held_modules
from epsball.models.model_record import LABEL_NAMES
from epsball.models.opening import OPENED_AS, open_model

VERSIONS = f"epsball {__version__}, torch {torch.__version__}"
"""What driver and workers must have in common."""


@dataclass(frozen=True)
class Numerics:
    """The settings of torch on which the bits of a result depend."""

    threads: int
    dtype: torch.dtype
    matmul: str
    cudnn: tuple[bool, bool, bool]
    deterministic: bool

    @classmethod
    def here(cls) -> Self:
        """Those of this process."""
        cudnn = torch.backends.cudnn
        return cls(
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32),
            torch.are_deterministic_algorithms_enabled(),
        )

    def set(self) -> None:
        """Take them over."""
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_float32_matmul_precision(self.matmul)
        cudnn = torch.backends.cudnn
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = self.cudnn
        torch.use_deterministic_algorithms(self.deterministic)


@dataclass(frozen=True)
class Header:
    """What a worker has to know before it unpacks a plan: its versions must be the driver's, and it imports modules
    from the driver's `paths`, too, where they are on its machine."""

    versions: str
    paths: tuple[str, ...]
    numerics: Numerics
    on_gpu: bool


def packed(plan: EvaluationPlan, *, on_gpu: bool) -> bytes:
    """The plan as it is sent to workers. Raises `BadInput` where a part of it cannot be pickled."""
    from ray import cloudpickle

    class Pickler(cloudpickle.CloudPickler):  # type: ignore[reportPrivateImportUsage]
        def reducer_override(self, obj: Any) -> Any:
            return reduced(obj) or super().reducer_override(obj)

    travelling = read_modules()
    folders = [str(Path(module.__file__ or "").parent) for module in travelling]
    paths = tuple(dict.fromkeys([*filter(None, sys.path), os.getcwd(), *folders]))
    file = io.BytesIO()
    pickle.dump(Header(VERSIONS, paths, Numerics.here(), on_gpu), file)
    for module in travelling:
        cloudpickle.register_pickle_by_value(module)
    try:
        Pickler(file).dump(replace(plan, accelerated=None))
    except Exception as error:  # whatever the parts of somebody's model raise
        why = " ".join(str(error).split())[:300]
        raise BadInput(
            "`workers` need a model, attacks and data that can be pickled, which these cannot "
            f"({type(error).__name__}: {why}); name the model by what epsball.load takes, or run in one process with "
            "workers=None"
        ) from error
    finally:
        for module in travelling:
            cloudpickle.unregister_pickle_by_value(module)
    return file.getvalue()


def reduced(obj: Any) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
    """How an object is pickled that does not say so itself; None for all others."""
    if isinstance(obj, torch.jit.ScriptModule):
        file = io.BytesIO()
        torch.jit.save(obj, file)
        return _script, (file.getvalue(), obj.training, getattr(obj, LABEL_NAMES, None))
    if isinstance(obj, GraphModule) and OPENED_AS in vars(obj):
        asked = vars(obj)[OPENED_AS]
        asked = replace(asked, spec=str(Path(asked.spec).expanduser().absolute()))
        state = {name: tensor.cpu() for name, tensor in obj.state_dict().items()}
        return _opened_again, (asked, state, getattr(obj, LABEL_NAMES, None))
    return None


def _script(data: bytes, training: bool, names: tuple[str, ...] | None) -> nn.Module:
    model = torch.jit.load(io.BytesIO(data), map_location="cpu")
    model.train(training)
    return _named(model, names)


def _opened_again(asked: Asked, state: dict[str, Tensor], names: tuple[str, ...] | None) -> nn.Module:
    model = open_model(asked).model
    assert isinstance(model, nn.Module)
    model.load_state_dict(state)
    return _named(model, names)


def _named(model: nn.Module, names: tuple[str, ...] | None) -> nn.Module:
    if names is not None:
        setattr(model, LABEL_NAMES, names)
    return model


def unpacked(data: bytes) -> EvaluationPlan:
    """The plan, with its models on their device; torch is set as it is to be run with.

    Raises `BadInput` where this process has other versions, or lacks a module or a file that the plan needs.
    """
    file = io.BytesIO(data)
    header: Header = pickle.load(file)
    if header.versions != VERSIONS:
        raise BadInput(
            f"`workers` must have the versions of the driver, {header.versions}, got {VERSIONS} on "
            f"{socket.gethostname()}; install the same on all machines"
        )
    sys.path.extend(path for path in header.paths if path not in sys.path)
    header.numerics.set()
    try:
        plan: EvaluationPlan = _Unpickler(file).load()
    except (ImportError, AttributeError) as error:
        raise BadInput(
            f"`workers` must be able to import what model, attacks and data are made of, got {type(error).__name__}: "
            f"{error} on {socket.gethostname()}; install it there, or submit the run with its working directory"
        ) from error
    if header.on_gpu:
        for module in [*held_modules(plan.model), *held_modules(plan.source)]:
            module.to("cuda")
    plan.rows.open_for(plan.model)
    return plan


class _Unpickler(pickle.Unpickler):
    """With tensors of a GPU on this process's first one, or on the CPU."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return _storage
        return super().find_class(module, name)


def _storage(data: bytes) -> Any:
    gpu = torch.cuda.is_available()

    def placed(storage: Any, place: str) -> Any:
        return storage.cuda() if gpu and place != "cpu" else storage

    return torch.load(io.BytesIO(data), map_location=placed, weights_only=False)
