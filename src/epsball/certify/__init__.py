"""Lower bounds of robustness: what no attack in the ball can change, one method a file.

Attacks, which give the other end, are in `attacks/`; both together are in `evaluation/`. The room has the name of its
function, so it can be called: `epsball.certify(model, data, ball)`.
"""

import sys
from types import ModuleType
from typing import Any

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)


class _Callable(ModuleType):
    """This package, which Python puts under the name that its function has in `epsball`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from epsball.certify.certify import certify

        return certify(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
