"""Why there is an adversarial example: one analysis per file, each measures one claim and draws one figure.

The names are lazy: the command line shows its help without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsball.explain.dimension import Growth as Growth
    from epsball.explain.dimension import growth as growth
    from epsball.explain.l1 import L1Equivalence as L1Equivalence
    from epsball.explain.l1 import l1_equivalence as l1_equivalence
    from epsball.explain.taylor import TaylorGap as TaylorGap
    from epsball.explain.taylor import taylor_gap as taylor_gap

_NAMES = {
    "Growth": "epsball.explain.dimension",
    "growth": "epsball.explain.dimension",
    "L1Equivalence": "epsball.explain.l1",
    "l1_equivalence": "epsball.explain.l1",
    "TaylorGap": "epsball.explain.taylor",
    "taylor_gap": "epsball.explain.taylor",
}
__all__ = ["Growth", "L1Equivalence", "TaylorGap", "growth", "l1_equivalence", "taylor_gap"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'epsball.explain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
