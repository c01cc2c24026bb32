"""Training: `fit.py` holds the only loop, each objective has a file. The table is literal and needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsball.training.plain import Plain as Plain

OBJECTIVES: dict[str, str] = {
    "plain": "epsball.training.plain:Plain",
}


def __getattr__(name: str) -> Any:
    for entry in OBJECTIVES.values():
        module, _, cls = entry.partition(":")
        if name == cls:
            return getattr(import_module(module), cls)
    raise AttributeError(f"module 'epsball.training' has no attribute {name!r}")
