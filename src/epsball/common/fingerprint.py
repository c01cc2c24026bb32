"""What a run was made of, as short digests: enough to refuse a resume that would mix two runs.

A user's function is known by its code and by what it holds, any other object by its class and its state, taken apart
as pickle would. What cannot be taken apart is like nothing else, not even like itself, so a resume with it is refused.
What a function finds by name in its module is not seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from math import isfinite
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

UNLIKE = "cannot be compared"
"""What the fingerprint says of an object that cannot be taken apart, and of all that hold one."""


def of_tensors(*tensors: Tensor) -> str:
    """A digest of dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def of_model(model: Callable[..., Any]) -> str:
    """A digest of a module's structure, parameters and buffers; of any other callable, its name and code.

    The state of a callable object is left out: it may count its calls, and its logits tell it from another.
    """
    if not isinstance(model, nn.Module):
        plain = getattr(model, "__func__", model)  # of a method
        known = isinstance(plain, FunctionType | BuiltinFunctionType | partial)
        return f"callable {described(plain) if known else _class(type(plain))}"
    state = {name: part for name, part in sorted(model.state_dict().items()) if isinstance(part, Tensor)}
    structure = hashlib.sha256(f"{model}{list(state)}".encode()).hexdigest()[:8]
    return f"{type(model).__qualname__} {structure} {of_tensors(*state.values())}"


def described(value: Any) -> Any:
    """A value as JSON can hold it: dataclasses by class and fields, functions by name, tensors by digest.

    >>> from epsball import Linf
    >>> described(Linf(eps=0.3, lo=0, hi=1))
    {'class': 'Linf', 'eps': 0.3, 'lo': 0, 'hi': 1, 'mask': None}
    """
    return _described(value, ())


def _described(value: Any, within: tuple[int, ...]) -> Any:
    """`within` are the objects that hold the value, by id: one may hold itself."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, Tensor):
        return f"tensor {of_tensors(value)}"
    if isinstance(value, nn.Module):
        return of_model(value)
    if isinstance(value, bytes | bytearray):
        return f"bytes {hashlib.sha256(value).hexdigest()[:16]}"
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, ModuleType):
        return value.__name__
    if id(value) in within:
        return "itself"

    def inner(part: Any) -> Any:
        return _described(part, (*within, id(value)))

    if is_dataclass(value):
        parts = {f.name: inner(getattr(value, f.name)) for f in fields(value) if f.repr or not _ours(type(value))}
        return {"class": _class(type(value)), **parts}
    if isinstance(value, partial):
        return {"partial": inner(value.func), "args": inner(value.args), "keywords": inner(value.keywords)}
    if isinstance(value, tuple | list):
        return [inner(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((inner(part) for part in value), key=str)
    if isinstance(value, dict):
        return {str(name): inner(part) for name, part in value.items()}
    if isinstance(value, FunctionType):
        if _ours(value):
            return value.__qualname__
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]  # one may be empty
        held = inner([*cells, value.__defaults__, value.__kwdefaults__])
        return _digest(value.__qualname__, _body(value.__code__), held)
    try:
        made = value.__reduce_ex__(4)
    except Exception:  # an object refuses with whatever error it likes
        return f"{type(value).__qualname__}, which {UNLIKE} ({uuid4().hex[:8]})"
    if isinstance(made, str):  # what has a name of its own, such as a function in C
        return made
    return _digest(_class(type(value)), inner([*made[:3], *(list(items or ()) for items in made[3:5])]))


def _class(cls: type) -> str:
    """A class by name, and where it is the user's by the code of its methods too."""
    methods = [
        (name, _body(method.__code__))
        for base in cls.__mro__
        if not _ours(base)
        for name, part in vars(base).items()
        if isinstance(method := getattr(part, "__func__", part), FunctionType)
    ]
    return cls.__qualname__ if _ours(cls) or not methods else _digest(cls.__qualname__, methods)


def _ours(thing: Any) -> bool:
    return (thing.__module__ or "").startswith("epsball.")


def _body(code: CodeType) -> list[Any]:
    """What a function does: its instructions, their constants (functions within it are some), the names they use."""
    consts = [
        _body(part) if isinstance(part, CodeType) else sorted(map(repr, part)) if isinstance(part, frozenset) else part
        for part in code.co_consts
    ]
    return [code.co_code.hex(), *map(repr, consts), *code.co_names]


def _digest(name: str, *parts: Any) -> str:
    text = json.dumps(parts)
    unlike = f", holds what {UNLIKE}" if UNLIKE in text else ""
    return f"{name} {hashlib.sha256(text.encode()).hexdigest()[:8]}{unlike}"
