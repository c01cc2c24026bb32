"""epsball: a classifier, a ball, and the worst point in it.

The public names are lazy, so that the command line answers `--help` without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsball.attacks.bim import BIM as BIM
    from epsball.attacks.fgsm import FGSM as FGSM
    from epsball.attacks.noise import SignNoise as SignNoise
    from epsball.attacks.noise import UniformNoise as UniformNoise
    from epsball.attacks.pgd import PGD as PGD
    from epsball.balls import L0 as L0
    from epsball.balls import L1 as L1
    from epsball.balls import L2 as L2
    from epsball.balls import Linf as Linf
    from epsball.data import Examples as Examples
    from epsball.errors import BadInput as BadInput
    from epsball.evaluation import Evaluation as Evaluation
    from epsball.linear.hinge import RobustLinearSVC as RobustLinearSVC
    from epsball.linear.logistic import RobustLogisticRegression as RobustLogisticRegression
    from epsball.linear.paths import RobustLogisticRegressionCV as RobustLogisticRegressionCV
    from epsball.linear.regression import RobustRegressor as RobustRegressor
    from epsball.protocol import evaluate as evaluate
    from epsball.training.fit import fit as fit

__version__ = "0.1.0"

_NAMES = {
    "BIM": "epsball.attacks.bim",
    "FGSM": "epsball.attacks.fgsm",
    "PGD": "epsball.attacks.pgd",
    "SignNoise": "epsball.attacks.noise",
    "UniformNoise": "epsball.attacks.noise",
    "L0": "epsball.balls",
    "L1": "epsball.balls",
    "L2": "epsball.balls",
    "Linf": "epsball.balls",
    "BadInput": "epsball.errors",
    "Evaluation": "epsball.evaluation",
    "Examples": "epsball.data",
    "RobustLinearSVC": "epsball.linear.hinge",
    "RobustLogisticRegression": "epsball.linear.logistic",
    "RobustLogisticRegressionCV": "epsball.linear.paths",
    "RobustRegressor": "epsball.linear.regression",
    "evaluate": "epsball.protocol",
    "fit": "epsball.training.fit",
}
_MODULES = {"attacks", "data", "explain", "linear", "losses", "models", "reproduce", "training"}
__all__ = [
    "BIM",
    "FGSM",
    "L0",
    "L1",
    "L2",
    "PGD",
    "BadInput",
    "Evaluation",
    "Examples",
    "Linf",
    "RobustLinearSVC",
    "RobustLogisticRegression",
    "RobustLogisticRegressionCV",
    "RobustRegressor",
    "SignNoise",
    "UniformNoise",
    "__version__",
    "evaluate",
    "fit",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _MODULES:
        return import_module(f"epsball.{name}")
    raise AttributeError(f"module 'epsball' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
