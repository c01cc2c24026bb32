"""What a run was made of, as short digests: enough to refuse a resume that would mix two runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn


def of_tensors(*tensors: Tensor) -> str:
    """A digest of dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def of_model(model: Callable[..., Any]) -> str:
    """A digest of a module's structure, parameters and buffers; for any other callable, its name."""
    if not isinstance(model, nn.Module):
        return f"callable {getattr(model, '__qualname__', type(model).__qualname__)}"
    state = {name: part for name, part in sorted(model.state_dict().items()) if isinstance(part, Tensor)}
    structure = hashlib.sha256(f"{model}{list(state)}".encode()).hexdigest()[:8]
    return f"{type(model).__qualname__} {structure} {of_tensors(*state.values())}"


def described(value: Any) -> Any:
    """A value as JSON can hold it: dataclasses by class and fields, functions by name, tensors by digest.

    >>> from epsball import Linf
    >>> described(Linf(eps=0.3, lo=0, hi=1))
    {'class': 'Linf', 'eps': 0.3, 'lo': 0, 'hi': 1, 'mask': None}
    """
    if isinstance(value, Tensor):
        return f"tensor {of_tensors(value)}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: described(getattr(value, f.name)) for f in fields(value) if not f.name.startswith("_")}
        return {"class": type(value).__qualname__, **parts}
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value
