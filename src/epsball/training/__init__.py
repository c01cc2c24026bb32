"""Robust training: one objective a file, one loop (`fit`, `loop`). `registry` finds objectives by name.

A new objective is a file here and a line in `__init__.pyi`. How robust the result is, `evaluation` measures.
"""

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
