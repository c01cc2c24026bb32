"""Linear models, where everything is known exactly: the worst point, the radius that flips, and robust training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from epsball.linear.exact import Optimum as Optimum
    from epsball.linear.exact import minimal_eps as minimal_eps
    from epsball.linear.exact import optimum as optimum
    from epsball.linear.folding import Affine as Affine
    from epsball.linear.folding import affine as affine
    from epsball.linear.hinge import RobustLinearSVC as RobustLinearSVC
    from epsball.linear.logistic import RobustLogisticRegression as RobustLogisticRegression
    from epsball.linear.paths import EpsPath as EpsPath
    from epsball.linear.paths import RobustLogisticRegressionCV as RobustLogisticRegressionCV
    from epsball.linear.paths import eps_path as eps_path
    from epsball.linear.radius import eps_max as eps_max
    from epsball.linear.regression import RobustRegressor as RobustRegressor

_NAMES = {
    "Affine": "folding",
    "EpsPath": "paths",
    "Optimum": "exact",
    "RobustLinearSVC": "hinge",
    "RobustLogisticRegression": "logistic",
    "RobustLogisticRegressionCV": "paths",
    "RobustRegressor": "regression",
    "affine": "folding",
    "eps_max": "radius",
    "eps_path": "paths",
    "minimal_eps": "exact",
    "optimum": "exact",
}
__all__ = [
    "Affine",
    "EpsPath",
    "Optimum",
    "RobustLinearSVC",
    "RobustLogisticRegression",
    "RobustLogisticRegressionCV",
    "RobustRegressor",
    "affine",
    "eps_max",
    "eps_path",
    "minimal_eps",
    "optimum",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(f"epsball.linear.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'epsball.linear' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
