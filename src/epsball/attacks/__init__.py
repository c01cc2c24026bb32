"""The attacks, one algorithm a file: `init` says where a row begins, `step` where it looks next.

`attack` is what they share, `registry` finds them by name. A new attack is a file here and a line in `__init__.pyi`:
its public name, command-line name, docs row and shared tests follow. Who drives attacks is `engine`.
"""

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
