"""Why there is an adversarial example: one analysis per file, each measures one claim and draws one figure.

The names are lazy: the command line shows its help without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsball.explain.alignment import Direction as Direction
    from epsball.explain.alignment import direction as direction
    from epsball.explain.dimension import Growth as Growth
    from epsball.explain.dimension import growth as growth
    from epsball.explain.every import Answer as Answer
    from epsball.explain.every import Case as Case
    from epsball.explain.every import answers as answers
    from epsball.explain.l1 import L1Equivalence as L1Equivalence
    from epsball.explain.l1 import l1_equivalence as l1_equivalence
    from epsball.explain.line import Linearity as Linearity
    from epsball.explain.line import linearity as linearity
    from epsball.explain.linearised import LocalGrowth as LocalGrowth
    from epsball.explain.linearised import local_growth as local_growth
    from epsball.explain.nearness import Boundary as Boundary
    from epsball.explain.nearness import boundary as boundary
    from epsball.explain.networks import companions as companions
    from epsball.explain.networks import trained as trained
    from epsball.explain.networks import trained_further as trained_further
    from epsball.explain.noise_inputs import Rubbish as Rubbish
    from epsball.explain.noise_inputs import rubbish as rubbish
    from epsball.explain.one_for_all import Universal as Universal
    from epsball.explain.one_for_all import universal as universal
    from epsball.explain.side_by_side import TrainingChanged as TrainingChanged
    from epsball.explain.side_by_side import training_changed as training_changed
    from epsball.explain.steepness import Conditioning as Conditioning
    from epsball.explain.steepness import conditioning as conditioning
    from epsball.explain.subspace import Manifold as Manifold
    from epsball.explain.subspace import manifold as manifold
    from epsball.explain.targeted import Targets as Targets
    from epsball.explain.targeted import targets as targets
    from epsball.explain.taylor import TaylorGap as TaylorGap
    from epsball.explain.taylor import taylor_gap as taylor_gap


_NAMES = {
    "Targets": "epsball.explain.targeted",
    "targets": "epsball.explain.targeted",
    "Universal": "epsball.explain.one_for_all",
    "universal": "epsball.explain.one_for_all",
    "Boundary": "epsball.explain.nearness",
    "boundary": "epsball.explain.nearness",
    "Rubbish": "epsball.explain.noise_inputs",
    "rubbish": "epsball.explain.noise_inputs",
    "Answer": "epsball.explain.every",
    "Case": "epsball.explain.every",
    "answers": "epsball.explain.every",
    "Conditioning": "epsball.explain.steepness",
    "conditioning": "epsball.explain.steepness",
    "Direction": "epsball.explain.alignment",
    "direction": "epsball.explain.alignment",
    "Linearity": "epsball.explain.line",
    "linearity": "epsball.explain.line",
    "LocalGrowth": "epsball.explain.linearised",
    "local_growth": "epsball.explain.linearised",
    "Manifold": "epsball.explain.subspace",
    "manifold": "epsball.explain.subspace",
    "TrainingChanged": "epsball.explain.side_by_side",
    "training_changed": "epsball.explain.side_by_side",
    "companions": "epsball.explain.networks",
    "trained": "epsball.explain.networks",
    "trained_further": "epsball.explain.networks",
    "Growth": "epsball.explain.dimension",
    "growth": "epsball.explain.dimension",
    "L1Equivalence": "epsball.explain.l1",
    "l1_equivalence": "epsball.explain.l1",
    "TaylorGap": "epsball.explain.taylor",
    "taylor_gap": "epsball.explain.taylor",
}
__all__ = [
    "Answer",
    "Boundary",
    "Case",
    "Conditioning",
    "Direction",
    "Growth",
    "L1Equivalence",
    "Linearity",
    "LocalGrowth",
    "Manifold",
    "Rubbish",
    "Targets",
    "TaylorGap",
    "TrainingChanged",
    "Universal",
    "answers",
    "boundary",
    "companions",
    "conditioning",
    "direction",
    "growth",
    "l1_equivalence",
    "linearity",
    "local_growth",
    "manifold",
    "rubbish",
    "targets",
    "taylor_gap",
    "trained",
    "trained_further",
    "training_changed",
    "universal",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'epsball.explain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
