"""Lower bounds of robustness: what no attack in the ball can change, one method a file.

Attacks, which give the other end, are in `attacks/`; both together are in `evaluation/`.
"""

from epsball.common.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__)
