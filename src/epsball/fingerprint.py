"""What a run was made of, as short digests: enough to refuse a resume that would mix two runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
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
        return f"callable {described(model)}"
    state = {name: part for name, part in sorted(model.state_dict().items()) if isinstance(part, Tensor)}
    structure = hashlib.sha256(f"{model}{list(state)}".encode()).hexdigest()[:8]
    return f"{type(model).__qualname__} {structure} {of_tensors(*state.values())}"


def _code(function: Callable[..., Any]) -> str:
    """A function by name, and where it is the user's by its code, defaults and enclosed numbers too."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    code = getattr(function, "__code__", None)
    if code is None or getattr(function, "__module__", "").startswith("epsball."):
        return name
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    held = [described(part) for part in (*cells, *(function.__defaults__ or ())) if not isinstance(part, nn.Module)]
    made = f"{code.co_code}{[c for c in code.co_consts if not hasattr(c, 'co_code')]}{code.co_names}{held}"
    return f"{name} {hashlib.sha256(made.encode()).hexdigest()[:8]}"


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
    if isinstance(value, partial):
        return {"partial": described(value.func), "args": described(value.args), "keywords": described(value.keywords)}
    if isinstance(value, tuple | list):
        return [described(part) for part in value]
    if isinstance(value, dict):
        return {str(name): described(part) for name, part in value.items()}
    if callable(value):
        return _code(value)
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value
