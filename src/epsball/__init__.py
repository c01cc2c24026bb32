"""epsball: a classifier, a ball, and the worst point in it.

The public names are lazy, so that the command line answers `--help` without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsball.acceleration import Accelerated as Accelerated
    from epsball.acceleration import accelerate as accelerate
    from epsball.active import active_test as active_test
    from epsball.attacks.apgd import APGD as APGD
    from epsball.attacks.bim import BIM as BIM
    from epsball.attacks.cw import CW as CW
    from epsball.attacks.ddn import DDN as DDN
    from epsball.attacks.deepfool import DeepFool as DeepFool
    from epsball.attacks.fab import FAB as FAB
    from epsball.attacks.fgsm import FGSM as FGSM
    from epsball.attacks.fmn import FMN as FMN
    from epsball.attacks.goal_distance import GoalDistance as GoalDistance
    from epsball.attacks.hopskipjump import HopSkipJump as HopSkipJump
    from epsball.attacks.l1_apgd import L1APGD as L1APGD
    from epsball.attacks.lbfgs import BoxLBFGS as BoxLBFGS
    from epsball.attacks.noise import SignNoise as SignNoise
    from epsball.attacks.noise import UniformNoise as UniformNoise
    from epsball.attacks.pgd import PGD as PGD
    from epsball.attacks.sigma_zero import SigmaZero as SigmaZero
    from epsball.attacks.square import Square as Square
    from epsball.attacks.starts import References as References
    from epsball.balls import L0 as L0
    from epsball.balls import L1 as L1
    from epsball.balls import L2 as L2
    from epsball.balls import Linf as Linf
    from epsball.comparison import compare as compare
    from epsball.data import Examples as Examples
    from epsball.diagnosis.record import Diagnosis as Diagnosis
    from epsball.diagnosis.whole import diagnose as diagnose
    from epsball.errors import BadInput as BadInput
    from epsball.evaluation import ActiveTest as ActiveTest
    from epsball.evaluation import Evaluation as Evaluation
    from epsball.imitation import Surrogate as Surrogate
    from epsball.imitation import surrogate as surrogate
    from epsball.linear.hinge import RobustLinearSVC as RobustLinearSVC
    from epsball.linear.logistic import RobustLogisticRegression as RobustLogisticRegression
    from epsball.linear.paths import RobustLogisticRegressionCV as RobustLogisticRegressionCV
    from epsball.linear.regression import RobustRegressor as RobustRegressor
    from epsball.protocol import evaluate as evaluate
    from epsball.queries import BlackBox as BlackBox
    from epsball.training.fit import fit as fit
    from epsball.verification import verify as verify

__version__ = "0.1.0"

_NAMES = {
    "BIM": "epsball.attacks.bim",
    "BoxLBFGS": "epsball.attacks.lbfgs",
    "CW": "epsball.attacks.cw",
    "FAB": "epsball.attacks.fab",
    "GoalDistance": "epsball.attacks.goal_distance",
    "SigmaZero": "epsball.attacks.sigma_zero",
    "DDN": "epsball.attacks.ddn",
    "DeepFool": "epsball.attacks.deepfool",
    "FMN": "epsball.attacks.fmn",
    "FGSM": "epsball.attacks.fgsm",
    "PGD": "epsball.attacks.pgd",
    "APGD": "epsball.attacks.apgd",
    "L1APGD": "epsball.attacks.l1_apgd",
    "HopSkipJump": "epsball.attacks.hopskipjump",
    "References": "epsball.attacks.starts",
    "SignNoise": "epsball.attacks.noise",
    "Square": "epsball.attacks.square",
    "UniformNoise": "epsball.attacks.noise",
    "L0": "epsball.balls",
    "L1": "epsball.balls",
    "L2": "epsball.balls",
    "Linf": "epsball.balls",
    "BadInput": "epsball.errors",
    "ActiveTest": "epsball.evaluation",
    "Evaluation": "epsball.evaluation",
    "Examples": "epsball.data",
    "RobustLinearSVC": "epsball.linear.hinge",
    "RobustLogisticRegression": "epsball.linear.logistic",
    "RobustLogisticRegressionCV": "epsball.linear.paths",
    "RobustRegressor": "epsball.linear.regression",
    "Accelerated": "epsball.acceleration",
    "accelerate": "epsball.acceleration",
    "active_test": "epsball.active",
    "compare": "epsball.comparison",
    "Diagnosis": "epsball.diagnosis.record",
    "diagnose": "epsball.diagnosis.whole",
    "evaluate": "epsball.protocol",
    "BlackBox": "epsball.queries",
    "Surrogate": "epsball.imitation",
    "surrogate": "epsball.imitation",
    "fit": "epsball.training.fit",
    "verify": "epsball.verification",
}
_MODULES = {"attacks", "data", "explain", "linear", "losses", "models", "reproduce", "training"}
__all__ = [
    "APGD",
    "BIM",
    "CW",
    "DDN",
    "FAB",
    "FGSM",
    "FMN",
    "L0",
    "L1",
    "L1APGD",
    "L2",
    "PGD",
    "Accelerated",
    "ActiveTest",
    "BadInput",
    "BlackBox",
    "BoxLBFGS",
    "DeepFool",
    "Diagnosis",
    "Evaluation",
    "Examples",
    "GoalDistance",
    "HopSkipJump",
    "Linf",
    "References",
    "RobustLinearSVC",
    "RobustLogisticRegression",
    "RobustLogisticRegressionCV",
    "RobustRegressor",
    "SigmaZero",
    "SignNoise",
    "Square",
    "Surrogate",
    "UniformNoise",
    "__version__",
    "accelerate",
    "active_test",
    "compare",
    "diagnose",
    "evaluate",
    "fit",
    "surrogate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _MODULES:
        return import_module(f"epsball.{name}")
    raise AttributeError(f"module 'epsball' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
