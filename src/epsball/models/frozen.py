"""The torch modules behind a model, and the model as it is attacked: in eval mode, with frozen parameters.

A user's model may be a module, or any callable around some: a lambda, a method, a partial, an object. All modules that
are found are treated alike. Flags are set one by one and put back one by one, and `train()` and `eval()` are never
called: some modules do more in them (LoRA merges its weights there), and a network may be in eval mode in parts.
"""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from epsball.common.undo import Undo

LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "sklearn", "pandas", "httpx", "builtins")
"""Objects of these packages hold no module of the user's, and their functions name none."""
SERVICES = ("epsball.models.http_service", "epsball.models.http_client")
"""Neither do objects of these modules, whose models run elsewhere."""
MAX_DEPTH, MAX_ITEMS, MAX_OBJECTS = 6, 64, 4096
"""How far a callable is followed, and how many items of a container, and objects in all, are looked at."""
NO_CELL = CellType()
OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def held_modules(model: object) -> list[nn.Module]:
    """The modules that a model is made of, each once: its own submodules, or all that a callable holds.

    A callable is followed through closures, defaults, arguments of a partial, the self of a method, the globals that
    its code reads, and the attributes of objects; a module also through what it keeps in plain lists and functions.

    >>> net = nn.Sequential(nn.Linear(2, 2))
    >>> held_modules(lambda x: net(x).softmax(1)) == held_modules(net) == [net, net[0]]
    True
    """
    found: dict[int, nn.Module] = {}
    seen: dict[int, object] = {}
    waiting: deque[tuple[object, int]] = deque([(model, 0)])
    while waiting and len(seen) < MAX_OBJECTS:
        value, depth = waiting.popleft()
        if id(value) in seen or depth > MAX_DEPTH:
            continue
        seen[id(value)] = value
        if isinstance(value, nn.Module):
            for module in value.modules():
                if id(module) not in found:
                    found[id(module)] = module
                    seen[id(module)] = module
                    waiting += [(part, depth + 1) for part in _unregistered(module)]
        else:
            waiting += [(part, depth + 1) for part in _parts(value)]
    return list(found.values())


def _unregistered(module: nn.Module) -> list[object]:
    """What a module keeps beside its submodules and may call: functions, and containers of modules."""
    kinds = (list, tuple, dict, FunctionType, MethodType, partial)
    return [
        value
        for name, value in vars(module).items()
        if name not in OF_EVERY_MODULE and isinstance(value, kinds) and (callable(value) or value)
    ]


def _parts(value: object) -> list[object]:
    """What an object that is no module holds, as far as a call of it may lead there."""
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if cell != NO_CELL]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *_globals(value)]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, BuiltinMethodType):
        return [value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict):
        return list(value.values())[:MAX_ITEMS]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)[:MAX_ITEMS]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, type | ModuleType | Tensor | str | bytes | int | float | complex) or value is None:
        return []
    if _of_library(type(value)):
        return []
    slots = [getattr(value, name, None) for cls in type(value).__mro__ for name in _slots(cls)]
    methods = [
        part
        for cls in type(value).__mro__
        if not _of_library(cls)
        for part in vars(cls).values()
        if isinstance(part, FunctionType | staticmethod | classmethod | nn.Module)
    ]
    return [*getattr(value, "__dict__", {}).values(), *slots, *methods]


def _slots(cls: type) -> tuple[str, ...]:
    slots = vars(cls).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _of_library(thing: Any) -> bool:
    name = getattr(thing, "__module__", None) or ""
    return name.partition(".")[0] in LIBRARIES or name in SERVICES


def _globals(function: FunctionType) -> list[object]:
    """The global values that a user's function reads by name, also as an attribute of a Python module."""
    if _of_library(function):
        return []
    values: list[object] = []
    names = function.__globals__
    for name, attribute in _names_read(function.__code__):
        value = names.get(name)
        if isinstance(value, ModuleType):
            value = None if attribute is None or _of_library_module(value) else vars(value).get(attribute)
        values.append(value)
    return values


def _of_library_module(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] in LIBRARIES


@lru_cache(maxsize=512)
def _names_read(code: CodeType) -> tuple[tuple[str, str | None], ...]:
    """(global name, the attribute that is read of it next) of a function's code and of the functions in it."""
    names: list[tuple[str, str | None]] = []
    pending: str | None = None
    for step in dis.get_instructions(code):
        reads_attribute = step.opname in ("LOAD_ATTR", "LOAD_METHOD")
        if pending is not None:
            names.append((pending, step.argval if reads_attribute else None))
        pending = step.argval if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") else None
    inner = [part for part in code.co_consts if isinstance(part, CodeType)]
    return tuple(dict.fromkeys([*names, *(name for part in inner for name in _names_read(part))]))


@contextmanager
def frozen(model: Callable[..., Any], *, evaluating: bool = True) -> Iterator[None]:
    """The model with frozen parameters and, `evaluating`, in eval mode; on leaving, all is as it was.

    That is, `training` and `requires_grad` of every module and parameter and, `evaluating`, the values of the buffers,
    which a forward pass may change. Each is put back by itself, also where the return of another one fails.
    """
    with Undo() as stack:
        modules = held_modules(model)
        if evaluating:
            stack.enter_context(restored_buffers(modules))
        for module in modules:
            if evaluating and hasattr(module, "training"):  # a frozen script has none
                stack.callback(setattr, module, "training", module.training)
                if module.training:
                    module.training = False
            for parameter in module._parameters.values():
                if parameter is not None and parameter.requires_grad and parameter.is_leaf:
                    stack.callback(parameter.requires_grad_, True)
                    parameter.requires_grad_(False)
        yield


@contextmanager
def restored_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """On leaving, the modules' buffers hold what they held. Backward passes must be over by then: they may read them.

    A buffer that did not change is left alone, as a graph of the caller's may need it.
    """
    with Undo() as stack:
        for owner, name, buffer in buffers_of(modules):
            if not buffer.is_inference():
                stack.callback(_put_back, owner, name, buffer, buffer.detach().clone())
        yield


def buffers_of(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Tensor]]:
    """(module, name, buffer) of each buffer, once."""
    found: dict[int, tuple[nn.Module, str, Tensor]] = {}
    for owner in modules:
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                found.setdefault(id(buffer), (owner, name, buffer))
    return list(found.values())


def _put_back(owner: nn.Module, name: str, buffer: Tensor, value: Tensor) -> None:
    script = isinstance(owner, torch.jit.ScriptModule)  # hands out its tensors anew, each time
    if not script and owner._buffers.get(name) is not buffer:  # a forward pass put another tensor in its place
        owner._buffers[name] = buffer
    if not torch.equal(buffer, value):
        with torch.no_grad():
            buffer.copy_(value)
