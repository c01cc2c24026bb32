"""Training: `fit.py` holds the only loop, each objective has a file. The table is literal and needs no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsball.training.augment import Augment as Augment
    from epsball.training.fgsm_mix import FGSMMix as FGSMMix
    from epsball.training.fgsm_rs import FGSMRS as FGSMRS
    from epsball.training.free import Free as Free
    from epsball.training.grad_align import GradAlign as GradAlign
    from epsball.training.gradient_penalty import GradientPenalty as GradientPenalty
    from epsball.training.n_fgsm import NFGSM as NFGSM
    from epsball.training.pgd import PGDTraining as PGDTraining
    from epsball.training.plain import Plain as Plain
    from epsball.training.trades import TRADES as TRADES

OBJECTIVES: dict[str, str] = {
    "plain": "epsball.training.plain:Plain",
    "fgsm-mix": "epsball.training.fgsm_mix:FGSMMix",
    "fgsm-rs": "epsball.training.fgsm_rs:FGSMRS",
    "n-fgsm": "epsball.training.n_fgsm:NFGSM",
    "grad-align": "epsball.training.grad_align:GradAlign",
    "free": "epsball.training.free:Free",
    "pgd": "epsball.training.pgd:PGDTraining",
    "trades": "epsball.training.trades:TRADES",
    "gradient-penalty": "epsball.training.gradient_penalty:GradientPenalty",
    "augment": "epsball.training.augment:Augment",
}


def __getattr__(name: str) -> Any:
    for entry in OBJECTIVES.values():
        module, _, cls = entry.partition(":")
        if name == cls:
            return getattr(import_module(module), cls)
    raise AttributeError(f"module 'epsball.training' has no attribute {name!r}")
